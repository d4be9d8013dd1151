"""What a sender still owes of one dump: frames in memory, frames in the spool, and the tree over both.

Frames that were sent, but that the receiver has not yet acknowledged as durable, stay in a ring in memory. When the wire is given
up, the ring and everything after it go to the spool. So each frame is always durable at the receiver, in the ring, or in the spool.

With a copy (``spool_mode = "whole"``) every frame goes to the spool as well, from the first one on, until the receipt is there. The
ring stays what it is: when the disk refuses the copy while the wire is well, the copy is given up and nothing is lost by that.
"""

import os
from collections import deque
from typing import Final

from securecore import limits
from securecore.errors import Bug, SecurecoreError
from securecore.merkle import Frontier
from securecore.names import DumpId, StoreId
from securecore.sender.pump import Frame
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd, EntryStart, SpoolEntry

_INODES: Final = 5
"""Of an entry: its directory, core, report, start and end."""


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
        self.entry: SpoolEntry | None = None
        self.failure: SecurecoreError | None = None
        """Why the spool has not all that it should have: the dump is cut."""
        self.copy_failure: SecurecoreError | None = None
        """Why there is no copy of a dump that should have one, while the wire takes it."""
        self._is_copying = False
        self._copied = 0
        """Frames from the first one on that the entry has, while it is a copy."""
        self._has_end = False

    @property
    def has_fallen_back(self) -> bool:
        """Whether what comes goes to the spool alone."""
        return self.entry is not None and not self._is_copying

    def begin_copy(self) -> None:
        """Keep every frame that comes in the spool too; a spool that refuses is told in ``copy_failure``."""
        if self._spool is None:
            return
        try:
            self.entry = self._spool.begin(self._start(None, Frontier()), self._report)
            self._is_copying = True
        except SecurecoreError as error:
            self.copy_failure = error

    def take(self, frame: Frame) -> None:
        """Add a frame that has just been made."""
        self.ring.append(frame)
        self.ring_bytes += len(frame.stored)
        self.all.append(frame.leaf)
        if self._is_copying and self.entry is not None:
            try:
                self.entry.append(frame.stored)
                self._copied += 1
            except SecurecoreError as error:
                self.copy_failure = error
                self._drop_entry()

    def acknowledge(self, frames: int) -> None:
        """Let go of everything in memory before frame number *frames*, but for a short last one.

        That one tells the dump's size, which an entry with no frame of its own could only guess from their number.
        """
        while self.acknowledged.size < frames and self.ring[0].plain == limits.PIECE_BYTES:
            frame = self.ring.popleft()
            self.ring_bytes -= len(frame.stored)
            self.acknowledged.append(frame.leaf)

    def can_fall_back(self, rest_bytes: int) -> bool:
        """Return whether the spool's disk, as it says of itself, would take what is in memory, and *rest_bytes* and a frame more.

        Not checked: a quota, and what others write meanwhile.
        """
        if self._spool is None:
            return False
        try:
            disk = os.fstatvfs(self._spool.fd)
        except OSError:
            return False
        needed = limits.MAX_FRAME_BYTES + rest_bytes + (0 if self._is_copying else self.ring_bytes)
        # A file system that makes its inodes as they are needed says that it has none at all.
        has_inodes = self._is_copying or disk.f_files == 0 or disk.f_favail >= _INODES
        return not disk.f_flag & os.ST_RDONLY and has_inodes and disk.f_bavail * disk.f_frsize >= needed

    def fall_back(self, store: StoreId | None) -> None:
        """Give the wire up: from here on the spool has what no receiver has acknowledged, or all of it where there is a copy.

        *store* is the one that has the frames before. Raises SecurecoreError, kept in ``failure``, when the spool takes nothing.
        """
        if self._spool is None:
            raise Bug("there is no spool to fall back on")
        if self._is_copying:
            # What is not in the copy yet is the end of the ring.
            while len(self.ring) > self.all.size - self._copied:
                self.ring.popleft()
            self._is_copying = False
        else:
            before = self.acknowledged.copy()
            try:
                self.entry = self._spool.begin(self._start(store if before.size else None, before), self._report)
            except SecurecoreError as error:
                self.failure = error
                raise
        self.keep_ring()

    def keep_ring(self) -> None:
        """Move the ring into the spool; once the disk has refused, what comes is let go of, and ``failure`` says why."""
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

    def finish(self, end: EntryEnd) -> None:
        """Make the entry durable with how the source ended, if there is one; a disk that refuses is told, and the dump is cut.

        Of a copy it is told in ``copy_failure``: the wire has the dump still.
        """
        if self.entry is None or self._has_end:
            return
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
        """Give up the lock on the entry, which stays."""
        if self.entry is not None:
            self.entry.close()

    def _drop_entry(self) -> None:
        entry, self.entry, self._is_copying = self.entry, None, False
        if entry is None or self._spool is None:
            return
        try:
            self._spool.remove(entry)
        except SecurecoreError as error:
            entry.close()
            self.copy_failure = self.copy_failure or error

    def _start(self, store: StoreId | None, before: Frontier) -> EntryStart:
        return EntryStart(self._dump, self._started_at, store, before)
