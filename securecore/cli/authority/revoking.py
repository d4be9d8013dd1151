"""Ending certificates before their time: ``securecore pki revoke`` and ``crl``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from securecore.cli.authority.options import (
    asking,
    day,
    dir_option,
    host_name,
    now,
    open_directory,
    passphrase_option,
    serial_number,
)

if TYPE_CHECKING:
    from securecore.pki.directory import PkiDirectory
    from securecore.pki.ledger import Issued
    from securecore.pki.revocation import SignedCrl

REVOKE_EPILOG = """\b
Examples:
  securecore pki revoke web-1 --reason keyCompromise
  securecore pki revoke web-1 --older --reason superseded    all but the newest
  securecore pki revoke --serial 1f3a --reason keyCompromise    and all with the same key
"""

CRL_EPILOG = """\b
Examples:
  securecore pki crl --passphrase-file /run/credentials/fleet-pki    from a timer, each day: it signs what is due
  securecore pki crl --now                                           whatever is due
  securecore pki crl --after 41                                      for receivers that have met number 41 of another copy
"""


@click.command(epilog=REVOKE_EPILOG)
@click.argument("host", required=False)
@dir_option
@click.option("--serial", help="Revoke the certificate with this serial number, in hexadecimal.")
@click.option("--older", is_flag=True, help="Of HOST, leave the newest certificate of each kind.")
@click.option("--reason", default="unspecified", show_default=True, help="Why: keyCompromise, superseded, ... (RFC 5280).")
@passphrase_option
def revoke(host: str | None, directory: Path, serial: str | None, older: bool, reason: str, passphrase_file: Path | None) -> None:
    """Revoke every valid certificate of HOST, or the one with a serial number, and sign the CRL that says so.

    A renewed certificate has the key of the one before. With the reason keyCompromise every certificate with the same key goes,
    whichever was named.
    """
    from securecore.pki import revocation

    if (host is None) == (serial is None):
        raise click.UsageError("name either a HOST or a --serial")
    if serial is not None and older:
        raise click.UsageError("--older goes with a HOST, and there is a --serial")
    pki = open_directory(directory)
    ask = asking(passphrase_file)
    if serial is not None:
        done = revocation.revoke_serial(pki, serial_number(serial), reason, ask, now())
    else:
        choose = revocation.revoke_older if older else revocation.revoke_name
        done = choose(pki, host_name(host or "", pki), reason, ask, now())
    for one in done.revoked:
        click.echo(f"revoked {one.serial:x}, {_holder(one)} ({reason})")
    for one in done.already:
        more = f", now {reason}" if reason == "keyCompromise" != one.reason else ""
        click.echo(f"{one.serial:x} was revoked already, on {day(one.revoked_at or now())} ({one.reason}{more})")
    if serial is not None:
        for one in done.same_key:
            click.echo(f"its key lives on in {one.serial:x}, {_holder(one)}, valid until {day(one.not_after)}")
            click.echo(f"  if others may have the key: securecore pki revoke --serial {one.serial:x} --reason keyCompromise")
    if not older:
        _echo_open_tokens(pki, {name for one in (*done.revoked, *done.already) for name in one.names})
    _echo_crls(done.crls)
    click.echo(f"next: copy {pki.crl_path} over crl.pem in each receiver's identity directory and send the receiver SIGHUP")
    click.echo("until then nothing changes")


@click.command(epilog=CRL_EPILOG)
@dir_option
@click.option("--now", "is_forced", is_flag=True, help="Sign whether or not it is due.")
@click.option("--after", type=click.IntRange(min=0), help="Sign all now, with numbers above this: a receiver has met it.")
@passphrase_option
def crl(directory: Path, is_forced: bool, after: int | None, passphrase_file: Path | None) -> None:
    """Sign the CRLs that are due, with the CA keys that are here, and print the path of the file for the receivers.

    Due is a CRL of which a third of its life is left, and one that lacks a revocation. Where none is due nothing changes and no
    passphrase is asked for.
    """
    from securecore.pki import revocation

    pki = open_directory(directory)
    is_forced = is_forced or after is not None
    signed = revocation.sign_crls(pki, asking(passphrase_file), now(), is_forced=is_forced, after=after or 0)
    click.echo(str(pki.crl_path))
    _echo_crls(signed, err=True)
    state = pki.ledger.read()
    for name in pki.authorities(state):
        if name not in {one.authority for one in signed}:
            last = state.crls.get(pki.certificate(name).serial_number)
            until = "nowhere" if last is None else f"valid until {day(last.next_update)}"
            words = "not due yet, its last CRL is" if pki.has_key(name) else "its key is not here; its last CRL stays,"
            click.echo(f"  {name}: {words} {until}", err=True)


def _holder(one: "Issued") -> str:
    return f"{one.profile} {one.names[0] if one.names else ''}".rstrip()


def _echo_open_tokens(pki: "PkiDirectory", names: set[str]) -> None:
    """Say which tokens still let somebody enrol under one of the names: perhaps whoever the certificates were revoked for."""
    moment = now()
    for one in pki.ledger.follow().tokens.values():
        if one.name in names and one.state(moment) == "open":
            click.echo(f"token {one.id} still lets its holder enrol as {one.name}")
            click.echo(f"  if others may have it: securecore pki token --recall {one.id}")


def _echo_crls(crls: "tuple[SignedCrl, ...]", *, err: bool = False) -> None:
    for one in crls:
        click.echo(f"  {one.authority}: CRL {one.number}, {one.revoked} revoked, valid until {day(one.next_update)}", err=err)
