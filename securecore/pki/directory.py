"""A PKI directory on disk: its layout, its lock, and access to its CAs.

::

    FORMAT         securecore-pki 1, and a UUID
    pki.toml       organisation and domain
    root/          cert.pem, key.pem, crl.pem of the root CA; key.pem may be kept elsewhere between uses
    hosts/         the same of the hosts CA
    receivers/     the same of the receivers CA
    issued/        every certificate ever made, by serial number
    crl.pem        the three CRLs together: what a receiver needs
    ledger.jsonl   see ledger.py
    lock           held (flock) by whoever changes anything
"""

import fcntl
import hashlib
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from securecore.certs.chain import Anchors, fingerprint, load_pem_certificates
from securecore.certs.identity_directory import MAX_KEY_BYTES
from securecore.certs.private_file import read_private, read_public
from securecore.errors import ConfigError, NotFoundError
from securecore.limits import KIB, MAX_CERTIFICATE_BYTES
from securecore.pki.keys import AskPassphrase, load_ca_key
from securecore.pki.ledger import Fields, Ledger, format_time
from securecore.pki.minting import Authority
from securecore.pki.staging import disk_errors, open_own

FORMAT: Final = "securecore-pki 1"
FOLDERS: Final = {"root-ca": "root", "hosts-ca": "hosts", "receivers-ca": "receivers"}
"""Where each CA lives, by the name of its profile; the order is that of crl.pem."""

_FORMAT_TEXT: Final = re.compile(rb"securecore-pki 1\n[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n\Z")
_SETTINGS: Final = {"version", "organisation", "domain"}


class PkiDirectory:
    """An existing PKI directory, opened with open_pki()."""

    def __init__(self, path: Path, organisation: str, domain: str) -> None:
        self.path = path
        self.organisation = organisation
        self.domain = domain
        self.ledger = Ledger(path / "ledger.jsonl")

    @property
    def crl_path(self) -> Path:
        """The file with the CRLs of all three CAs."""
        return self.path / "crl.pem"

    def folder(self, profile_name: str) -> Path:
        """Return the directory of one CA, named by its profile."""
        return self.path / FOLDERS[profile_name]

    def certificate(self, profile_name: str) -> x509.Certificate:
        """Return a CA's certificate; raises NotFoundError or ConfigError."""
        path = self.folder(profile_name) / "cert.pem"
        return load_pem_certificates(read_public(path, 2 * MAX_CERTIFICATE_BYTES), 1, what=str(path))[0]

    def has_key(self, profile_name: str) -> bool:
        """Whether a CA's key is here at the moment; the root's is meant to be away most of the time."""
        return (self.folder(profile_name) / "key.pem").exists()

    def authority(self, profile_name: str, ask_passphrase: AskPassphrase) -> Authority:
        """Return a CA ready to sign; raises NotFoundError when its key is elsewhere, PkiError for a wrong passphrase."""
        path = self.folder(profile_name) / "key.pem"
        if not path.exists():
            hint = f"bring it back for this one command: {path}"
            raise NotFoundError(f"{path}: the key of the {profile_name} is not here", hint=hint)
        certificate = self.certificate(profile_name)
        key = load_ca_key(read_private(path, MAX_KEY_BYTES), ask_passphrase, what=str(path))
        if key.public_key() != certificate.public_key():
            raise ConfigError(f"{path}: this is not the key of the certificate beside it")
        return Authority(certificate, key)

    def anchors(self) -> Anchors:
        """Return the root and the issuing CAs, for judging what this PKI made."""
        issuing = (self.certificate("hosts-ca"), self.certificate("receivers-ca"))
        return Anchors((self.certificate("root-ca"),), issuing)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the PKI's lock, waiting for it; the kernel drops it if we die, so it can't be left behind."""
        path = self.path / "lock"
        with disk_errors(path):
            descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
            if descriptor is None:
                raise NotFoundError(f"{path}: no PKI there any more")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)


def open_pki(path: Path) -> PkiDirectory:
    """Return the PKI in a directory; raises NotFoundError when there is none, ConfigError when it isn't one that we can read."""
    if not (path / "FORMAT").exists():
        hint = "`securecore pki init` makes one; name it with --dir or $SECURECORE_PKI"
        raise NotFoundError(f"{path}: no PKI there", hint=hint)
    if not _FORMAT_TEXT.match(read_public(path / "FORMAT", KIB)):
        raise ConfigError(f"{path / 'FORMAT'}: not the format of this version, which is {FORMAT!r}")
    if (path / "issued").is_symlink():
        raise ConfigError(f"{path / 'issued'}: a link: certificates would be written behind it", hint="put the directory there")
    settings_path = path / "pki.toml"
    try:
        settings = tomllib.loads(read_public(settings_path, 64 * KIB).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{settings_path}: not readable TOML: {error}") from error
    if set(settings) != _SETTINGS or settings["version"] != 1:
        raise ConfigError(f"{settings_path}: expected exactly version = 1, organisation and domain, found {', '.join(settings)!a}")
    organisation, domain = settings["organisation"], settings["domain"]
    if not isinstance(organisation, str) or not isinstance(domain, str):
        raise ConfigError(f"{settings_path}: organisation and domain must be texts")
    return PkiDirectory(path, organisation, domain)


def issue_fields(
    certificate: x509.Certificate, profile_name: str, issuer: x509.Certificate, names: list[str], addresses: list[str]
) -> Fields:
    """Return what the ledger keeps of a new certificate."""
    public_key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return {
        "serial": f"{certificate.serial_number:x}",
        "profile": profile_name,
        "names": [*names],
        "addresses": [*addresses],
        "not_before": format_time(certificate.not_valid_before_utc),
        "not_after": format_time(certificate.not_valid_after_utc),
        "issuer": f"{issuer.serial_number:x}",
        "fingerprint": fingerprint(certificate),
        "public_key": hashlib.sha256(public_key).hexdigest(),
    }


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    """Return certificates as one PEM text, in order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
