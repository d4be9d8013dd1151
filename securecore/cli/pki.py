"""``securecore pki``: make a PKI, look at certificates; the rest of its commands is in ``authority``.

Everything heavy is imported inside the commands, so that ``securecore --help`` does not pay for the cryptography library.
"""

from pathlib import Path

import click

from securecore.cli.authority.enrolling import fetch, serve, token
from securecore.cli.authority.holding import install, request
from securecore.cli.authority.issuing import issue, rekey, renew, sign
from securecore.cli.authority.learning import learn
from securecore.cli.authority.options import day, dir_option, echo_json, new_passphrase, now, open_directory, passphrase_option
from securecore.cli.authority.revoking import crl, revoke
from securecore.cli.authority.rotating import rotate_ca
from securecore.cli.authority.watching import log, status
from securecore.cli.options import json_option

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
@dir_option
@click.option("--org", "organisation", required=True, help="Your organisation's name, as it appears in certificates.")
@click.option("--domain", required=True, help="The DNS domain of the fleet; the hosts CA can sign for no other.")
@passphrase_option
@click.option("--no-passphrase", is_flag=True, help="Leave the CA keys unlocked: whoever reads the directory can issue.")
def init(directory: Path, organisation: str, domain: str, passphrase_file: Path | None, no_passphrase: bool) -> None:
    """Make a root CA, a hosts CA and a receivers CA, with their first CRLs."""
    from securecore.pki.creation import check_organisation, checked_domain, create_pki
    from securecore.pki.staging import check_free

    check_free(directory)
    check_organisation(organisation)
    checked_domain(domain)
    passphrase = new_passphrase(passphrase_file, no_passphrase)
    pki = create_pki(directory, organisation, domain, passphrase, now())
    root, hosts = pki.certificate("root-ca"), pki.certificate("hosts-ca")
    click.echo(f"made a PKI for {pki.organisation} in {directory}")
    click.echo(f"  root          valid until {day(root.not_valid_after_utc)}")
    click.echo(f"  hosts CA      valid until {day(hosts.not_valid_after_utc)}, signs hosts in {pki.domain} only")
    click.echo(f"  receivers CA  valid until {day(pki.certificate('receivers-ca').not_valid_after_utc)}")
    if passphrase is None:
        click.echo("the CA keys are not locked with a passphrase: keep the directory where nobody else can read it")
    click.echo(f"daily work does not need {directory / 'root' / 'key.pem'}: take it off this machine (pki/runbooks/create-root.md)")
    click.echo("next: securecore pki issue receiver NAME --address ADDRESS --out IDENTITY, then pki issue host NAME --out IDENTITY")


for _part in (issue, request, sign, install, renew, rekey, revoke, crl, learn, rotate_ca, status, log, token, serve, fetch):
    command.add_command(_part)


@command.command("list")
@dir_option
@json_option
def list_issued(directory: Path, as_json: bool) -> None:
    """List every certificate that this PKI ever made."""
    from securecore.pki.ledger import format_time

    moment = now()
    rows = sorted(open_directory(directory).ledger.read().issued.values(), key=lambda one: one.not_before)
    if as_json:
        echo_json(
            [
                {
                    "serial": f"{one.serial:x}",
                    "profile": one.profile,
                    "names": [*one.names],
                    "addresses": [*one.addresses],
                    "not_before": format_time(one.not_before),
                    "not_after": format_time(one.not_after),
                    "state": one.state(moment),
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
        click.echo(f"{one.profile:<13} {name:<{width}} {one.state(moment):<10} {day(one.not_after):<12} {one.serial:x}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what a file of certificates, CRLs or signed statements holds; of an identity directory, its cert.pem."""
    from securecore.certs.private_file import read_public
    from securecore.pki.inspection import MAX_FILE_BYTES, describe

    path = file / "cert.pem" if file.is_dir() else file
    parts = describe(read_public(path, MAX_FILE_BYTES), str(path))
    if as_json:
        echo_json(parts)
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
    """Print a profile as TOML: root-ca, hosts-ca, receivers-ca, host, receiver or enroller."""
    from securecore.pki.profiles import as_toml, profile_named

    click.echo(as_toml(profile_named(name)), nl=False)


def _plain(key: str, value: object) -> str:
    """Return a line for people; texts come from a file that nobody vouches for, so what could steer a terminal is escaped."""
    if key == "profiles" and isinstance(value, dict):
        lines = [f"{f'as a {name}':<19} {'; '.join(map(_item, found)) or 'meets the profile'}" for name, found in value.items()]
        return "\n".join(lines)
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
