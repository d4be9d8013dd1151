"""Replacing an issuing CA: ``securecore pki rotate-ca``."""

from pathlib import Path

import click

from securecore.cli.authority.options import asking, day, dir_option, now, open_directory, passphrase_option

EPILOG = """\b
Examples:
  securecore pki rotate-ca hosts start      then distribute ca.pem and crl.pem to every receiver
  securecore pki rotate-ca hosts switch     then renew the hosts
  securecore pki rotate-ca hosts finish     then distribute ca.pem and crl.pem again
"""


@click.command(name="rotate-ca", epilog=EPILOG)
@click.argument("which", type=click.Choice(["hosts", "receivers"]))
@click.argument("step", type=click.Choice(["start", "switch", "finish"]))
@dir_option
@click.option("--force", is_flag=True, help="Finish although some have no certificate of the new CA.")
@passphrase_option
def rotate_ca(which: str, step: str, directory: Path, force: bool, passphrase_file: Path | None) -> None:
    """Replace the hosts CA or the receivers CA, in three steps; everybody can send throughout.

    start makes the new CA (it needs the root's key) and signs with the old one still; switch signs with the new one; finish lets
    the old one go.
    """
    from securecore.pki import rotation

    pki, profile = open_directory(directory), rotation.ROTATED[which]
    distribute = f"copy {pki.ca_path} and {pki.crl_path} over those of every receiver, and send it SIGHUP"
    if step == "start":
        done = rotation.start(pki, profile, asking(passphrase_file), now())
        click.echo(f"made a new {profile.name} in {done.folder}, valid until {day(done.certificate.not_valid_after_utc)}")
        click.echo(f"next: {distribute}")
        click.echo(f"  when each has them: securecore pki rotate-ca {which} switch")
    elif step == "switch":
        done = rotation.switch(pki, profile, now())
        click.echo(f"the new {profile.name} in {done.folder} signs from now on")
        click.echo(f"next: renew the {which} (pki/runbooks/renew.md), then: securecore pki rotate-ca {which} finish")
    else:
        done = rotation.finish(pki, profile, now(), is_forced=force)
        click.echo(f"the {profile.name} in {done.folder} counts no more: keep its certificate, destroy its key")
        click.echo(f"next: {distribute}")
