"""Frames: the bytes that stand for a piece in the store, and the check that a receiver makes before it keeps one.

A piece is at most 1 MiB of plaintext. Its frame is one independent zstd frame (RFC 8878) that declares its content size: either a
compressed frame with a checksum, or, when the piece is all zeroes, the one canonical zero frame of its length. A zero frame has no
checksum: its bytes are fixed by rule, so there is nothing that a checksum could tell.
"""

from securecore import limits
from securecore.declarations import Final
from securecore.errors import PeerError
from securecore.merkle import leaf_hash

MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""Of every zstd frame (RFC 8878 section 3.1.1)."""
CHECKSUM_BYTES: Final = 4
"""At the end of a frame that has one: the low bytes of XXH64 over its content (RFC 8878 section 3.1.1)."""
_CHECKSUM_FLAG: Final = 0x04
"""Content_Checksum_flag of the frame header descriptor (RFC 8878 section 3.1.1.1.1.5)."""
_BLOCK_MAX: Final = 128 * 1024
"""Block_Maximum_Size of RFC 8878 section 3.1.1.2.4."""
_WINDOW_MAX: Final = 8 * 1024 * 1024
"""Every decoder should take windows of 8 MiB (RFC 8878 section 3.1.1.1.2); ``zstd -d`` refuses others."""
_MAX_BLOCKS: Final = 4096
"""zstd writes 8 blocks for a piece, or up to 196 for each of the 8 when it splits them (ZSTD_MAX_NB_BLOCK_SPLITS of zstd 1.5).
Without a bound, a frame of empty blocks costs its reader a quarter of a second (measured)."""

_ZERO_PIECE: Final = bytes(limits.PIECE_BYTES)


class FrameRefused(PeerError):
    """Bytes offered as a frame are not exactly one frame as this project stores them."""


def zero_frame(length: int) -> bytes:
    """Return the canonical frame of *length* zero bytes, 1 to PIECE_BYTES.

    Layout: magic, descriptor 0xA0 (single segment, 4-byte content size, no checksum), content size little-endian, a raw block of
    one byte, then RLE blocks of up to 128 KiB. The raw block comes first because zstd before 1.4.4 refuses a frame whose first
    block is RLE.
    """
    if not 1 <= length <= limits.PIECE_BYTES:
        raise ValueError(length)
    parts = [MAGIC, b"\xa0", length.to_bytes(4, "little"), _block(1, kind=0, last=length == 1), b"\x00"]
    left = length - 1
    while left:
        size = min(left, _BLOCK_MAX)
        left -= size
        parts += [_block(size, kind=1, last=left == 0), b"\x00"]
    return b"".join(parts)


def _block(size: int, *, kind: int, last: bool) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little")


def is_zero(piece: bytes | bytearray | memoryview) -> bool:
    """Return whether *piece*, at most PIECE_BYTES long, is all zeroes; at the speed of memory."""
    # Comparing memoryviews unpacks every item; startswith is one memcmp that stops at the first byte of content.
    return _ZERO_PIECE.startswith(piece)


ZERO_PIECE_FRAME: Final = zero_frame(limits.PIECE_BYTES)
"""The frame of a whole piece of zeroes, which ZERO on the wire stands for."""
ZERO_PIECE_LEAF: Final = leaf_hash(ZERO_PIECE_FRAME)


def check_frame(frame: bytes | bytearray | memoryview) -> int:
    """Return the plaintext length that *frame* declares, having walked its block headers.

    Checked: one zstd frame and nothing after it, no dictionary, a declared size of 1 to PIECE_BYTES, blocks of legal type and size,
    a checksum unless it is the canonical zero frame. Not checked: that the blocks decompress to what is declared; a reader does
    that. Raises FrameRefused.
    """
    length, end = walk_frame(frame, 0)
    if end != len(frame):
        raise FrameRefused(f"frame is followed by {len(frame) - end} more bytes")
    return length


def is_torn_frame(data: bytes) -> bool:
    """Return whether *data* may be the beginning of a frame, and is not the whole of one or more.

    Not checked: anything behind the last block header that is whole.
    """
    try:
        walk_frame(data, 0)
    except FrameCut:
        return MAGIC.startswith(data[: len(MAGIC)])
    except FrameRefused:
        return False
    return False


def find_frame(data: bytes) -> bytes | None:
    """Return the whole frame that *data* begins with, None when it begins with none; not checked: what check_frame does not."""
    try:
        _, end = walk_frame(data, 0)
    except FrameRefused:
        return None
    return data[:end]


def has_checksum(frame: bytes) -> bool:
    """Return whether a whole frame ends with a checksum of its content; all but the zero frames do."""
    return bool(frame[4] & _CHECKSUM_FLAG)


def walk_frame(data: bytes | bytearray | memoryview, start: int) -> tuple[int, int]:
    """Return the declared plaintext length and the end offset of the frame that begins at *start* of *data*.

    Raises FrameRefused when it is not a frame of this project; FrameCut, a subclass, when *data* ends before the frame does.
    """
    descriptor = _at(data, start + 4)
    if bytes(data[start : start + 4]) != MAGIC:
        raise FrameRefused("frame does not begin with the zstd magic number")
    if descriptor & 0b0001_1011:
        raise FrameRefused("frame uses a dictionary, a reserved bit or the unused bit")
    single, checksum = bool(descriptor & 0x20), bool(descriptor & _CHECKSUM_FLAG)
    at = start + 5
    if not single:
        window = _at(data, at)
        if (8 + (window & 7)) << (7 + (window >> 3)) > _WINDOW_MAX:
            raise FrameRefused("frame demands a window of more than 8 MiB")
        at += 1
    size_bytes = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    if size_bytes == 0:
        raise FrameRefused("frame does not declare its content size")
    _at(data, at + size_bytes - 1)
    length = int.from_bytes(data[at : at + size_bytes], "little") + (256 if size_bytes == 2 else 0)
    at += size_bytes
    if not 1 <= length <= limits.PIECE_BYTES:
        raise FrameRefused(f"frame declares {length} bytes, a piece has 1 to {limits.PIECE_BYTES}")
    at = _walk_blocks(data, at, length)
    if checksum:
        _at(data, at + CHECKSUM_BYTES - 1)
        at += CHECKSUM_BYTES
    elif data[start:at] != zero_frame(length):
        raise FrameRefused("frame has no checksum and is not the canonical zero frame of its length")
    return length, at


def _walk_blocks(data: bytes | bytearray | memoryview, at: int, length: int) -> int:
    """Return the offset behind the last block; raw and RLE blocks may not add up to more than *length*."""
    certain = 0
    for _ in range(_MAX_BLOCKS):
        _at(data, at + 2)
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        at += 3
        if kind == 3 or size > _BLOCK_MAX:
            raise FrameRefused("frame has a block of reserved type or over 128 KiB")
        if kind != 2:
            certain += size
        if certain > length:
            raise FrameRefused("frame's blocks hold more than the frame declares")
        at += 1 if kind == 1 else size
        if at > len(data):
            raise FrameCut("frame is cut off")
        if last:
            return at
    raise FrameRefused(f"frame has more than {_MAX_BLOCKS} blocks")


class FrameCut(FrameRefused):
    """The bytes end in the middle of a frame."""


def _at(data: bytes | bytearray | memoryview, index: int) -> int:
    if index >= len(data):
        raise FrameCut("frame is cut off")
    return data[index]
