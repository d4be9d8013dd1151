"""``securecore receive``: run a receiver."""

import json
import logging
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from securecore.cli.options import DEFAULT_RECEIVER_IDENTITY, address, incomplete_after_option, json_option, store_option
from securecore.names import Address

if TYPE_CHECKING:
    from securecore.receiver.server import Receiver

_STDERR: Final = 2
"""By its number: what stands in the place of sys.stderr, as in a test, may have no descriptor."""

EPILOG = """\b
Examples:
  securecore receive --listen 0.0.0.0:4455 --listen [::]:4455 --identity receiver-identity
  securecore receive -v --listen 127.0.0.1:0 --store /tmp/store --identity receiver-identity
  securecore receive --json --listen localhost:0 --store /tmp/store --identity receiver-identity
SIGHUP loads the identity again (new certificate, new CRL); SIGTERM or Ctrl-C lets dumps in flight finish, a second one does not.
"""


@click.command("receive", epilog=EPILOG)
@click.option(
    "--listen", multiple=True, required=True, type=address, metavar="HOST:PORT",
    help="Where to listen; may be repeated. A name stands for all its addresses, [::] for IPv6 alone, port 0 for any free port.",
)  # fmt: skip
@store_option
@click.option(
    "--identity", type=click.Path(path_type=Path), default=DEFAULT_RECEIVER_IDENTITY, show_default=True,
    help="The receiver's identity directory.",
)  # fmt: skip
@incomplete_after_option
@click.option("-v", "--verbose", is_flag=True, help="Show each connection and how far its dumps are, on standard error.")
@click.option("--check", is_flag=True, help="Test identity and store, then leave.")
@json_option
def command(
    listen: tuple[Address, ...],
    store_path: str,
    identity: Path,
    incomplete_after: timedelta,
    verbose: bool,
    check: bool,
    as_json: bool,
) -> None:
    """Take dumps from hosts into a store, until SIGTERM.

    The store is made when its directory is absent or empty. One receiver at a time may append to a store. Once it listens it says
    where on standard output, a line for each address, or with --json one document in one line; the log goes to standard error.
    """
    from securecore.receiver.server import ReceiverSettings, check_settings, run

    settings = ReceiverSettings(listen, Path(store_path), identity, incomplete_after)
    if check:
        name = check_settings(settings)
        words = f"ok: {identity} is {name}'s, and {store_path} is a store or can become one"
        click.echo(json.dumps({"receiver": str(name), "store": store_path}) if as_json else words)
        return
    with closing(_start_log(verbose)):
        run(settings, lambda receiver: _announce(receiver, store_path, as_json))


def _start_log(verbose: bool) -> logging.Handler:
    """Send the log to standard error, and return what to close so that the last lines are there when the process ends."""
    from securecore.receiver.log_writer import LogWriter

    # Python has no stderr when the process was started without one; descriptor 2 may then be any file.
    handler = LogWriter(_STDERR) if sys.stderr is not None else logging.NullHandler()
    # Padded for a person who watches; without -v each line is what programs have been reading so far.
    level = "%(levelname)-7s" if verbose else "%(levelname)s"
    logging.basicConfig(handlers=[handler], level=logging.INFO, format=f"%(asctime)s {level} %(message)s")
    if verbose:
        logging.getLogger("securecore.receiver").setLevel(logging.DEBUG)
    return handler


def _announce(receiver: "Receiver", store_path: str, as_json: bool) -> None:
    """Say on standard output where the receiver listens: what a person reads, or what a script asks for the port."""
    if as_json:
        document: dict[str, Any] = {
            "listening": [{"address": str(bound), "host": bound.host, "port": bound.port} for bound in receiver.addresses],
            "receiver": str(receiver.material.own.name), "store": store_path, "store_id": str(receiver.store_id),
        }  # fmt: skip
        click.echo(json.dumps(document))
    else:
        for bound in receiver.addresses:
            click.echo(f"listening on {bound} (TLS 1.3, client certificate required), store {store_path}")
    sys.stdout.flush()
