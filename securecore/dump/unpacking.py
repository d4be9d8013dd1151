"""From a .zst, .gz or .zlib file back to plaintext: any that a standard program writes, in constant memory, and only if whole.

The format is told by the first bytes. Every checksum is verified, every declared length, and the end: a file that stops early, or
goes on behind its end (but for zeroes behind gzip data), is broken, whatever came out before that. A zstd file may have several
frames and skippable ones; its blocks are walked here, because a decoder given more than one of them may make gigabytes of a few
bytes. A gzip file may have several members.

A container of ours that was cut between two frames is a good zstd file; what is missing is its seek table. So where whole pieces
stand without one, the file is broken too (_Pieces), but for one whole piece that does not begin a core: another zstd program writes
the same of 1 MiB, and nothing in the store's format tells the two apart.
"""

import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Final, NamedTuple

from securecore import limits
from securecore.dump.container import FOOTER_BYTES, footer_frames, is_footer, table_entry
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.dump.zstd import ZstdDecompressor, ZstdError
from securecore.elfsize import CoreSize
from securecore.errors import BrokenError

_READ_BYTES: Final = 256 * limits.KIB
_ZSTD_MAGIC: Final = 0xFD2FB528
_SKIPPABLE_MAGIC: Final = 0x184D2A50
"""To 0x184D2A5F (RFC 8878 section 3.1.2)."""
_BLOCK_MAX: Final = 128 * limits.KIB
_WINDOW_MAX: Final = 128 * limits.MIB
"""What ``zstd -d`` takes without being asked (ZSTD_WINDOWLOG_LIMIT_DEFAULT of zstd.h is 27)."""

Read = Callable[[int], bytes]
"""Returns at most so many bytes, empty at the end only."""


class Source:
    """A file read from front to back, a part ahead of whoever parses it."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._part, self._at = b"", 0
        self._has_ended = False
        self.taken = 0
        """Bytes that were parsed."""

    def peek(self, length: int) -> bytes:
        """Return the next bytes without taking them; fewer only before the end."""
        while len(self._part) - self._at < length and not self._has_ended:
            more = self._read(max(_READ_BYTES, length))
            self._has_ended = not more
            self._part, self._at = self._part[self._at :] + more, 0
        return self._part[self._at : self._at + length]

    def take(self, length: int) -> bytes:
        """Take exactly so many bytes; raises BrokenError when the file ends before."""
        found = self.peek(length)
        if len(found) < length:
            raise BrokenError("the file is cut off")
        self._at += length
        self.taken += length
        return found

    def take_some(self) -> bytes:
        """Take what is there; raises BrokenError when that is nothing."""
        self.peek(1)
        return self.take(max(len(self._part) - self._at, 1))

    def give_back(self, rest: bytes) -> None:
        """Return what was taken and not needed."""
        self._part, self._at = rest + self._part[self._at :], 0
        self.taken -= len(rest)


class Unpacked(NamedTuple):
    """A file as it was understood: its format, and its plaintext, which is not believed before it has ended by itself."""

    kind: str
    plaintext: Iterator[bytes]
    """Parts of at most PIECE_BYTES. Raises BrokenError where the file breaks."""


def unpack(source: Source) -> Unpacked:
    """Return what the file at *source* is; raises BrokenError when it begins like none of the formats."""
    start = source.peek(4)
    magic = int.from_bytes(start, "little")
    if len(start) == 4 and (magic == _ZSTD_MAGIC or magic & ~0xF == _SKIPPABLE_MAGIC):
        return Unpacked("zst", _zstd(source))
    if start[:2] == b"\x1f\x8b":
        return Unpacked("gz", _gzip(source))
    # RFC 1950 section 2.2: deflate, a window of at most 32 KiB, no dictionary; as a number, the two bytes are a multiple of 31.
    if len(start) >= 2 and start[0] & 0x8F == 0x08 and int.from_bytes(start[:2], "big") % 31 == 0 and not start[1] & 0x20:
        return Unpacked("zlib", _inflate(source, zlib.MAX_WBITS))
    if not start:
        raise BrokenError("the file is empty: not even its first byte is there")
    raise BrokenError("neither zstd nor gzip nor zlib: unknown first bytes")


def _gzip(source: Source) -> Iterator[bytes]:
    while source.peek(1):
        if source.peek(2) != b"\x1f\x8b":
            _pass_zeroes(source)
            return
        # 16: a gzip header and trailer, both checked (inflateInit2 of zlib.h).
        yield from _inflate(source, zlib.MAX_WBITS + 16, is_last=False)


def _pass_zeroes(source: Source) -> None:
    """Take zeroes to the end, with which tapes and block devices fill up a file: gzip(1) passes over them too."""
    while source.peek(1):
        if any(source.take_some()):
            raise BrokenError("the file goes on behind its end")


def _inflate(source: Source, window: int, *, is_last: bool = True) -> Iterator[bytes]:
    """Yield the plaintext of one gzip member or zlib stream."""
    inflate, is_more = zlib.decompressobj(window), False
    try:
        while not inflate.eof:
            # A decoder that has stopped at the bound of its output may have more of it without another byte of input.
            data = inflate.unconsumed_tail or (b"" if is_more else source.take_some())
            part = inflate.decompress(data, limits.PIECE_BYTES)
            is_more = len(part) == limits.PIECE_BYTES
            if part:
                yield part
    except zlib.error as error:
        raise BrokenError(f"the file is damaged: {error}") from error
    source.give_back(inflate.unused_data)
    if is_last and source.peek(1):
        raise BrokenError("the file goes on behind its end")


def _zstd(source: Source) -> Iterator[bytes]:
    decoder = ZstdDecompressor(max_window_size=_WINDOW_MAX)
    pieces = _Pieces()
    while start := source.peek(4):
        magic = int.from_bytes(start, "little")
        if len(start) == 4 and magic == _ZSTD_MAGIC:
            yield from _frame(source, decoder, pieces)
        elif len(start) == 4 and magic & ~0xF == _SKIPPABLE_MAGIC:
            if _skip(source, pieces):
                pieces = _Pieces()  # Another container may follow: cat a.zst b.zst.
        else:
            raise BrokenError("the file goes on behind its end")
    pieces.check_end()


def _frame(source: Source, decoder: ZstdDecompressor, pieces: "_Pieces") -> Iterator[bytes]:
    """Yield the plaintext of one frame, a block at a time: none is larger than 128 KiB (RFC 8878 section 3.1.1.2)."""
    begin, plain = source.taken, 0
    decode = decoder.decompressobj()
    descriptor = source.peek(5)[4:]
    header_bytes = 5 + _header_rest(descriptor[0]) if descriptor else 5
    data, head, last = source.take(header_bytes), b"", False
    window = _window(data)
    if window > _WINDOW_MAX:
        words = f"a zstd frame asks for {window} bytes of memory, and not more than {_WINDOW_MAX} are given to one"
        raise BrokenError(words, hint="`zstd -d --long=31` takes it")
    try:
        while not last:
            header = source.take(3)
            number = int.from_bytes(header, "little")
            last, kind, size = bool(number & 1), number >> 1 & 3, number >> 3
            if kind == 3 or size > _BLOCK_MAX:
                raise BrokenError("the file is damaged: a block of reserved type, or over 128 KiB")
            data += header + source.take(1 if kind == 1 else size)
            if last and descriptor[0] & 0x04:
                data += source.take(4)
            part = decode.decompress(data)
            if len(head) <= len(ZERO_PIECE_FRAME):
                head += data
            data = b""
            plain += len(part)
            if part:
                pieces.see(part)
                yield part
    except ZstdError as error:
        raise BrokenError(f"the file is damaged: {error}") from error
    pieces.add(source.taken - begin, plain, head == ZERO_PIECE_FRAME)


def _header_rest(descriptor: int) -> int:
    """Return how many bytes of a frame's header stand behind its descriptor (RFC 8878 section 3.1.1.1)."""
    is_single = bool(descriptor & 0x20)
    window = 0 if is_single else 1
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    size = (1 if is_single else 0, 2, 4, 8)[descriptor >> 6]
    return window + dictionary + size


def _window(header: bytes) -> int:
    """Return how many bytes of plaintext a decoder must remember, from a frame's whole header (RFC 8878 section 3.1.1.1.2)."""
    descriptor = header[4]
    if descriptor & 0x20:  # A single segment: the window is the content, whose size is the header's last field.
        size = int.from_bytes(header[5 + (0, 1, 2, 4)[descriptor & 3] :], "little")
        return size + 256 if descriptor >> 6 == 1 else size
    base = 1 << (10 + (header[5] >> 3))
    return base + base // 8 * (header[5] & 7)


def _skip(source: Source, pieces: "_Pieces") -> bool:
    """Take a skippable frame and return whether it is a seek table, which is held against the frames before it."""
    source.take(4)
    length = int.from_bytes(source.take(4), "little")
    digest, left = sha256(), length
    while left > FOOTER_BYTES:
        part = source.take(min(left - FOOTER_BYTES, _READ_BYTES))
        digest.update(part)
        left -= len(part)
    footer = source.take(left)
    if not is_footer(footer):
        return False
    pieces.check_table(digest.digest(), footer_frames(footer))
    return True


class _Pieces:
    """What the frames since the last seek table say of where the file comes from, and whether it can end here."""

    def __init__(self) -> None:
        self._entries = sha256()
        """Of the seek table's entries for these frames: a table is as long as the file has pieces, a digest is not."""
        self._frames = 0
        self._last = limits.PIECE_BYTES
        self._are_pieces = True
        """All of them whole pieces, but perhaps the last."""
        self._first = CoreSize()
        self._begins_more = False

    def see(self, part: bytes) -> None:
        """Look at plaintext of the next frame: is the first one the beginning of a longer core?"""
        if self._frames == 0:
            self._first.feed(part)

    def add(self, stored: int, plain: int, is_zero_frame: bool) -> None:
        """Take note of a frame; the zero frame of a whole piece is ours by its bytes."""
        self._entries.update(table_entry(stored & 0xFFFFFFFF, plain & 0xFFFFFFFF))
        self._are_pieces &= self._last == limits.PIECE_BYTES and plain <= limits.PIECE_BYTES
        self._frames, self._last = self._frames + 1, plain
        if self._frames == 1:
            self._begins_more = is_zero_frame or self._first.is_undecided or (self._first.expected or 0) > plain

    def check_table(self, digest: bytes, frames: int) -> None:
        """Raise BrokenError when a seek table is one of other frames than these."""
        if (digest, frames) != (self._entries.digest(), self._frames):
            raise BrokenError("the seek table is not that of the frames")

    def check_end(self) -> None:
        """Raise BrokenError when these frames are pieces of a container, which does not end without its seek table.

        That is: several, all whole but the last, or one whole piece that begins something longer. One short piece is all of its
        plaintext, and any program may have written it.
        """
        is_cut = self._frames > 1 or (self._last == limits.PIECE_BYTES and self._frames == 1 and self._begins_more)
        if self._are_pieces and is_cut:
            raise BrokenError("the file is cut off: its seek table is missing")
