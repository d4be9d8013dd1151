"""The store's directory tree: where everything stands, and the only code that turns names into places.

    STORE/FORMAT            ``securecore-store 1`` and the store's id, written last when a store is made
    STORE/lock              flock(2)ed by the one process that appends
    STORE/log-key.jws       who signs the audit logs; ca.pem beside it is the receiver's root, for convenience only
    STORE/log-keys.jsonl    who has signed them before
    STORE/incoming/<host>/<dump id>/    dumps that are still coming in
    STORE/hosts/<host>/<dump id>/       dumps that have a receipt
    STORE/deleting/<host>/<dump id>/    dumps that are on their way out
    STORE/audit/<host>/                 a host's audit log
    STORE/audit/receiver/               the receiver-wide log; no host has a name of one label
    STORE/catalogue.sqlite              an index, never the truth

Places are made of HostName and DumpId only; everything goes through directory descriptors that follow no links (R9, R10, R12).
``docs/store.md`` is the normative description.
"""

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from types import TracebackType
from typing import Final, NamedTuple

from securecore import limits
from securecore.dump import directory
from securecore.errors import BrokenError, ConfigError, NotFoundError, StorageError
from securecore.names import DumpId, HostName, NameRefused, StoreId
from securecore.store.reading import DumpFiles

FORMAT: Final = "FORMAT"
LOCK: Final = "lock"
LOG_KEY: Final = "log-key.jws"
LOG_KEYS: Final = "log-keys.jsonl"
ANCHORS: Final = "ca.pem"
CATALOGUE: Final = "catalogue.sqlite"
AUDIT: Final = "audit"
WIDE_LOG: Final = "receiver"

_FORMAT_LINE: Final = "securecore-store 1"
_FORMAT_MAX_BYTES: Final = 256


class Place(Enum):
    """The directories that hold dumps."""

    INCOMING = "incoming"
    HOSTS = "hosts"
    DELETING = "deleting"
    """Readers do not look here."""


class StoreLock(NamedTuple):
    """The right to append to a store, held until it is closed or the process ends."""

    fd: int

    def close(self) -> None:
        """Give the right back."""
        os.close(self.fd)


Changing = Callable[[HostName, DumpId, Place | None, Place | None], AbstractContextManager[None]]
"""What a change to a dump's place is made within: from where, and where to; None for nowhere."""


class Store:
    """An open store; a context manager. Safe for use by several threads."""

    def __init__(self, path: str, fd: int, store_id: StoreId) -> None:
        self.path = path
        self.fd = fd
        self.store_id = store_id
        self.changing: Changing = lambda host, dump_id, source, target: nullcontext()
        """For who makes, moves or removes a dump; usage.py follows what is in the store by it."""
        self.least_free: Callable[[int], int] = lambda total_bytes: 0
        """How many of all bytes of its file system are to stay free; a receiver's policy says it."""
        self._durable: set[str] = set()  # Directories, by path under the root, whose names this process has made durable.

    def close(self) -> None:
        """Close the root directory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def lock(self) -> StoreLock:
        """Return the right to append, exclusive among processes and among openers of one process.

        Raises StorageError when another one holds it, ConfigError when this process runs as another user than the store's owner:
        the files that it would leave behind could not be read by the receiver.
        """
        if os.fstat(self.fd).st_uid != os.geteuid():
            raise ConfigError(f"cannot append to {self.path}: it belongs to another user", hint="run this as the store's owner")
        if (fd := directory.open_file(LOCK, self.fd, append=True)) is None:
            fd = directory.create_file(LOCK, self.fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                words = f"cannot append to {self.path}: another receiver or command is appending to it"
                raise StorageError(words, hint="stop it, or ask it") from error
            raise directory.disk_refused(error, f"cannot lock {self.path}") from error
        lock = StoreLock(fd)
        try:
            # A crash while the store was made may have left FORMAT with both of its names.
            directory.remove_file(directory.aside_name(FORMAT), self.fd)
        except BaseException:
            lock.close()
            raise
        return lock

    def host_names(self) -> list[HostName]:
        """Return the hosts that have a published dump or had one, sorted."""
        return self.hosts_in(Place.HOSTS)

    def hosts_in(self, place: Place) -> list[HostName]:
        """Return the hosts that have a directory at a place, sorted."""
        return self._hosts_of(place.value)

    def audited_hosts(self) -> list[HostName]:
        """Return the hosts that have an audit log, sorted."""
        return self._hosts_of(AUDIT)

    def knows(self, host: HostName) -> bool:
        """Return whether anything of a host is here, or was: a directory for its dumps, or an audit log."""
        for place in (Place.HOSTS.value, Place.INCOMING.value, AUDIT):
            try:
                os.stat(f"{place}/{host}", dir_fd=self.fd, follow_symlinks=False)
            except OSError:
                continue
            return True
        return False

    def dump_ids(self, host: HostName) -> list[DumpId]:
        """Return the published dumps of *host*, in no order; names that are no dump id are skipped."""
        return [dump_id for name in self.dump_names(Place.HOSTS, host) if (dump_id := _find_dump_id(name)) is not None]

    def dump_names(self, place: Place, host: HostName) -> list[str]:
        """Return the names in a host's directory as they are, unchecked and in no order; none when there is no directory."""
        fd = self._open_place(place.value, host)
        if fd is None:
            return []
        try:
            return directory.names_in(fd)
        finally:
            os.close(fd)

    def change_mark(self, place: Place, host: HostName) -> tuple[int, int]:
        """Return inode and change time (ns) of a host's directory, (0, 0) when it is not there.

        Adding or removing a dump there gives another mark, unless it happens within one tick of the kernel's clock.
        """
        try:
            status = os.stat(f"{place.value}/{host}", dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return (0, 0)
        return (status.st_ino, status.st_ctime_ns)

    def incoming(self) -> list[tuple[HostName, DumpId]]:
        """Return the dumps that are still coming in, sorted by host."""
        return self._dumps_in(Place.INCOMING)

    def deleting(self) -> list[tuple[HostName, DumpId]]:
        """Return the dumps whose deletion has begun and is not finished, sorted by host."""
        return self._dumps_in(Place.DELETING)

    def find_place(self, host: HostName, dump_id: DumpId) -> Place | None:
        """Return where a dump stands; published counts first; None when it is nowhere."""
        for place in (Place.HOSTS, Place.INCOMING):
            try:
                if stat.S_ISDIR(os.stat(f"{place.value}/{host}/{dump_id}", dir_fd=self.fd, follow_symlinks=False).st_mode):
                    return place
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise directory.disk_refused(error, f"cannot look for dump {dump_id}") from error
        return None

    def is_at(self, place: Place, host: HostName, dump_id: DumpId, fd: int) -> bool:
        """Return whether the directory that *fd* is open on still stands at a dump's place."""
        try:
            there = os.stat(f"{place.value}/{host}/{dump_id}", dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return False
        ours = os.fstat(fd)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def open_dump(self, host: HostName, dump_id: DumpId) -> DumpFiles:
        """Return the files of a dump, published or still coming in; raises NotFoundError when it is nowhere."""
        for place in (Place.HOSTS, Place.INCOMING):
            files = self.find_files(place, host, dump_id)
            if files is not None:
                return files
        raise NotFoundError(f"no dump {dump_id} of {host} in {self.path}")

    def find_files(self, place: Place, host: HostName, dump_id: DumpId) -> DumpFiles | None:
        """Return the files of a dump at one place; None when it is not there."""
        host_fd = self._open_place(place.value, host)
        if host_fd is None:
            return None
        try:
            fd = directory.open_directory(str(dump_id), host_fd)
        finally:
            os.close(host_fd)
        return DumpFiles(fd, host, dump_id, is_published=place is Place.HOSTS) if fd is not None else None

    def host_directory(self, place: Place, host: HostName) -> int:
        """Return a descriptor of a host's directory, which is made if need be; the caller closes it."""
        return self._enter_place(place.value, host)

    def find_host_directory(self, place: Place, host: HostName) -> int | None:
        """Return a descriptor of a host's directory, which the caller closes; None when it is not there."""
        return self._open_place(place.value, host)

    def audit_directory(self, host: HostName, *, create: bool) -> int:
        """Return a descriptor of a host's audit log directory; the caller closes it.

        Raises NotFoundError when it is not there and *create* is false.
        """
        fd = self._enter_place(AUDIT, host) if create else self._open_place(AUDIT, host)
        if fd is None:
            raise NotFoundError(f"no audit log of {host} in {self.path}")
        return fd

    def wide_log_directory(self, *, create: bool) -> int:
        """Return a descriptor of the receiver-wide log's directory; the caller closes it.

        Raises NotFoundError when it is not there and *create* is false, StorageError when something else stands there.
        """
        fd = self._enter_place(AUDIT, WIDE_LOG) if create else self._open_place(AUDIT, WIDE_LOG)
        if fd is None:
            raise NotFoundError(f"no receiver-wide log in {self.path}")
        return fd

    def put_log_key(self, statement: bytes, anchors_pem: bytes, history: bytes = b"") -> None:
        """Keep the log key's statement, the root, and before them the *history* of log keys if there is one, for who verifies."""
        for name, data in ((LOG_KEYS, history), (LOG_KEY, statement), (ANCHORS, anchors_pem)):
            if data and directory.read_file(name, self.fd, limits.MAX_LOG_KEYS_BYTES) != data:
                directory.replace_file(name, self.fd, data)

    def read_log_key(self) -> bytes | None:
        """Return the log key's statement, unverified; None when it is missing."""
        return directory.read_file(LOG_KEY, self.fd, limits.MAX_STATEMENT_BYTES)

    def read_log_keys(self) -> bytes | None:
        """Return the history of log keys, unverified; None where there was never but one."""
        return directory.read_file(LOG_KEYS, self.fd, limits.MAX_LOG_KEYS_BYTES)

    def read_anchors(self) -> bytes | None:
        """Return the copy of the receiver's root as PEM; None when it is missing. Proves nothing: bring your own root."""
        return directory.read_file(ANCHORS, self.fd, limits.MAX_STATEMENT_BYTES)

    def _dumps_in(self, place: Place) -> list[tuple[HostName, DumpId]]:
        found = []
        for host in self.hosts_in(place):
            for name in self.dump_names(place, host):
                if (dump_id := _find_dump_id(name)) is not None:
                    found.append((host, dump_id))
        return found

    def _hosts_of(self, place: str) -> list[HostName]:
        fd = directory.open_directory(place, self.fd)
        if fd is None:
            return []
        try:
            return sorted(host for name in directory.names_in(fd) if (host := _find_host(name)) is not None)
        finally:
            os.close(fd)

    def _open_place(self, place: str, name: HostName | str) -> int | None:
        fd = directory.open_directory(place, self.fd)
        if fd is None:
            return None
        try:
            return directory.open_directory(str(name), fd)
        finally:
            os.close(fd)

    def _enter_place(self, place: str, name: HostName | str) -> int:
        path = f"{place}/{name}"
        if path in self._durable and (fd := self._open_place(place, name)) is not None:
            return fd
        place_fd = directory.enter_directory(place, self.fd)
        try:
            directory.make_directory(str(name), place_fd, is_durable=False)
            # Also of one that was there: who made it may have been killed before its sync, had it refused, or not come to it yet.
            directory.sync(place_fd)
            directory.sync(self.fd)
            self._durable.add(path)
            return directory.enter_directory(str(name), place_fd)
        finally:
            os.close(place_fd)


def create_store(path: str, randomness: bytes | None = None) -> Store:
    """Make a store at *path*, which must be absent or an empty directory, and return it open.

    FORMAT is written last, so a store that was half made by a crash is finished by calling this again. Raises StorageError when a
    store or anything else is there.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise directory.disk_refused(error, f"cannot make the store {path}") from error
    fd = _open_root(path)
    try:
        ours = {Place.INCOMING.value, Place.HOSTS.value, AUDIT, LOCK, directory.aside_name(FORMAT)}
        if strangers := sorted(set(directory.names_in(fd)) - ours):
            stranger = strangers[0][:100]
            raise StorageError(f"cannot make the store {path}: {stranger!a} is already there", hint="name an empty directory")
        for name in (Place.INCOMING.value, Place.HOSTS.value, AUDIT):
            directory.make_directory(name, fd)
        if LOCK not in directory.names_in(fd):
            os.close(directory.create_file(LOCK, fd))
        store_id = StoreId.make(os.urandom(16) if randomness is None else randomness)
        directory.write_new_file(FORMAT, fd, f"{_FORMAT_LINE}\n{store_id}\n".encode("ascii"))
        directory.sync_parent(path)
    except BaseException:
        os.close(fd)
        raise
    return Store(path, fd, store_id)


def open_store(path: str) -> Store:
    """Return the store at *path*.

    Raises NotFoundError when there is none, ConfigError when it belongs to somebody else or others may enter it, BrokenError when
    FORMAT is not one that this version reads.
    """
    fd = _open_root(path)
    try:
        text = directory.read_file(FORMAT, fd, _FORMAT_MAX_BYTES)
        if text is None:
            raise NotFoundError(f"no store in {path}", hint="`securecore receive` makes one in an empty directory")
        return Store(path, fd, _parse_format(path, text))
    except BaseException:
        os.close(fd)
        raise


def _parse_format(path: str, text: bytes) -> StoreId:
    lines = text.decode("ascii", "replace").split("\n")
    if len(lines) != 3 or lines[2]:
        raise BrokenError(f"{path}/{FORMAT}: not two lines")
    if lines[0] != _FORMAT_LINE:
        raise BrokenError(f"{path}/{FORMAT}: says {lines[0][:100]!a}, this version reads {_FORMAT_LINE!r}")
    try:
        return StoreId.parse(lines[1])
    except NameRefused as error:
        raise BrokenError(f"{path}/{FORMAT}: {error.message}") from error


def _open_root(path: str) -> int:
    """Return the root's descriptor. Links in *path* are the operator's own and are followed; what they lead to is checked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "name it with --store; `securecore receive` makes one in an empty directory"
        raise NotFoundError(f"no store in {path}", hint=hint) from error
    except OSError as error:
        raise directory.disk_refused(error, f"cannot open the store {path}") from error
    status = os.fstat(fd)
    if os.geteuid() not in (0, status.st_uid):
        os.close(fd)
        raise ConfigError(f"cannot use the store {path}: it belongs to user {status.st_uid}", hint="run this as that user or root")
    if status.st_mode & 0o077:
        os.close(fd)
        # Only a store's own mode is ours to mend: a hint to close somebody else's directory would be followed.
        mode, is_store = status.st_mode & 0o777, os.path.lexists(os.path.join(path, FORMAT))
        hint = f"chmod 0700 {path}" if is_store else "name an empty directory of your own, mode 0700"
        raise ConfigError(f"cannot use the store {path}: others may enter it (mode {mode:04o})", hint=hint)
    return fd


def _find_host(name: str) -> HostName | None:
    try:
        return HostName(name)
    except NameRefused:
        return None


def _find_dump_id(name: str) -> DumpId | None:
    try:
        return DumpId.parse(name)
    except NameRefused:
        return None
