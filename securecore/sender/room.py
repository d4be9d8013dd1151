"""How much the spool may take of its disk: quotas of its own, and the floor that it leaves free for everybody else.

A dump's entry is begun, and grows, only where there is room by the quotas, the floor and the disk; the room is then kept for it as
blocks of its file (allocation.py), which is what the others count. Handlers take turns, by flock(2) on the spool's FORMAT: sixteen
that look at once would otherwise all see the same free bytes.

Where a file system keeps no blocks, what others are about to write is not counted, and a quota may be exceeded by it.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from securecore import limits
from securecore.declarations import Final, NamedTuple
from securecore.dump import directory as files
from securecore.errors import StorageError
from securecore.sender.allocation import allocate, release, taken_bytes
from securecore.sender.spool_limits import SpoolLimits
from securecore.sender.turn import take_turn

_HINT: Final = "`securecore spool flush` makes room, or a higher bound in sender.toml's [spool_limits]"
_SLACK_BYTES: Final = 64 * limits.KIB
"""What a file may take beyond its length with nothing kept for it: a last block, and a file system's own notes of where blocks
are."""
INODES: Final = 5
"""Of an entry: its directory, core, report, start and end."""
_END_INODES: Final = 1
"""Of those the end's, which is not there yet when an entry takes its room."""


class NoRoomError(StorageError):
    """The spool is as full as it may be."""


class Usage(NamedTuple):
    """What a spool holds."""

    dumps: int
    """Entries under their names."""
    taken_bytes: int
    """On the disk, of their cores and of those that are being begun or removed."""


def measure(dumps: int) -> Usage:
    """Return what is in the directory of dumps behind a descriptor: one stat(2) for each; raises StorageError."""
    count = total = 0
    for name in files.names_in(dumps):
        count += not files.is_aside(name)
        status = _status(name, dumps)
        total += taken_bytes(status) if status is not None else 0
    return Usage(count, total)


class Room:
    """The room of one spool, as one process takes it."""

    def __init__(self, spool: int, bounds: SpoolLimits) -> None:
        self._spool, self.bounds = spool, bounds
        self._patience_s = limits.ROOM_LOCK_S

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep other handlers from taking room while the block runs.

        Who has it for longer than ROOM_LOCK_S was stopped, and no crash waits for that: then the block runs all the same, as where
        FORMAT cannot be opened, and a bound may be exceeded by one dump. Nor is it waited for again before it was free once: where
        there is little room a dump takes a turn for each of its frames.
        """
        try:
            fd = files.open_file("FORMAT", self._spool)
        except StorageError:
            fd = None
        try:
            if fd is not None:
                with suppress(OSError):
                    self._patience_s = limits.ROOM_LOCK_S if take_turn(fd, self._patience_s) else 0.0
            yield
        finally:
            if fd is not None:
                os.close(fd)

    def check_new(self, dumps: int, size: int) -> None:
        """Check that there is room for one more dump, of *size* bytes, before a file is made for it; raises NoRoomError.

        Others may take that room meanwhile: ``take_new`` looks again.
        """
        self._insist(dumps, lambda: self._check_new(dumps, size, INODES))

    def take_new(self, core: int, dumps: int, size: int) -> None:
        """Keep room for *size* bytes of a new dump's *core*; within a ``turn`` that lasts until the entry has its name.

        Raises NoRoomError when quota or floor forbid it, StorageError when the disk has it not.
        """

        def take() -> None:
            self._check_new(dumps, size, _END_INODES)
            self._keep(core, size)

        self._insist(dumps, take)

    def take_more(self, core: int, size: int) -> None:
        """Keep room for the first *size* bytes of *core*, which has an entry.

        Raises NoRoomError when quota or floor forbid it, StorageError when the disk has it not.
        """
        dumps = files.enter_directory("dumps", self._spool)
        try:
            with self.turn():
                self._take(core, dumps, size)
        finally:
            os.close(dumps)

    def grow(self, core: int, size: int) -> int:
        """Keep room for the first *size* bytes of *core*, and a step more where there is plenty; return for how many.

        Raises NoRoomError when quota or floor forbid it. A look that fails, as without descriptors, forbids nothing, and nor does a
        disk that keeps nothing: it says no by itself when it is written to.
        """
        try:
            dumps = files.open_directory("dumps", self._spool)
        except StorageError:
            dumps = None
        if dumps is None:
            return size
        try:
            with self.turn():
                ahead = self._take_ahead(core, dumps, size)
                if ahead is None:
                    self._take(core, dumps, size)
                return ahead or size
        except NoRoomError:
            raise
        except StorageError:
            return size
        finally:
            os.close(dumps)

    def take_less(self, core: int, size: int) -> int:
        """Keep room for no more than the first *size* bytes of *core*, and return for how many.

        That is 0 where the disk does not keep them again, as when somebody who takes no turns has had them meanwhile.
        """
        with self.turn():
            try:
                release(core)
                allocate(core, size)
            except StorageError:
                return 0
        return size

    def give_back(self, dumps: int) -> bool:
        """Free what is kept for entries that nobody writes any more, whose handlers were killed; return whether there was any."""
        is_freed = False
        for name in files.names_in(dumps):
            status = _status(name, dumps)
            if status is not None and taken_bytes(status) > status.st_size + _SLACK_BYTES:
                is_freed |= _give_back(name, dumps)
        return is_freed

    def _insist(self, dumps: int, step: Callable[[], None]) -> None:
        """Do *step*, and once more where it finds no room and handlers that were killed have left some."""
        try:
            step()
        except StorageError:
            if not self._has_given_back(dumps):
                raise
            step()

    def _has_given_back(self, dumps: int) -> bool:
        """Do ``give_back``, and return False where it can't be done: why there is no room is worth more than that."""
        try:
            return self.give_back(dumps)
        except StorageError:
            return False

    def _take_ahead(self, core: int, dumps: int, size: int) -> int | None:
        """Keep a step more than *size*, where as many handlers as there may be could do so too; None where not all could.

        What is kept for one that may not need it must not be what another one is cut for.
        """
        ahead = size + limits.SPOOL_STEP_BYTES
        everybodys = size + limits.CORE_PIPE_LIMIT * limits.SPOOL_STEP_BYTES
        try:
            self._check_bytes(self._usage(dumps), everybodys, taken_bytes(os.fstat(core)))
            self._keep(core, ahead)
        except StorageError:
            return None
        return ahead

    def _take(self, core: int, dumps: int, size: int) -> None:
        def take() -> None:
            self._check_bytes(self._usage(dumps), size, taken_bytes(os.fstat(core)))
            self._keep(core, size)

        self._insist(dumps, take)

    def _keep(self, core: int, size: int) -> None:
        """Keep blocks for the first *size* bytes of *core*; a disk that keeps none must have them free now."""
        more = max(0, size - taken_bytes(os.fstat(core)))
        if not allocate(core, size) and (free := self._free_bytes()) < more:
            raise NoRoomError(f"the spool's disk has {_mib(free)} left, and {_mib(more)} would come", hint=_HINT)

    def _check_new(self, dumps: int, size: int, inodes: int) -> None:
        disk = self._disk()
        least = self.bounds.floor.least_free_inodes(disk.f_files)
        if least and disk.f_favail < least + inodes:
            words = f"the spool's disk has {disk.f_favail} of {disk.f_files} inodes left, as few as are to stay free"
            raise NoRoomError(words, hint=_HINT)
        usage, most = self._usage(dumps), self.bounds.max_dumps
        if most is not None and usage.dumps >= most:
            raise NoRoomError(f"the spool has {usage.dumps} dumps of its {most}", hint=_HINT)
        self._check_bytes(usage, size)

    def _usage(self, dumps: int) -> Usage:
        """Return what the spool holds; nothing where no quota asks for it."""
        return measure(dumps) if self.bounds.has_quota else Usage(0, 0)

    def _check_bytes(self, usage: Usage, size: int, held: int = 0) -> None:
        more, most = max(0, size - held), self.bounds.max_bytes
        if most is not None and usage.taken_bytes + more > most:
            words = f"the spool has {_mib(usage.taken_bytes)} of its {_mib(most)}, and {_mib(more)} would come"
            raise NoRoomError(words, hint=_HINT)
        disk = self._disk()
        least = self.bounds.floor.least_free_bytes(disk.f_blocks * disk.f_frsize)
        free = disk.f_bavail * disk.f_frsize
        if least and free < more + least:
            words = f"the spool's disk has {_mib(free)} left, {_mib(least)} are to stay free, and {_mib(more)} would come"
            raise NoRoomError(words, hint=_HINT)

    def _free_bytes(self) -> int:
        disk = self._disk()
        return disk.f_bavail * disk.f_frsize

    def _disk(self) -> os.statvfs_result:
        try:
            return os.fstatvfs(self._spool)
        except OSError as error:
            raise files.disk_refused(error, "cannot look at the spool's disk") from error


def _status(name: str, dumps: int) -> os.stat_result | None:
    """Return what is known of an entry's core; None where there is none (yet, or any more)."""
    try:
        return os.stat(f"{name}/core.zst", dir_fd=dumps, follow_symlinks=False)
    except OSError:
        return None


def _give_back(name: str, dumps: int) -> bool:
    """Free what is kept for one entry; not while another process has it."""
    try:
        fd = files.open_directory(name, dumps)
    except StorageError:
        return False
    if fd is None:
        return False
    core = None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        core = files.open_file("core.zst", fd, append=True)
        if core is not None:
            release(core)
        return core is not None
    except (OSError, StorageError):
        return False
    finally:
        for opened in (core, fd):
            if opened is not None:
                os.close(opened)


def _mib(size: int) -> str:
    return f"{size / limits.MIB:.1f} MiB"
