"""The certificates under which a host's dumps came, as its log knows them: each has one entry, from the first dump on.

The log is read when it is opened, so what it knows of certificates is found again in its own entries, and nowhere else. A
certificate that comes back has no second entry: two machines of one name cannot make a log grow by taking turns.
"""

import re
from datetime import datetime
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from securecore.audit.entry import CERTIFICATE, certificate_entry, parse_entry
from securecore.certs import chain
from securecore.errors import BrokenError
from securecore.names import DumpId, HostName

FIRST: Final = "first"
KEPT: Final = "kept"
ROTATED: Final = "rotated"

_MARK: Final = f'"event":"{CERTIFICATE}"'.encode("ascii")
"""Quotes within text are escaped, so these bytes in an entry are a field and nothing else."""
_HEX: Final = re.compile("[0-9a-f]{64}")


class Introduction(NamedTuple):
    """A certificate that a dump comes under, and that its host's log may not know yet."""

    host: HostName
    dump: DumpId
    certificate: bytes
    """DER; a host's, which was judged."""
    moment: datetime


class Introductions:
    """What one log knows of certificates; the log sees to it that one thread at a time is here."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._newest_key: str | None = None

    def take(self, entry: bytes) -> None:
        """Note what an entry of the log says, if it introduces a certificate; one that is malformed introduces none."""
        if _MARK not in entry:
            return
        try:
            fields = parse_entry(entry)
        except BrokenError:
            return
        certificate, key = str(fields.get("certificate")), str(fields.get("key_sha256"))
        if _HEX.fullmatch(certificate) and _HEX.fullmatch(key):
            self._known.add(certificate)
            self._newest_key = key

    def find_entry(self, introduction: Introduction) -> bytes | None:
        """Return the entry to write; None when the log knows the certificate. Raises BrokenError when that cannot be read."""
        fingerprint = sha256(introduction.certificate).hexdigest()
        if fingerprint in self._known:
            return None
        try:
            certificate = x509.load_der_x509_certificate(introduction.certificate)
            spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            serial, not_after = certificate.serial_number, certificate.not_valid_after_utc
        except chain.PARSE_ERRORS as error:
            raise BrokenError(f"the host's certificate can't be read: {chain.one_line(error)}") from error
        key = sha256(spki).hexdigest()
        return certificate_entry(
            introduction.moment,
            introduction.dump,
            introduction.host,
            certificate=fingerprint,
            serial=serial,
            not_after=not_after,
            key_sha256=key,
            key=FIRST if self._newest_key is None else KEPT if key == self._newest_key else ROTATED,
        )
