"""``securecore pki``: make a PKI, issue identities, revoke them, look at certificates.

Everything heavy is imported inside the commands, so that ``securecore --help`` does not pay for the cryptography library.
"""

import os
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from securecore.errors import ConfigError, PkiError

if TYPE_CHECKING:
    from securecore.names import HostName
    from securecore.pki.directory import PkiDirectory
    from securecore.pki.issue import Issuance
    from securecore.pki.revocation import SignedCrl

_MAX_PASSPHRASE_BYTES = 1024

_Command = Callable[..., Any]

_dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path("securecore-pki"),
    envvar="SECURECORE_PKI",
    show_default="$SECURECORE_PKI or ./securecore-pki",
    help="The PKI directory.",
)
_passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="Read the CA keys' passphrase from the first line of a file (mode 0600) or a pipe.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


EPILOG = """\b
Examples:
  securecore pki init --dir fleet-pki --org Acme --domain hosts.acme.example
  securecore pki issue host web-1 --dir fleet-pki --out web-1-identity
  securecore pki issue receiver collector --dir fleet-pki --out receiver-identity --address 192.0.2.7
"""


@click.group(name="pki", epilog=EPILOG)
def command() -> None:
    """Make and run the fleet's own certificate authority."""


@command.command()
@_dir_option
@click.option("--org", "organisation", required=True, help="Your organisation's name, as it appears in certificates.")
@click.option("--domain", required=True, help="The DNS domain of the fleet; the hosts CA can sign for no other.")
@_passphrase_option
@click.option("--no-passphrase", is_flag=True, help="Leave the CA keys unlocked: whoever reads the directory can issue.")
def init(directory: Path, organisation: str, domain: str, passphrase_file: Path | None, no_passphrase: bool) -> None:
    """Make a root CA, a hosts CA and a receivers CA, with their first CRLs."""
    from securecore.pki.creation import check_organisation, checked_domain, create_pki
    from securecore.pki.staging import check_free

    check_free(directory)
    check_organisation(organisation)
    checked_domain(domain)
    passphrase = _new_passphrase(passphrase_file, no_passphrase)
    pki = create_pki(directory, organisation, domain, passphrase, _now())
    root, hosts = pki.certificate("root-ca"), pki.certificate("hosts-ca")
    click.echo(f"made a PKI for {pki.organisation} in {directory}")
    click.echo(f"  root          valid until {_day(root.not_valid_after_utc)}")
    click.echo(f"  hosts CA      valid until {_day(hosts.not_valid_after_utc)}, signs hosts in {pki.domain} only")
    click.echo(f"  receivers CA  valid until {_day(pki.certificate('receivers-ca').not_valid_after_utc)}")
    if passphrase is None:
        click.echo("the CA keys are not locked with a passphrase: keep the directory where nobody else can read it")
    click.echo(f"daily work does not need {directory / 'root' / 'key.pem'}: take it off this machine (pki/runbooks/create-root.md)")
    click.echo("next: securecore pki issue receiver NAME --address ADDRESS --out IDENTITY, then pki issue host NAME --out IDENTITY")


@command.group()
def issue() -> None:
    """Make the identity directory of a host or a receiver."""


@issue.command("host")
@click.argument("name")
@_dir_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The identity directory to make.")
@click.option("--days", type=int, default=90, show_default=True, help="How long the certificate is valid.")
@_passphrase_option
def issue_host(name: str, directory: Path, out: Path, days: int, passphrase_file: Path | None) -> None:
    """Make the identity of a host, which may send dumps. NAME without a dot is completed with the fleet's domain."""
    from securecore.pki import issue as issuing

    pki = _open(directory)
    issued = issuing.issue_host(pki, _host_name(name, pki), out, _asking(passphrase_file), _now(), days)
    click.echo(f"issued an identity for host {issued.names[0]}, valid until {_day(issued.certificate.not_valid_after_utc)}")
    _echo_issued(issued)
    click.echo(f"next: carry {out} to the host, then there: securecore setup sender --to HOST:PORT --identity {out}")


@issue.command("receiver")
@click.argument("name")
@_dir_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The identity directory to make.")
@click.option("--address", "addresses", multiple=True, help="A further DNS name or IP address that senders dial; repeat for more.")
@click.option("--days", type=int, default=90, show_default=True, help="How long the certificate is valid.")
@_passphrase_option
def issue_receiver(
    name: str, directory: Path, out: Path, addresses: tuple[str, ...], days: int, passphrase_file: Path | None
) -> None:
    """Make the identity of a receiver, with its log key. NAME without a dot is completed with the fleet's domain."""
    from securecore.pki import issue as issuing

    pki = _open(directory)
    places = [issuing.parse_address(address) for address in addresses]
    issued = issuing.issue_receiver(pki, _host_name(name, pki), places, out, _asking(passphrase_file), _now(), days)
    click.echo(f"issued an identity for receiver {issued.names[0]}, valid until {_day(issued.certificate.not_valid_after_utc)}")
    click.echo(f"  senders may dial it as {', '.join(dict.fromkeys([*issued.names, *(str(place) for place in places)]))}")
    _echo_issued(issued)
    click.echo(f"next: carry {out} to the receiver, then there:")
    click.echo(f"  securecore receive --listen ADDR:PORT --store STORE --identity {out}")


@command.command()
@click.argument("host", required=False)
@_dir_option
@click.option("--serial", help="Revoke the one certificate with this serial number, in hexadecimal.")
@click.option("--reason", default="unspecified", show_default=True, help="Why: keyCompromise, superseded, ... (RFC 5280).")
@_passphrase_option
def revoke(host: str | None, directory: Path, serial: str | None, reason: str, passphrase_file: Path | None) -> None:
    """Revoke every valid certificate of HOST, or the one with a serial number, and sign the CRL that says so."""
    from securecore.pki import revocation

    if (host is None) == (serial is None):
        raise click.UsageError("name either a HOST or a --serial")
    pki = _open(directory)
    ask = _asking(passphrase_file)
    if serial is not None:
        done = revocation.revoke_serial(pki, _serial_number(serial), reason, ask, _now())
    else:
        done = revocation.revoke_name(pki, _host_name(host or "", pki), reason, ask, _now())
    for one in done.revoked:
        click.echo(f"revoked {one.serial:x}, {one.profile} {one.names[0] if one.names else ''}".rstrip() + f" ({reason})")
    for one in done.already:
        click.echo(f"{one.serial:x} was revoked already, on {_day(one.revoked_at or _now())} ({one.reason})")
    _echo_crls(pki, done.crls)
    click.echo(f"next: copy {pki.crl_path} over crl.pem in each receiver's identity directory and send the receiver SIGHUP")
    click.echo("until then nothing changes")


@command.command()
@_dir_option
@_passphrase_option
def crl(directory: Path, passphrase_file: Path | None) -> None:
    """Sign new CRLs with every CA key that is here, and print the path of the file for the receivers."""
    from securecore.pki import revocation
    from securecore.pki.directory import FOLDERS

    pki = _open(directory)
    signed = revocation.sign_crls(pki, _asking(passphrase_file), _now())
    click.echo(str(pki.crl_path))
    _echo_crls(pki, signed, err=True)
    state = pki.ledger.read()
    for name in FOLDERS:
        if name not in {one.authority for one in signed}:
            last = state.crls.get(pki.certificate(name).serial_number)
            until = "nowhere" if last is None else f"valid until {_day(last.next_update)}"
            click.echo(f"  {name}: its key is not here; its last CRL stays, {until}", err=True)


@command.command("list")
@_dir_option
@_json_option
def list_issued(directory: Path, as_json: bool) -> None:
    """List every certificate that this PKI ever made."""
    from securecore.pki.ledger import format_time

    now = _now()
    rows = sorted(_open(directory).ledger.read().issued.values(), key=lambda one: one.not_before)
    if as_json:
        _echo_json(
            [
                {
                    "serial": f"{one.serial:x}",
                    "profile": one.profile,
                    "names": [*one.names],
                    "addresses": [*one.addresses],
                    "not_before": format_time(one.not_before),
                    "not_after": format_time(one.not_after),
                    "state": one.state(now),
                    "revoked_at": None if one.revoked_at is None else format_time(one.revoked_at),
                    "reason": one.reason,
                    "issuer": f"{one.issuer:x}",
                    "fingerprint": one.fingerprint,
                }
                for one in rows
            ]
        )
        return
    width = max([len(one.names[0]) for one in rows if one.names], default=4)
    click.echo(f"{'PROFILE':<13} {'NAME':<{width}} {'STATE':<10} {'VALID UNTIL':<12} SERIAL")
    for one in rows:
        name = one.names[0] if one.names else "-"
        click.echo(f"{one.profile:<13} {name:<{width}} {one.state(now):<10} {_day(one.not_after):<12} {one.serial:x}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@_json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what a file of certificates, CRLs or signed statements holds; of an identity directory, its cert.pem."""
    from securecore.certs.private_file import read_public
    from securecore.pki.inspection import MAX_FILE_BYTES, describe

    path = file / "cert.pem" if file.is_dir() else file
    parts = describe(read_public(path, MAX_FILE_BYTES), str(path))
    if as_json:
        _echo_json(parts)
        return
    for number, part in enumerate(parts):
        if number:
            click.echo()
        for key, value in part.items():
            click.echo(_plain(key, value))


@command.group()
def profile() -> None:
    """Show what certificates of each kind hold."""


@profile.command("show")
@click.argument("name")
def profile_show(name: str) -> None:
    """Print a profile as TOML: root-ca, hosts-ca, receivers-ca, host or receiver."""
    from securecore.pki.profiles import as_toml, profile_named

    click.echo(as_toml(profile_named(name)), nl=False)


def _now() -> datetime:
    return datetime.now(UTC)


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _open(directory: Path) -> "PkiDirectory":
    from securecore.pki.directory import open_pki

    return open_pki(directory)


def _host_name(name: str, pki: "PkiDirectory") -> "HostName":
    from securecore.identity import host_from_operator

    return host_from_operator(name, pki.domain)


def _serial_number(text: str) -> int:
    """Return a serial number as openssl, browsers and we print them: hexadecimal, with or without colons and 0x."""
    digits = text.strip().lower().replace(":", "").removeprefix("0x")
    if not digits or len(digits) > 64 or any(digit not in "0123456789abcdef" for digit in digits):
        raise PkiError(f"not a serial number: {text[:100]!a}", hint="hexadecimal digits, as `securecore pki list` prints them")
    return int(digits, 16)


def _new_passphrase(file: Path | None, none: bool) -> bytes | None:
    """Return the passphrase for a new PKI, or None when the person says that there shall be none."""
    if file is not None and none:
        raise click.UsageError("--passphrase-file and --no-passphrase exclude each other")
    if none:
        return None
    if file is not None:
        return _passphrase_from(file)
    if not sys.stdin.isatty():
        hint = "give --passphrase-file FILE, or --no-passphrase where the directory itself is safe"
        raise ConfigError("the CA keys need a passphrase, and there is no terminal to ask for one", hint=hint)
    text: str = click.prompt("passphrase for the CA keys", hide_input=True, confirmation_prompt=True, err=True)
    return text.encode()


def _asking(file: Path | None) -> Callable[[], bytes]:
    """Return how to get the passphrase of an existing PKI, should a key turn out to be locked."""

    def ask() -> bytes:
        if file is not None:
            return _passphrase_from(file)
        if not sys.stdin.isatty():
            words = "the CA key is locked, and there is no terminal to ask for its passphrase"
            raise ConfigError(words, hint="give --passphrase-file FILE")
        text: str = click.prompt("passphrase of the CA keys", hide_input=True, err=True)
        return text.encode()

    return ask


def _passphrase_from(path: Path) -> bytes:
    """Return the first line of a file or pipe; a file must be its owner's alone, as private keys must."""
    from securecore.certs.private_file import read_private

    try:
        is_pipe = stat.S_ISFIFO(path.stat().st_mode)
        data = _read_pipe(path) if is_pipe else read_private(path, _MAX_PASSPHRASE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: the passphrase can't be read: {error.strerror}") from error
    line = data.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise ConfigError(f"{path}: its first line is empty, and a passphrase is expected there")
    return line


def _read_pipe(path: Path) -> bytes:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC)) as pipe:
        return pipe.read(_MAX_PASSPHRASE_BYTES)


def _echo_issued(issued: "Issuance") -> None:
    click.echo(f"  serial  {issued.certificate.serial_number:x}")
    click.echo(f"  in      {issued.directory}")
    for other in issued.others:
        serial, until = f"{other.serial:x}", _day(other.not_after)
        click.echo(f"  it also has {serial}, valid until {until}; to end it now: securecore pki revoke --serial {serial}")


def _echo_crls(pki: "PkiDirectory", crls: "tuple[SignedCrl, ...]", *, err: bool = False) -> None:
    for one in crls:
        click.echo(f"  {one.authority}: CRL {one.number}, {one.revoked} revoked, valid until {_day(one.next_update)}", err=err)


def _echo_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2))


def _plain(key: str, value: object) -> str:
    """Return a line for people; texts come from a file that nobody vouches for, so what could steer a terminal is escaped."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        text = "".join(f"\n  {_item(item)}" for item in value) or "none"
    elif isinstance(value, list):
        text = ", ".join(_item(item) for item in value) or "none"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = "none" if value is None else _item(value)
    return f"{key.replace('_', ' '):<19} {text}"


def _item(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{_item(name)}={_item(one)}" for name, one in value.items())
    return ascii(str(value))[1:-1]
