"""The reply to a request: one PEM text that carries a certificate to the machine that holds its key.

The blocks, in order: the leaf, its issuing CA, the root, for a receiver or an enroller all other CAs of the fleet, and a receiver's
CRLs. It holds no secret. What the blocks are is read from the certificates themselves, and the judge has the last word.
"""

from typing import Final, NamedTuple

from cryptography import x509

from securecore.certs.chain import MAX_ANCHORS, Anchors, load_anchors, load_pem_certificates
from securecore.certs.private_file import read_public
from securecore.certs.profiles import HOST, RECEIVER
from securecore.errors import PkiError
from securecore.limits import MAX_CERTIFICATE_BYTES, MAX_CRL_BYTES
from securecore.pki.directory import PkiDirectory, certificate_pem
from securecore.pki.recording import Subject

MAX_REPLY_BYTES: Final = 2 * (MAX_ANCHORS + 1) * MAX_CERTIFICATE_BYTES + MAX_CRL_BYTES
"""As many certificates as a leaf and a ca.pem may hold, and the largest CRL file that a receiver reads."""

_LEAST: Final = 3
_BLOCK_BEGINS: Final = b"-----BEGIN "
_CERTIFICATE_BEGINS: Final = b"-----BEGIN CERTIFICATE-----"
_CRL_BEGINS: Final = b"-----BEGIN X509 CRL-----"
_BRING: Final = "bring the file that `securecore pki sign` or `securecore pki renew` made"


class Reply(NamedTuple):
    """A reply, read: nothing in it is believed yet."""

    leaf: x509.Certificate
    issuer: x509.Certificate
    anchors: Anchors
    """All but the leaf."""
    crl_pem: bytes
    """Empty for all but a receiver."""


def encode_reply(pki: PkiDirectory, leaf: x509.Certificate, issuer: x509.Certificate, subject: Subject) -> bytes:
    """Return the reply that delivers *leaf*."""
    anchors = pki.anchors()
    certificates = [leaf, issuer, *anchors.roots]
    if subject.profile is not HOST:
        certificates += [one for one in anchors.intermediates if one != issuer]
    crls = read_public(pki.crl_path, MAX_CRL_BYTES) if subject.profile is RECEIVER else b""
    return certificate_pem(*certificates) + crls


def parse_reply(data: bytes, *, what: str) -> Reply:
    """Return the parts of a reply; *what* names the file in messages. Raises ConfigError or PkiError when it is none.

    Refused are blocks of another kind, and certificates behind a list, which nobody would read. Not checked: signatures, dates,
    profiles, and whether any of it is to be believed.
    """
    head, mark, rest = data.partition(_CRL_BEGINS)
    if head.count(_BLOCK_BEGINS) != head.count(_CERTIFICATE_BEGINS) or rest.count(_BLOCK_BEGINS) != rest.count(_CRL_BEGINS):
        raise PkiError(f"{what}: not a reply: it holds more than certificates, and lists behind them", hint=_BRING)
    certificates = load_pem_certificates(head, MAX_ANCHORS + 1, what=what)
    if len(certificates) < _LEAST:
        words = f"{what}: not a reply: {len(certificates)} certificates, where leaf, issuing CA and root are expected"
        raise PkiError(words, hint=_BRING)
    leaf, issuer = certificates[:2]
    return Reply(leaf, issuer, load_anchors(certificate_pem(*certificates[1:]), what=what), mark + rest)
