"""The formats of docs/store.md, read by a second implementation that shares nothing with the package."""

import base64
import itertools
import json
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import zstandard
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

PIECE: Final = 1 << 20
MAX_FRAME: Final = 1052736
SKIPPABLE: Final = b"\x5e\x2a\x4d\x18"


class Wrong(Exception):
    """What was read is not what the format says."""


class Container(NamedTuple):
    """The frames of a core.zst."""

    plain: bytes
    leaves: list[bytes]
    rest: bytes
    """What follows the last whole frame."""


class Note(NamedTuple):
    """A signed checkpoint."""

    size: int
    root: bytes


def demand(holds: bool, words: str) -> None:
    """Raise Wrong with these words unless it holds."""
    if not holds:
        raise Wrong(words)


def read_container(path: Path) -> Container:
    """Return what a core.zst holds, whole frames only; checks nothing but that they decompress."""
    rest, leaves, plain = path.read_bytes(), [], []
    while rest and not rest.startswith(SKIPPABLE):
        reader = zstandard.ZstdDecompressor().decompressobj()
        try:
            piece = reader.decompress(rest[:MAX_FRAME])
        except zstandard.ZstdError:
            break
        if not reader.eof:
            break
        stored = min(len(rest), MAX_FRAME) - len(reader.unused_data)
        leaves.append(rest[:stored])
        plain.append(piece)
        rest = rest[stored:]
    return Container(b"".join(plain), leaves, rest)


def seek_table(core: Container) -> bytes:
    """Return the seek table that these frames give."""
    rows = b"".join(
        len(leaf).to_bytes(4, "little") + min(PIECE, len(core.plain) - at * PIECE).to_bytes(4, "little")
        for at, leaf in enumerate(core.leaves)
    )
    length, count = (number.to_bytes(4, "little") for number in (len(rows) + 9, len(core.leaves)))
    return SKIPPABLE + length + rows + count + b"\0\xb1\xea\x92\x8f"


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root of RFC 6962 section 2.1 over *leaves*, by its recursive definition."""
    if not leaves:
        return sha256(b"").digest()
    return _root([sha256(b"\0" + leaf).digest() for leaf in leaves])


def _root(hashes: Sequence[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return sha256(b"\1" + _root(hashes[:split]) + _root(hashes[split:])).digest()


def climb(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162 section 2.1.3.2)."""
    number, last, reached = index, size - 1, leaf
    demand(0 <= index < size, "a receipt for an entry behind its checkpoint")
    for one in path:
        demand(last > 0, "a receipt with too many hashes")
        if number & 1 or number == last:
            reached = sha256(b"\1" + one + reached).digest()
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            reached = sha256(b"\1" + reached + one).digest()
        number, last = number >> 1, last >> 1
    demand(last == 0, "a receipt with too few hashes")
    return reached


def canonical(value: object) -> bytes:
    """Return canonical JSON; json.dumps leaves DEL as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).replace("\x7f", "\\u007f").encode("ascii")


def unpadded(text: bytes) -> bytes:
    """Return what base64url without padding stands for."""
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def read_jws(token: bytes, typ: str, roots: list[x509.Certificate], at: datetime) -> tuple[dict[str, Any], x509.Certificate]:
    """Return payload and first certificate of a statement that was well signed at that time."""
    head, body, signature = token.split(b".")
    header, raw = json.loads(unpadded(head)), unpadded(signature)
    demand((header["alg"], header["typ"]) == ("ES256", typ), "another kind of statement")
    chain = [x509.load_der_x509_certificate(base64.b64decode(one, validate=True)) for one in header["x5c"]]
    for lower, upper in itertools.pairwise(chain):
        lower.verify_directly_issued_by(upper)
    if chain[-1] not in roots:
        chain[-1].verify_directly_issued_by(next(root for root in roots if root.subject == chain[-1].issuer))
    for one in chain:
        demand(one.not_valid_before_utc <= at <= one.not_valid_after_utc, "signed outside of the time of its certificate")
    key = chain[0].public_key()
    demand(isinstance(key, ec.EllipticCurvePublicKey) and len(raw) == 64, "no ES256 signature")
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:])), head + b"." + body, ec.ECDSA(SHA256()))
    payload = json.loads(unpadded(body))
    demand(canonical(payload) == unpadded(body), "its payload is not canonical")
    return payload, chain[0]


def dns_names(certificate: x509.Certificate) -> list[str]:
    """Return the names in a certificate."""
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)


def read_note(text: bytes, origin: bytes, log_key: bytes) -> Note:
    """Return a checkpoint of that origin that the key has signed."""
    body, _, signatures = text.partition(b"\n\n")
    said, size, root = body.split(b"\n")
    demand(said == origin, f"a checkpoint of {said!r}")
    key_id = sha256(origin + b"\n\1" + log_key).digest()[:4]
    for line in signatures.splitlines():
        name, blob = line.removeprefix("— ".encode()).split(b" ")
        raw = base64.b64decode(blob, validate=True)
        if (name, raw[:4]) == (origin, key_id):
            Ed25519PublicKey.from_public_bytes(log_key).verify(raw[4:], body + b"\n")
            return Note(int(size), base64.b64decode(root, validate=True))
    raise Wrong("a checkpoint without the log key's signature")
