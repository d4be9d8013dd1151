"""The container: a dump's frames in order, then a seek table, as the zstd seekable format lays it down.

The seek table is a skippable frame, so ``zstd -d`` reads the container as one stream. It is recomputed from the frames whenever a
container is written, and a reader holds it against the file's size before it believes an offset.
Source: zstd, contrib/seekable_format/zstd_seekable_compression_format.md, version 0.1.0.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import eq

from securecore import limits
from securecore.declarations import Final, NamedTuple, overload
from securecore.errors import BrokenError

_SKIPPABLE_MAGIC: Final = 0x184D2A5E
_SEEKABLE_MAGIC: Final = 0x8F92EAB1
_HEADER: Final = struct.Struct("<II")
_ENTRY: Final = struct.Struct("<II")
_FOOTER: Final = struct.Struct("<IBI")
_PART_BYTES: Final = 500 * limits.KIB
"""The table of 62 GiB of plaintext, which is more than most cores have, is still one write."""


class FrameEntry(NamedTuple):
    """Where one frame stands: stored and plaintext lengths in bytes."""

    stored: int
    plain: int


class FrameLengths(Sequence[FrameEntry]):
    """A dump's seek table entries in four bytes a frame: every piece but the last is whole, so only the stored lengths are kept."""

    def __init__(self) -> None:
        self._stored = array("I")
        self._last_plain = limits.PIECE_BYTES

    def add(self, stored: int, plain: int) -> None:
        """Take the next frame; raises BrokenError when its lengths are none that a frame of this dump can have."""
        if self._last_plain != limits.PIECE_BYTES:
            raise BrokenError("a frame follows a short piece, which must be the last")
        if not 1 <= plain <= limits.PIECE_BYTES or not 1 <= stored <= limits.MAX_FRAME_BYTES:
            raise BrokenError(f"frame of {stored} bytes for {plain} bytes of plaintext is out of bounds")
        if len(self._stored) == limits.MAX_FRAMES:
            raise BrokenError(f"dump has more than {limits.MAX_FRAMES} frames")
        self._stored.append(stored)
        self._last_plain = plain

    def drop_last(self) -> None:
        """Forget the last frame, of at least one: another may take its place."""
        self._stored.pop()
        self._last_plain = limits.PIECE_BYTES

    @property
    def plain_bytes(self) -> int:
        """Plaintext bytes of all frames."""
        return max(len(self._stored) - 1, 0) * limits.PIECE_BYTES + (self._last_plain if self._stored else 0)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all frames as they are stored."""
        return sum(self._stored)

    def offsets(self) -> "array[int]":
        """Return where each frame begins when they stand one behind the other, and where the last one ends; 8 bytes a frame."""
        return array("Q", accumulate(self._stored, initial=0))

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[FrameEntry]:
        last = len(self._stored) - 1
        for index, stored in enumerate(self._stored):
            yield FrameEntry(stored, self._last_plain if index == last else limits.PIECE_BYTES)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(other) == len(self) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # it grows

    @overload
    def __getitem__(self, index: int) -> FrameEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[FrameEntry]: ...
    def __getitem__(self, index: int | slice) -> FrameEntry | list[FrameEntry]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        stored = self._stored[index]
        last = index in (-1, len(self._stored) - 1)
        return FrameEntry(stored, self._last_plain if last else limits.PIECE_BYTES)


def seek_table(entries: Sequence[FrameEntry]) -> bytes:
    """Return the seek table for *entries*, without per-frame checksums (each frame has its own)."""
    return b"".join(seek_table_parts(entries))


def seek_table_parts(entries: Sequence[FrameEntry]) -> Iterator[bytes]:
    """Yield the seek table for *entries* in parts of at most half a mebibyte: that of the longest dump takes 128 MiB."""
    part = bytearray(_HEADER.pack(_SKIPPABLE_MAGIC, seek_table_bytes(len(entries)) - _HEADER.size))
    for entry in entries:
        part += _ENTRY.pack(entry.stored, entry.plain)
        if len(part) > _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part) + _FOOTER.pack(len(entries), 0, _SEEKABLE_MAGIC)


def seek_table_bytes(frames: int) -> int:
    """Return how long the seek table of so many frames is."""
    return _HEADER.size + frames * _ENTRY.size + _FOOTER.size


def footer_frames(footer: bytes) -> int:
    """Return how many frames a container has, from its last 9 bytes; raises BrokenError when these are no footer of ours."""
    if len(footer) != _FOOTER.size:
        raise BrokenError("container is too short to hold a seek table")
    frames, descriptor, magic = _FOOTER.unpack(footer)
    if magic != _SEEKABLE_MAGIC or descriptor != 0 or frames > limits.MAX_FRAMES:
        raise BrokenError("container does not end with a seek table")
    return int(frames)


def is_footer(footer: bytes) -> bool:
    """Return whether *footer*, the last bytes of a skippable frame, make it a seek table of ours, without per-frame checksums."""
    return len(footer) == _FOOTER.size and _FOOTER.unpack(footer)[1:] == (0, _SEEKABLE_MAGIC)


def table_entry(stored: int, plain: int) -> bytes:
    """Return one frame's entry as it stands in a seek table."""
    return _ENTRY.pack(stored, plain)


def parse_seek_table(table: bytes, container_bytes: int) -> FrameLengths:
    """Return the entries of *table*, the tail of a container that is *container_bytes* long in all.

    Raises BrokenError unless the table is whole, every entry is possible for a frame, only the last piece is short, and the frames
    fill the rest of the container exactly. Not checked: that the frames are what the table says.
    """
    frames = footer_frames(table[-_FOOTER.size :])
    if len(table) != seek_table_bytes(frames) or _HEADER.unpack_from(table) != (_SKIPPABLE_MAGIC, len(table) - _HEADER.size):
        raise BrokenError("seek table has the wrong length or header")
    lengths = FrameLengths()
    for stored, plain in _ENTRY.iter_unpack(memoryview(table)[_HEADER.size : -_FOOTER.size]):
        try:
            lengths.add(stored, plain)
        except BrokenError as error:
            raise BrokenError(f"seek table is not possible: {error.message}") from error
    if lengths.stored_bytes + len(table) != container_bytes:
        raise BrokenError("seek table does not add up to the container's size")
    return lengths


FOOTER_BYTES: Final = _FOOTER.size

TABLE_END_BYTES: Final = _ENTRY.size + _FOOTER.size
"""The end of a seek table: its last entry, which is a part of the header where there is none, and its footer."""


def find_plain_bytes(end: bytes) -> int | None:
    """Return the plaintext bytes of a container by its last TABLE_END_BYTES; None when these are not the end of a seek table.

    All pieces but the last are whole. Not checked: anything before these bytes.
    """
    footer = end[-_FOOTER.size :]
    if len(end) != TABLE_END_BYTES or not is_footer(footer):
        return None
    frames, (_, last_plain) = _FOOTER.unpack(footer)[0], _ENTRY.unpack_from(end)
    if not frames:
        return 0
    is_possible = frames <= limits.MAX_FRAMES and 1 <= last_plain <= limits.PIECE_BYTES
    return (frames - 1) * limits.PIECE_BYTES + last_plain if is_possible else None
