"""The directory of local mode: one compressed core and one report for each crash, and no state in which one passes for more.

    20261124T065359Z-nginx-4711.gz             a core: the kernel's time (UTC), the program, its pid
    20261124T065359Z-nginx-4711.json           its report, with what is stored of it in the member "local"
    20261124T065359Z-nginx-4711-2.gz           another of the same second, program and pid
    20261124T065401Z-nginx-4712.truncated.gz   the source was cut, or the handler was killed: as far as it goes
    .20261124T065402Z-nginx-4713.gz.new        being written, by the handler that holds flock(2) on it
    .lock                                      held while names are given out and leftovers looked for, never for long
    .storms/                                   what the storm limits have left (storms.py); not touched here

A stem (the name up to the endings) belongs to whoever holds the lock on the core that is being written. At its end the report gets
its name first, then the core; the file that is being written disappears last. So a leftover, which nobody has locked, is a core
whose handler was killed; what became of it stands in its report, if that has its name already.
"""

import fcntl
import os
from hashlib import sha256

from securecore import limits
from securecore.declarations import Final
from securecore.dump import directory as files
from securecore.dump.manifest import CUT
from securecore.dump.packing import FORMATS
from securecore.errors import StorageError
from securecore.sender.allocation import taken_bytes
from securecore.sender.core_facts import NOT_KEPT, Facts, add_facts, find_facts
from securecore.sender.core_names import core_name, find_meaning, names_of, numbered
from securecore.sender.cores_directory import Owner, open_cores_directory
from securecore.sender.cores_room import CoresRoom
from securecore.sender.floor import Floor
from securecore.sender.rotation import Rotation
from securecore.sender.turn import take_turn

LOCK: Final = ".lock"
_LOCK_S: Final = 1.0
"""How long it is waited for, with a crashed process waiting. Handlers hold it for milliseconds; who has it longer was stopped."""


class NewCore:
    """A core that is being written, and its report."""

    def __init__(self, directory: int, stem: str, kind: str, fd: int, room: CoresRoom) -> None:
        self.stem, self._kind = stem, kind
        self._directory, self._fd = directory, fd
        self._room = room
        self._size = 0

    def write(self, data: bytes, expected: int = 0) -> None:
        """Append to the core, of which *expected* bytes are likely to come, these included; raises StorageError.

        Then no more than was written before is in it, and nothing older is removed for it any more.
        """
        try:
            self._room.write(lambda: self._append(data), self.stem, self._growth(len(data)), expected)
        except StorageError:
            self._room.give_up()
            raise

    def _growth(self, more: int) -> int:
        """Return how many bytes *more* bytes take of the disk beyond the blocks that the file has."""
        return max(0, self._size + more - taken_bytes(os.fstat(self._fd)))

    def end(self, data: bytes) -> None:
        """Append what ends the file, which is small; raises StorageError as ``write`` does."""
        self._room.finish(lambda: self._append(data), self.stem)

    def _append(self, data: bytes) -> None:
        """Append all of *data*, or nothing, so that it can be tried again."""
        try:
            files.write_all(self._fd, data)
        except StorageError:
            self._cut_back()
            raise
        self._size += len(data)

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError as error:
            raise files.disk_refused(error, "cannot cut a core") from error

    def publish(self, report: bytes, facts: Facts, *, is_whole: bool) -> str:
        """Make the core and its report durable, give them their names, and return the core's.

        Raises StorageError when the disk refuses; then abandon says so in the report.
        """
        if os.fstat(self._fd).st_size != self._size:
            # What was refused in the middle of a write could not be cut off at once.
            self._cut_back()
        files.sync(self._fd)
        # A file system that finds out at close says so to every close; ours keeps the lock until the end.
        files.close(os.dup(self._fd))
        name = core_name(self.stem, self._kind, is_whole=is_whole)
        document, text = add_facts(report, facts | {"file": name}), f"{self.stem}.json"
        # Not so the core's own fsync: one that failed says nothing when it is asked again.
        aside = self._room.finish(lambda: files.write_aside(text, self._directory, document), self.stem)
        files.link_into_place(aside, text, self._directory)
        files.link_into_place(self._aside, name, self._directory)
        files.sync(self._directory)
        self.close()
        return name

    def abandon(self, report: bytes, facts: Facts) -> None:
        """Remove the core, which frees its space, and leave a report that says so; raises StorageError when that is refused too."""
        try:
            os.ftruncate(self._fd, 0)
            document = add_facts(report, facts | {"file": None, "outcome": NOT_KEPT, "stored_bytes": 0})
            files.replace_file(f"{self.stem}.json", self._directory, document)
        except OSError as error:
            raise files.disk_refused(error, "cannot remove a core") from error
        finally:
            files.remove_file(files.aside_name(f"{self.stem}.json"), self._directory)
            files.remove_file(self._aside, self._directory)
            self.close()

    def withdraw(self) -> None:
        """Remove what is there of a core that was begun, as if it had not been."""
        try:
            files.remove_file(files.aside_name(f"{self.stem}.json"), self._directory)
            files.remove_file(self._aside, self._directory)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the lock: what has not been published or abandoned is a leftover from now on."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    @property
    def _aside(self) -> str:
        return files.aside_name(f"{self.stem}.{self._kind}")


class CoreDirectory:
    """The directory, through the descriptor that was opened once."""

    def __init__(self, fd: int, owner: Owner, floor: Floor) -> None:
        """*floor* is what new cores leave free of its disk."""
        self._fd, self._floor = fd, floor
        self.owner = owner
        self.rotation = Rotation(fd)

    def close(self) -> None:
        """Let go of the directory; cores that are being written need it to the end."""
        os.close(self._fd)

    def begin(self, base: str, kind: str, report: bytes, keep: int | None = None) -> NewCore:
        """Return a new core under *base*, or *base* with a number where that is taken; its report is there for whoever finds it.

        While the disk is full, or at its floor, the oldest dumps go where *keep* says how many are kept, here and as the core is
        written.
        """
        room = CoresRoom(self._fd, self._floor, self.rotation, keep)
        return room.begin(lambda: self._begin(base, kind, report, room))

    def _begin(self, base: str, kind: str, report: bytes, room: CoresRoom) -> NewCore:
        lock = self._lock()
        try:
            # Without the lock, a number that no other living handler takes.
            stems = numbered(base) if lock is not None else numbered(f"{base}-{os.getpid()}")
            stem = next(stem for stem in stems if not self._is_taken(stem))
            fd = files.create_file(files.aside_name(f"{stem}.{kind}"), self._fd)
            core = NewCore(self._fd, stem, kind, fd, room)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise files.disk_refused(error, "cannot lock a core") from error
        finally:
            if lock is not None:
                os.close(lock)
        try:
            self._leave_report(stem, report)
        except BaseException:
            # Whatever it was, such as memory that ran out: there is no core yet, and half a report would be none.
            core.withdraw()
            raise
        return core

    def has(self, stem: str) -> bool:
        """Return whether anything is there under a stem; not where the disk does not say."""
        try:
            return self._is_taken(stem)
        except StorageError:
            return False

    def _is_taken(self, stem: str) -> bool:
        """Return whether any name of a stem is there: a few looks, however many files the directory has, for a process waits."""
        return any(files.exists(name, self._fd, f"cannot look at {name!r}") for name in names_of(stem))

    def _leave_report(self, stem: str, report: bytes) -> None:
        """Write the report where recover looks for it, should this handler be killed; not yet durable, for a process waits."""
        fd = files.create_file(files.aside_name(f"{stem}.json"), self._fd)
        try:
            files.write_all(fd, report)
        finally:
            os.close(fd)

    def recover(self) -> tuple[list[str], list[StorageError]]:
        """Give the cores of killed handlers names that say so; return these, and what stood in the way of others."""
        recovered: list[str] = []
        troubles: list[StorageError] = []
        for stem, kind, fd in self._claim_leftovers(troubles):
            try:
                recovered.append(self._finish(stem, kind, fd))
            except StorageError as error:
                troubles.append(error)
            finally:
                os.close(fd)
        return recovered, troubles

    def _lock(self) -> int | None:
        """Return the lock that is held while names are given out, None when somebody keeps it; closing it lets it go."""
        try:
            fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=self._fd)
        except OSError as error:
            raise files.disk_refused(error, f"cannot lock {LOCK!r}") from error
        try:
            if take_turn(fd, _LOCK_S):
                return fd
        except OSError as error:
            os.close(fd)
            raise files.disk_refused(error, f"cannot lock {LOCK!r}") from error
        os.close(fd)
        return None

    def _claim_leftovers(self, troubles: list[StorageError]) -> list[tuple[str, str, int]]:
        """Return stem, format and descriptor of each core whose handler is gone, locked by us from now on."""
        claimed = []
        lock = self._lock()
        if lock is None:
            raise StorageError(f"{LOCK!r} is locked by another process")
        try:
            # Whole dumps are not looked at: there may be more of them than a handler has memory for.
            texts = filter(files.is_aside, files.names_in(self._fd))
            asides = [name for name in map(find_meaning, texts) if name is not None]
            cores = {name.stem for name in asides if name.ending in FORMATS}
            for stem, ending, _ in asides:
                try:
                    if ending in FORMATS:
                        fd = self._claim(files.aside_name(f"{stem}.{ending}"))
                        claimed += [] if fd is None else [(stem, ending, fd)]
                    elif stem not in cores:
                        # Only a power cut leaves a report whose core has no name any more.
                        self._publish_report(stem, {"file": None, "outcome": NOT_KEPT, "stored_bytes": 0})
                except StorageError as error:
                    troubles.append(error)
        finally:
            os.close(lock)
        return claimed

    def _claim(self, aside: str) -> int | None:
        """Return the file *aside*, locked; None when its handler lives, or has finished it meanwhile."""
        fd = files.open_file(aside, self._fd)
        if fd is None:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            is_ours = False
        else:
            is_ours = self._is_same(aside, fd)
        if is_ours:
            return fd
        os.close(fd)
        return None

    def _finish(self, stem: str, kind: str, fd: int) -> str:
        """Give a leftover the name that its report states; without a report one that says that it was cut. Return the name."""
        report = files.read_file(f"{stem}.json", self._fd, limits.MAX_REPORT_BYTES)
        size, cut = os.fstat(fd).st_size, core_name(stem, kind, is_whole=False)
        stated = {} if report is None else find_facts(report)
        name: str | None = core_name(stem, kind, is_whole=True)
        if report is None:
            name = cut
            files.sync(fd)
            facts = {"file": cut, "format": kind, "outcome": CUT, "stored_bytes": size, "sha256": _digest(fd)}
            self._publish_report(stem, facts)
        elif size == 0 and stated.get("outcome") == NOT_KEPT:
            name = None
        elif stated.get("file") != name:
            name = cut
        aside = files.aside_name(f"{stem}.{kind}")
        if name is None or self._is_same(name, fd):
            files.remove_file(aside, self._fd)
        else:
            files.link_into_place(aside, name, self._fd)
        files.remove_file(files.aside_name(f"{stem}.json"), self._fd)
        files.sync(self._fd)
        return name or f"{stem}.json"

    def _is_same(self, name: str, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(name, dir_fd=self._fd, follow_symlinks=False), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _publish_report(self, stem: str, facts: Facts) -> None:
        """Give a report that its handler left beside its name that name, with *facts* added."""
        report = files.read_file(files.aside_name(f"{stem}.json"), self._fd, limits.MAX_REPORT_BYTES) or b"{}"
        files.replace_file(f"{stem}.json", self._fd, add_facts(report, find_facts(report) | facts))


def open_cores(path: str, floor: Floor | None = None) -> CoreDirectory:
    """Return the directory; raises ConfigError when it is missing, or others than its owner can write in it.

    *floor* is for who begins cores in it.
    """
    return CoreDirectory(*open_cores_directory(path), floor or Floor())


def _digest(fd: int) -> str:
    digest, offset = sha256(), 0
    try:
        while part := os.pread(fd, limits.MIB, offset):
            digest.update(part)
            offset += len(part)
    except OSError as error:
        raise files.disk_refused(error, "cannot read a core") from error
    return digest.hexdigest()
