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

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import count
from typing import Any, Final, NamedTuple

from securecore import limits
from securecore.dump import directory as files
from securecore.dump.manifest import CUT
from securecore.dump.packing import FORMATS
from securecore.errors import ConfigError, StorageError

LOCK: Final = ".lock"
NOT_KEPT: Final = "not-kept"
"""The outcome of a crash whose report is all that there is: the disk did not take the core."""
FACTS_BYTES: Final = 4 * limits.KIB
"""What the member "local" needs in a report: names and numbers below 1 KiB, and the reason of a failure."""

_NAME: Final = re.compile(
    r"(?P<stem>\d{8}T\d{6}Z-[A-Za-z0-9_][A-Za-z0-9._-]{0,63}-\d{1,20}(?:-\d{1,9})?)(?P<cut>\.truncated)?\.(?P<ending>zst|gz|zlib|json)",
    re.ASCII,
)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]", re.ASCII)
_PROGRAM_MAX: Final = 64
_LAST_SECOND: Final = 253402300799
"""The end of the year 9999: a clock beyond it, or arguments that somebody made up, must not cost the core."""

Facts = dict[str, Any]


def stem_of_crash(crashed_at: int, program: str | None, pid: int) -> str:
    """Return how the names of a crash begin: the time in UTC, the program made harmless (R12), the pid."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(min(crashed_at, _LAST_SECOND)))
    safe = _UNSAFE.sub("_", program or "")[:_PROGRAM_MAX]
    harmless = safe.lstrip(".-")
    safe = "_" * (len(safe) - len(harmless)) + harmless
    return f"{moment}-{safe or 'unknown'}-{pid}"


class _Name(NamedTuple):
    """A name that this module gives; ``ending`` is a format or json."""

    stem: str
    ending: str
    is_aside: bool


def _parse(name: str) -> _Name | None:
    """Return what a name in the directory means, None for one that is not ours."""
    is_aside = files.is_aside(name)
    match = _NAME.fullmatch(name[1:-4] if is_aside else name)
    return None if match is None else _Name(match["stem"], match["ending"], is_aside)


class NewCore:
    """A core that is being written, and its report."""

    def __init__(self, directory: int, stem: str, kind: str, fd: int) -> None:
        self.stem, self._kind = stem, kind
        self._directory, self._fd = directory, fd

    def write(self, data: bytes) -> None:
        """Append to the core."""
        files.write_all(self._fd, data)

    def publish(self, report: bytes, facts: Facts, *, is_whole: bool) -> str:
        """Make the core and its report durable, give them their names, and return the core's.

        Raises StorageError when the disk refuses; then abandon says so in the report.
        """
        files.sync(self._fd)
        # A file system that finds out at close says so to every close; ours keeps the lock until the end.
        files.close(os.dup(self._fd))
        name = core_name(self.stem, self._kind, is_whole=is_whole)
        document = add_facts(report, facts | {"file": name})
        files.link_into_place(
            files.write_aside(f"{self.stem}.json", self._directory, document), f"{self.stem}.json", self._directory
        )
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

    def begin(self, base: str, kind: str, report: bytes) -> NewCore:
        """Return a new core under *base*, or *base* with a number where that is taken; its report is there for whoever finds it."""
        lock = self._lock()
        try:
            stem = next(stem for stem in _numbered(base) if not self._is_taken(stem))
            fd = files.create_file(files.aside_name(f"{stem}.{kind}"), self._fd)
            core = NewCore(self._fd, stem, kind, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise files.disk_refused(error, "cannot lock a core") from error
        finally:
            os.close(lock)
        try:
            self._leave_report(stem, report)
        except StorageError:
            core.abandon(report, {})
            raise
        except BaseException:
            core.close()
            raise
        return core

    def _is_taken(self, stem: str) -> bool:
        """Return whether any name of a stem is there: a few looks, however many files the directory has, for a process waits."""
        return any(self._exists(name) for name in _names_of(stem))

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
        names: dict[str, list[str]] = {}
        busy = set()
        for text in files.names_in(self._fd):
            name = _parse(text)
            if name is not None and name.is_aside:
                busy.add(name.stem)
            elif name is not None:
                names.setdefault(name.stem, []).append(text)
        stems = [stem for stem in names if stem not in busy]
        lonely = [stem for stem in stems if names[stem] == [f"{stem}.json"]]
        gone: list[str] = []
        for group in (set(stems) - set(lonely), set(lonely)):
            for stem in self._oldest(group, names, keep, own):
                # The core first, so that what a kill leaves between the two is a report without a core, and not the other way.
                for text in sorted(names[stem], key=lambda text: text.endswith(".json")):
                    files.remove_file(text, self._fd)
                    gone.append(text)
        return gone

    def _oldest(self, stems: Iterable[str], names: dict[str, list[str]], keep: int, own: str) -> Sequence[str]:
        """Return the stems that go: by the time in their names, and within a second by that of their files."""
        others = sorted((stem for stem in stems if stem != own), key=lambda stem: (stem[:16], self._written_at(names[stem]), stem))
        kept = keep - (own in stems)
        return others[: max(len(others) - kept, 0)]

    def _written_at(self, names: Sequence[str]) -> int:
        times = [0]
        for name in names:
            try:
                times.append(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime_ns)
            except OSError:
                continue  # Another handler has removed it between our look and this one.
        return max(times)

    def _lock(self) -> int:
        """Return the lock that is held while names are given out; closing it lets it go."""
        try:
            fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=self._fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise files.disk_refused(error, f"cannot lock {LOCK!r}") from error
        return fd

    def _names(self) -> list[_Name]:
        return [name for name in map(_parse, files.names_in(self._fd)) if name is not None]

    def _claim_leftovers(self, troubles: list[StorageError]) -> list[tuple[str, str, int]]:
        """Return stem, format and descriptor of each core whose handler is gone, locked by us from now on."""
        claimed = []
        lock = self._lock()
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
        stated = {} if report is None else _local_facts(report)
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
        files.replace_file(f"{stem}.json", self._fd, add_facts(report, facts))


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


def core_name(stem: str, kind: str, *, is_whole: bool) -> str:
    """Return the name of a core."""
    return f"{stem}.{kind}" if is_whole else f"{stem}.truncated.{kind}"


def add_facts(report: bytes, facts: Facts) -> bytes:
    """Return *report* with *facts* as its member "local"; a report that is none becomes an empty one."""
    try:
        fields = json.loads(report)
    except ValueError:
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    return json.dumps(fields | {"local": facts}, sort_keys=True, separators=(",", ":")).encode("ascii")


def _local_facts(report: bytes) -> Facts:
    try:
        facts = json.loads(report)["local"]
    except (ValueError, KeyError, TypeError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _names_of(stem: str) -> Iterator[str]:
    """Yield every name that this module gives under a stem."""
    for name in (f"{stem}.json", *(core_name(stem, kind, is_whole=True) for kind in FORMATS)):
        yield name
        yield files.aside_name(name)
    yield from (core_name(stem, kind, is_whole=False) for kind in FORMATS)


def _numbered(base: str) -> Iterable[str]:
    yield base
    for number in count(2):
        yield f"{base}-{number}"


def _digest(fd: int) -> str:
    digest, offset = sha256(), 0
    try:
        while part := os.pread(fd, limits.MIB, offset):
            digest.update(part)
            offset += len(part)
    except OSError as error:
        raise files.disk_refused(error, "cannot read a core") from error
    return digest.hexdigest()
