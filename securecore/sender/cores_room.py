"""The room of one new core in local mode: the floor that it leaves free for everybody else, and the older dumps that go for it.

Handlers take no turns. Each looks at the disk before each frame, so that sixteen at once may go below the floor by a frame each; so
may the reports and the ends of files, which are small. Where a file system counts late what was written, the floor is late too.
"""

import errno
import os
from collections.abc import Callable

from securecore import limits
from securecore.declarations import Final, TypeVar
from securecore.dump import directory as files
from securecore.errors import StorageError
from securecore.sender.floor import Floor
from securecore.sender.rotation import OldDumps, Rotation
from securecore.sender.system_log import log

INODES: Final = 2
"""Of a new dump: the core and its report."""
_REPORT_ROOM_BYTES: Final = limits.MAX_REPORT_BYTES
"""Kept even without a floor: a core that fills the disk to its last byte would leave none for the report that says so."""
_T = TypeVar("_T")


class AtFloorError(StorageError):
    """The disk has as little free as is to stay free."""


class CoresRoom:
    """What one new core may take."""

    def __init__(self, directory: int, floor: Floor, rotation: Rotation, keep: int | None) -> None:
        """*rotation* is where older dumps may go for the new one, where so many are kept; None keeps all of them.

        Where less than the floor is free already, the floor is what is free now: of what others have taken nothing can be given
        back, but a new dump may still take the place of older ones. Raises StorageError when the disk says nothing of itself.
        """
        self._directory, self._rotation, self._keep = directory, rotation, keep
        self._old: OldDumps | None = None
        """What was found there last."""
        disk = self._disk()
        least_bytes = max(floor.least_free_bytes(disk.f_blocks * disk.f_frsize), _REPORT_ROOM_BYTES)
        self._least_bytes = min(least_bytes, disk.f_bavail * disk.f_frsize)
        self._least_inodes = min(floor.least_free_inodes(disk.f_files), disk.f_favail)

    def begin(self, step: Callable[[], _T]) -> _T:
        """Do *step*, which makes the files of a new dump, and return its answer; raises AtFloorError at the floor of inodes.

        Not at that of bytes: a report says what crashed, whatever becomes of the core, and is small. Raises StorageError as *step*.
        """
        return self._insist(step, "", 0, self._check_inodes)

    def write(self, step: Callable[[], _T], own: str, size: int, expected: int) -> _T:
        """Do *step*, for which the core of the stem *own* takes *size* bytes more of the disk, and return its answer.

        *expected* is how many bytes the core is likely to need, these included. Older dumps go only where all of them together
        would make that much room: for a core that the disk cannot hold nothing is removed, but for what there is one too many of
        once the core is there. Raises AtFloorError at the floor, StorageError as *step* does.
        """
        return self._insist(step, own, max(size, expected), lambda: self._check_bytes(size))

    def finish(self, step: Callable[[], _T], own: str) -> _T:
        """Do *step*, which writes what little a dump still lacks, and return its answer; raises StorageError as *step* does."""
        return self._insist(step, own, 0, lambda: None)

    def give_up(self) -> None:
        """Remove nothing any more: the core is cut."""
        self._keep = None

    def _insist(self, step: Callable[[], _T], own: str, needed: int, check: Callable[[], None]) -> _T:
        """Do *step* once *check* lets it, having removed one dump after the other while there is no room and they make some."""
        while True:
            try:
                check()
                return step()
            except StorageError as error:
                if not self._is_full(error) or not self._removes_one(own, needed, error):
                    raise

    def _is_full(self, error: StorageError) -> bool:
        cause = error.__cause__
        return isinstance(error, AtFloorError) or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))

    def _removes_one(self, own: str, needed: int, error: StorageError) -> bool:
        """Remove the oldest dump, if *needed* bytes are to be had in this way; return whether there was one."""
        if self._keep is None:
            return False
        # A disk, or a quota, that refuses what is above the floor has nothing, whatever it says.
        lacking = needed - (self._above_floor() if isinstance(error, AtFloorError) else 0)
        if self._old is None or not self._may_go(self._old, lacking, self._keep):
            # Others may have ended dumps since the last look.
            self._old = self._rotation.look(own)
            if not self._may_go(self._old, lacking, self._keep):
                return False
        for name in self._old.remove_next():
            log("removed", file=name, why="the disk is full")
        return True

    @staticmethod
    def _may_go(old: OldDumps, lacking: int, keep: int) -> bool:
        """Return whether there is a next one of *old*, and it may go for *lacking* bytes, or because *keep* are kept."""
        return len(old) > 0 and (lacking <= old.taken_bytes or old.cores >= keep)

    def _check_bytes(self, size: int) -> None:
        if self._above_floor() < size:
            words = f"the disk has {_mib(self._above_floor() + self._least_bytes)} left, {_mib(self._least_bytes)} are to stay free"
            raise AtFloorError(words, hint="make room on that file system")

    def _check_inodes(self) -> None:
        disk = self._disk()
        if self._least_inodes and disk.f_favail < self._least_inodes + INODES:
            words = f"the disk has {disk.f_favail} of {disk.f_files} inodes left, as few as are to stay free"
            raise AtFloorError(words, hint="remove files on that file system")

    def _above_floor(self) -> int:
        disk = self._disk()
        return disk.f_bavail * disk.f_frsize - self._least_bytes

    def _disk(self) -> os.statvfs_result:
        try:
            return os.fstatvfs(self._directory)
        except OSError as error:
            raise files.disk_refused(error, "cannot look at the disk of the cores") from error


def _mib(size: int) -> str:
    return f"{size / limits.MIB:.1f} MiB"
