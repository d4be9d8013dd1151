"""Enrolment on line, where the PKI is and at a receiver: ``securecore pki token``, ``serve`` and ``fetch``."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from securecore.cli import terminal
from securecore.cli.authority.options import asking, dir_option, echo_json, host_name, now, open_directory, passphrase_option
from securecore.cli.options import address, duration, json_option
from securecore.errors import ConfigError, StorageError
from securecore.names import Address

if TYPE_CHECKING:
    from securecore.pki.directory import PkiDirectory
    from securecore.pki.ledger import State, Token

_STDERR: Final = 2

_USUAL_LIFE: Final = "1h"
"""Of a token: time to log in to a host, and to go and fetch somebody who may."""

MAKING_EPILOG: Final = """\b
Examples:
  securecore pki token web-1 --ttl 1h
  securecore pki token --list
  securecore pki token --recall 5f3c0a1b2c3d4e5f
"""

SERVE_EPILOG: Final = """\b
Examples:
  securecore pki serve --listen 0.0.0.0:4456 --dir fleet-pki --identity enroller-identity
  securecore pki serve --listen [::]:4456 --identity enroller-identity --passphrase-file /run/credentials/hosts-ca
"""

FETCH_EPILOG: Final = """\b
Examples:
  securecore pki fetch enrol.acme.example:4456 --identity receiver-identity
  securecore pki fetch --identity receiver-identity                                   where it was fetched last, as the timer does
  securecore pki fetch enrol.acme.example:4456 --identity receiver-identity --drop    once, after `pki rotate-ca ... finish`
"""


@click.command(epilog=MAKING_EPILOG)
@click.argument("host", required=False)
@dir_option
@click.option("--ttl", type=duration, default=_USUAL_LIFE, show_default=True, help="How long it counts: 15m, 2d; a week at most.")
@click.option("--list", "is_list", is_flag=True, help="List the tokens that there are, instead.")
@click.option("--recall", metavar="ID", help="Have the token with this id count no more, instead.")
@json_option
def token(host: str | None, directory: Path, ttl: timedelta, is_list: bool, recall: str | None, as_json: bool) -> None:
    """Make a token with which HOST, and no other, can enrol once. It is printed this once, alone on standard output.

    Whoever has it can enrol as HOST while it counts: bring it there as you would a password.
    """
    from securecore.pki.ledger import format_time
    from securecore.pki.tokens import make_token, recall_token

    if (host is not None) + is_list + (recall is not None) != 1:
        raise click.UsageError("give a HOST, or --list, or --recall ID")
    pki = open_directory(directory)
    if is_list:
        _list_tokens(pki.ledger.read(), as_json)
        return
    if recall is not None:
        made = recall_token(pki, recall, now())
        click.echo(f"token {made.id} for {made.name} counts no more")
        return
    if sys.stdout is None:
        raise ConfigError("standard output is closed, and a token is printed there or nowhere")
    text, made = make_token(pki, host_name(host or "", pki), ttl, now())
    with _recalled_unless_printed(pki, made):
        if as_json:
            echo_json({"token": text, "id": made.id, "host": made.name, "expires": format_time(made.expires)})
            return
        click.echo(text)
    click.echo(f"token {made.id} is for {made.name}, once, until {made.expires:%Y-%m-%d %H:%M} UTC", err=True)
    click.echo("next: on the host: securecore enroll ADDR:PORT --ca-fingerprint HEX --token-file - --identity IDENTITY", err=True)


@contextmanager
def _recalled_unless_printed(pki: "PkiDirectory", made: "Token") -> Iterator[None]:
    """Recall a token that could not be printed: nobody has it, or somebody a part of what was on its way to another.

    Raises StorageError for what the disk or pipe behind standard output said.
    """
    from securecore.pki.tokens import recall_token

    is_printed = False
    try:
        yield
        is_printed = True
    except OSError as error:
        raise StorageError(f"the token can't be printed, and is recalled: {error.strerror}") from error
    finally:
        if not is_printed:
            recall_token(pki, made.id, now())


@click.command(epilog=SERVE_EPILOG)
@click.option(
    "--listen", multiple=True, required=True, type=address, metavar="HOST:PORT", help="Where to listen; may be repeated."
)
@dir_option
@click.option("--identity", type=click.Path(path_type=Path), required=True, help="The enroller's identity directory.")
@click.option("--note", type=click.Path(path_type=Path), help="A file elsewhere, to note how far the ledger has come.")
@passphrase_option
def serve(
    listen: tuple[Address, ...], directory: Path, identity: Path, note: Path | None, passphrase_file: Path | None
) -> None:
    """Enrol hosts by token, renew them, and give receivers CAs and CRLs, until SIGTERM.

    Of the CA keys it needs that of the hosts CA only: keep the others elsewhere. It signs the CRLs that are due, at the start and
    each hour, for the keys that it has, and takes a renewed certificate of its own; on SIGHUP at once. Where it listens is said on
    standard output, the log goes to standard error.

    From an older copy of the PKI, in which used tokens are open again, nobody is certified. That of the whole directory, put back
    while nothing ran, shows only with --note.
    """
    from securecore.pki.enroller import Enroller
    from securecore.pki.serving import Server
    from securecore.receiver.listeners import bound_address
    from securecore.receiver.listeners import listen as listeners_of
    from securecore.receiver.log_writer import LogWriter

    # A reload that comes while we start asks for nothing: what we are about to load is the newest there is.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pki = open_directory(directory)
    enroller = Enroller(pki, asking(passphrase_file), now, note)
    handler = LogWriter(_STDERR) if sys.stderr is not None else logging.NullHandler()
    logging.basicConfig(handlers=[handler], level=logging.INFO, format="%(asctime)s %(message)s")
    with ExitStack() as undo:
        undo.enter_context(closing(handler))
        listeners = [undo.enter_context(one) for where in listen for one in listeners_of(where)]
        server = Server(listeners, enroller, identity, logging.getLogger("securecore.enroller").info, now)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: server.stop())
        signal.signal(signal.SIGHUP, lambda _number, _frame: server.reload())
        for one in listeners:
            click.echo(f"listening on {bound_address(one)} (TLS 1.3), PKI {directory}")
        sys.stdout.flush()
        server.serve()


@click.command(epilog=FETCH_EPILOG)
@click.argument("enroller", metavar="[ADDR:PORT]", type=address, required=False)
@click.option("--identity", type=click.Path(path_type=Path), required=True, help="The receiver's identity directory.")
@click.option("--drop", is_flag=True, help="Let go of CAs that are there no more: after a rotation that was finished.")
def fetch(enroller: Address | None, identity: Path, drop: bool) -> None:
    """Fetch the CAs and CRLs for a receiver, whole or not at all, and never older ones than it has.

    Who gives them must be an enroller of the fleet whose root the receiver has already. A new root is not taken this way. Without
    ADDR:PORT it is the one that gave them last. A receiver that runs notices by itself, within a minute.
    """
    from securecore.pki.enrolling import read_enroller
    from securecore.pki.fetching import fetch as fetch_lists

    asked = enroller or read_enroller(identity, "give ADDR:PORT")
    fetched = fetch_lists(asked, identity, now(), is_dropping=drop)
    words = f"{terminal.count(fetched.cas, 'CA')}, {terminal.count(fetched.lists, 'CRL')}"
    if not fetched.is_new:
        click.echo(f"nothing new: {words}")
        return
    click.echo(f"put {words} into {identity}")
    click.echo("a receiver that runs takes them within a minute, and at once when it gets SIGHUP")


def _list_tokens(state: "State", as_json: bool) -> None:
    from securecore.pki.ledger import format_time

    moment = now()
    if as_json:
        echo_json(
            [
                {
                    "id": one.id,
                    "host": one.name,
                    "state": one.state(moment),
                    "expires": format_time(one.expires),
                    "serial": None if one.used_for is None else f"{one.used_for:x}",
                }
                for one in state.tokens.values()
            ]
        )
        return
    rows = [(one.id, one.name, one.state(moment), f"{one.expires:%Y-%m-%d %H:%M}") for one in state.tokens.values()]
    terminal.table(("ID", "HOST", "STATE", "EXPIRES (UTC)"), rows)
