"""Certificates as files hold them: bounded parsing, trust anchors, fingerprints."""

from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from securecore import limits
from securecore.errors import ConfigError

MAX_ANCHORS: Final = 16
"""Certificates in a ca.pem: root, hosts CA and receivers CA, twice during a rotation, with room for a merged fleet."""

KEPT: Final = 512
"""Findings about certificates that no clock changes, kept for the next time: those of twice MAX_CONNECTIONS hosts. One whose
extensions were read takes 6 KiB. Of more hosts that come in turns each finds its place taken, and costs what a new one costs."""

PARSE_ERRORS: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)
"""Everything that the cryptography library raises for a certificate or CRL that it can't read, some of it only when a field is
first asked for. UnsupportedGeneralNameType and InvalidVersion derive from Exception alone. It warns of some malformed certificates
(a serial number of zero) before it will refuse them in a later release; where warnings are errors, that is a refusal already."""


class Anchors(NamedTuple):
    """What a judge starts from: self-signed roots, and CA certificates that help to build a chain but are not trusted."""

    roots: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...]


def load_pem_certificates(data: bytes, maximum: int = limits.MAX_CHAIN, *, what: str = "certificates") -> list[x509.Certificate]:
    """Return the certificates of a PEM text, in order, at least one.

    *what* names the file in messages. Raises ConfigError when there is none, more than *maximum*, one larger than
    MAX_CERTIFICATE_BYTES, or one that is not whole or does not parse. Text between the blocks is ignored (RFC 7468 section 2). Not
    checked: signatures, dates, order.
    """
    count = data.count(b"-----BEGIN CERTIFICATE-----")
    if not 1 <= count <= maximum or len(data) > 2 * maximum * limits.MAX_CERTIFICATE_BYTES:
        raise ConfigError(f"{what}: expected 1 to {maximum} PEM certificates, found {count} in {len(data)} bytes")
    try:
        certificates = x509.load_pem_x509_certificates(data)
        sizes = [len(certificate.public_bytes(Encoding.DER)) for certificate in certificates]
    except PARSE_ERRORS as error:
        raise ConfigError(f"{what}: not a readable PEM certificate: {one_line(error)}") from error
    if len(certificates) != count:
        # The library passes over what has no END line.
        raise ConfigError(f"{what}: {count} PEM certificates begin, {len(certificates)} are whole: the file is cut off or damaged")
    if max(sizes) > limits.MAX_CERTIFICATE_BYTES:
        raise ConfigError(f"{what}: a certificate of {max(sizes)} bytes, at most {limits.MAX_CERTIFICATE_BYTES} are read")
    return certificates


def load_anchors(ca_pem: bytes, *, what: str = "ca.pem") -> Anchors:
    """Return the anchors of a ca.pem: each self-signed certificate is a root, the others only help.

    Raises ConfigError like load_pem_certificates, when no root is among them, and when a certificate names itself as its issuer
    without having signed itself. Not checked: dates and profiles; the judge does that for every chain.
    """
    roots: list[x509.Certificate] = []
    intermediates: list[x509.Certificate] = []
    for certificate in load_pem_certificates(ca_pem, MAX_ANCHORS, what=what):
        try:
            names_itself = certificate.subject == certificate.issuer
        except PARSE_ERRORS as error:
            raise ConfigError(f"{what}: a certificate's names can't be read: {one_line(error)}") from error
        if not names_itself:
            intermediates.append(certificate)
        elif is_signed_by(certificate, certificate):
            roots.append(certificate)
        else:
            raise ConfigError(f"{what}: {common_name(certificate.subject)} calls itself a root but did not sign itself")
    if not roots:
        raise ConfigError(f"{what}: holds no root", hint="put the self-signed certificate there that `securecore pki init` made")
    return Anchors(tuple(roots), tuple(intermediates))


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether *issuer*'s name and key are those that signed *certificate*; says nothing about what *issuer* may sign."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *PARSE_ERRORS):
        return False
    return True


def is_signed_by_ours(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether is_signed_by holds, for an *issuer* that is one of our roots or that one has signed: that it does is kept."""
    try:
        _check_signed(certificate, issuer)
    except (InvalidSignature, *PARSE_ERRORS):
        return False
    return True


@lru_cache(maxsize=KEPT)
def _check_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Raise what the library does unless *issuer* signed *certificate*; that it did is found once, as long as it is kept.

    Certificates are equal where all their bytes are. What does not hold is looked at each time.
    """
    certificate.verify_directly_issued_by(issuer)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the certificate's DER as 64 lower-case hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def key_fingerprint(key: CertificatePublicKeyTypes) -> str:
    """Return the SHA-256 of a public key's SubjectPublicKeyInfo in DER, in hexadecimal, as ``public_key`` in the PKI's ledger."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def common_name(name: x509.Name) -> str:
    """Return a distinguished name for people: its common name, else the whole, quoted and cut; never used to decide anything."""
    try:
        values = [str(attribute.value) for attribute in name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        text = values[0] if values else name.rfc4514_string()
    except PARSE_ERRORS:
        text = "(unreadable)"
    return ascii(text[: limits.MAX_WORDS // 4])


def one_line(error: BaseException) -> str:
    """Return an exception's words as one printable line of bounded length."""
    return ascii(" ".join(str(error).split())[: limits.MAX_WORDS // 2])[1:-1] or type(error).__name__
