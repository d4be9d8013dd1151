"""``securecore receive``: run a receiver."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from securecore.cli.options import DEFAULT_RECEIVER_IDENTITY, address, store_option
from securecore.names import Address

EPILOG = """\b
Examples:
  securecore receive --listen 0.0.0.0:4455 --identity receiver-identity
  securecore receive --listen 127.0.0.1:0 --store /tmp/store --identity receiver-identity
SIGHUP loads the identity again (new certificate, new CRL); SIGTERM lets dumps in flight finish.
"""


@click.command("receive", epilog=EPILOG)
@click.option("--listen", multiple=True, required=True, type=address, metavar="HOST:PORT", help="Where to listen; may be repeated.")
@store_option
@click.option(
    "--identity", type=click.Path(path_type=Path), default=DEFAULT_RECEIVER_IDENTITY, show_default=True,
    help="The receiver's identity directory.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Test identity and store, then leave.")
def command(listen: tuple[Address, ...], store_path: str, identity: Path, check: bool) -> None:
    """Take dumps from hosts into a store, until SIGTERM.

    The store is made when its directory is absent or empty. One receiver at a time may append to a store.
    """
    from securecore.receiver.server import ReceiverSettings, check_settings, run

    settings = ReceiverSettings(listen, Path(store_path), identity)
    if check:
        name = check_settings(settings)
        click.echo(f"ok: {identity} is {name}'s, and {store_path} is a store or can become one")
        return
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run(settings, lambda addresses: _announce(addresses, store_path))


def _announce(addresses: Sequence[Address], store_path: str) -> None:
    for bound in addresses:
        click.echo(f"listening on {bound} (TLS 1.3, client certificate required), store {store_path}")
    sys.stdout.flush()
