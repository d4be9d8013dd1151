"""The core.zst of a dump that is coming in: whole frames, and behind them the beginning of one more, or at last the seek table."""

import os
from collections.abc import Callable

from securecore import limits
from securecore.dump import directory
from securecore.dump.container import FrameLengths, seek_table_bytes, seek_table_parts
from securecore.dump.frames import ZERO_PIECE_FRAME, ZERO_PIECE_LEAF, is_torn_frame
from securecore.dump.reader import read_exactly, scan_frames
from securecore.errors import BrokenError, Bug, PeerError
from securecore.merkle import Frontier, leaf_hash


class GrowingCore:
    """An open core that frames are appended to, with their lengths and the tree over them. For one thread at a time.

    After an error that a disk caused, every further change is refused: what reached the disk is found out by walking it again.
    """

    def __init__(self, fd: int, name: str) -> None:
        """*fd* is open for reading and appending, and becomes this object's; *name* is what messages call the dump."""
        self.fd = fd
        self.lengths = FrameLengths()
        self.frontier = Frontier()
        self.stored_bytes = 0
        """Of all frames; the seek table and what is torn are not among them."""
        self._name = name
        self._torn_bytes = 0
        self.is_usable = True

    def walk(self, between: Callable[[], None]) -> int:
        """Take up the whole frames that are here, hashing each, and return how many bytes follow them; for a core just opened.

        *between* is called before each frame; what it raises ends the walk.
        """
        for scanned in scan_frames(self.fd):
            between()
            self.lengths.add(len(scanned.data), scanned.plain)
            self.frontier.append(leaf_hash(scanned.data))
            self.stored_bytes += len(scanned.data)
        return os.fstat(self.fd).st_size - self.stored_bytes

    def keep_or_cut(self, tail: int) -> None:
        """Keep the *tail* bytes behind the frames as ``torn`` if they may be the beginning of the next one; else cut them off."""
        status = os.fstat(self.fd)
        self._torn_bytes = tail
        may_go_on = len(self.lengths) < limits.MAX_FRAMES and self.lengths.plain_bytes == len(self.lengths) * limits.PIECE_BYTES
        if tail and not (may_go_on and tail < limits.MAX_FRAME_BYTES and is_torn_frame(self.torn())):
            self._drop_torn()
            self.set_time(status)

    def torn(self) -> bytes:
        """Return the bytes behind the last frame that may be the beginning of the next one; they were never vouched for.

        The next frame, or the seek table, drops them.
        """
        return read_exactly(self.fd, self.stored_bytes, self._torn_bytes) if self._torn_bytes else b""

    def keep_torn(self, beginning: bytes) -> None:
        """Put the beginning of the next frame behind the frames, in the place of what stands there. Not checked: that it is one."""
        self._drop_torn()
        self._write(beginning)
        self._torn_bytes = len(beginning)

    def append(self, frame: bytes | memoryview, plain_length: int) -> None:
        """Add one frame; raises PeerError when it cannot follow, StorageError when the disk refuses. Not checked: its content."""
        self._add_length(len(frame), plain_length)
        self._drop_torn()
        self._write(frame)
        self.frontier.append(leaf_hash(frame))
        self.stored_bytes += len(frame)

    def append_zero_pieces(self, count: int) -> None:
        """Add the zero frame of a whole piece *count* times, in one write; raises as append does."""
        for _ in range(count):
            self._add_length(len(ZERO_PIECE_FRAME), limits.PIECE_BYTES)
        self._drop_torn()
        self._write(ZERO_PIECE_FRAME * count)
        for _ in range(count):
            self.frontier.append(ZERO_PIECE_LEAF)
        self.stored_bytes += count * len(ZERO_PIECE_FRAME)

    def append_seek_table(self) -> None:
        """Close the container with the table of its frames, durably; nothing may be appended behind it."""
        self._drop_torn()
        for part in seek_table_parts(self.lengths):
            self._write(part)
        self.sync()

    def ends_with_seek_table(self, tail: int) -> bool:
        """Return whether the *tail* bytes behind the frames are their seek table."""
        if tail != seek_table_bytes(len(self.lengths)):
            return False
        offset = self.stored_bytes
        for part in seek_table_parts(self.lengths):
            if read_exactly(self.fd, offset, len(part)) != part:
                return False
            offset += len(part)
        return True

    def sync(self) -> None:
        """Make everything appended so far durable."""
        self._begin_change()
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise directory.disk_refused(error, f"cannot make {self._name} durable") from error
        self.is_usable = True

    def set_time(self, status: os.stat_result) -> None:
        """Give the core the times of *status* again: its modification time is when its last frame came."""
        try:
            os.utime(self.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        except OSError:
            pass  # The dump then looks younger than it is, and is given up so much later.

    def close(self) -> None:
        """Close the file; may be called again."""
        self.is_usable = False
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def _add_length(self, stored: int, plain: int) -> None:
        try:
            self.lengths.add(stored, plain)
        except BrokenError as error:
            raise PeerError(error.message) from error  # Frames that are appended come from a sender.

    def _drop_torn(self) -> None:
        if not self._torn_bytes:
            return
        self._begin_change()
        try:
            os.ftruncate(self.fd, self.stored_bytes)
        except OSError as error:
            raise directory.disk_refused(error, f"cannot cut the torn end of {self._name}") from error
        self._torn_bytes = 0
        self.is_usable = True

    def _write(self, data: bytes | memoryview) -> None:
        self._begin_change()
        directory.write_all(self.fd, data)
        self.is_usable = True

    def _begin_change(self) -> None:
        """Count as unusable until the change has succeeded."""
        if not self.is_usable:
            raise Bug(f"the core of {self._name} was used after it was closed or refused by the disk")
        self.is_usable = False
