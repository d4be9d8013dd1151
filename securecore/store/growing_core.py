"""The core.zst of a dump that is coming in: whole frames, and behind them the beginning of one more, or at last the seek table."""

import os
from collections.abc import Callable

from securecore import limits
from securecore.dump import directory
from securecore.dump.container import FrameLengths, seek_table_bytes, seek_table_parts
from securecore.dump.frames import CHECKSUM_BYTES, ZERO_PIECE_FRAME, ZERO_PIECE_LEAF, find_frame, has_checksum, is_torn_frame
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
        self._durable_bytes: int | None = None
        """Of the frames that the last sync has made durable; None where another process wrote them and none was yet."""
        self._before_last = Frontier()
        """The tree without the last frame that a walk has found."""
        self.is_usable = True

    def walk(self, between: Callable[[], None]) -> int:
        """Take up the whole frames that are here, hashing each, and return how many bytes follow them; for a core just opened.

        *between* is called before each frame; what it raises ends the walk.
        """
        leaf = None
        for scanned in scan_frames(self.fd):
            between()
            if leaf is not None:
                self.frontier.append(leaf)
            self.lengths.add(len(scanned.data), scanned.plain)
            leaf = leaf_hash(scanned.data)
            self.stored_bytes += len(scanned.data)
        self._before_last = self.frontier.copy()
        if leaf is not None:
            self.frontier.append(leaf)
        return os.fstat(self.fd).st_size - self.stored_bytes

    def without_unwritten_frame(self, tail: int) -> int:
        """Take the last frame for a part of the *tail* where zeroes may have completed it, and return how long that is now.

        For a core just walked that has no seek table to vouch for its frames. Zeroes, which a file system puts where a power cut
        has lost what was not durable, make a whole frame of one that was cut in its last block or checksum: the walk looks at
        headers only. Not found: a cut within the checksum that is at no sector's beginning, or has nothing behind the frame.
        """
        if not self.lengths:
            return tail
        stored = self.lengths[-1].stored
        offset = self.stored_bytes - stored
        if not _is_completed(read_exactly(self.fd, offset, stored), offset, tail) or self._without_zeroes(tail):
            return tail
        self.lengths.drop_last()
        self.frontier = self._before_last.copy()
        self.stored_bytes = offset
        return tail + stored

    def explains(self, tail: int) -> bool:
        """Return whether a crash, or a cut wire, leaves such *tail* bytes behind the frames: whether no frame is hidden there.

        Nothing; the beginning of a frame; the seek table or the beginning of it; and behind any of them zeroes, which a file system
        puts where a power cut has lost what was not durable. Not checked: whether the beginning of a frame may go on here.
        """
        written = self._without_zeroes(tail)
        if written == 0 or self._begins_seek_table(written):
            return True
        if written >= limits.MAX_FRAME_BYTES or not is_torn_frame(read_exactly(self.fd, self.stored_bytes, written)):
            return False
        # A whole frame, of which the zeroes at its own end were taken away above, is none that was cut, unless they completed it.
        frame = find_frame(read_exactly(self.fd, self.stored_bytes, min(tail, limits.MAX_FRAME_BYTES)))
        return frame is None or _is_completed(frame, self.stored_bytes, tail - len(frame))

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
        """Put the beginning of the next frame behind the frames, in the place of what stands there; or nothing, if it is none."""
        self._drop_torn()
        # A sender may have sent anything: what is no beginning would pass for damage at the next walk.
        if len(beginning) < limits.MAX_FRAME_BYTES and is_torn_frame(beginning):
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
        return tail == seek_table_bytes(len(self.lengths)) and self._begins_seek_table(tail)

    def _begins_seek_table(self, tail: int) -> bool:
        if tail > seek_table_bytes(len(self.lengths)):
            return False
        offset, end = self.stored_bytes, self.stored_bytes + tail
        for part in seek_table_parts(self.lengths):
            length = min(len(part), end - offset)
            if read_exactly(self.fd, offset, length) != part[:length]:
                return False
            offset += length
        return True

    def _without_zeroes(self, tail: int) -> int:
        """Return how many of the *tail* bytes behind the frames are left without the zeroes at their end."""
        while tail:
            length = (tail - 1) % limits.PIECE_BYTES + 1
            part = read_exactly(self.fd, self.stored_bytes + tail - length, length).rstrip(b"\0")
            tail -= length - len(part)
            if part:
                break
        return tail

    def sync(self) -> None:
        """Make everything that is here durable. Where the disk refuses, what it has lost is not found by the next walk."""
        self._begin_change()
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._forget_lost()
            raise directory.disk_refused(error, f"cannot make {self._name} durable") from error
        self._durable_bytes = self.stored_bytes
        self.is_usable = True

    def _forget_lost(self) -> None:
        """Cut off, or have read from the disk again, what a sync that failed has lost.

        Linux goes on to read it back as it was written, and no later sync writes it (fsync(2), "Errors"): a walk would count it.
        """
        try:
            if self._durable_bytes is not None:
                os.ftruncate(self.fd, self._durable_bytes)  # Its sender has the rest: it was not acknowledged.
            else:
                os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # A file system that takes no change any more refuses the sync at the next walk's end too.

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


def _is_completed(frame: bytes, offset: int, zeroes_behind: int) -> bool:
    """Return whether *frame*, which stands at *offset* with so many zeroes and nothing else behind it, may be the beginning of one.

    One frame in 2^32 has a checksum of zeroes by itself. One in 256 ends in a zero, and had perhaps been acknowledged: such an end
    tells of a cut only where the cut is at a sector's beginning, and zeroes go on behind the frame.
    """
    if not has_checksum(frame):
        return False  # All bytes of a zero frame are fixed: however it came to be whole, it is the one that was sent.
    zeroes = CHECKSUM_BYTES - len(frame[-CHECKSUM_BYTES:].rstrip(b"\0"))
    of_last_sector = (offset + len(frame) - 1) % limits.SECTOR_BYTES + 1
    return zeroes == CHECKSUM_BYTES or (zeroes_behind > 0 and zeroes >= of_last_sector)
