"""Frames and manifests of a sender that lies: what can be told without decompressing is refused, all else is found by `verify`."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import zstandard
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from securecore import limits
from securecore.certs import jws
from securecore.certs.chain import load_pem_certificates
from securecore.certs.profiles import HOST
from securecore.dump.compression import Compressor
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.frames import ZERO_PIECE_FRAME, zero_frame
from securecore.dump.manifest import MANIFEST_TYP
from securecore.merkle import leaf_hash
from securecore.names import DumpId
from securecore.wire.messages import Data, End, Message, Refusal, Zero, encode
from tests.support.certificates import HOST_NAME, Hierarchy, mint
from tests.support.hands import Hand
from tests.support.receivers import new_dump_id
from tests.support.stages import Stage
from tests.support.stores import Commands

MAGIC: Final = b"\x28\xb5\x2f\xfd"
FRAME: Final = Compressor().frame(b"a piece of a core " * 200)
CHECKSUM_BYTES: Final = 4


def block(size: int, kind: int, content: bytes, *, last: bool = True) -> bytes:
    """Return one block of a zstd frame, with a header that may lie (RFC 8878 section 3.1.1.2)."""
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + content


def framed(declared: int, *blocks: bytes, descriptor: int = 0xA4, checksum: bytes = bytes(CHECKSUM_BYTES)) -> bytes:
    """Return a frame of one segment that declares a size in four bytes and a checksum."""
    return MAGIC + bytes([descriptor]) + declared.to_bytes(4, "little") + b"".join(blocks) + checksum


RAW: Final = block(4, 0, b"core")


def windowed(window: int) -> bytes:
    """Return a frame of several segments that demands a window (RFC 8878 section 3.1.1.1.2)."""
    return MAGIC + b"\x84" + bytes([window]) + (4).to_bytes(4, "little") + RAW + bytes(CHECKSUM_BYTES)


RLE_FIRST: Final = framed(100, block(100, 1, b"\0"), descriptor=0xA0, checksum=b"")
BAD_FRAMES: Final[dict[str, tuple[bytes, str]]] = {
    "no frame": (b"hello, core", "magic number"),
    "one byte": (b"\x28", "cut off"),
    "the magic number alone": (MAGIC, "cut off"),
    "another magic number": (b"\x27" + FRAME[1:], "magic number"),
    "a skippable frame": (b"\x50\x2a\x4d\x18" + bytes(4), "magic number"),
    "a seek table": (seek_table([FrameEntry(17, 4)]), "magic number"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "magic number"),
    "a trailing byte": (FRAME + b"\0", "followed by 1 more bytes"),
    "two frames": (FRAME * 2, f"followed by {len(FRAME)} more bytes"),
    "two zero frames": (ZERO_PIECE_FRAME * 2, "followed by 45 more bytes"),
    "a frame and a seek table": (FRAME + seek_table([FrameEntry(len(FRAME), 3600)]), "followed by 25 more bytes"),
    "a byte less": (FRAME[:-1], "cut off"),
    "half of it": (FRAME[: len(FRAME) // 2], "cut off"),
    "no checksum": (framed(4, RAW, descriptor=0xA0, checksum=b""), "no checksum"),
    "a dictionary": (framed(4, b"\x01", RAW, descriptor=0xA5), "dictionary"),
    "the reserved bit": (framed(4, RAW, descriptor=0xAC), "reserved bit"),
    "the unused bit": (framed(4, RAW, descriptor=0xB4), "the unused bit"),
    "no content size": (MAGIC + b"\x04\x00" + RAW + bytes(4), "does not declare its content size"),
    "a content size of 0": (framed(0, block(0, 0, b"")), "declares 0 bytes"),
    "a content size of a piece and 1": (framed(limits.PIECE_BYTES + 1, RAW), "declares 1048577 bytes"),
    "a content size of 16 EiB": (MAGIC + b"\xe4" + b"\xff" * 8 + RAW + bytes(4), "declares 18446744073709551615 bytes"),
    "a window of 16 MiB": (windowed(14 << 3), "window of more than 8 MiB"),
    "a window of 4 TiB": (windowed(0xFF), "window of more than 8 MiB"),
    "a block of the reserved type": (framed(4, block(4, 3, b"core")), "reserved type"),
    "a block of 2 MiB": (framed(limits.PIECE_BYTES, block((1 << 21) - 1, 1, b"\0")), "over 128 KiB"),
    "raw blocks that hold more": (framed(3, RAW), "hold more than the frame declares"),
    "RLE blocks that hold more": (framed(1000, block(100_000, 1, b"\0")), "hold more than the frame declares"),
    "empty blocks without end": (framed(4, *[block(0, 0, b"", last=False)] * 4096, RAW), "more than 4096 blocks"),
    "no last block": (framed(4, block(4, 0, b"core", last=False)), "cut off"),
    "zeroes that begin with an RLE block": (RLE_FIRST, "not the canonical zero"),
    "a zero frame that declares more": (zero_frame(100).replace(b"\x64\0\0\0", b"\x65\0\0\0", 1), "not the canonical zero"),
    "a zero frame that declares less": (zero_frame(100).replace(b"\x64\0\0\0", b"\x63\0\0\0", 1), "hold more than the frame"),
    "a zero frame of ones": (zero_frame(100)[:-1] + b"\1", "not the canonical zero"),
}  # fmt: skip
"""The bytes, and a part of the words."""


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_what_is_not_exactly_one_frame_is_refused(name: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a byte of it is stored: what was acknowledged before is all that is there."""
    monkeypatch.setattr(limits, "ACK_EVERY_BYTES", 1)
    data, words = BAD_FRAMES[name]
    hand = stage.hand()
    hand.open(new_dump_id())
    hand.put(encode(Zero(1)) + encode(Data(data)))

    stage.refused(hand, Refusal.BAD_FRAME, words)
    assert [path.stat().st_size for path in (stage.store / "incoming").rglob("core.zst")] == [len(ZERO_PIECE_FRAME)]


SHORT: Final[dict[str, list[Message]]] = {
    "zeroes": [Data(FRAME), Zero(1)],
    "another short piece": [Data(FRAME), Data(FRAME)],
    "a whole piece": [Data(FRAME), Data(ZERO_PIECE_FRAME)],
    "zeroes behind short zeroes": [Data(zero_frame(limits.PIECE_BYTES - 1)), Zero(4096)],
}


@pytest.mark.parametrize("name", SHORT)
def test_nothing_follows_a_short_piece(name: str, stage: Stage) -> None:
    """Offsets are computed from whole pieces: a short one in the middle would move all that follows."""
    hand = stage.hand()
    hand.open(new_dump_id())
    hand.put(b"".join(map(encode, SHORT[name])))

    stage.refused(hand, Refusal.BAD_REQUEST, "follows a short piece")


NOISE: Final = b"".join(index.to_bytes(4, "big") for index in range(500))
NOISY: Final = Compressor().frame(NOISE)
BOMB: Final = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True).compress(b"01234567" * 131_072)[9:]
"""The blocks of a frame of a whole piece, with its checksum."""
SECRETLY_BROKEN: Final[dict[str, tuple[bytes, int]]] = {
    "a wrong checksum": (NOISY[:-1] + bytes([NOISY[-1] ^ 1]), 2000),
    "a flipped bit in a block": (NOISY[:40] + bytes([NOISY[40] ^ 1]) + NOISY[41:], 2000),
    "a block that is no block": (framed(2000, block(100, 2, b"\xff" * 100)), 2000),
    "an empty block that should be 2000 bytes": (framed(2000, block(0, 0, b"")), 2000),
    "less than it declares": (NOISY.replace((2000 - 256).to_bytes(2, "little"), (2100 - 256).to_bytes(2, "little"), 1), 2100),
    "more than it declares": (NOISY.replace((2000 - 256).to_bytes(2, "little"), (1900 - 256).to_bytes(2, "little"), 1), 1900),
    "a bomb": (MAGIC + b"\xa4" + (300).to_bytes(4, "little") + BOMB, 300),
}
"""One frame by its headers, whose blocks are something else; and the size that it declares."""


@pytest.mark.parametrize("name", SECRETLY_BROKEN)
def test_what_only_decompression_can_tell_is_stored_and_found(
    name: str, stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The receiver does not decompress: a host that signs rubbish has its rubbish proved, and every reader says what it is."""
    frame, declared = SECRETLY_BROKEN[name]
    dump, hand = new_dump_id(), stage.hand()
    hand.open(dump)
    hand.delivery.send_frame(frame)
    hand.tree.append(leaf_hash(frame))
    hand.size = declared
    hand.delivery.end(hand.manifest(dump))
    commands = Commands(stage.store, stage.fleet, capsys)

    verified, extracted, shown = commands.verify(dump), commands.extract(dump, tmp_path / "core"), commands("show", dump)

    assert stage.published() == [dump]
    assert (verified.code, extracted.code, shown.code) == (6, 6, 0)
    assert "frame 0 of 1" in verified.out
    assert extracted.err.startswith("securecore: frame 0: ")
    assert not (tmp_path / "core").exists()
    assert commands.audit().code == 0
    stage.serves_the_next()


def claims(hand: Hand, dump: DumpId, **changes: object) -> bytes:
    """Return the JSON that the host would sign, with *changes*."""
    fields = json.loads(jws.parse(hand.manifest(dump), limits.MAX_MANIFEST_BYTES).payload)
    return json.dumps(fields | changes, sort_keys=True, separators=(",", ":")).encode()


def own_chain(hand: Hand) -> list[bytes]:
    """Return the host's certificate and those above it, DER."""
    return [part.public_bytes(Encoding.DER) for part in load_pem_certificates(hand.papers.credentials.certificate)]


def signed(hand: Hand, payload: bytes, *, typ: str = MANIFEST_TYP, chain_der: list[bytes] | None = None) -> bytes:
    """Return *payload* signed with the session's own key."""
    return jws.sign(payload, hand.papers.credentials.key, chain_der or own_chain(hand), typ)


def encoded(data: bytes) -> bytes:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def with_header(hand: Hand, dump: DumpId, *, signature: bytes | None = None, **changes: object) -> bytes:
    """Return a token with another header, truly signed with the session's key unless *signature* is given."""
    x5c = [base64.b64encode(der).decode() for der in own_chain(hand)]
    header = {"alg": "ES256", "typ": MANIFEST_TYP, "x5c": x5c} | changes
    token = encoded(json.dumps(header, sort_keys=True, separators=(",", ":")).encode()) + b"." + encoded(claims(hand, dump))
    if signature is None:
        key = serialization.load_pem_private_key(hand.papers.credentials.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(token, ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return token + b"." + encoded(signature)


def of_a_stranger(hand: Hand, dump: DumpId, hierarchy: Hierarchy) -> bytes:
    """A manifest of the same name, signed by a host of another CA."""
    made = mint(HOST, issuer=hierarchy.hosts, dns=[HOST_NAME])
    return jws.sign(claims(hand, dump), made.key_pem, [made.der], MANIFEST_TYP)


def under_our_name(hand: Hand, dump: DumpId, hierarchy: Hierarchy) -> bytes:
    """A manifest that shows the session's certificate, signed with another key."""
    made = mint(HOST, issuer=hierarchy.hosts, dns=[HOST_NAME])
    header, payload, _ = signed(hand, claims(hand, dump)).split(b".")
    other = jws.sign(claims(hand, dump), made.key_pem, [made.der], MANIFEST_TYP)
    return b".".join([header, payload, other.split(b".")[2]])


def above(hand: Hand, dump: DumpId, *issuers: bytes) -> bytes:
    """A true manifest that shows other certificates above the host's own."""
    return signed(hand, claims(hand, dump), chain_der=[own_chain(hand)[0], *issuers])


Make = Callable[[Hand, DumpId, Hierarchy], bytes]
LIES: Final[dict[str, tuple[Make, str]]] = {
    "alg none": (lambda hand, dump, _: with_header(hand, dump, alg="none", signature=b""), "base64url"),
    "alg none with a signature": (lambda hand, dump, _: with_header(hand, dump, alg="none"), "not signed with ES256"),
    "alg HS256": (lambda hand, dump, _: with_header(hand, dump, alg="HS256"), "not signed with ES256"),
    "alg in lower case": (lambda hand, dump, _: with_header(hand, dump, alg="es256"), "not signed with ES256"),
    "no typ": (lambda hand, dump, _: with_header(hand, dump, typ=None), "ES256"),
    "of a log key's type": (lambda hand, dump, _: signed(hand, claims(hand, dump), typ=jws.LOG_KEY_TYP), "its type is"),
    "a critical header": (lambda hand, dump, _: with_header(hand, dump, crit=["exp"]), "header is not exactly"),
    "a key by URL": (lambda hand, dump, _: with_header(hand, dump, x5u="http://127.0.0.1/"), "header is not exactly"),
    "a key of its own": (lambda hand, dump, _: with_header(hand, dump, jwk={"kty": "EC"}), "header is not exactly"),
    "no certificate": (lambda hand, dump, _: with_header(hand, dump, x5c=[]), "x5c is not a list of 1 to 4"),
    "five certificates": (lambda hand, dump, _: with_header(hand, dump, x5c=["AAAA"] * 5), "x5c is not a list of 1 to 4"),
    "a certificate of rubbish": (lambda hand, dump, _: with_header(hand, dump, x5c=["AAAA"]), "can't be read"),
    "a signature of zeroes": (lambda hand, dump, _: with_header(hand, dump, signature=bytes(64)), "signature does not match"),
    "a signature of 63 bytes": (lambda hand, dump, _: with_header(hand, dump, signature=bytes(63)), "signature of 63 bytes"),
    "by a host of another CA": (of_a_stranger, "does not hold by itself"),
    "by another key under our certificate": (under_our_name, "signature does not match"),
    "another type of statement": (lambda hand, dump, _: signed(hand, claims(hand, dump, type="x")), "not in its canonical"),
    "a later version": (lambda hand, dump, _: signed(hand, claims(hand, dump, version=2)), "not in its canonical"),
    "a field more": (lambda hand, dump, _: signed(hand, claims(hand, dump, extra=1)), "not in its canonical"),
    "numbers as text": (lambda hand, dump, _: signed(hand, claims(hand, dump, size="4")), "malformed"),
    "a negative size": (lambda hand, dump, _: signed(hand, claims(hand, dump, size=-1)), "malformed"),
    "a size beyond 63 bits": (lambda hand, dump, _: signed(hand, claims(hand, dump, size=1 << 63)), "malformed"),
    "a size that is true": (lambda hand, dump, _: signed(hand, claims(hand, dump, size=True)), "malformed"),
    "an outcome of its own": (lambda hand, dump, _: signed(hand, claims(hand, dump, outcome="perfect")), "malformed"),
    "a host that is a path": (lambda hand, dump, _: signed(hand, claims(hand, dump, host="../../x")), "malformed"),
    "a root of one byte": (lambda hand, dump, _: signed(hand, claims(hand, dump, root="00")), "malformed"),
    "JSON with spaces": (lambda hand, dump, _: signed(hand, claims(hand, dump).replace(b",", b", ")), "not in its canonical"),
    "no JSON": (lambda hand, dump, _: signed(hand, b"\xff" * 100), "malformed"),
    "the longest": (lambda hand, dump, _: signed(hand, b"[" * 44_000), "malformed"),
    "no issuer": (lambda hand, dump, _: above(hand, dump), "does not hold by itself"),
    "rubbish as issuer": (lambda hand, dump, _: above(hand, dump, b"\xff" * 9), "does not hold by itself"),
    "an issuer of another CA": (lambda hand, dump, hierarchy: above(hand, dump, hierarchy.hosts.der), "does not hold by itself"),
}  # fmt: skip
"""How it is made, and a part of the words."""


@pytest.mark.parametrize("name", LIES)
def test_a_manifest_that_proves_nothing_is_refused(name: str, stage: Stage, hierarchy: Hierarchy) -> None:
    """Nothing is committed that `verify` would not believe; the frames stay for a sender that means it."""
    make, words = LIES[name]
    dump, hand = new_dump_id(), stage.hand()
    hand.open(dump)
    hand.send(b"core")
    hand.put(encode(End(make(hand, dump, hierarchy))))

    stage.refused(hand, Refusal.BAD_MANIFEST, words)


def test_the_manifest_of_an_earlier_dump_is_no_manifest_of_this_one(stage: Stage) -> None:
    """Replayed as it was, with the same core behind it: it names its own dump."""
    first, second, hand = new_dump_id(), new_dump_id(), stage.hand()
    hand.open(first)
    hand.send(b"core")
    earlier = hand.manifest(first)
    hand.delivery.end(earlier)
    hand.open(second)
    hand.delivery.send_frame(Compressor().frame(b"core"))
    hand.put(encode(End(earlier)))

    refusal = hand.refusal()
    assert (refusal.code, refusal.words) == (Refusal.BAD_MANIFEST, "manifest states another dump than what was received")
    assert stage.published() == [first]


def test_after_a_refused_manifest_the_dump_can_still_be_finished(stage: Stage) -> None:
    """The fault was the manifest's: the sender comes back and says what is so."""
    dump, hand = new_dump_id(), stage.hand()
    hand.open(dump)
    hand.send(b"core")
    hand.put(encode(End(b"x.y.z")))
    assert hand.refusal().code == Refusal.BAD_MANIFEST

    again = stage.hand()
    again.open(dump)
    again.send(b"core")
    again.delivery.end(again.manifest(dump))
    assert stage.published() == [dump]
