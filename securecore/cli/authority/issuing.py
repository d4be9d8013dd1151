"""Making certificates: ``securecore pki issue``, ``sign``, ``renew`` and ``rekey``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from securecore.cli.authority.options import asking, day, dir_option, host_name, now, open_directory, passphrase_option

if TYPE_CHECKING:
    from securecore.certs.profiles import Profile
    from securecore.pki.issue import Issuance

_Command = Callable[..., Any]

SIGN_EPILOG = """\b
Examples:
  securecore pki sign host web-1 web-1-request.pem --out web-1-reply.pem
  securecore pki sign receiver collector request.pem --address 192.0.2.7 --out reply.pem
  securecore pki sign enroller enrol request.pem --address 192.0.2.8 --out reply.pem
"""

RENEW_EPILOG = """\b
Examples:
  securecore pki renew web-1 --out web-1-reply.pem
  then on the host: securecore pki install web-1-reply.pem --identity /etc/securecore/identity
"""


def _identity_out(command: _Command) -> _Command:
    return click.option("--out", type=click.Path(path_type=Path), required=True, help="The identity directory to make.")(command)


def _reply_out(command: _Command) -> _Command:
    words = "The reply to write, which `securecore pki install` puts beside the key."
    return click.option("--out", type=click.Path(path_type=Path), required=True, help=words)(command)


def _request(command: _Command) -> _Command:
    return click.argument("request", type=click.Path(path_type=Path))(command)


def _days(command: _Command) -> _Command:
    words = "How long the certificate is valid."
    return click.option("--days", type=int, default=90, show_default=True, help=words)(command)


def _addresses(command: _Command) -> _Command:
    words = "A further DNS name or IP address that hosts dial; repeat for more."
    return click.option("--address", "addresses", multiple=True, help=words)(command)


def _kind(command: _Command) -> _Command:
    words = "Which is meant, where NAME is several."
    return click.option("--kind", type=click.Choice(["host", "receiver", "enroller"]), help=words)(command)


@click.group()
def issue() -> None:
    """Make the identity directory of a host, a receiver or an enroller, its key included."""


@issue.command("host")
@click.argument("name")
@dir_option
@_identity_out
@_days
@passphrase_option
def issue_host(name: str, directory: Path, out: Path, days: int, passphrase_file: Path | None) -> None:
    """Make the identity of a host, which may send dumps. NAME without a dot is completed with the fleet's domain."""
    from securecore.pki import issue as issuing

    pki = open_directory(directory)
    issued = issuing.issue_host(pki, host_name(name, pki), out, asking(passphrase_file), now(), days)
    _echo_issued("issued an identity for", issued)
    _echo_identity_next(issued)


def _server(*told: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Return what adds that which a receiver's and an enroller's certificate is made of; *told* is where it comes from and goes."""
    adding: list[Callable[[_Command], _Command]] = [click.argument("name"), dir_option, *told, _addresses, _days, passphrase_option]

    def add_all(command: _Command) -> _Command:
        for add in reversed(adding):
            command = add(command)
        return command

    return add_all


@issue.command("receiver")
@_server(_identity_out)
def issue_receiver(**told: Any) -> None:
    """Make the identity of a receiver, with its log key. NAME without a dot is completed with the fleet's domain."""
    from securecore.pki import issue as issuing

    _issue_server(issuing.issue_receiver, **told)


@issue.command("enroller")
@_server(_identity_out)
def issue_enroller(**told: Any) -> None:
    """Make the identity of a server that enrols hosts (`securecore pki serve`), which no host takes for a receiver."""
    from securecore.pki import issue as issuing

    _issue_server(issuing.issue_enroller, **told)


def _issue_server(
    make: "Callable[..., Issuance]",
    name: str,
    directory: Path,
    out: Path,
    addresses: tuple[str, ...],
    days: int,
    passphrase_file: Path | None,
) -> None:
    from securecore.pki import issue as issuing

    pki = open_directory(directory)
    places = [issuing.parse_address(address) for address in addresses]
    issued = make(pki, host_name(name, pki), places, out, asking(passphrase_file), now(), days)
    _echo_issued("issued an identity for", issued)
    _echo_identity_next(issued)


@click.group()
def sign() -> None:
    """Certify a key that was made on the machine itself, with `securecore pki request`."""


@sign.command("host", epilog=SIGN_EPILOG)
@click.argument("name")
@_request
@dir_option
@_reply_out
@_days
@passphrase_option
def sign_host(name: str, request: Path, directory: Path, out: Path, days: int, passphrase_file: Path | None) -> None:
    """Certify the key in REQUEST as that of host NAME, whatever the request says of itself."""
    from securecore.certs.profiles import HOST
    from securecore.pki import signing
    from securecore.pki.recording import Subject

    pki = open_directory(directory)
    subject = Subject(HOST, (host_name(name, pki),))
    _echo_reply(signing.sign(pki, subject, signing.read_request(request), out, asking(passphrase_file), now(), days))


@sign.command("receiver", epilog=SIGN_EPILOG)
@_server(_request, _reply_out)
def sign_receiver(**told: Any) -> None:
    """Certify the key in REQUEST as that of receiver NAME, whatever the request says of itself."""
    _sign_server("receiver", **told)


@sign.command("enroller", epilog=SIGN_EPILOG)
@_server(_request, _reply_out)
def sign_enroller(**told: Any) -> None:
    """Certify the key in REQUEST as that of enroller NAME (`securecore pki serve`), whatever the request says of itself."""
    _sign_server("enroller", **told)


def _sign_server(
    kind: str,
    name: str,
    request: Path,
    directory: Path,
    out: Path,
    addresses: tuple[str, ...],
    days: int,
    passphrase_file: Path | None,
) -> None:
    from securecore.certs.profiles import PROFILES
    from securecore.pki import issue as issuing
    from securecore.pki import signing

    pki = open_directory(directory)
    places = [issuing.parse_address(address) for address in addresses]
    subject = issuing.server_subject(PROFILES[kind], host_name(name, pki), places)
    _echo_reply(signing.sign(pki, subject, signing.read_request(request), out, asking(passphrase_file), now(), days))


@click.command(epilog=RENEW_EPILOG)
@click.argument("name")
@dir_option
@_kind
@_reply_out
@_days
@passphrase_option
def renew(name: str, directory: Path, kind: str | None, out: Path, days: int, passphrase_file: Path | None) -> None:
    """Certify the key of NAME's newest certificate for another while; names and addresses stay.

    The certificate before stays valid until it expires, and can be revoked: `securecore pki revoke NAME --older`.
    """
    from securecore.pki import signing

    pki = open_directory(directory)
    _echo_reply(signing.renew(pki, host_name(name, pki), _profile(kind), out, asking(passphrase_file), now(), days))


@click.command()
@click.argument("name")
@dir_option
@_kind
@_identity_out
@_days
@passphrase_option
def rekey(name: str, directory: Path, kind: str | None, out: Path, days: int, passphrase_file: Path | None) -> None:
    """Make a new identity directory, with a new key, for the names and addresses of NAME's newest certificate.

    The key is made here. To have it made on the machine itself: `securecore pki request` there, then `securecore pki sign`.
    """
    from securecore.pki import issue as issuing

    pki = open_directory(directory)
    issued = issuing.rekey(pki, host_name(name, pki), _profile(kind), out, asking(passphrase_file), now(), days)
    _echo_issued("issued an identity with a new key for", issued)
    if issued.subject.profile.name == "receiver":
        click.echo("next: its cert.pem and key.pem take the place of the old ones on the receiver; the log key there stays")
        click.echo("  then there: securecore audit rekey && systemctl reload securecore-receiver")
        return
    _echo_identity_next(issued)


def _profile(kind: str | None) -> "Profile | None":
    from securecore.certs.profiles import PROFILES

    return None if kind is None else PROFILES[kind]


def _echo_issued(done: str, issued: "Issuance") -> None:
    subject = issued.subject
    click.echo(f"{done} {subject.profile.name} {subject.name}, valid until {day(issued.certificate.not_valid_after_utc)}")
    if subject.profile.name != "host":
        who = "senders" if subject.profile.name == "receiver" else "hosts"
        click.echo(f"  {who} may dial it as {', '.join(map(str, (*subject.names, *subject.addresses)))}")
    click.echo(f"  serial  {issued.certificate.serial_number:x}")
    click.echo(f"  in      {issued.out}")
    for other in issued.others:
        serial, until = f"{other.serial:x}", day(other.not_after)
        click.echo(f"  it also has {serial}, valid until {until}; to end it now: securecore pki revoke --serial {serial}")


def _echo_identity_next(issued: "Issuance") -> None:
    if issued.subject.profile.name == "host":
        there = f"securecore setup sender --to HOST:PORT --identity {issued.out}"
        click.echo(f"next: carry {issued.out} to the host, then there: {there}")
        return
    click.echo(f"next: carry {issued.out} to the {issued.subject.profile.name}, then there:")
    if issued.subject.profile.name == "enroller":
        click.echo(f"  securecore pki serve --listen ADDR:PORT --dir PKI --identity {issued.out}")
        return
    click.echo(f"  securecore receive --listen ADDR:PORT --store STORE --identity {issued.out}")


def _echo_reply(issued: "Issuance") -> None:
    from securecore.certs.chain import key_fingerprint

    _echo_issued("certified", issued)
    click.echo(f"  key     {key_fingerprint(issued.certificate.public_key())}")
    click.echo(f"next: carry {issued.out} to the {issued.subject.profile.name}, then there:")
    click.echo(f"  securecore pki install {issued.out.name} --identity IDENTITY")
