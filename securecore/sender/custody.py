"""What a sender still owes of one dump: frames in memory, frames in the spool, and the tree over both.

Frames that were sent, but that the receiver has not yet acknowledged as durable, stay in a ring in memory. When the wire is given
up, the ring and everything after it go to the spool. So each frame is always durable at the receiver, in the ring, or in the spool.

With a copy (``spool_mode = "whole"``) every frame goes to the spool as well, from the first one on, until the receipt is there. The
ring stays what it is: when the disk refuses the copy while the wire is well, the copy is given up and nothing is lost by that.
"""

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from securecore import limits
from securecore.declarations import Final
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.dump.manifest import CUT
from securecore.errors import Bug, SecurecoreError, StorageError
from securecore.merkle import Frontier
from securecore.names import DumpId, StoreId
from securecore.sender.pump import Frame
from securecore.sender.room import INODES
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd, EntryStart, SpoolEntry

NO_MEMORY: Final = "out of memory"

_RECENT: Final = 16
"""Frames, a ring's worth: what is dumped now compresses like what was dumped just before."""
_UNKNOWN_BYTES: Final = 16 * limits.MIB
"""Counts as incompressible beside what was seen, for a guess at what is to come: a core begins with what compresses well."""
_MARGIN: Final = 2
"""The parts of a core compress unevenly. One that takes more than twice the guess is cut, and only where the disk has no more."""


class Custody:
    """The frames that are still ours: sent or not, but not acknowledged."""

    def __init__(self, dump: DumpId, report: bytes, started_at: int, spool: Spool | None) -> None:
        self._dump, self._report, self._started_at, self._spool = dump, report, started_at, spool
        self.ring: deque[Frame] = deque()
        self.ring_bytes = 0
        self.acknowledged = Frontier()
        """The tree over the frames that the receiver has made durable."""
        self.all = Frontier()
        """The tree over all frames so far."""
        self.is_begun_elsewhere = False
        """A receiver has made frames durable."""
        self.size = 0
        """Plaintext bytes that they stand for."""
        self.stored_bytes = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)
        """The last frames' plaintext and stored bytes."""
        self.entry: SpoolEntry | None = None
        self.failure: SecurecoreError | None = None
        """Why the spool has not all that it should have: the dump is cut."""
        self.copy_failure: SecurecoreError | None = None
        """Why there is no copy of a dump that should have one, while the wire takes it."""
        self._is_copying = False
        self._copied = 0
        """Frames from the first one on that the entry has, while it is a copy."""
        self._has_end = False
        self._looked_at = 0
        """The size at which what is kept was last held against what is still to come."""
        self._kept: SpoolEntry | None = None
        """An entry that was begun for what is here and for what is still to come, while the wire is not given up yet."""

    @property
    def has_spool(self) -> bool:
        """Whether there is anything but a receiver that may have the dump."""
        return self._spool is not None

    @property
    def has_fallen_back(self) -> bool:
        """Whether what comes goes to the spool alone."""
        return self.entry is not None and not self._is_copying

    def begin_copy(self) -> None:
        """Keep every frame that comes in the spool too; a spool that refuses is told in ``copy_failure``."""
        if self._spool is None:
            return
        try:
            self.entry = self._spool.begin(self._start(None, Frontier()), self._report, limits.MAX_FRAME_BYTES)
            self._is_copying = True
        except SecurecoreError as error:
            self.copy_failure = error

    def take(self, frame: Frame) -> None:
        """Add a frame that has just been made, to all that is known of the dump or, where there is no memory, to nothing."""
        self._recent.append((frame.plain, len(frame.stored)))
        self.ring.append(frame)
        try:
            self.all.append(frame.leaf)
        except MemoryError:
            self.ring.pop()
            raise
        self.size += frame.plain
        self.ring_bytes += len(frame.stored)
        self.stored_bytes += len(frame.stored)
        if self._is_copying and self.entry is not None:
            try:
                self.entry.append(frame.stored)
                self._copied += 1
            except (SecurecoreError, MemoryError) as error:
                # The wire is well, and has it.
                self.copy_failure = _told(error)
                self._drop_entry()

    def expect(self, rest: int) -> int:
        """Return how many bytes *rest* bytes of plaintext may take that are still to come: no more than they are.

        Twice what they would by the dump so far, or by its last frames where these compressed worse. Not covered: a core that
        turns, a long way on, into what compresses more than twice as badly as all of it before.
        """
        plain, stored = (sum(column) for column in zip(*self._recent, strict=True)) if self._recent else (1, 1)
        seen, kept = self.size + _UNKNOWN_BYTES, self.stored_bytes + _UNKNOWN_BYTES
        return min(rest, _MARGIN * rest * max(kept * plain, stored * seen) // (seen * plain))

    def acknowledge(self, frames: int) -> None:
        """Let go of everything in memory before frame number *frames*, but for a short last one.

        That one tells the dump's size, which an entry with no frame of its own could only guess from their number. Nor of anything
        once ``keep_room`` has begun an entry: it says with which frame it begins.
        """
        self.is_begun_elsewhere = True
        while self._kept is None and self.acknowledged.size < frames and self.ring[0].plain == limits.PIECE_BYTES:
            frame = self.ring.popleft()
            self.ring_bytes -= len(frame.stored)
            self.acknowledged.append(frame.leaf)

    def keep_room(self, rest_bytes: int, store: StoreId | None) -> bool:
        """Begin the entry that a wire may be given up for, and return whether that could be done.

        It has room for what is in memory and for *rest_bytes* more; nobody else takes that room any more. *store* is as
        ``fall_back`` has it. Where there is no room nothing stays behind.
        """
        if self._spool is None:
            return False
        if self._kept is not None:
            return True
        size = rest_bytes + (0 if self._is_copying else self.ring_bytes)
        if not self._may_have_room(size):
            return False
        try:
            if self._is_copying and self.entry is not None:
                self.entry.keep_room(size)
            else:
                self._kept = self._begin(self._spool, size, store)
        except SecurecoreError:
            return False
        return True

    def _may_have_room(self, size: int) -> bool:
        """Return whether the spool's disk says of itself that it would take *size* bytes: to make an entry in vain takes longer."""
        if self._spool is None:
            return False
        try:
            disk = os.fstatvfs(self._spool.fd)
        except OSError:
            return False
        # A file system that makes its inodes as they are needed says that it has none at all.
        has_inodes = self._is_copying or disk.f_files == 0 or disk.f_favail >= INODES
        return not disk.f_flag & os.ST_RDONLY and has_inodes and disk.f_bavail * disk.f_frsize >= size

    def fall_back(self, store: StoreId | None, least_bytes: int = limits.MAX_FRAME_BYTES) -> None:
        """Give the wire up: from here on the spool has what no receiver has acknowledged, or all of it where there is a copy.

        *store* is the one that has the frames before. A dump of which nothing is anywhere yet is only begun where there is room for
        *least_bytes*, and what is in memory. Raises SecurecoreError, kept in ``failure``, when the spool takes nothing.
        """
        if self._spool is None:
            raise Bug("there is no spool to fall back on")
        try:
            if self._is_copying:
                self._end_copy(least_bytes)
            else:
                # Of what a receiver has the beginning, any more of it is worth having.
                least_bytes = limits.MAX_FRAME_BYTES if self.acknowledged.size else least_bytes
                self.entry = self._kept or self._begin(self._spool, self.ring_bytes + least_bytes, store)
                self._kept = None
        except SecurecoreError as error:
            self.failure = error
            raise
        self.keep_ring()

    def keep_ring(self, find_rest: Callable[[], int] | None = None) -> None:
        """Move the ring into the spool; once the disk has refused, what comes is let go of, and ``failure`` says why.

        *find_rest* returns how much room the frames that are still to come may take: what is kept beyond that is given back.
        A MemoryError leaves what is not there yet in the ring, for another try.
        """
        if self.entry is None:
            raise Bug("frames have nowhere to go")
        try:
            while self.ring and self.failure is None:
                self.entry.append(self.ring[0].stored)
                self.ring.popleft()
        except SecurecoreError as error:
            self.failure = error
        if self.failure is not None:
            self.ring.clear()
        elif find_rest is not None and self.size >= self._looked_at + limits.SPOOL_STEP_BYTES:
            self._looked_at = self.size
            with suppress(MemoryError):
                self.entry.keep_less(find_rest())

    def finish(self, end: EntryEnd) -> None:
        """Make the entry durable with how the source ended, if there is one; a disk that refuses is told, and the dump is cut.

        Of a copy it is told in ``copy_failure``: the wire has the dump still. So is a dump cut of which a part is still in memory.
        """
        if self.entry is None or self._has_end:
            return
        if self.ring and self.has_fallen_back:
            self.failure = self.failure or StorageError(NO_MEMORY)
            end = end._replace(outcome=CUT)
        try:
            self.entry.finish(end)
            self._has_end = True
        except SecurecoreError as error:
            if self._is_copying:
                self.copy_failure = self.copy_failure or error
            else:
                self.failure = self.failure or error

    def settled(self) -> None:
        """Remove the copy, for the receipt is there; what cannot be removed is offered by a later flush, and removed then."""
        if self._is_copying:
            self._drop_entry()

    def close(self) -> None:
        """Give up the lock on the entry, which stays; what was begun for a wire that was not given up after all is removed."""
        if self._kept is not None and self._spool is not None:
            kept, self._kept = self._kept, None
            self._remove(self._spool, kept)
        if self.entry is not None:
            self.entry.close()

    def _begin(self, spool: Spool, size: int, store: StoreId | None) -> SpoolEntry:
        before = self.acknowledged.copy()
        return spool.begin(self._start(store if before.size else None, before), self._report, size)

    def _end_copy(self, least_bytes: int) -> None:
        """Let the copy be the entry, unless nothing is in it and there is no room for what is to come."""
        if self.entry is not None and self._copied == 0:
            try:
                self.entry.keep_room(self.ring_bytes + least_bytes)
            except SecurecoreError:
                self._drop_entry()
                raise
        # What is not in the copy yet is the end of the ring.
        while len(self.ring) > self.all.size - self._copied:
            self.ring.popleft()
        self._is_copying = False

    def _drop_entry(self) -> None:
        entry, self.entry, self._is_copying = self.entry, None, False
        if entry is not None and self._spool is not None:
            self._remove(self._spool, entry)

    def _remove(self, spool: Spool, entry: SpoolEntry) -> None:
        try:
            spool.remove(entry)
        except (SecurecoreError, MemoryError) as error:
            entry.close()
            self.copy_failure = self.copy_failure or _told(error)

    def _start(self, store: StoreId | None, before: Frontier) -> EntryStart:
        return EntryStart(self._dump, self._started_at, store, before)


def least_bytes(rest: int | None) -> int:
    """Return for how many bytes there must be room before a dump is begun of which *rest* bytes of plaintext are to come.

    What it takes for certain: a frame as it may be, and of each whole piece what zeroes take, for no frame is smaller. How well a
    core compresses its size does not say: a mapping of which one page was touched is announced whole, and takes next to nothing.
    So any other dump is begun, and cut where it outgrows the room that there is. Of an unknown *rest* nothing but a frame is sure.
    """
    rest = limits.PIECE_BYTES if rest is None else rest
    return max(min(rest, limits.MAX_FRAME_BYTES), rest // limits.PIECE_BYTES * len(ZERO_PIECE_FRAME))


def _told(error: SecurecoreError | MemoryError) -> SecurecoreError:
    """Return the error that is told of a copy: one of ours."""
    return error if isinstance(error, SecurecoreError) else StorageError(NO_MEMORY)
