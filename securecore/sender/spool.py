"""The spool: where a sender keeps what it could not deliver.

    SPOOL/FORMAT            "securecore-spool 1", a newline, a UUID, a newline
    SPOOL/dumps/ID/         one directory for each dump, 0700; it gets this name when report and entry.json are in it
        report.json         as sent in OPEN
        core.zst            frames from number first_frame on, nothing before and nothing behind
        entry.json          which frames these are
        end.json            how the source ended, and all of these are durable; missing while a handler still writes, or when it was
                            killed
    SPOOL/receipts.jsonl    one line for each receipt that was returned, append-only

The directory of an entry is locked (flock) while a handler writes it or a flush sends it. docs/store.md has the fields.
"""

import fcntl
import os
from collections.abc import Iterator

from securecore import limits
from securecore.declarations import Any, Final
from securecore.dump import directory as files
from securecore.errors import BrokenError, SecurecoreError, StorageError
from securecore.names import DumpId, NameRefused, StoreId
from securecore.sender import receipt_log
from securecore.sender.room import Room, Usage, measure
from securecore.sender.spool_directory import DIRECTORY_FLAGS, check_format, open_spool_directory
from securecore.sender.spool_entry import EntryStart, SpoolEntry, decode, encode, parse_start
from securecore.sender.spool_limits import UNBOUND, SpoolLimits

_ABANDONED_AFTER_S: Final = 3600.0
"""A handler names its entry within milliseconds of beginning it; an hour is beyond every pause of a machine that still works."""
_FILES: Final = ("core.zst", "report.json", "entry.json", "end.json")


class Spool:
    """An open spool directory."""

    def __init__(self, fd: int, bounds: SpoolLimits = UNBOUND) -> None:
        self.fd = fd
        self.room = Room(fd, bounds)

    @property
    def owner(self) -> tuple[int, int]:
        """The uid and gid of whose spool it is."""
        found = os.fstat(self.fd)
        return found.st_uid, found.st_gid

    def begin(self, start: EntryStart, report: bytes, size: int = 0) -> SpoolEntry:
        """Make the entry for a dump, which appears whole, with room for *size* bytes of its core.

        Raises StorageError when there is one already or the disk refuses, NoRoomError when the spool's own bounds do.
        """
        name, present = str(start.dump), files.aside_name(str(start.dump))
        dumps = files.enter_directory("dumps", self.fd)
        try:
            self.room.check_new(dumps, size)
            if name in files.names_in(dumps) or not files.make_directory(present, dumps, is_durable=False):
                raise StorageError(f"spool already holds {name}")
            fd = core = None
            try:
                # Nobody locks a young name that is no dump id, so the lock is free; it stays ours through the renaming.
                fd = self._lock_entry(present, dumps)
                if fd is None:
                    raise StorageError(f"spool entry {name} is in use")
                core = self._write_start(fd, start, report)
                with self.room.turn():
                    self.room.take_new(core, dumps, size)
                    os.rename(present, name, src_dir_fd=dumps, dst_dir_fd=dumps)
                present = name
            except BaseException as error:
                # Whatever it was, such as memory that ran out: who tries again must not meet a name, or a lock, of his own.
                if core is not None:
                    os.close(core)
                _remove_directory(present, fd, dumps)
                if isinstance(error, OSError):
                    raise files.disk_refused(error, f"cannot begin spool entry {name}") from error
                raise
        finally:
            os.close(dumps)
        return SpoolEntry(start, report, fd, core, self.room, size, is_new=True)

    def _write_start(self, fd: int, start: EntryStart, report: bytes) -> int:
        """Make the empty core, report and entry.json, and return the core's descriptor.

        Nothing is made durable: a crashed process waits, and its frames are not durable either before their end is stated.
        """
        core = files.create_file("core.zst", fd)
        try:
            for name, data in (("report.json", report), ("entry.json", start.encode())):
                file = files.create_file(name, fd)
                try:
                    files.write_all(file, data)
                finally:
                    files.close(file)
        except BaseException:
            os.close(core)
            raise
        return core

    def sweep(self, now: float) -> None:
        """Remove what was begun and not named, or was being removed, by a process that was killed, once it is old enough.

        What is kept free for an entry that nobody writes any more is given back at once, and an entry of which a loss of power has
        left neither a frame nor a whole beginning is removed.
        """
        dumps = files.enter_directory("dumps", self.fd)
        try:
            self.room.give_back(dumps)
            for name in files.names_in(dumps):
                if files.is_aside(name):
                    # Before it is locked: a handler that begins an entry finds it taken otherwise, and the core is lost.
                    is_worth_a_look = _is_abandoned(name, dumps, now)
                else:
                    is_worth_a_look = _is_dump_id(name) and _is_without_core(name, dumps)
                fd = self._lock_entry(name, dumps) if is_worth_a_look else None
                if fd is None:
                    continue
                if files.is_aside(name) or _is_without_start(fd):
                    _remove_directory(name, fd, dumps)
                else:
                    os.close(fd)
        finally:
            os.close(dumps)

    def usage(self) -> Usage:
        """Return how much it holds."""
        dumps = files.open_directory("dumps", self.fd)
        if dumps is None:
            return Usage(0, 0)
        try:
            return measure(dumps)
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
            if not data or not report or core is None:
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


def _is_abandoned(name: str, dumps: int, now: float) -> bool:
    """Return whether nobody has put anything into a directory for so long that nobody will."""
    try:
        return now - os.stat(name, dir_fd=dumps, follow_symlinks=False).st_mtime > _ABANDONED_AFTER_S
    except OSError:
        return False


def _is_without_core(name: str, dumps: int) -> bool:
    """Return whether an entry has no byte of its core."""
    try:
        return os.stat(f"{name}/core.zst", dir_fd=dumps, follow_symlinks=False).st_size == 0
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _is_without_start(entry: int) -> bool:
    """Return whether an entry without an end lacks its report or entry.json, or has nothing in it."""
    sizes: dict[str, int] = {}
    for name in _FILES:
        try:
            sizes[name] = os.stat(name, dir_fd=entry, follow_symlinks=False).st_size
        except FileNotFoundError:
            sizes[name] = 0
        except OSError:
            return False
    return not sizes["end.json"] and not (sizes["report.json"] and sizes["entry.json"])


class _Removed(SecurecoreError):
    """Another process has delivered and removed the entry between our finding and our locking it."""

    def __init__(self) -> None:
        super().__init__("the entry was removed")


def _remove_directory(name: str, fd: int | None, dumps: int) -> None:
    """Remove a directory that is no entry (yet, or any more), without a further descriptor; what cannot be removed stays.

    Without *fd* nobody has put anything into it yet.
    """
    try:
        if fd is not None:
            _remove_files(fd)
        os.rmdir(name, dir_fd=dumps)
    except (OSError, StorageError):
        pass
    finally:
        if fd is not None:
            os.close(fd)


def _remove_files(fd: int) -> None:
    """Remove all that an entry may hold, by name: to list them would take a descriptor more, and there may be none."""
    for name in (*_FILES, *map(files.aside_name, _FILES)):
        files.remove_file(name, fd)


def create_spool(path: str, randomness: bytes, owner: tuple[int, int] | None = None) -> None:
    """Make *path*, absent or empty, a spool, 0700 and owned by *owner* (uid, gid); *randomness* is 16 bytes for its id.

    A spool that is there is left as it is, but for *owner* if that is given; one that was half made by a crash is finished. Raises
    StorageError when anything else is there, ConfigError when it is to be given away and is no spool of this version: nobody else's
    directory or file is ever closed or given away.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(path, DIRECTORY_FLAGS)
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
            _give(fd, owner, path)
    except OSError as error:
        raise files.disk_refused(error, f"cannot make spool {path}") from error
    finally:
        os.close(fd)


def _give(spool: int, owner: tuple[int, int], path: str) -> None:
    """Make a spool the owner's, through descriptors, once its FORMAT is known to be one.

    Who has had it until now can put any file of root's under a name in it, at any time: by a link, or as its second name.
    """
    stated = files.open_file("FORMAT", spool, append=True)
    try:
        check_format(spool, path)
        dumps = files.enter_directory("dumps", spool)
        try:
            for fd in (dumps, stated, spool):
                if fd is not None:
                    os.fchown(fd, *owner)
        finally:
            os.close(dumps)
        os.fchmod(spool, 0o700)
    finally:
        if stated is not None:
            os.close(stated)


def _check_nothing_else(fd: int, path: str) -> None:
    """Raise StorageError when a directory holds anything but what making a spool in it, which was interrupted, has left there."""
    strangers = set(files.names_in(fd)) - {"dumps", files.aside_name("FORMAT")}
    if (dumps := files.open_directory("dumps", fd)) is not None:
        with os.scandir(dumps) as entries:
            strangers |= {f"dumps/{entry.name}" for entry in entries}
        os.close(dumps)
    if strangers:
        raise StorageError(f"cannot make spool {path}: {min(strangers)[:100]!a} is there", hint="name an empty directory")


def open_spool(path: str, bounds: SpoolLimits = UNBOUND) -> Spool:
    """Return the spool at *path*; raises ConfigError when there is none of this version, or others may look into it.

    *bounds* are for who begins entries in it. Raises StorageError when FORMAT cannot be read.
    """
    return Spool(open_spool_directory(path), bounds)


def _is_dump_id(name: str) -> bool:
    try:
        DumpId.parse(name)
    except NameRefused:
        return False
    return True
