"""``securecore renew``: another while for a host's certificate, from an enroller."""

from pathlib import Path
from typing import Final

import click

from securecore.cli.authority.options import day, now
from securecore.cli.options import address
from securecore.names import Address

EPILOG: Final = """\b
Examples:
  securecore renew --identity /etc/securecore/identity                from a timer, each day: it renews when that is due
  securecore renew --identity /etc/securecore/identity --now --new-key
"""


@click.command(epilog=EPILOG)
@click.option("--identity", type=click.Path(path_type=Path), required=True, help="This host's identity directory.")
@click.option(
    "--to",
    "enroller",
    type=address,
    metavar="ADDR:PORT",
    show_default="where it was enrolled, or renewed last",
    help="The enroller to ask, from now on.",
)
@click.option("--new-key", is_flag=True, help="Make a new key, which takes the old one's place together with its certificate.")
@click.option("--now", "is_forced", is_flag=True, help="Renew whether or not it is due.")
def command(identity: Path, enroller: Address | None, new_key: bool, is_forced: bool) -> None:
    """Renew this host's certificate once a third of its life is left, by the certificate that it has.

    One that has expired can't be renewed: `securecore enroll` with a new token gives the host another.
    """
    from securecore.pki.enrolling import renew_when_due

    own, installed = renew_when_due(identity, now(), enroller, is_rekey=new_key, is_forced=is_forced)
    if installed is None:
        due = own.not_after - (own.not_after - own.not_before) / 3
        click.echo(f"not due: {own.name} has a certificate until {day(own.not_after)}, and renews it from {day(due)} on")
        return
    click.echo(f"{identity} is host {own.name} until {day(own.not_after)}")
    click.echo(f"  serial  {own.serial:x}")
    if installed.is_new_key:
        click.echo("  the new key has taken the old one's place")
