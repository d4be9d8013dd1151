"""Random access to a dump's plaintext: any offset without the rest."""

import os
from collections.abc import Iterator

from securecore import limits
from securecore.declarations import Final, NamedTuple
from securecore.dump.compression import Decompressor
from securecore.dump.container import FOOTER_BYTES, FrameLengths, footer_frames, parse_seek_table, seek_table_bytes
from securecore.dump.frames import FrameCut, FrameRefused, walk_frame
from securecore.errors import BrokenError, StorageError

_WINDOW_BYTES: Final = 4 * limits.MAX_FRAME_BYTES
"""What a walk over frames holds in memory: several of the largest, so that few are read twice."""


class ScannedFrame(NamedTuple):
    """A frame as a walk over a container met it."""

    offset: int
    plain: int
    """Declared plaintext length in bytes."""
    data: memoryview
    """The stored bytes; valid as long as somebody holds it."""


class DumpReader:
    """The plaintext of a container behind a descriptor that can be read at any offset; the caller closes it.

    Every plaintext byte handed out comes from a frame whose zstd checksum was verified (zero frames are compared byte for byte).
    Not checked: the Merkle root; ``verify`` does that.
    """

    def __init__(self, fd: int, entries: FrameLengths) -> None:
        self._fd = fd
        self.entries = entries
        self._offsets = entries.offsets()
        self._decompressor = Decompressor()
        self._cached: tuple[int, bytes] | None = None

    @property
    def size(self) -> int:
        """Plaintext bytes."""
        return self.entries.plain_bytes

    def frame(self, index: int) -> bytes:
        """Return the stored bytes of a frame; raises BrokenError when the file ends inside it."""
        return read_exactly(self._fd, self._offsets[index], self.entries[index].stored)

    def piece(self, index: int) -> bytes:
        """Return the plaintext of a piece; raises BrokenError when its frame is damaged."""
        return self.decode(index, self.frame(index))

    def decode(self, index: int, frame: bytes) -> bytes:
        """Return the plaintext of *frame*, which ``frame(index)`` has returned; raises as ``piece`` does."""
        try:
            piece = self._decompressor.piece(frame)
        except FrameRefused as error:
            raise BrokenError(f"frame {index}: {error.message}") from error
        except BrokenError as error:
            raise BrokenError(f"frame {index}: {error.message}") from error
        if len(piece) != self.entries[index].plain:
            raise BrokenError(f"frame {index}: holds {len(piece)} bytes, the seek table says {self.entries[index].plain}")
        return piece

    def pieces(self) -> Iterator[bytes]:
        """Yield all pieces in order."""
        for index in range(len(self.entries)):
            yield self.piece(index)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to *length* plaintext bytes from *offset*; shorter only at the end of the dump."""
        parts = []
        while length > 0:
            index = offset // limits.PIECE_BYTES
            if index >= len(self.entries):
                break
            if self._cached is None or self._cached[0] != index:
                self._cached = (index, self.piece(index))
            start = offset % limits.PIECE_BYTES
            part = self._cached[1][start : start + length]
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)


def open_container(fd: int) -> DumpReader:
    """Return a reader over the whole container behind *fd*; raises BrokenError when its seek table does not hold."""
    size = _size(fd)
    frames = footer_frames(read_exactly(fd, size - FOOTER_BYTES, FOOTER_BYTES)) if size >= FOOTER_BYTES else footer_frames(b"")
    table = seek_table_bytes(frames)
    if table > size:
        raise BrokenError("seek table is longer than its container")
    return DumpReader(fd, parse_seek_table(read_exactly(fd, size - table, table), size))


def open_frames(fd: int) -> tuple[DumpReader, int]:
    """Return a reader over the whole frames at the beginning of *fd*, and the offset behind the last of them.

    For a dump that is still coming in, or whose seek table is missing or broken; see scan_frames for where the walk ends.
    """
    entries = FrameLengths()
    end = 0
    for scanned in scan_frames(fd):
        entries.add(len(scanned.data), scanned.plain)
        end = scanned.offset + len(scanned.data)
    return DumpReader(fd, entries), end


def scan_frames(fd: int) -> Iterator[ScannedFrame]:
    """Yield the frames at the beginning of *fd*, in order, in bounded memory.

    Ends at the first bytes that are no whole frame of at most MAX_FRAME_BYTES (a seek table, a torn tail, damage), and behind the
    first short piece. Not checked: that a frame decompresses. Raises StorageError when the file cannot be read.
    """
    offset, frames, size = 0, 0, _size(fd)
    while offset < size:
        window = memoryview(read_exactly(fd, offset, min(_WINDOW_BYTES, size - offset)))
        at = 0
        while at < len(window):
            try:
                plain, end = walk_frame(window, at)
            except FrameCut:
                break
            except FrameRefused:
                return
            if end - at > limits.MAX_FRAME_BYTES or frames == limits.MAX_FRAMES:
                return
            yield ScannedFrame(offset + at, plain, window[at:end])
            frames += 1
            at = end
            if plain < limits.PIECE_BYTES:
                return
        if at == 0:
            return
        offset += at


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """Return *length* bytes at *offset* of *fd*.

    Raises BrokenError when the file ends before that, StorageError when it cannot be read.
    """
    parts = []
    while length > 0:
        try:
            part = os.pread(fd, length, offset)
        except OSError as error:
            raise StorageError(f"cannot read the dump: {error.strerror}") from error
        if not part:
            raise BrokenError("container is cut off")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts) if len(parts) != 1 else parts[0]


def _size(fd: int) -> int:
    try:
        return os.fstat(fd).st_size
    except OSError as error:
        raise StorageError(f"cannot read the dump: {error.strerror}") from error
