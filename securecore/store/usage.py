"""What each host has in a store: counted once from the directories, when first asked for, and followed from then on.

Nothing of it is kept on the disk, so a restart begins with what is there. Whoever makes, moves or removes a dump does so within
``Store.changing``, which ``Usage.follow`` takes over: a count of the same host waits for that, and it for a count, so that no dump
is seen in two places or in none. A change that fails has left the dump nobody knows where: then the host is counted again.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final, NamedTuple

from securecore import limits
from securecore.dump import directory
from securecore.dump.container import TABLE_END_BYTES, find_plain_bytes
from securecore.errors import SecurecoreError
from securecore.names import DumpId, HostName, NameRefused
from securecore.store.layout import Place, Store
from securecore.store.reading import CORE, REPORT

_HOUR_S: Final = 3600.0


class Amount(NamedTuple):
    """What one dump takes."""

    stored_bytes: int = 0
    """Of its core, as it lies on the disk."""
    plain_bytes: int = 0
    """What that stands for."""


class HostUsage(NamedTuple):
    """What one host has, published and coming in."""

    stored_bytes: int
    plain_bytes: int
    dumps: int
    begun_s: tuple[float, ...]
    """How long ago each dump was begun that was in the last 60 minutes, the oldest first."""


class Room(NamedTuple):
    """What is left of a file system for us."""

    free_bytes: int
    """Without what it keeps back for root."""
    total_bytes: int
    free_inodes: int
    total_inodes: int
    """0 where it makes them as they are needed."""


class _Account:
    """One host's numbers. ``moves`` is held while a dump of it changes its place, and while it is counted."""

    def __init__(self) -> None:
        self.moves = Lock()
        self.is_counted = False
        self.stored_bytes = self.plain_bytes = self.published = 0
        self.incoming: dict[DumpId, Amount] = {}
        self.begun: deque[float] = deque()

    def add(self, amount: Amount, sign: int = 1) -> None:
        """Count an amount; with *sign* -1 no longer."""
        self.stored_bytes += sign * amount.stored_bytes
        self.plain_bytes += sign * amount.plain_bytes

    def put_incoming(self, dump_id: DumpId, amount: Amount | None) -> None:
        """Take *amount* for what is here of a dump that is coming in; None for one that is no more."""
        self.add(self.incoming.pop(dump_id, Amount()), -1)
        if amount is not None:
            self.incoming[dump_id] = amount
            self.add(amount)


class Usage:
    """What hosts have in one store. Safe for use by several threads."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic) -> None:
        """*clock* gives Unix seconds, to be held against files' times; *ticks* seconds of which only differences count."""
        self._store = store
        self._clock = clock
        self._ticks = ticks
        self._lock = Lock()
        self._accounts: dict[HostName, _Account] = {}

    def follow(self) -> None:
        """Be told of every change that is made through this store object from now on."""
        self._store.changing = self._changing

    def of(self, host: HostName) -> HostUsage:
        """Return what a host has; linear in its dumps the first time. Raises StorageError when they cannot be listed.

        Of a dump that is coming in and has not grown since the count, the plaintext is what its length makes certain, because
        without a seek table only a walk over its frames would tell.
        """
        account = self._counted(host)
        with self._lock:
            now = self._ticks()
            while account.begun and now - account.begun[0] >= _HOUR_S:
                account.begun.popleft()
            ages = tuple(now - begun for begun in account.begun)
            dumps = account.published + len(account.incoming)
            return HostUsage(account.stored_bytes, account.plain_bytes, dumps, ages)

    def taken(self, host: HostName) -> Amount:
        """Return the bytes of all that a host has, and nothing else of it: for each frame. Otherwise as ``of``."""
        account = self._counted(host)
        with self._lock:
            return Amount(account.stored_bytes, account.plain_bytes)

    def grew(self, host: HostName, dump_id: DumpId, amount: Amount) -> None:
        """Take *amount* for what a dump that is coming in has now; of a host that was not counted nothing is kept."""
        account = self._account(host)
        with self._lock:
            if account.is_counted:
                account.put_incoming(dump_id, amount)

    def find_incoming(self, host: HostName, dump_id: DumpId) -> Amount | None:
        """Return what a dump that is coming in has, as far as it was counted; None for any other."""
        with self._lock:
            return self._account_unlocked(host).incoming.get(dump_id)

    def held(self, host: HostName, dump_id: DumpId) -> Amount:
        """Return what is here of one dump, published or coming in; nothing of one that is not here."""
        found = self.find_incoming(host, dump_id)
        if found is not None:
            return found
        place = self._store.find_place(host, dump_id)
        return _read_amount(self._store, place, host, dump_id) if place is not None else Amount()

    @contextmanager
    def _changing(self, host: HostName, dump_id: DumpId, source: Place | None, target: Place | None) -> Iterator[None]:
        account = self._account(host)
        with account.moves:
            if not account.is_counted:
                yield
                return
            before = _read_amount(self._store, Place.HOSTS, host, dump_id) if source is Place.HOSTS else Amount()
            try:
                yield
                # A dump that is just being made has nothing yet.
                after = _read_amount(self._store, target, host, dump_id) if source is not None and target is not None else Amount()
            except BaseException:
                account.is_counted = False
                raise
            with self._lock:
                self._enter(account, dump_id, source, target, before, after)

    def _enter(
        self, account: _Account, dump_id: DumpId, source: Place | None, target: Place | None, before: Amount, after: Amount
    ) -> None:
        if source is Place.HOSTS:
            account.published -= 1
            account.add(before, -1)
        elif source is Place.INCOMING:
            account.put_incoming(dump_id, None)
        if target is Place.HOSTS:
            account.published += 1
            account.add(after)
        elif target is Place.INCOMING:
            account.put_incoming(dump_id, after)
        if source is None:
            account.begun.append(self._ticks())

    def _counted(self, host: HostName) -> _Account:
        account = self._account(host)
        if not account.is_counted:
            with account.moves:
                if not account.is_counted:
                    self._count(host, account)
        return account

    def _count(self, host: HostName, account: _Account) -> None:
        """Count what is in the host's directories; the caller holds the account's moves."""
        counted, begun = _Account(), []
        since = self._clock() - _HOUR_S
        for place in (Place.HOSTS, Place.INCOMING):
            host_fd = self._store.find_host_directory(place, host)
            if host_fd is None:
                continue
            try:
                for name in directory.names_in(host_fd):
                    try:
                        dump_id = DumpId.parse(name)
                    except NameRefused:
                        continue
                    amount, changed_at = _read_core(host_fd, name)
                    if place is Place.HOSTS:
                        counted.published += 1
                        counted.add(amount)
                    else:
                        counted.put_incoming(dump_id, amount)
                    # A core is never older than its report: most dumps need no second look.
                    if changed_at > since:
                        begun.append(_begun_at(host_fd, name, changed_at))
            finally:
                os.close(host_fd)
        now, ticks = self._clock(), self._ticks()
        ages = sorted((now - moment for moment in begun), reverse=True)
        with self._lock:
            account.stored_bytes, account.plain_bytes = counted.stored_bytes, counted.plain_bytes
            account.published, account.incoming = counted.published, counted.incoming
            # What is younger than now was written by a clock that has been set back since, and may be of any age.
            account.begun = deque(ticks - age for age in ages if 0 <= age < _HOUR_S)
            account.is_counted = True

    def _account(self, host: HostName) -> _Account:
        with self._lock:
            return self._account_unlocked(host)

    def _account_unlocked(self, host: HostName) -> _Account:
        account = self._accounts.get(host)
        if account is None:
            account = self._accounts[host] = _Account()
        return account


def room_of(store: Store) -> Room:
    """Return what is left of the store's file system; raises StorageError when it does not say."""
    try:
        found = os.fstatvfs(store.fd)
    except OSError as error:
        raise directory.disk_refused(error, f"cannot ask the file system of {store.path} for its room") from error
    unit = found.f_frsize
    return Room(found.f_bavail * unit, found.f_blocks * unit, found.f_favail, found.f_files)


def _read_amount(store: Store, place: Place, host: HostName, dump_id: DumpId) -> Amount:
    """Return what a dump at *place* takes; nothing where it cannot be read."""
    try:
        host_fd = store.find_host_directory(place, host)
    except SecurecoreError:
        return Amount()
    if host_fd is None:
        return Amount()
    try:
        return _read_core(host_fd, str(dump_id))[0]
    finally:
        os.close(host_fd)


def _read_core(host_fd: int, name: str) -> tuple[Amount, float]:
    """Return what a dump takes, by its core's length and the end of its seek table, and when its core was last written to.

    Nothing, and the epoch, where there is no core that can be read: what cannot be told must not be held against its host.
    """
    try:
        fd = os.open(f"{name}/{CORE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=host_fd)
    except OSError:
        return Amount(), 0.0
    try:
        status = os.fstat(fd)
        end = os.pread(fd, TABLE_END_BYTES, max(0, status.st_size - TABLE_END_BYTES))
    except OSError:
        return Amount(), 0.0
    finally:
        os.close(fd)
    plain = find_plain_bytes(end)
    if plain is None:
        plain = status.st_size // limits.MAX_FRAME_BYTES * limits.PIECE_BYTES
    return Amount(status.st_size, plain), status.st_mtime


def _begun_at(host_fd: int, name: str, otherwise: float) -> float:
    """Return when a dump was begun, in Unix seconds: its report is the first that is written of it, and never written again."""
    for report in (REPORT, directory.aside_name(REPORT)):
        try:
            return os.stat(f"{name}/{report}", dir_fd=host_fd, follow_symlinks=False).st_mtime
        except OSError:
            continue
    return otherwise
