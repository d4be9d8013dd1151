"""From pieces to frames and back, by zstd."""

from securecore import limits
from securecore.declarations import Callable, Final
from securecore.dump.container import FrameLengths, seek_table
from securecore.dump.frames import ZERO_PIECE_FRAME, check_frame, is_zero, zero_frame
from securecore.dump.zstd import ZstdCompressor, ZstdDecompressor, ZstdError
from securecore.errors import BrokenError, StorageError


class Compressor:
    """Turns pieces into frames. Not for use by two threads at once; make one each (zstd releases the interpreter's lock)."""

    __slots__ = ("_zstd",)

    def __init__(self, level: int = limits.ZSTD_LEVEL) -> None:
        self._zstd = ZstdCompressor(level=level, write_checksum=True, write_content_size=True)

    def frame(self, piece: bytes | bytearray | memoryview) -> bytes:
        """Return the frame of *piece*, 1 to PIECE_BYTES of plaintext; raises StorageError when zstd has no memory for it."""
        if is_zero(piece):
            return ZERO_PIECE_FRAME if len(piece) == limits.PIECE_BYTES else zero_frame(len(piece))
        try:
            frame = self._zstd.compress(piece)
        except ZstdError as error:
            raise StorageError(f"a piece could not be compressed: {error}") from error
        # The library leaves a frame in the memory that an incompressible piece would need: a sender's ring of small ones would hold
        # sixty times the bytes that it counts. One that is larger than half of it is not worth the copy.
        return bytes(memoryview(frame)) if 2 * len(frame) <= len(piece) else frame


_SPARED_PIECES: Final = 16
"""After one at which a higher level was tried in vain: what is dumped next compresses like what was dumped just before."""


class EagerCompressor:
    """Turns pieces into frames as Compressor does, and into smaller ones where there is time for that."""

    __slots__ = ("_find_level", "_harder", "_level", "_spared", "_usual")

    def __init__(self, find_level: Callable[[], int]) -> None:
        """*find_level* is asked before each piece; levels up to ZSTD_LEVEL are that one."""
        self._find_level = find_level
        self._usual = self._harder = Compressor()
        self._level = limits.ZSTD_LEVEL
        """Of the harder one: its tables take megabytes, so there is one at a time."""
        self._spared = 0

    def frame(self, piece: bytes | bytearray | memoryview) -> bytes:
        """Return the smaller of the frames at the usual and at the level asked for; raises as Compressor does at the usual one.

        A higher level is not always better: a heap of pointers takes an eighth more at level 3 than at 1 (measured).
        """
        level = self._find_level()
        frame = self._usual.frame(piece)
        if level <= limits.ZSTD_LEVEL:
            return frame
        if self._spared:
            self._spared -= 1
            return frame
        try:
            if level != self._level:
                self._harder, self._level = Compressor(level), level
            smaller = self._harder.frame(piece)
        except (StorageError, MemoryError):
            return frame  # There is no memory for its tables: nothing is lost by that.
        if len(smaller) < len(frame):
            return smaller
        self._spared = _SPARED_PIECES
        return frame


class ContainerPacking:
    """A container in the making, for a file that stands alone; see dump/packing.py for the order of calls."""

    header = b""

    def __init__(self, level: int) -> None:
        self._level = level
        self._lengths = FrameLengths()

    def make_encoder(self) -> Compressor:
        """Return what turns pieces into frames."""
        return Compressor(self._level)

    def observe(self, piece: memoryview) -> None:
        """Take note of the next piece's plaintext: each frame has a checksum of its own."""

    def add(self, stored: int, plain: int) -> None:
        """Take the next frame's lengths for the seek table."""
        self._lengths.add(stored, plain)

    def trailer(self) -> bytes:
        """Return the seek table."""
        return seek_table(self._lengths)


class Decompressor:
    """Turns frames back into pieces. Not for use by two threads at once."""

    __slots__ = ("_zstd",)

    def __init__(self) -> None:
        self._zstd = ZstdDecompressor()

    def piece(self, frame: bytes | memoryview) -> bytes:
        """Return the plaintext of *frame*, its checksum verified.

        Raises FrameRefused when it is no frame of ours and BrokenError when it does not decompress to exactly the length that
        it declares. Memory is bounded by that length, which check_frame bounds.
        """
        length = check_frame(frame)
        try:
            piece = self._zstd.decompress(frame, max_output_size=length)
        except ZstdError as error:
            raise BrokenError(f"stored bytes are damaged: {error}") from error
        if len(piece) != length:
            raise BrokenError(f"frame holds {len(piece)} bytes of plaintext, it declares {length}")
        return piece
