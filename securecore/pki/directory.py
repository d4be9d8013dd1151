"""A PKI directory on disk: its layout, its lock, and access to its CAs.

::

    FORMAT         securecore-pki 1, and a UUID
    pki.toml       organisation and domain
    root/          cert.pem, key.pem, crl.pem of the root CA; key.pem may be kept elsewhere between uses
    hosts/         the same of the hosts CA
    receivers/     the same of the receivers CA
    hosts-2/ ...   the same of a CA that a rotation has made
    issued/        every certificate ever made, by serial number
    ca.pem         root and issuing CAs together, and
    crl.pem        their CRLs: what a receiver needs
    ledger.jsonl   see ledger.py
    lock           held (flock) by whoever changes anything
"""

import fcntl
import os
import re
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.chain import Anchors, fingerprint, key_fingerprint, load_pem_certificates
from securecore.certs.identity_directory import MAX_KEY_BYTES
from securecore.certs.private_file import read_private, read_public
from securecore.certs.profiles import ROOT_CA
from securecore.errors import ConfigError, NotFoundError, PkiError
from securecore.limits import KIB, MAX_CERTIFICATE_BYTES
from securecore.pki.keys import AskPassphrase, load_ca_key
from securecore.pki.ledger import Fields, Ledger, State, format_time
from securecore.pki.minting import Authority
from securecore.pki.staging import disk_errors, open_own

FORMAT: Final = "securecore-pki 1"
FOLDERS: Final = {"root-ca": "root", "hosts-ca": "hosts", "receivers-ca": "receivers"}
"""Where the first CA of each profile lives; the order is that of ca.pem and crl.pem."""

NEXT: Final = " (next)"
PREVIOUS: Final = " (previous)"
"""Behind the profile's name, what the other CA of a rotation is called: the one that is yet to sign, the one that has signed."""

_LOCK_PAUSE_S: Final = 0.01
"""Between two looks at a lock that others hold: about as long as one certificate takes them."""

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
    def ca_path(self) -> Path:
        """The file with root and issuing CAs."""
        return self.path / "ca.pem"

    @property
    def crl_path(self) -> Path:
        """The file with the CRLs of all of them."""
        return self.path / "crl.pem"

    def authorities(self, state: State | None = None) -> dict[str, Path]:
        """Return the directory of each CA that counts, by its name: its profile's, with NEXT or PREVIOUS during a rotation."""
        found: dict[str, Path] = {}
        successions = (self.ledger.follow() if state is None else state).successions
        for profile, first in FOLDERS.items():
            if profile not in successions:
                found[profile] = self.path / first
                continue
            succession = successions[profile]
            for mark, serial in (("", succession.current), (NEXT, succession.next), (PREVIOUS, succession.previous)):
                if serial is not None:
                    found[profile + mark] = self.path / succession.folders.get(serial, first)
        return found

    def folder(self, name: str) -> Path:
        """Return the directory of one CA, by its name as in authorities(); raises PkiError when a rotation took the name away."""
        if name == ROOT_CA.name:
            return self.path / FOLDERS[name]
        found = self.authorities()
        if name not in found:
            raise PkiError(f"there is no {name} any more: a rotation has taken a step at this moment", hint="run the command again")
        return found[name]

    def certificate(self, name: str) -> x509.Certificate:
        """Return a CA's certificate; raises NotFoundError or ConfigError."""
        return _certificate_in(self.folder(name))

    def has_key(self, name: str) -> bool:
        """Whether a CA's key is here at the moment; the root's is mostly away. Raises as folder() does, StorageError."""
        path = self.folder(name) / "key.pem"
        with disk_errors(path):
            return path.exists()

    def authority(self, name: str, ask_passphrase: AskPassphrase) -> Authority:
        """Return a CA ready to sign; raises NotFoundError when its key is elsewhere, PkiError for a wrong passphrase."""
        return self.authority_in(self.folder(name), name, ask_passphrase)

    def authority_in(self, folder: Path, name: str, ask_passphrase: AskPassphrase) -> Authority:
        """Return the CA that has its files in *folder*; *name* is for messages. Raises like authority()."""
        path = folder / "key.pem"
        with disk_errors(path):
            is_here = path.exists()
        if not is_here:
            hint = f"bring it back for this one command: {path}"
            raise NotFoundError(f"{path}: the key of the {name} is not here", hint=hint)
        certificate = _certificate_in(folder)
        key = load_ca_key(read_private(path, MAX_KEY_BYTES), ask_passphrase, what=str(path))
        if key.public_key() != certificate.public_key():
            raise ConfigError(f"{path}: this is not the key of the certificate beside it")
        return Authority(certificate, key)

    def anchors(self) -> Anchors:
        """Return the root and the issuing CAs that count, for judging what this PKI made."""
        names = [name for name in self.authorities() if name != ROOT_CA.name]
        return Anchors((self.certificate(ROOT_CA.name),), tuple(self.certificate(name) for name in names))

    @contextmanager
    def lock(self, timeout_s: float | None = None) -> Iterator[None]:
        """Hold the PKI's lock, waiting for it; the kernel drops it if we die, so it can't be left behind.

        Raises PkiError when it is not to be had within *timeout_s*, for those who may not wait as long as its holder pleases;
        NotFoundError, StorageError.
        """
        path = self.path / "lock"
        with disk_errors(path):
            descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
            if descriptor is None:
                raise NotFoundError(f"{path}: no PKI there any more")
        try:
            with disk_errors(path):
                _take_lock(descriptor, path, timeout_s)
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


def _take_lock(descriptor: int, path: Path, timeout_s: float | None) -> None:
    if timeout_s is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    # The kernel knows no deadline for it, and a signal would be the whole process's: hence asking again.
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                words = f"{path}: held by others for {timeout_s:g} s"
                raise PkiError(words, hint=f"`fuser -v {path}` says who they are; one may have been stopped") from error
        time.sleep(_LOCK_PAUSE_S)


def _certificate_in(folder: Path) -> x509.Certificate:
    path = folder / "cert.pem"
    return load_pem_certificates(read_public(path, 2 * MAX_CERTIFICATE_BYTES), 1, what=str(path))[0]


def issue_fields(
    certificate: x509.Certificate, profile_name: str, issuer: x509.Certificate, names: list[str], addresses: list[str]
) -> Fields:
    """Return what the ledger keeps of a new certificate."""
    return {
        "serial": f"{certificate.serial_number:x}",
        "profile": profile_name,
        "names": [*names],
        "addresses": [*addresses],
        "not_before": format_time(certificate.not_valid_before_utc),
        "not_after": format_time(certificate.not_valid_after_utc),
        "issuer": f"{issuer.serial_number:x}",
        "fingerprint": fingerprint(certificate),
        "public_key": key_fingerprint(certificate.public_key()),
    }


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    """Return certificates as one PEM text, in order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
