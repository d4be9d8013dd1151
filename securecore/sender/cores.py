"""The directory of local mode: one compressed core and one report for each crash, and no state in which one passes for more.

    20261124T065359Z-nginx-4711.gz             a core: the kernel's time (UTC), the program, its pid
    20261124T065359Z-nginx-4711.json           its report, with what is stored of it in the member "local"
    20261124T065359Z-nginx-4711-2.gz           another of the same second, program and pid
    20261124T065401Z-nginx-4712.truncated.gz   the source was cut, or the handler was killed: as far as it goes
    .20261124T065402Z-nginx-4713.gz.new        being written, by the handler that holds flock(2) on it
    .lock                                      held while names are given out and leftovers looked for, never for long

A stem (the name up to the endings) belongs to whoever holds the lock on the core that is being written. At its end the report gets
its name first, then the core; the file that is being written disappears last. So a leftover, which nobody has locked, is a core
whose handler was killed; what became of it stands in its report, if that has its name already.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Final, TypeVar

from securecore import limits
from securecore.dump import directory as files
from securecore.dump.manifest import CUT
from securecore.dump.packing import FORMATS
from securecore.errors import ConfigError, StorageError
from securecore.sender.core_facts import NOT_KEPT, Facts, add_facts, find_facts
from securecore.sender.core_names import CoreFile, core_name, find_meaning, names_of, numbered

LOCK: Final = ".lock"
_LOCK_TRIES: Final = 50
_LOCK_PAUSE_S: Final = 0.02
"""Together one second, with a crashed process waiting. Handlers hold the lock for milliseconds; who has it longer was stopped."""

MakeRoom = Callable[[str], bool]
"""Removes something that is no part of the stem it is given, and returns whether there was anything."""
_T = TypeVar("_T")


class NewCore:
    """A core that is being written, and its report."""

    def __init__(self, directory: int, stem: str, kind: str, fd: int, make_room: MakeRoom | None) -> None:
        self.stem, self._kind = stem, kind
        self._directory, self._fd = directory, fd
        self._make_room = make_room
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append to the core."""
        _while_full(lambda: self._append(data), self._make_room, self.stem)

    def _append(self, data: bytes) -> None:
        """Append all of *data*, or nothing, so that it can be tried again."""
        try:
            files.write_all(self._fd, data)
        except StorageError:
            try:
                os.ftruncate(self._fd, self._size)
            except OSError as error:
                raise files.disk_refused(error, "cannot cut a core") from error
            raise
        self._size += len(data)

    def publish(self, report: bytes, facts: Facts, *, is_whole: bool) -> str:
        """Make the core and its report durable, give them their names, and return the core's.

        Raises StorageError when the disk refuses; then abandon says so in the report.
        """
        files.sync(self._fd)
        # A file system that finds out at close says so to every close; ours keeps the lock until the end.
        files.close(os.dup(self._fd))
        name = core_name(self.stem, self._kind, is_whole=is_whole)
        document, text = add_facts(report, facts | {"file": name}), f"{self.stem}.json"
        # Not so the core's own fsync: one that failed says nothing when it is asked again.
        aside = _while_full(lambda: files.write_aside(text, self._directory, document), self._make_room, self.stem)
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

    def __init__(self, fd: int, owner: tuple[int, int]) -> None:
        self._fd = fd
        self.owner = owner

    def close(self) -> None:
        """Let go of the directory; cores that are being written need it to the end."""
        os.close(self._fd)

    def begin(self, base: str, kind: str, report: bytes, make_room: MakeRoom | None = None) -> NewCore:
        """Return a new core under *base*, or *base* with a number where that is taken; its report is there for whoever finds it.

        While the disk is full, *make_room* is asked for more of it, here and as the core is written.
        """
        return _while_full(lambda: self._begin(base, kind, report, make_room), make_room, "")

    def _begin(self, base: str, kind: str, report: bytes, make_room: MakeRoom | None) -> NewCore:
        lock = self._lock()
        try:
            # Without the lock, a number that no other living handler takes.
            stems = numbered(base) if lock is not None else numbered(f"{base}-{os.getpid()}")
            stem = next(stem for stem in stems if not self._is_taken(stem))
            fd = files.create_file(files.aside_name(f"{stem}.{kind}"), self._fd)
            core = NewCore(self._fd, stem, kind, fd, make_room)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise files.disk_refused(error, "cannot lock a core") from error
        finally:
            if lock is not None:
                os.close(lock)
        try:
            self._leave_report(stem, report)
        except StorageError:
            core.withdraw()
            raise
        except BaseException:
            core.close()
            raise
        return core

    def _is_taken(self, stem: str) -> bool:
        """Return whether any name of a stem is there: a few looks, however many files the directory has, for a process waits."""
        return any(self._exists(name) for name in names_of(stem))

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise files.disk_refused(error, f"cannot look at {name!r}") from error
        return True

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

    def keep_newest(self, keep: int, own: str) -> list[str]:
        """Remove all but the newest *keep* dumps and return the names that are gone; the stem *own* stays whatever its age.

        A dump is a core, whole or truncated, with its report. Reports without a core are counted by themselves, so that a full disk
        does not push good cores out. What is not named as this module names, or is being written, is left alone.
        """
        names, groups = self._dumps()
        gone: list[str] = []
        for group in groups:
            others = self._by_age(group - {own}, names)
            for stem in others[: max(len(others) - (keep - (own in group)), 0)]:
                gone += self._remove(names[stem])
        return gone

    def remove_oldest(self, own: str) -> list[str]:
        """Remove the oldest dump that is not *own*, after the last one reports without a core; return the names that are gone."""
        names, groups = self._dumps()
        for group in groups:
            for stem in self._by_age(group - {own}, names):
                return self._remove(names[stem])
        return []

    def _dumps(self) -> tuple[dict[str, list[str]], tuple[set[str], set[str]]]:
        """Return all names by their stems, and of those that nobody is writing the stems with a core and the ones without."""
        names: dict[str, list[str]] = {}
        busy = set()
        for text in files.names_in(self._fd):
            name = find_meaning(text)
            if name is not None and name.is_aside:
                busy.add(name.stem)
            elif name is not None:
                names.setdefault(name.stem, []).append(text)
        stems = set(names) - busy
        lonely = {stem for stem in stems if names[stem] == [f"{stem}.json"]}
        return names, (stems - lonely, lonely)

    def _remove(self, names: Iterable[str]) -> list[str]:
        """Remove the files of a dump, the core first: what a kill leaves is a report without a core, and not the other way."""
        ordered = sorted(names, key=lambda text: text.endswith(".json"))
        for text in ordered:
            files.remove_file(text, self._fd)
        return ordered

    def _by_age(self, stems: Iterable[str], names: dict[str, list[str]]) -> Sequence[str]:
        """Return the stems, the oldest first: by the time in their names, and within a second by that of their files."""
        return sorted(stems, key=lambda stem: (stem[:16], self._written_at(names[stem]), stem))

    def _written_at(self, names: Sequence[str]) -> int:
        times = [0]
        for name in names:
            try:
                times.append(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime_ns)
            except OSError:
                continue  # Another handler has removed it between our look and this one.
        return max(times)

    def _lock(self) -> int | None:
        """Return the lock that is held while names are given out, None when somebody keeps it; closing it lets it go."""
        try:
            fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=self._fd)
        except OSError as error:
            raise files.disk_refused(error, f"cannot lock {LOCK!r}") from error
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_S)
            except OSError as error:
                os.close(fd)
                raise files.disk_refused(error, f"cannot lock {LOCK!r}") from error
            else:
                return fd
        os.close(fd)
        return None

    def _names(self) -> list[CoreFile]:
        return [name for name in map(find_meaning, files.names_in(self._fd)) if name is not None]

    def _claim_leftovers(self, troubles: list[StorageError]) -> list[tuple[str, str, int]]:
        """Return stem, format and descriptor of each core whose handler is gone, locked by us from now on."""
        claimed = []
        lock = self._lock()
        if lock is None:
            raise StorageError(f"{LOCK!r} is locked by another process")
        try:
            asides = [name for name in self._names() if name.is_aside]
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


def open_cores(path: str) -> CoreDirectory:
    """Return the directory; raises ConfigError when it is missing, or others than its owner can write in it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        hint = f"make it: install -d -m 0700 -o securecore -g securecore {path}"
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}", hint=hint) from error
    status = os.fstat(fd)
    if status.st_mode & 0o022:
        os.close(fd)
        raise ConfigError(f"{path}: others than its owner can write there", hint=f"chmod go-w {path}")
    return CoreDirectory(fd, (status.st_uid, status.st_gid))


def _while_full(step: Callable[[], _T], make_room: MakeRoom | None, own: str) -> _T:
    """Return what *step* does, having made room for it as often as the disk was full; raises its StorageError when none is left."""
    while True:
        try:
            return step()
        except StorageError as error:
            cause = error.__cause__
            is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
            if not is_full or make_room is None or not make_room(own):
                raise


def _digest(fd: int) -> str:
    digest, offset = sha256(), 0
    try:
        while part := os.pread(fd, limits.MIB, offset):
            digest.update(part)
            offset += len(part)
    except OSError as error:
        raise files.disk_refused(error, "cannot read a core") from error
    return digest.hexdigest()
