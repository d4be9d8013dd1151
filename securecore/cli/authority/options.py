"""What the commands of ``securecore pki`` share: the PKI directory, its passphrase, names and dates."""

import os
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from securecore.errors import ConfigError, PkiError

if TYPE_CHECKING:
    from securecore.certs.judge import Judgement
    from securecore.names import HostName
    from securecore.pki.directory import PkiDirectory

_MAX_PASSPHRASE_BYTES: Final = 1024

dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path("securecore-pki"),
    envvar="SECURECORE_PKI",
    show_default="$SECURECORE_PKI or ./securecore-pki",
    help="The PKI directory.",
)
passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="Read the CA keys' passphrase from the first line of a file (mode 0600) or a pipe.",
)


def now() -> datetime:
    """Return the moment of this command."""
    return datetime.now(UTC)


def day(moment: datetime) -> str:
    """Return a date for people."""
    return moment.strftime("%Y-%m-%d")


def open_directory(directory: Path) -> "PkiDirectory":
    """Return the PKI in a directory; raises NotFoundError or ConfigError."""
    from securecore.pki.directory import open_pki

    return open_pki(directory)


def host_name(name: str, pki: "PkiDirectory") -> "HostName":
    """Return a full name; one without a dot is completed with the fleet's domain."""
    from securecore.identity import host_from_operator

    return host_from_operator(name, pki.domain)


def serial_number(text: str) -> int:
    """Return a serial number as openssl, browsers and we print them: hexadecimal, with or without colons and 0x."""
    digits = text.strip().lower().replace(":", "").removeprefix("0x")
    if not digits or len(digits) > 64 or any(digit not in "0123456789abcdef" for digit in digits):
        raise PkiError(f"not a serial number: {text[:100]!a}", hint="hexadecimal digits, as `securecore pki list` prints them")
    return int(digits, 16)


def new_passphrase(file: Path | None, none: bool) -> bytes | None:
    """Return the passphrase for a new PKI, or None when the person says that there shall be none."""
    if file is not None and none:
        raise click.UsageError("--passphrase-file and --no-passphrase exclude each other")
    if none:
        return None
    if file is not None:
        return secret_from(file, "the passphrase")
    if not sys.stdin.isatty():
        hint = "give --passphrase-file FILE, or --no-passphrase where the directory itself is safe"
        raise ConfigError("the CA keys need a passphrase, and there is no terminal to ask for one", hint=hint)
    text: str = click.prompt("passphrase for the CA keys", hide_input=True, confirmation_prompt=True, err=True)
    return text.encode()


def asking(file: Path | None) -> Callable[[], bytes]:
    """Return how to get the passphrase of an existing PKI, should a key turn out to be locked."""

    def ask() -> bytes:
        if file is not None:
            return secret_from(file, "the passphrase")
        if not sys.stdin.isatty():
            words = "the CA key is locked, and there is no terminal to ask for its passphrase"
            raise ConfigError(words, hint="give --passphrase-file FILE")
        text: str = click.prompt("passphrase of the CA keys", hide_input=True, err=True)
        return text.encode()

    return ask


def root_fingerprint(text: str) -> str:
    """Return a SHA-256 fingerprint as openssl and we print them: hexadecimal, with or without colons."""
    digits = text.strip().lower().replace(":", "")
    if len(digits) != 64 or any(digit not in "0123456789abcdef" for digit in digits):
        hint = "64 hexadecimal digits, as `securecore pki inspect` prints them"
        raise PkiError(f"not a SHA-256 fingerprint: {text[:100]!a}", hint=hint)
    return digits


def secret_from(path: Path, what: str) -> bytes:
    """Return the first line of a file or pipe, - for standard input; a file must be its owner's alone, as private keys must."""
    from securecore.certs.private_file import read_private

    try:
        if str(path) == "-":
            return _first_line(sys.stdin.buffer.readline(_MAX_PASSPHRASE_BYTES), path, what)
        is_pipe = stat.S_ISFIFO(path.stat().st_mode)
        data = _read_pipe(path) if is_pipe else read_private(path, _MAX_PASSPHRASE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {what} can't be read: {error.strerror}") from error
    return _first_line(data, path, what)


def _first_line(data: bytes, path: Path, what: str) -> bytes:
    line = data.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise ConfigError(f"{path}: its first line is empty, and {what} is expected there")
    return line


def _read_pipe(path: Path) -> bytes:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC)) as pipe:
        return pipe.read(_MAX_PASSPHRASE_BYTES)


def echo_installed(identity: Path, judged: "Judgement") -> None:
    """Say whose an identity directory is by now, and under which root."""
    from securecore.certs.chain import fingerprint

    click.echo(f"{identity} is {judged.purpose.value} {judged.name} until {day(judged.not_after)}")
    click.echo(f"  serial  {judged.serial:x}")
    click.echo(f"  root    {fingerprint(judged.chain[-1])}")


def echo_json(value: object) -> None:
    """Print a document for programs."""
    import json

    click.echo(json.dumps(value, indent=2))
