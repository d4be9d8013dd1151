"""DER as a tree: certificates and CRLs with one element replaced, lengths mended around it, and signed again."""

import base64
from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.certificates import tlv

_CONSTRUCTED: Final = 0x20
_ECDSA_WITH_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
"""AlgorithmIdentifier, RFC 5758 section 3.2."""


class Element(NamedTuple):
    """One element, with its tag and length."""

    tag: int
    content: bytes
    whole: bytes


def elements(content: bytes) -> list[Element]:
    """Return the elements that stand in some content, one after the other; raises ValueError where they do not fill it."""
    found = []
    at = 0
    while at < len(content):
        octets = content[at + 1] & 0x7F if content[at + 1 : at + 2] >= b"\x80" else 0
        start = at + 2 + octets
        length = int.from_bytes(content[at + 2 : start], "big") if octets else content[at + 1]
        if start + length > len(content):
            raise ValueError("an element reaches beyond its content")
        found.append(Element(content[at], content[start : start + length], content[at : start + length]))
        at = start + length
    return found


def paths(element: Element, above: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Element]]:
    """Yield every element of a tree, the outermost first, with the way to it: which child, of which child."""
    yield above, element
    if element.tag & _CONSTRUCTED:
        for index, child in enumerate(elements(element.content)):
            yield from paths(child, (*above, index))


def replaced(element: Element, path: tuple[int, ...], new: bytes) -> bytes:
    """Return the tree with any bytes instead of one element; the lengths around them are right."""
    if not path:
        return new
    parts = elements(element.content)
    inner = [replaced(part, path[1:], new) if index == path[0] else part.whole for index, part in enumerate(parts)]
    return tlv(element.tag, b"".join(inner))


def signed(body: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a certificate or CRL over a body, signed with ECDSA and SHA-256; the same bytes for the same body (RFC 6979)."""
    signature = key.sign(body, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return tlv(0x30, body + _ECDSA_WITH_SHA256 + tlv(0x03, b"\x00" + signature))


def pem(kind: str, der: bytes) -> bytes:
    """Return DER as PEM, as RFC 7468 writes it."""
    text = base64.encodebytes(der).decode("ascii")
    return f"-----BEGIN {kind}-----\n{text}-----END {kind}-----\n".encode()
