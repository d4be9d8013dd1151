"""From pieces to one gzip or zlib stream: the only place that calls zlib's compressor.

Each piece is deflated by itself and ended with an empty stored block, which brings the stream to a whole byte (RFC 1951 section
3.2.4; Z_SYNC_FLUSH of zlib.h). So threads can work on several pieces at once, and the pieces one behind the other are still one
deflate stream, as ``pigz -i`` makes them: gzip, zcat, 7z and every zlib read it. Around it stand the header and the trailer of gzip
(RFC 1952) or zlib (RFC 1950); the checksum runs over the plaintext in order, beside the threads.
"""

import struct
import zlib
from collections import deque
from collections.abc import Callable

from securecore.declarations import Final, NamedTuple
from securecore.errors import StorageError

_RAW: Final = -15
"""A deflate stream without header and trailer, with the largest window (deflateInit2 of zlib.h)."""
_LAST_BLOCK: Final = b"\x03\x00"
"""The empty block of fixed codes that ends a stream (RFC 1951 section 3.2.6)."""
_GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
"""RFC 1952 section 2.3: deflate, no name, no time (both would tell more than the bytes do), made on Unix."""
_ZLIB_HEADER: Final = b"\x78\x01"
"""RFC 1950 section 2.2: deflate with a window of 32 KiB, no dictionary; the compressor used its fastest algorithm, or says so."""


class Deflater:
    """Turns pieces into parts of a deflate stream. It has no state: any number of threads may use one."""

    __slots__ = ("_level",)

    def __init__(self, level: int) -> None:
        self._level = level

    def frame(self, piece: bytes | bytearray | memoryview) -> bytes:
        """Return the part of the stream that stands for *piece*: whole blocks, none of them the last, whole bytes.

        Raises StorageError when zlib cannot go on.
        """
        try:
            deflate = zlib.compressobj(self._level, zlib.DEFLATED, _RAW)
            return deflate.compress(piece) + deflate.flush(zlib.Z_SYNC_FLUSH)
        except zlib.error as error:
            raise StorageError(f"a piece could not be compressed: {error}") from error


class _Envelope(NamedTuple):
    """What stands around a deflate stream."""

    header: bytes
    checksum: Callable[[memoryview, int], int]
    initial: int
    trailer: Callable[[int, int], bytes]
    """Makes the end of checksum and plaintext length."""


class DeflatePacking:
    """A gzip or zlib stream in the making; see dump/packing.py for the order of calls."""

    def __init__(self, envelope: _Envelope, level: int) -> None:
        self.header = envelope.header
        self._envelope, self._level = envelope, level
        self._observed: deque[tuple[int, int]] = deque()
        self._last_observed = self._last_added = (envelope.initial, 0)
        """Checksum and length of the plaintext up to there."""

    def make_encoder(self) -> Deflater:
        """Return what turns pieces into parts of the stream."""
        return Deflater(self._level)

    def observe(self, piece: memoryview) -> None:
        """Take the next piece's plaintext into the checksum."""
        checksum, size = self._last_observed
        self._last_observed = self._envelope.checksum(piece, checksum), size + len(piece)
        self._observed.append(self._last_observed)

    def add(self, stored: int, plain: int) -> None:
        """Take note that a part is written: only so far the checksum goes, and more may have been observed."""
        self._last_added = self._observed.popleft()

    def trailer(self) -> bytes:
        """Return the end of a stream of what was added."""
        return _LAST_BLOCK + self._envelope.trailer(*self._last_added)


def gzip_packing(level: int) -> DeflatePacking:
    """Return a gzip stream in the making."""
    return DeflatePacking(_GZIP, level)


def zlib_packing(level: int) -> DeflatePacking:
    """Return a zlib stream in the making."""
    return DeflatePacking(_ZLIB, level)


_GZIP: Final = _Envelope(_GZIP_HEADER, zlib.crc32, 0, lambda checksum, size: struct.pack("<II", checksum, size & 0xFFFFFFFF))
_ZLIB: Final = _Envelope(_ZLIB_HEADER, zlib.adler32, 1, lambda checksum, size: struct.pack(">I", checksum))
