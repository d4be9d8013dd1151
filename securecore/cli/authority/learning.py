"""After an older copy of a PKI was put back: ``securecore pki learn``."""

from pathlib import Path

import click

from securecore.cli import terminal
from securecore.cli.authority.options import day, dir_option, now, open_directory

EPILOG = """\b
Examples:
  securecore pki learn crl.pem                      a receiver's list: what was revoked, and the number that it has
  securecore pki learn crls/*.pem                   all lists that a receiver's store keeps
  securecore pki learn web-1.pem other-copy/issued/*.pem      certificates, so that they can be revoked
"""


@click.command(epilog=EPILOG)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@dir_option
def learn(files: tuple[Path, ...], directory: Path) -> None:
    """Record what FILES say and this PKI has forgotten: revocations, numbers of CRLs, certificates.

    For after a restore from a backup, and for two copies of a PKI that have both been used. FILES are lists and certificates that a
    CA of this PKI has signed. Nothing is signed; where anything is news, every open token is recalled, for it may have been used.
    """
    from securecore.certs.private_file import read_public
    from securecore.limits import MAX_CRL_BYTES
    from securecore.pki import learning

    pki = open_directory(directory)
    sources = [learning.Source(str(path), read_public(path, MAX_CRL_BYTES)) for path in files]
    learned = learning.learn(pki, sources, now())
    issued = pki.ledger.follow().issued
    authorities = {pki.certificate(name).serial_number: name for name in pki.authorities()}
    for known in learned.certificates:
        serial, until = f"{known.certificate.serial_number:x}", day(known.certificate.not_valid_after_utc)
        click.echo(f"learned {serial}, {known.profile.name} {known.names[0]}, valid until {until}")
    for entry in learned.revoked:
        one = issued.get(entry.serial)
        who = "which is not in the ledger" if one is None else f"{one.profile} {one.names[0] if one.names else ''}".rstrip()
        click.echo(f"learned that {entry.serial:x}, {who}, was revoked on {day(entry.revoked_at)} ({entry.reason})")
    for one_list in learned.lists:
        click.echo(f"learned that CRL {one_list.number} of the {authorities[one_list.issuer]} was signed")
    for token in learned.recalled:
        click.echo(f"recalled token {token.id} for {token.name}: it may have been used")
    if not any(learned):
        click.echo(f"nothing new in {terminal.count(len(files), 'file')}")
        return
    click.echo("next: securecore pki crl --now, and distribute the file that it names; then pki/runbooks/after-a-restore.md")
