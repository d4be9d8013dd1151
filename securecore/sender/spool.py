"""The spool: where a sender keeps what it could not deliver.

    SPOOL/FORMAT            "securecore-spool 1", a newline, a UUID, a newline
    SPOOL/dumps/ID/         one directory for each dump, 0700; it gets this name when report and entry.json are in it
        report.json         as sent in OPEN
        core.zst            frames from number first_frame on, nothing before and nothing behind
        entry.json          which frames these are
        end.json            how the source ended; missing while a handler still writes, or when it was killed
    SPOOL/receipts.jsonl    one line for each receipt that was returned, append-only

The directory of an entry is locked (flock) while a handler writes it or a flush sends it. docs/store.md has the fields.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from typing import Any, Final

from securecore import limits
from securecore.dump import directory as files
from securecore.errors import BrokenError, ConfigError, SecurecoreError, StorageError
from securecore.names import DumpId, NameRefused, StoreId
from securecore.sender import receipt_log
from securecore.sender.spool_entry import EntryStart, SpoolEntry, decode, encode, parse_start

_FORMAT: Final = re.compile(rb"securecore-spool 1\n[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n")
_ABANDONED_AFTER_S: Final = 3600.0
"""A handler names its entry within milliseconds of beginning it; an hour is beyond every pause of a machine that still works."""
_FILES: Final = ("core.zst", "report.json", "entry.json", "end.json")
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class Spool:
    """An open spool directory."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def owner(self) -> tuple[int, int]:
        """The uid and gid of whose spool it is."""
        found = os.fstat(self.fd)
        return found.st_uid, found.st_gid

    def begin(self, start: EntryStart, report: bytes) -> SpoolEntry:
        """Make the entry for a dump, which appears whole; raises StorageError when there is one already or the disk refuses."""
        name, present = str(start.dump), files.aside_name(str(start.dump))
        dumps = files.enter_directory("dumps", self.fd)
        try:
            if name in files.names_in(dumps) or not files.make_directory(present, dumps):
                raise StorageError(f"spool already holds {name}")
            # Nobody looks at a name that is no dump id, so the lock is free; it stays ours through the renaming.
            fd = self._lock_entry(present, dumps)
            if fd is None:
                raise StorageError(f"spool entry {name} is in use")
            try:
                core = self._write_start(fd, start, report)
                os.rename(present, name, src_dir_fd=dumps, dst_dir_fd=dumps)
                present = name
                files.sync(dumps)
            except OSError as error:
                _remove_directory(present, fd, dumps)
                raise files.disk_refused(error, f"cannot begin spool entry {name}") from error
            except StorageError:
                _remove_directory(present, fd, dumps)
                raise
        finally:
            os.close(dumps)
        return SpoolEntry(start, report, fd, core)

    def _write_start(self, fd: int, start: EntryStart, report: bytes) -> int:
        """Make the empty core, report and entry.json, durable under their names, and return the core's descriptor."""
        core = files.create_file("core.zst", fd)
        try:
            # The core comes first: what follows makes the directory, and with it the core's name, durable.
            files.write_new_file("report.json", fd, report)
            files.write_new_file("entry.json", fd, start.encode())
        except BaseException:
            os.close(core)
            raise
        return core

    def sweep(self, now: float) -> None:
        """Remove what was begun and not named, or was being removed, by a process that was killed, once it is old enough."""
        dumps = files.enter_directory("dumps", self.fd)
        try:
            for name in filter(files.is_aside, files.names_in(dumps)):
                fd = self._lock_entry(name, dumps)
                if fd is not None and now - os.fstat(fd).st_mtime > _ABANDONED_AFTER_S:
                    _remove_directory(name, fd, dumps)
                elif fd is not None:
                    os.close(fd)
        finally:
            os.close(dumps)

    def dump_ids(self) -> list[DumpId]:
        """Return the dumps in the spool, oldest first."""
        dumps = files.open_directory("dumps", self.fd)
        if dumps is None:
            return []
        try:
            names = files.names_in(dumps)
        finally:
            os.close(dumps)
        return [DumpId.parse(name) for name in sorted(names) if _is_dump_id(name)]

    def entry(self, dump: DumpId) -> SpoolEntry | None:
        """Return the dump's entry, locked; None while another process has it, or when it was removed meanwhile.

        Raises BrokenError when its files do not make an entry.
        """
        dumps = files.enter_directory("dumps", self.fd)
        try:
            fd = self._lock_entry(str(dump), dumps)
        finally:
            os.close(dumps)
        if fd is None:
            return None
        core = None
        try:
            data = files.read_file("entry.json", fd, limits.MAX_REPORT_BYTES)
            report = files.read_file("report.json", fd, limits.MAX_REPORT_BYTES)
            core = files.open_file("core.zst", fd, append=True)
            if data is None and os.fstat(fd).st_nlink == 0:
                raise _Removed
            if data is None or report is None or core is None:
                raise BrokenError(f"spool entry {dump.short} is not whole", hint="what is left of it is in the spool's dumps/")
            return SpoolEntry(parse_start(dump, data), report, fd, core)
        except SecurecoreError as error:
            os.close(fd)
            if core is not None:
                os.close(core)
            if isinstance(error, _Removed):
                return None
            raise

    def remove(self, entry: SpoolEntry) -> None:
        """Delete an entry: its name first, so that what a crash leaves of the rest is no entry any more and is swept."""
        name, aside = str(entry.start.dump), files.aside_name(str(entry.start.dump))
        dumps = files.enter_directory("dumps", self.fd)
        try:
            os.rename(name, aside, src_dir_fd=dumps, dst_dir_fd=dumps)
            files.sync(dumps)
            _remove_files(entry._fd)
            os.rmdir(aside, dir_fd=dumps)
            files.sync(dumps)
        except OSError as error:
            raise files.disk_refused(error, "cannot remove a spool entry") from error
        finally:
            os.close(dumps)
        entry.close()

    def keep_receipt(self, fields: dict[str, Any]) -> None:
        """Append one line to the receipt log, durably; a disk that refuses leaves the log as it was."""
        receipt_log.append(self.fd, encode(fields))

    def receipts(self) -> Iterator[dict[str, Any]]:
        """Yield the receipt log's lines; a torn last line is left out."""
        return map(decode, receipt_log.lines(self.fd))

    def close(self) -> None:
        """Close the directory; entries stay usable."""
        os.close(self.fd)

    def _lock_entry(self, name: str, dumps: int) -> int | None:
        fd = files.open_directory(name, dumps)
        if fd is None:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd


class _Removed(SecurecoreError):
    """Another process has delivered and removed the entry between our finding and our locking it."""

    def __init__(self) -> None:
        super().__init__("the entry was removed")


def _remove_directory(name: str, fd: int, dumps: int) -> None:
    """Remove a directory that is no entry (yet, or any more), without a further descriptor; what cannot be removed stays."""
    try:
        _remove_files(fd)
        os.rmdir(name, dir_fd=dumps)
    except (OSError, StorageError):
        pass
    finally:
        os.close(fd)


def _remove_files(fd: int) -> None:
    """Remove all that an entry may hold, by name: to list them would take a descriptor more, and there may be none."""
    for name in (*_FILES, *map(files.aside_name, _FILES)):
        files.remove_file(name, fd)


def create_spool(path: str, randomness: bytes, owner: tuple[int, int] | None = None) -> None:
    """Make *path*, absent or empty, a spool, 0700 and owned by *owner* (uid, gid); *randomness* is 16 bytes for its id.

    A spool that is there is left as it is, but for *owner* if that is given; one that was half made by a crash is finished. Raises
    StorageError when anything else is there: no directory of somebody else's is ever closed or given away.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(path, _DIRECTORY_FLAGS)
    except OSError as error:
        raise files.disk_refused(error, f"cannot make spool {path}") from error
    try:
        if files.read_file("FORMAT", fd, 200) is None:
            # Two that make one spool at once take turns; the second then finds it.
            fcntl.flock(fd, fcntl.LOCK_EX)
        if files.read_file("FORMAT", fd, 200) is None:
            _check_nothing_else(fd, path)
            os.fchmod(fd, 0o700)
            os.close(files.enter_directory("dumps", fd))
            files.write_new_file("FORMAT", fd, f"securecore-spool 1\n{StoreId.make(randomness)}\n".encode())
        if owner is not None:
            os.close(files.enter_directory("dumps", fd))
            os.chown("dumps", *owner, dir_fd=fd, follow_symlinks=False)
            os.chown("FORMAT", *owner, dir_fd=fd, follow_symlinks=False)
            os.fchown(fd, *owner)
            os.fchmod(fd, 0o700)
    except OSError as error:
        raise files.disk_refused(error, f"cannot make spool {path}") from error
    finally:
        os.close(fd)


def _check_nothing_else(fd: int, path: str) -> None:
    """Raise StorageError when a directory holds anything but what making a spool in it, which was interrupted, has left there."""
    strangers = set(files.names_in(fd)) - {"dumps", files.aside_name("FORMAT")}
    if (dumps := files.open_directory("dumps", fd)) is not None:
        with os.scandir(dumps) as entries:
            strangers |= {f"dumps/{entry.name}" for entry in entries}
        os.close(dumps)
    if strangers:
        raise StorageError(f"cannot make spool {path}: {min(strangers)[:100]!a} is there", hint="name an empty directory")


def open_spool(path: str) -> Spool:
    """Return the spool at *path*; raises ConfigError when there is none of this version, or others may look into it.

    Raises StorageError when FORMAT cannot be read.
    """
    try:
        fd = os.open(path, _DIRECTORY_FLAGS)
    except OSError as error:
        raise ConfigError(f"spool {path}: {error.strerror}", hint="`securecore setup sender` makes it") from error
    try:
        text = files.read_file("FORMAT", fd, 200)
        mode = os.fstat(fd).st_mode
        if text is None or not _FORMAT.fullmatch(text):
            raise ConfigError(f"{path} is not a spool of this version")
        if mode & 0o077:
            raise ConfigError(f"spool {path}: mode is {mode & 0o777:04o}, others may look into it", hint=f"chmod 700 {path}")
    except BaseException:
        os.close(fd)
        raise
    return Spool(fd)


def _is_dump_id(name: str) -> bool:
    try:
        DumpId.parse(name)
    except NameRefused:
        return False
    return True
