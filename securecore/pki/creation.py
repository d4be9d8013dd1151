"""Making a PKI: root, hosts CA, receivers CA, their first CRLs, settings and ledger, in one directory that appears whole."""

import json
import uuid
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.profiles import BACKDATED_S, HOSTS_CA, MAX_COMMON_NAME, RECEIVERS_CA, ROOT_CA
from securecore.errors import PkiError
from securecore.names import HostName, NameRefused
from securecore.pki.directory import FOLDERS, FORMAT, PkiDirectory, certificate_pem, issue_fields, open_pki
from securecore.pki.keys import check_passphrase, make_key, private_pem
from securecore.pki.ledger import Ledger, format_time
from securecore.pki.minting import Authority, crl_days, mint_ca, mint_crl, mint_root
from securecore.pki.staging import PRIVATE_MODE, PUBLIC_MODE, StagedDirectory, stage


def create_pki(path: Path, organisation: str, domain: str, passphrase: bytes | None, now: datetime) -> PkiDirectory:
    """Make a PKI at *path*, its three CA keys locked with *passphrase* unless it is None, and return it.

    Raises PkiError when something stands at *path*, when the organisation or domain can't go into a certificate or the passphrase
    is too short, and StorageError; in every case nothing is left at *path*.
    """
    check_organisation(organisation)
    domain = checked_domain(domain)
    if passphrase is not None:
        check_passphrase(passphrase)
    with stage(path) as staged:
        root_key, hosts_key, receivers_key = make_key(), make_key(), make_key()
        root = Authority(mint_root(ROOT_CA, organisation, root_key, now), root_key)
        hosts = Authority(mint_ca(HOSTS_CA, organisation, domain, hosts_key, root, now), hosts_key)
        receivers = Authority(mint_ca(RECEIVERS_CA, organisation, domain, receivers_key, root, now), receivers_key)
        identifier = str(uuid.uuid4())
        staged.write("FORMAT", f"{FORMAT}\n{identifier}\n".encode("ascii"), PUBLIC_MODE)
        staged.write("pki.toml", _settings(organisation, domain), PUBLIC_MODE)
        staged.write("lock", b"", PRIVATE_MODE)
        staged.make_directory("issued")
        ledger = Ledger(staged.path / "ledger.jsonl")
        ledger.append(now, "create", {"organisation": organisation, "domain": domain, "id": identifier})
        crls = b""
        for profile, authority in ((ROOT_CA, root), (HOSTS_CA, hosts), (RECEIVERS_CA, receivers)):
            crls += _write_ca(staged, ledger, profile.name, authority, root, passphrase, now)
        staged.write("ca.pem", certificate_pem(root.certificate, hosts.certificate, receivers.certificate), PUBLIC_MODE)
        staged.write("crl.pem", crls, PUBLIC_MODE)
        staged.publish()
    return open_pki(path)


def check_organisation(text: str) -> None:
    """Raise PkiError when a text can't be the organisation in a distinguished name: 1 to 64 printable characters."""
    if not 1 <= len(text) <= MAX_COMMON_NAME or not text.isprintable() or text != text.strip():
        hint = f"1 to {MAX_COMMON_NAME} printable characters, without blanks around them"
        raise PkiError(f"not an organisation for a certificate: {text[:100]!a}", hint=hint)


def checked_domain(text: str) -> str:
    """Return a fleet's domain, case folded; raises PkiError when no host of that domain could have a valid name."""
    domain = text.strip().lower()
    try:
        HostName(f"host.{domain}")
    except NameRefused as error:
        hint = "lower-case letters, digits and hyphens between dots, as in hosts.example.org"
        raise PkiError(f"not a domain: {text[:300]!a}", hint=hint) from error
    return domain


def _write_ca(
    staged: StagedDirectory,
    ledger: Ledger,
    name: str,
    authority: Authority,
    root: Authority,
    passphrase: bytes | None,
    now: datetime,
) -> bytes:
    """Write one CA's files and ledger lines; return its first CRL as PEM."""
    folder = FOLDERS[name]
    days = crl_days(name)
    # Backdated like the certificates, for verifiers whose clocks are slow; there is nothing yet that it could fail to name.
    this_update = now.replace(microsecond=0) - timedelta(seconds=BACKDATED_S)
    crl_pem = mint_crl(authority, 1, this_update, days, []).public_bytes(Encoding.PEM)
    certificate = authority.certificate
    staged.make_directory(folder)
    staged.write(f"{folder}/key.pem", private_pem(authority.key, passphrase), PRIVATE_MODE)
    staged.write(f"{folder}/cert.pem", certificate_pem(certificate), PUBLIC_MODE)
    staged.write(f"{folder}/crl.pem", crl_pem, PUBLIC_MODE)
    staged.write(f"issued/{certificate.serial_number:x}.pem", certificate_pem(certificate), PUBLIC_MODE)
    ledger.append(now, "issue", issue_fields(certificate, name, root.certificate, [], []))
    update = {"this_update": format_time(this_update), "next_update": format_time(this_update + timedelta(days=days))}
    ledger.append(now, "crl", {"issuer": f"{certificate.serial_number:x}", "number": 1, "revoked": 0, **update})
    return crl_pem


def _settings(organisation: str, domain: str) -> bytes:
    """Return pki.toml; printable text in JSON's quotes is a basic string of TOML."""
    text = json.dumps(organisation, ensure_ascii=False)
    return f'version = 1\norganisation = {text}\ndomain = "{domain}"\n'.encode()
