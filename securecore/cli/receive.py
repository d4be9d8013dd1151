"""``securecore receive``: run a receiver."""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from securecore.cli.options import (
    DEFAULT_RECEIVER_IDENTITY,
    DEFAULT_STORE,
    address,
    find_store,
    incomplete_after_option,
    json_option,
)
from securecore.errors import ConfigError, SecurecoreError
from securecore.names import Address
from securecore.receiver.installation import CONFIGURATION

if TYPE_CHECKING:
    from securecore.receiver.server import Receiver
    from securecore.receiver.settings import ReceiverSettings

_STDERR: Final = 2
"""By its number: what stands in the place of sys.stderr, as in a test, may have no descriptor."""

EPILOG = """\b
Examples:
  securecore receive --listen 0.0.0.0:4455 --listen [::]:4455 --identity receiver-identity
  securecore receive -v --listen 127.0.0.1:0 --store /tmp/store --identity receiver-identity
  securecore receive --json --listen localhost:0 --store /tmp/store --identity receiver-identity
  securecore receive --check --config receiver.toml
SIGHUP loads the file and the identity again (new limits, new certificate, new CRL), and no connection ends; SIGTERM or Ctrl-C lets
dumps in flight finish, a second one does not.
"""


class _Given(NamedTuple):
    """What the command line says; None and empty where it says nothing. It wins over the file."""

    config: Path | None
    listen: tuple[Address, ...]
    store: str | None
    identity: Path | None
    incomplete_after: timedelta | None


@click.command("receive", epilog=EPILOG)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE",
    help=f"Configuration; the other options win over it. Without --listen it is {CONFIGURATION}, with --listen there is none.",
)  # fmt: skip
@click.option(
    "--listen", multiple=True, type=address, metavar="HOST:PORT",
    help="Where to listen; may be repeated. A name stands for all its addresses, [::] for IPv6 alone, port 0 for any free port.",
)  # fmt: skip
@click.option(
    "--store", "store_path", envvar="SECURECORE_STORE", metavar="STORE", show_default=f"that of FILE, or {DEFAULT_STORE}",
    help="Directory of the store; also $SECURECORE_STORE, but not against a --config.",
)  # fmt: skip
@click.option(
    "--identity", type=click.Path(path_type=Path), show_default=f"that of FILE, or {DEFAULT_RECEIVER_IDENTITY}",
    help="The receiver's identity directory.",
)  # fmt: skip
@incomplete_after_option
@click.option("-v", "--verbose", is_flag=True, help="Show each connection and how far its dumps are, on standard error.")
@click.option("--check", is_flag=True, help="Judge configuration, identity and store, say all that is wrong with them, and leave.")
@json_option
def command(
    config: Path | None,
    listen: tuple[Address, ...],
    store_path: str | None,
    identity: Path | None,
    incomplete_after: timedelta | None,
    verbose: bool,
    check: bool,
    as_json: bool,
) -> int:
    """Take dumps from hosts into a store, until SIGTERM.

    The store is made when its directory is absent or empty. One receiver at a time may append to a store. Once it listens it says
    where on standard output, a line for each address, or with --json one document in one line; the log goes to standard error.
    """
    from securecore.receiver.server import run

    store_path = find_store(store_path, config)
    if config is None and not listen:
        config = Path(CONFIGURATION)
        if not config.exists():
            raise click.UsageError(f"missing option '--listen': there is no {config}")
    given = _Given(config, listen, store_path, identity, incomplete_after)
    if check:
        return _check(given, as_json)
    with closing(_start_log(verbose)):
        run(partial(_read_settings, given), partial(_announce, as_json=as_json))
    return 0


def _read_settings(given: _Given) -> "ReceiverSettings":
    """Return what the file says now, but for what is given; raises NotFoundError and ConfigError."""
    from securecore.receiver.configuration import ReceiverConfiguration, load_configuration
    from securecore.receiver.settings import ReceiverSettings

    said = load_configuration(given.config) if given.config is not None else ReceiverConfiguration()
    listen = given.listen or said.listen
    if not listen:
        hint = 'write `listen = ["0.0.0.0:4455"]`, or give --listen'
        raise ConfigError(f"{given.config}: listen is missing", hint=hint)
    return ReceiverSettings(
        listen,
        Path(given.store or said.store),
        given.identity or Path(said.identity),
        given.incomplete_after or said.incomplete_after,
        said.policy,
    )


def _check(given: _Given, as_json: bool) -> int:
    """Say that a receiver could run, or all that keeps it from it; return the exit code of the first of these things, or 0."""
    from securecore.receiver.configuration import ConfigurationRefused
    from securecore.receiver.fitness import check_settings

    try:
        settings = _read_settings(given)
    except ConfigurationRefused as error:
        return _refuse(error.mistakes, as_json)
    name, wrong = check_settings(settings)
    if wrong:
        return _refuse(wrong, as_json)
    if as_json:
        click.echo(json.dumps({"receiver": str(name), "store": str(settings.store)}))
        return 0
    file = f"{given.config} is understood, " if given.config is not None else ""
    click.echo(f"ok: {file}{settings.identity} is {name}'s, and {settings.store} is a store or can become one")
    return 0


def _refuse(wrong: Sequence[SecurecoreError], as_json: bool) -> int:
    """Say each thing as the command line says the one that ends a command, and return the exit code of the first."""
    if as_json:
        first, *further = (
            {"name": error.name, "message": error.message, "hint": error.hint, "exit_code": error.exit_code} for error in wrong
        )
        click.echo(json.dumps({"error": first, "further": further}))
    else:
        for error in wrong:
            click.echo(f"securecore: {error.message}", err=True)
            if error.hint:
                click.echo(f"  hint: {error.hint}", err=True)
    return wrong[0].exit_code


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


def _announce(receiver: "Receiver", as_json: bool) -> None:
    """Say on standard output where the receiver listens: what a person reads, or what a script asks for the port."""
    if as_json:
        document: dict[str, Any] = {
            "listening": [{"address": str(bound), "host": bound.host, "port": bound.port} for bound in receiver.addresses],
            "receiver": str(receiver.material.own.name), "store": str(receiver.store_path), "store_id": str(receiver.store_id),
        }  # fmt: skip
        click.echo(json.dumps(document))
    else:
        for bound in receiver.addresses:
            click.echo(f"listening on {bound} (TLS 1.3, client certificate required), store {receiver.store_path}")
    sys.stdout.flush()
