"""Frames: zero frames that every zstd reads, and the check that a receiver makes before it keeps one."""

import shutil
import struct
import subprocess
from typing import Final

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from securecore import limits
from securecore.dump.compression import Compressor, Decompressor
from securecore.dump.frames import (
    ZERO_PIECE_FRAME,
    FrameCut,
    FrameRefused,
    check_frame,
    find_frame,
    has_checksum,
    is_torn_frame,
    is_zero,
    walk_frame,
    zero_frame,
)
from securecore.errors import BrokenError

LENGTHS: Final = [1, 2, 3, 255, 256, 257, 65536, 131071, 131072, 131073, 131074, 262145, (1 << 20) - 1, 1 << 20]
PIECE: Final = b"".join(f"{number} plus {number} is {2 * number}\n".encode() for number in range(1000))
ZSTD: Final = shutil.which("zstd")
needs_zstd = pytest.mark.skipif(ZSTD is None, reason="the zstd program is not installed")

MAGIC: Final = b"\x28\xb5\x2f\xfd"
RAW, RLE, COMPRESSED, RESERVED = range(4)


def block(size: int, kind: int = RAW, *, last: bool = True, content: bytes | None = None) -> bytes:
    """Return a block's header and content (of *size* bytes, or one for RLE, unless given)."""
    body = content if content is not None else b"a" if kind == RLE else b"a" * size
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + body


def frame(blocks: bytes, size: int = 10, *, descriptor: int = 0xA4, checksum: bytes = b"abcd") -> bytes:
    """Return a single-segment frame with a 4-byte content size; right in its headers unless something is overridden."""
    return MAGIC + bytes([descriptor]) + struct.pack("<I", size) + blocks + checksum


GOOD: Final = frame(block(10))


@pytest.mark.parametrize("length", LENGTHS)
def test_a_zero_frame_decompresses_to_zeroes(length: int) -> None:
    """By the library, and by our own reader."""
    stored = zero_frame(length)
    assert bytes(length) == zstandard.ZstdDecompressor().decompress(stored) == Decompressor().piece(stored)
    assert length == check_frame(stored)


@needs_zstd
@pytest.mark.parametrize("length", LENGTHS)
def test_a_zero_frame_decompresses_with_the_zstd_program(length: int) -> None:
    """`zstd -dc` gives as many zeroes."""
    result = subprocess.run([str(ZSTD), "-dc"], input=zero_frame(length), capture_output=True, check=True)
    assert bytes(length) == result.stdout


@pytest.mark.parametrize("length", LENGTHS)
def test_a_zero_frame_begins_with_a_raw_block(length: int) -> None:
    """zstd before 1.4.4 refuses a frame whose first block is RLE, and its blocks are at most 128 KiB."""
    stored = zero_frame(length)
    assert stored[:5] == MAGIC + b"\xa0"
    assert stored[9:13] == block(1, last=length == 1, content=b"\0")
    assert len(stored) == 13 + 4 * -(-(length - 1) // 131072)


@pytest.mark.parametrize("length", [-1, 0, limits.PIECE_BYTES + 1])
def test_there_is_no_zero_frame_of_other_lengths(length: int) -> None:
    """A piece has 1 byte to 1 MiB."""
    with pytest.raises(ValueError):
        zero_frame(length)


@pytest.mark.parametrize("length", [1, 2, 131073])
def test_a_zero_frame_has_one_form(length: int) -> None:
    """A frame without a checksum that is not the canonical one is refused, even where it decompresses to the same."""
    other = frame(block(length, RLE, content=b"\0"), length, descriptor=0xA0, checksum=b"")
    with pytest.raises(FrameRefused, match=r"not the canonical|over 128 KiB"):
        check_frame(other)
    changed = zero_frame(length)[:-1] + b"\1"
    with pytest.raises(FrameRefused, match="not the canonical"):
        check_frame(changed)


@pytest.mark.parametrize("level", [1, 3, 9, -5])
@pytest.mark.parametrize("length", [1, 255, 256, 257, 4096, 65536 + 255, 131073, 600_000, limits.PIECE_BYTES])
@pytest.mark.parametrize("content", [b"text and again text, ", b"\0\0\0\1", bytes(range(256))])
def test_what_we_compress_we_accept(level: int, length: int, content: bytes) -> None:
    """check_frame takes what Compressor makes and reads its length; Decompressor gives the piece back."""
    piece = (content * (length // len(content) + 1))[:length]
    stored = Compressor(level).frame(piece)
    assert length == check_frame(stored)
    assert piece == Decompressor().piece(stored) == zstandard.ZstdDecompressor().decompress(stored)
    assert len(stored) <= limits.MAX_FRAME_BYTES


def test_what_cannot_be_compressed_stays_within_the_bound() -> None:
    """The longest frame that zstd makes of a piece is not longer than MAX_FRAME_BYTES."""
    piece = b"".join(_pseudo_random(limits.PIECE_BYTES))
    assert limits.PIECE_BYTES < len(Compressor().frame(piece)) <= limits.MAX_FRAME_BYTES
    assert limits.MAX_FRAME_BYTES >= limits.PIECE_BYTES + (limits.PIECE_BYTES >> 8) + 4


def _pseudo_random(length: int) -> list[bytes]:
    state, parts = 1, []
    for _ in range(length // 8):
        state = (state * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        parts.append((state ^ state >> 29).to_bytes(8, "little"))
    return parts


@pytest.mark.parametrize("length", [1, 100, limits.PIECE_BYTES])
def test_pieces_of_zeroes_become_zero_frames(length: int) -> None:
    """Of every length, whatever memory they stand in; one byte of content anywhere makes an ordinary frame."""
    for memory in (bytes(length), bytearray(length), memoryview(bytearray(length))):
        assert zero_frame(length) == Compressor().frame(memory)
    for place in {0, length // 2, length - 1}:
        piece = bytearray(length)
        piece[place] = 1
        assert not is_zero(piece)
        assert bytes(piece) == Decompressor().piece(Compressor().frame(piece))


@pytest.mark.parametrize("stored", [Compressor().frame(PIECE), zero_frame(300_000), GOOD], ids=["compressed", "zero", "raw"])
def test_truncation_at_every_offset_is_a_cut_frame(stored: bytes) -> None:
    """So that a reader of a torn file can tell it from damage."""
    for cut in range(len(stored)):
        with pytest.raises(FrameCut):
            check_frame(stored[:cut])


@pytest.mark.parametrize("stored", [Compressor().frame(PIECE), zero_frame(300_000), GOOD], ids=["compressed", "zero", "raw"])
def test_any_beginning_of_a_frame_is_known_for_one(stored: bytes) -> None:
    """At every offset; the whole of it, and more than the whole, is none."""
    assert all(is_torn_frame(stored[:cut]) for cut in range(len(stored)))
    assert not is_torn_frame(stored)
    assert not is_torn_frame(stored + b"x")


@pytest.mark.parametrize("stored", [Compressor().frame(PIECE), zero_frame(300_000), GOOD], ids=["compressed", "zero", "raw"])
def test_only_a_whole_frame_is_known_for_one(stored: bytes) -> None:
    """Whatever follows; no beginning of it, cut at any offset. All but the zero frames have a checksum."""
    assert {find_frame(stored[:cut]) for cut in range(len(stored))} == {None}
    assert find_frame(stored) == find_frame(stored + b"x") == stored
    assert has_checksum(stored) is (stored != zero_frame(300_000))


NO_BEGINNINGS: Final = [b"\0", b"\x28\xb5\x2f\xfe", bytes(100), MAGIC + b"\xff", GOOD[:9] + block(0, RESERVED)]


@pytest.mark.parametrize("data", NO_BEGINNINGS, ids=lambda data: data.hex()[:20])
def test_what_no_frame_begins_with_is_not_the_beginning_of_one(data: bytes) -> None:
    """From the first byte on that tells."""
    assert not is_torn_frame(data)
    assert find_frame(data) is None


@pytest.mark.parametrize("extra", [b"\0", GOOD, ZERO_PIECE_FRAME, b"\x5e\x2a\x4d\x18\0\0\0\0"])
def test_anything_behind_a_frame_is_refused(extra: bytes) -> None:
    """One frame, and nothing after it: two frames, or a frame and a skippable one, are not a frame."""
    with pytest.raises(FrameRefused, match=f"followed by {len(extra)} more bytes"):
        check_frame(GOOD + extra)


def uncompressed(piece: bytes, **options: bool) -> bytes:
    """Return a frame made by the library with other options than ours."""
    return zstandard.ZstdCompressor(**{"write_checksum": True, "write_content_size": True} | options).compress(piece)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (b"\x5e\x2a\x4d\x18\x04\0\0\0abcd", "magic number"),
        (b"\x27\xb5\x2f\xfd" + GOOD[4:], "magic number"),
        (bytes(50), "magic number"),
        (frame(block(10), descriptor=0xA5), "dictionary"),
        (frame(block(10), descriptor=0xA7), "dictionary"),
        (frame(block(10), descriptor=0xAC), "reserved bit"),
        (uncompressed(PIECE, write_content_size=False), "content size"),
        (uncompressed(PIECE, write_checksum=False), "no checksum"),
        (frame(block(0), 0), "declares 0 bytes"),
        (uncompressed(b""), "declares 0 bytes"),
        (frame(block(10), limits.PIECE_BYTES + 1), "declares 1048577 bytes"),
        (MAGIC + b"\xe4" + b"\xff" * 8 + block(10) + b"abcd", "declares"),
        (uncompressed(bytes(limits.PIECE_BYTES + 1)), "declares 1048577 bytes"),
        (frame(block(11)), "more than the frame declares"),
        (frame(block(5, last=False) + block(6)), "more than the frame declares"),
        (frame(block(131072, RLE)), "more than the frame declares"),
        (frame(block(131073, RLE), 131073), "over 128 KiB"),
        (frame(block(131073), 131073), "over 128 KiB"),
        (frame(block(10, RESERVED)), "reserved type"),
        (frame(block(0, last=False) * 4096 + block(10)), "more than 4096 blocks"),
    ],
)  # fmt: skip
def test_what_is_not_our_frame_is_refused(stored: bytes, words: str) -> None:
    """One thing wrong each; the check says which."""
    with pytest.raises(FrameRefused, match=words) as refused:
        check_frame(stored)
    assert not isinstance(refused.value, FrameCut)


def windowed(window: int) -> bytes:
    """Return a frame of ten bytes with a window descriptor, which zstd reads as far as it accepts the window."""
    checksum = uncompressed(b"a" * 10)[-4:]
    return MAGIC + b"\x84" + bytes([window]) + struct.pack("<I", 10) + block(10) + checksum


def test_a_window_is_bounded() -> None:
    """8 MiB is accepted and reads; more is refused, for `zstd -d` refuses to read it."""
    assert Decompressor().piece(windowed(13 << 3)) == b"a" * 10
    for window in ((13 << 3) + 1, 18 << 3, 0xF8, 0xFF):
        with pytest.raises(FrameRefused, match="window"):
            check_frame(windowed(window))


@needs_zstd
@pytest.mark.parametrize(("window", "code"), [(13 << 3, 0), (0xF8, 1)])
def test_the_bound_on_windows_is_what_the_zstd_program_needs(window: int, code: int) -> None:
    """What is refused for its window would have been stored and never read by `zstd -t`."""
    result = subprocess.run([str(ZSTD), "-tq"], input=windowed(window), capture_output=True, check=False)
    assert code == result.returncode, result.stderr


@pytest.mark.parametrize("size", [9, 11, 100])
def test_a_lie_about_the_content_size_is_found_when_it_is_read(size: int) -> None:
    """A compressed block may hold anything; the reader finds a piece that is longer or shorter than its frame declares."""
    text = b"ten bytes!" * 10
    stored = uncompressed(text)
    assert stored[4] == 0x24  # single segment, checksum, content size of one byte
    lie = stored[:5] + bytes([size if size != 100 else 101]) + stored[6:]
    with pytest.raises((BrokenError, FrameRefused)):
        Decompressor().piece(lie)


def test_a_broken_checksum_is_found_when_it_is_read() -> None:
    """check_frame does not decompress, Decompressor does, and verifies."""
    stored = bytearray(Compressor().frame(PIECE))
    stored[-1] ^= 1
    check_frame(stored)
    with pytest.raises(BrokenError, match="stored bytes are damaged"):
        Decompressor().piece(bytes(stored))


@given(st.data())
def test_a_flipped_bit_is_refused_or_found(data: st.DataObject) -> None:
    """No single bit of a frame changes and gives another piece: it is refused, or found, or does not matter."""
    stored = bytearray(Compressor().frame(PIECE[:3000]))
    bit = data.draw(st.integers(0, 8 * len(stored) - 1))
    stored[bit // 8] ^= 1 << bit % 8
    try:
        piece = Decompressor().piece(bytes(stored))
    except (BrokenError, FrameRefused):
        return
    assert PIECE[:3000] == piece


@given(st.binary(max_size=100).flatmap(lambda tail: st.sampled_from([tail, MAGIC + tail, GOOD[:9] + tail])))
@example(GOOD)
def test_arbitrary_bytes_are_refused_or_walk_to_an_end_within(data: bytes) -> None:
    """Never another exception; what is accepted lies within the bytes, and declares a piece."""
    try:
        length, end = walk_frame(data, 0)
    except FrameRefused:
        return
    assert 1 <= length <= limits.PIECE_BYTES
    assert 5 < end <= len(data)


@given(st.integers(0, 40), st.sampled_from([GOOD, zero_frame(5), ZERO_PIECE_FRAME]), st.binary(max_size=20))
def test_a_frame_is_walked_wherever_it_begins(start: int, stored: bytes, behind: bytes) -> None:
    """Its end is an offset in the whole."""
    for memory in (bytes, bytearray, memoryview):
        assert walk_frame(memory(b"x" * start + stored + behind), start) == (check_frame(stored), start + len(stored))


@given(st.binary(min_size=1, max_size=5000))
def test_any_piece_survives(piece: bytes) -> None:
    """piece(frame(p)) == p."""
    assert piece == Decompressor().piece(Compressor().frame(piece))
