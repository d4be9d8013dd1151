"""The catalogue: an index of the store for `list`, never the truth.

It can be thrown away at any time and is rebuilt from the directories. ``reconcile`` holds it against them before it is read: by
names alone, and only for hosts whose directory has changed since, so that a store of 100,000 dumps lists at once. What it says of a
dump is what the dump's files say, unverified.
"""

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import Any, Final, TypeVar

from securecore import units
from securecore.dump import directory
from securecore.errors import NotFoundError, StorageError
from securecore.names import DumpId, HostName, NameRefused
from securecore.store.forms import COLUMNS, ROW, Form, Reading, key_of, row_from
from securecore.store.layout import CATALOGUE, Place, Store
from securecore.store.retention import Held
from securecore.store.rows import DumpRow, format_time, row_of

_VERSION: Final = 8
_BUSY_S: Final = 5.0
_BATCH: Final = 1000
_LOOKS: Final = 3
_SETTLED_NS: Final = 2_000_000_000
"""A directory's change time says nothing of changes within one tick of its file system's clock (2 s on the coarsest), so a mark
that was younger than this when it was taken is not kept."""

_DAMAGED: Final = (
    "(NOT has_core OR NOT core_fits OR NOT has_sound_report OR NOT has_sound_receipt OR (outcome IS NULL AND given_up_at IS NULL))"
)
"""What a person may mend: nothing in the host's directory changes when a file is put back into a dump's."""
_SCHEMA: Final = (
    "CREATE TABLE dumps (id TEXT NOT NULL, host TEXT NOT NULL, state TEXT NOT NULL, outcome TEXT, received_at TEXT NOT NULL,"
    " size_bytes INTEGER, predicted_bytes INTEGER, stored_bytes INTEGER NOT NULL, frames INTEGER, signal INTEGER, program TEXT,"
    " pid INTEGER, build_id TEXT, executable TEXT, crashed_at INTEGER, given_up_at TEXT, lost_frames INTEGER NOT NULL,"
    " sensitive INTEGER NOT NULL, published INTEGER NOT NULL, suppressed INTEGER NOT NULL, suppressed_of_user INTEGER NOT NULL,"
    " suppressed_of_host INTEGER NOT NULL, suppressed_of_others INTEGER NOT NULL, declined INTEGER NOT NULL,"
    " lost INTEGER NOT NULL, skipped_by_kernel INTEGER NOT NULL, untaken_since INTEGER, has_manifest INTEGER NOT NULL,"
    " core_fits INTEGER NOT NULL, has_core INTEGER NOT NULL, has_sound_report INTEGER NOT NULL, has_sound_receipt INTEGER NOT NULL,"
    " PRIMARY KEY (host, id)) WITHOUT ROWID",
    "CREATE INDEX by_time ON dumps (received_at, id)",
    "CREATE INDEX by_host_and_time ON dumps (host, received_at, id)",
    f"CREATE INDEX damaged ON dumps (host) WHERE {_DAMAGED}",  # Each list asks for them, of hosts with many dumps too.
    "CREATE TABLE marks (host TEXT PRIMARY KEY, inode INTEGER NOT NULL, changed_ns INTEGER NOT NULL) WITHOUT ROWID",
    f"PRAGMA user_version = {_VERSION}",
)
_FILES: Final = (CATALOGUE, f"{CATALOGUE}-wal", f"{CATALOGUE}-shm", f"{CATALOGUE}-journal")
"""The database and what SQLite puts beside it (sqlite.org/tempfiles.html); it writes to what stands under these names."""
_INSERT: Final = f"INSERT OR REPLACE INTO dumps ({COLUMNS}) VALUES ({', '.join('?' for _ in DumpRow._fields)})"  # noqa: S608  # constants
_SELECT_OF_HOST: Final = f"SELECT {COLUMNS} FROM dumps WHERE host = ?"  # noqa: S608  # constants
_SELECT_HELD: Final = f"SELECT {', '.join(Held._fields)} FROM dumps"  # noqa: S608  # constants


_Answer = TypeVar("_Answer")
_Shown = TypeVar("_Shown")


class _Unusable(Exception):
    """The catalogue's file is not a database, or not one of ours."""


class Catalogue:
    """An open catalogue; a context manager. Safe for use by several threads.

    Its errors are StorageError and cost nothing but the index: whoever stores dumps reports them and goes on.
    """

    def __init__(self, store: Store, connection: sqlite3.Connection) -> None:
        self._store = store
        self._connection = connection
        self._lock = threading.RLock()
        self._coming_in: list[DumpRow] = []
        self.problems: list[StorageError] = []
        """Why hosts, or dumps of theirs, could not be looked at in the last reconcile; what was known of such hosts' dumps is not
        listed then, and what was known of such a dump is."""

    def reconcile(self, host: HostName | None = None) -> None:
        """Make the catalogue agree with the directories, of one host or of all, and look up what is still coming in."""
        self._run(lambda: self._reconcile(host))

    def rows(self, host: HostName | None = None, since: datetime | None = None) -> list[DumpRow]:
        """Return the rows of what is listed; the rest as of ``listed``."""
        return list(self.listed(ROW, host, since))

    def listed(self, form: Form[_Shown], host: HostName | None = None, since: datetime | None = None) -> Iterator[_Shown]:
        """Yield what is listed, newest first: published dumps and, as of the last reconcile, those still coming in.

        *since* is aware. Memory is bounded but for those still coming in. All of it is of one moment, and nobody who brings the
        catalogue up to date waits for its end; this object is not to meanwhile.
        """
        earliest = format_time(since) if since is not None else ""
        reading = Reading(form, host, earliest)
        partial, batch = self._run(lambda: self._begin_reading(reading, host, earliest))
        while batch:
            for found in batch:
                while partial and key_of(partial[-1]) > found[:3]:
                    yield form.of_row(partial.pop())
                yield form.of_columns(found)
            reading.behind = batch[-1][:3]
            batch = self._run(lambda: reading.go_on(self._connection, _BATCH))
        yield from map(form.of_row, reversed(partial))

    def held(self, host: HostName | None = None) -> list[Held]:
        """Return the published dumps, of one host or of all, in no order."""
        query, arguments = (_SELECT_HELD, ()) if host is None else (f"{_SELECT_HELD} WHERE host = ?", (str(host),))
        return self._run(lambda: list(map(Held._make, self._connection.execute(query, arguments))))

    def coming_in(self, host: HostName | None = None) -> list[Held]:
        """Return those still coming in as of the last reconcile, of one host or of all, in no order; none that ``held`` returns."""
        rows = [row for row in self._coming_in if host is None or row.host == str(host)]
        # One that was taken back while the directories were read is in both, as in listed().
        return self._run(lambda: [Held(row.received_at, row.id, row.host, row.stored_bytes) for row in rows if not self._has(row)])

    def rows_of(self, host: HostName) -> Iterator[DumpRow]:
        """Yield what the catalogue has of a host's published dumps, by id, in bounded memory; nothing is locked between batches."""
        batch = self._page(host, None)
        while batch:
            yield from batch
            batch = self._page(host, batch[-1].id)

    def close(self) -> None:
        """Close the catalogue."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "Catalogue":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, work: Callable[[], _Answer]) -> _Answer:
        """Do *work* in one transaction; when the file turns out to be damaged, once more in a new one that holds everything."""
        with self._lock:
            try:
                return self._attempt(work)
            except _Unusable:
                self._connection.close()
                self._connection = _open_connection(self._store, discard=True)
                try:
                    self._attempt(lambda: self._reconcile(None))
                    return self._attempt(work)
                except _Unusable as error:
                    raise StorageError(f"cannot use the catalogue: {error}") from error

    def _attempt(self, work: Callable[[], _Answer]) -> _Answer:
        try:
            with self._connection:
                return work()
        except sqlite3.Error as error:
            if _is_damage(error):
                raise _Unusable(str(error)) from error
            raise StorageError(f"cannot use the catalogue: {error}") from error

    def _reconcile(self, host: HostName | None) -> None:
        self.problems = []
        hosts = [host] if host is not None else self._store.host_names()
        for present in hosts:
            try:
                self._reconcile_host(present)
            except StorageError as error:
                self.problems.append(error)
                self._forget_host(str(present))
        if host is None:
            here = {str(present) for present in hosts}
            for (name,) in self._connection.execute("SELECT DISTINCT host FROM dumps").fetchall():
                if name not in here:
                    self._forget_host(name)
        self._coming_in = self._rows_coming_in(host)

    def _reconcile_host(self, host: HostName) -> None:
        name = str(host)
        taken_at = time.time_ns()
        mark = self._store.change_mark(Place.HOSTS, host)
        unread = self._read_in(host, self._find_damaged(host))
        is_new = self._connection.execute("SELECT inode, changed_ns FROM marks WHERE host = ?", (name,)).fetchone() != mark
        if is_new:
            unread |= self._read_changes(host)
            # A dump that could not be read may be readable the next time, and nothing changes in the host's directory then.
            if not unread and taken_at - mark[1] > _SETTLED_NS:
                self._connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (name, *mark))
            else:
                self._connection.execute("DELETE FROM marks WHERE host = ?", (name,))
        self._note_unread(host, unread)

    def _read_changes(self, host: HostName) -> dict[str, str]:
        """Make the rows of a host agree with the names in its directory; return as ``_read_in`` does."""
        here = set(self._store.dump_names(Place.HOSTS, host))
        listed = self._connection.execute("SELECT id, outcome FROM dumps WHERE host = ?", (str(host),)).fetchall()
        self._forget(host, {dump_id for dump_id, _ in listed} - here)
        # What has no manifest may have been taken back and received since; nothing else ever changes under its name.
        return self._read_in(host, here - {dump_id for dump_id, outcome in listed if outcome is not None})

    def _find_damaged(self, host: HostName) -> list[str]:
        """Return the names of the dumps that were damaged when they were read."""
        query = f"SELECT id FROM dumps INDEXED BY damaged WHERE host = ? AND {_DAMAGED}"  # noqa: S608  # a constant
        return [dump_id for (dump_id,) in self._connection.execute(query, (str(host),))]

    def _read_in(self, host: HostName, names: Iterable[str]) -> dict[str, str]:
        """Read published dumps and forget those that are gone; return why which could not be read: their rows stay as they were."""
        unread: dict[str, str] = {}
        found = self._find_rows(host, names, unread)
        while batch := list(islice(found, _BATCH)):
            self._add_all(row for _, row in batch if row is not None and row.published)
            self._forget(host, (name for name, row in batch if row is None or not row.published))
        return unread

    def _find_rows(self, host: HostName, names: Iterable[str], unread: dict[str, str]) -> Iterator[tuple[str, DumpRow | None]]:
        """Yield what ``find_row`` returns of each dump; what could not be read goes into *unread*, with why."""
        for name in names:
            try:
                row = find_row(self._store, host, name)
            except StorageError as error:
                unread[name] = error.message
            else:
                yield name, row

    def _note_unread(self, host: HostName, unread: dict[str, str]) -> None:
        if unread:
            first = min(unread)
            self.problems.append(StorageError(f"{units.count(len(unread), 'dump')} of {host} cannot be read: {unread[first]}"))

    def _begin_reading(self, reading: Reading[_Shown], host: HostName | None, earliest: str) -> tuple[list[DumpRow], list[Any]]:
        """Return the rows of what is still coming in, oldest first, and the first of the published ones."""
        # One that was taken back while the directories were read is in both: at one moment it is in one of them.
        self._connection.execute("BEGIN")
        partial = [row for row in self._coming_in if row.received_at >= earliest and (host is None or row.host == str(host))]
        partial = sorted((row for row in partial if not self._has(row)), key=key_of)
        return partial, reading.go_on(self._connection, _BATCH)

    def _page(self, host: HostName, after: str | None) -> list[DumpRow]:
        """Return the next rows of a host behind an id; the first ones behind None."""
        query, arguments = _SELECT_OF_HOST, [str(host)]
        if after is not None:
            query, arguments = f"{query} AND id > ?", [*arguments, after]
        query = f"{query} ORDER BY id LIMIT {_BATCH}"
        return self._run(lambda: list(map(row_from, self._connection.execute(query, arguments))))

    def _has(self, row: DumpRow) -> bool:
        """Return whether a dump is among the published ones."""
        found = self._connection.execute("SELECT 1 FROM dumps WHERE host = ? AND id = ?", (row.host, row.id)).fetchone()
        return found is not None

    def _add_all(self, rows: Iterable[DumpRow]) -> None:
        self._connection.executemany(_INSERT, rows)

    def _rows_coming_in(self, host: HostName | None) -> list[DumpRow]:
        rows = []
        for owner in [host] if host is not None else self._store.hosts_in(Place.INCOMING):
            try:
                names = self._store.dump_names(Place.INCOMING, owner)
            except StorageError as error:
                self.problems.append(error)
                continue
            unread: dict[str, str] = {}
            rows += [row for _, row in self._find_rows(owner, names, unread) if row is not None]
            self._note_unread(owner, unread)
        return rows

    def _forget_host(self, name: str) -> None:
        for table in ("dumps", "marks"):
            self._connection.execute(f"DELETE FROM {table} WHERE host = ?", (name,))  # noqa: S608  # constants

    def _forget(self, host: HostName, dump_ids: Iterable[str]) -> None:
        self._connection.executemany("DELETE FROM dumps WHERE host = ? AND id = ?", [(str(host), text) for text in dump_ids])


def open_catalogue(store: Store) -> Catalogue:
    """Return the store's catalogue, made if need be; reconcile it before it is read.

    Where the file cannot be written, or the store is another user's, it is a copy in memory. Raises StorageError when something
    other than a file stands in its place.
    """
    return Catalogue(store, _open_connection(store, discard=False))


def _open_connection(store: Store, *, discard: bool) -> sqlite3.Connection:
    if os.fstat(store.fd).st_uid != os.geteuid():
        return _copy_in_memory(store, discard=discard)
    if discard:
        for name in _FILES:
            directory.remove_file(name, store.fd)
    _check_place(store)
    connection = None
    try:
        # SQLite gives its side files the mode of the file itself, which therefore must be made first.
        os.close(os.open(CATALOGUE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=store.fd))
        connection = _connect(f"file:{_path(store)}?mode=rw")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        _prepare(connection)
    except (OSError, sqlite3.Error, _Unusable) as error:
        if connection is not None:
            connection.close()
        if not discard and (isinstance(error, _Unusable) or _is_damage(error)):
            return _open_connection(store, discard=True)
        return _copy_in_memory(store, discard=discard)
    return connection


def _copy_in_memory(store: Store, *, discard: bool) -> sqlite3.Connection:
    """Return a private copy of the catalogue; empty where there is none that can be read."""
    memory = _connect(":memory:")
    _check_place(store)
    if not discard:
        try:
            # A snapshot without looking at the write-ahead log may miss the last rows; reconcile finds them by their directories.
            source = _connect(f"file:{_path(store)}?mode=ro&immutable=1")
            try:
                source.backup(memory)
            finally:
                source.close()
            _prepare(memory)
        except (sqlite3.Error, _Unusable):
            memory.close()
            memory = _connect(":memory:")
    _prepare(memory)
    return memory


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=_BUSY_S, check_same_thread=False, uri=name.startswith("file:"))


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables where there are none; raises _Unusable when they are another version's."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == _VERSION:
        return
    if version != 0 or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise _Unusable
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:  # Another process may have been first.
            for statement in _SCHEMA:
                connection.execute(statement)


def _check_place(store: Store) -> None:
    """Refuse a link or anything else in the place of a file of the catalogue's: SQLite would follow it, or write to it."""
    for name in _FILES:
        try:
            status = os.stat(name, dir_fd=store.fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise directory.disk_refused(error, "cannot look at the catalogue") from error
        # The last process that closes the catalogue removes the side files: between two looks such a one has no name left.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise StorageError(f"cannot open the catalogue: {store.path}/{name} is not a regular file", hint="remove it")


def _path(store: Store) -> str:
    """Return a path to the catalogue through the root's descriptor, so that the store may be renamed or its path be relative."""
    return f"/proc/self/fd/{store.fd}/{CATALOGUE}"


def _is_damage(error: Exception) -> bool:
    """Whether SQLite found the file malformed, or tables other than ours in it, or Python a text there that is no UTF-8."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # Python says it of a text, without a code of SQLite's (Modules/_sqlite/cursor.c).
        return isinstance(error, sqlite3.OperationalError)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def find_row(store: Store, host: HostName, text: str) -> DumpRow | None:
    """Return the row of a dump, published or coming in; None when it has just vanished, or *text* is no dump's id.

    One that is moved while it is read is read again: its files may have been removed or changed then. Raises StorageError when it
    cannot be read, now.
    """
    try:
        dump_id = DumpId.parse(text)
        for _ in range(_LOOKS):
            with store.open_dump(host, dump_id) as files:
                row = row_of(files)
                if store.is_at(Place.HOSTS if files.is_published else Place.INCOMING, host, dump_id, files.fd):
                    return row
    except (NameRefused, NotFoundError):
        return None
    raise StorageError(f"dump {dump_id} does not stay in its place while it is looked at")
