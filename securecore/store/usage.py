"""What each host has in a store: counted once from the directories, when first asked for, and followed from then on.

Nothing of it is kept on the disk, so a restart begins with what is there. Whoever makes, moves or removes a dump does so within
``Store.changing``, which ``Usage.follow`` takes over. A count begins and ends between two changes of its host, and goes on beside
them (census.py). After a change that has failed it is looked where the dump is; only where nobody can say the host is counted
again.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from operator import itemgetter
from threading import Event, Lock, Thread
from typing import NamedTuple

from securecore import limits
from securecore.dump import directory
from securecore.errors import BusyError, SecurecoreError, StorageError
from securecore.names import DumpId, HostName, NameRefused
from securecore.store.account import Account, Amount, Part
from securecore.store.census import HOUR_S, Census, Found, find_dump, look
from securecore.store.layout import Place, Store


class HostUsage(NamedTuple):
    """What one host has, published and coming in."""

    stored_bytes: int
    plain_bytes: int
    dumps: int
    begun_s: tuple[float, ...]
    """How long ago each dump was begun first that was in the last 60 minutes, the oldest first."""
    coming: int = 0
    """Of these dumps, how many are coming in."""
    coming_bytes: int = 0
    """Of these bytes, what they take."""
    coming_plain: int = 0
    """Of the plaintext, what is theirs."""


class Room(NamedTuple):
    """What is left of a file system for us."""

    free_bytes: int
    """Without what it keeps back for root."""
    total_bytes: int
    free_inodes: int
    total_inodes: int
    """0 where it makes them as they are needed."""


class _Change(NamedTuple):
    """A change of a dump's place that is under way."""

    dump_id: DumpId
    is_known: bool
    """It was counted before."""
    source: Place | None
    before: Amount
    """What is published of it."""


class _Counting:
    """A count that is under way in a thread of its own."""

    def __init__(self) -> None:
        self.is_over = Event()
        self.error: SecurecoreError | None = None


class Usage:
    """What hosts have in one store. Safe for use by several threads."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic) -> None:
        """*clock* gives Unix seconds, to be held against files' times; *ticks* seconds of which only differences count."""
        self._store = store
        self._clock = clock
        self._ticks = ticks
        self._lock = Lock()
        self._accounts: dict[HostName, Account] = {}
        self._countings: dict[HostName, _Counting] = {}
        self._censuses: dict[HostName, Census] = {}
        self.is_stopping = False
        """No count is begun, and none goes on."""

    def follow(self) -> None:
        """Be told of every change that is made through this store object from now on."""
        self._store.changing = self._changing

    def of(self, host: HostName) -> HostUsage:
        """Return what a host has, after a count of it if need be; raises as ``is_counted_within``."""
        while (found := self.find(host)) is None:
            self.is_counted_within(host, None)
        return found

    def find(self, host: HostName, but_for: DumpId | None = None) -> HostUsage | None:
        """Return what a host has, of what was begun when without one dump; None where it is not counted, and then nothing is.

        Of a dump that is coming in and has not grown since the count, the plaintext is what its length makes certain, because
        without a seek table only a walk over its frames would tell.
        """
        with self._lock:
            account = self._account_unlocked(host)
            now = self._ticks()
            account.forget_begun(now - HOUR_S)
            return self._sum(account, tuple(now - at for dump_id, at in account.begun.items() if dump_id != but_for))

    def find_taken(self, host: HostName) -> HostUsage | None:
        """Return the same without what was begun when, which may be much: for each frame, and where no rate counts."""
        with self._lock:
            return self._sum(self._account_unlocked(host), ())

    def forget_begun(self, host: HostName) -> None:
        """Count no longer what a host has begun until now: for where no rate counts."""
        with self._lock:
            self._account_unlocked(host).begun.clear()

    def grew(self, host: HostName, dump_id: DumpId, amount: Amount) -> None:
        """Take *amount* for what a dump that is coming in has now; of a host that was not counted nothing is kept."""
        with self._lock:
            account, census = self._account_unlocked(host), self._censuses.get(host)
            numbers = account if census is None else census.account
            known = numbers.find_part(dump_id)
            if known is not None:
                numbers.put_part(dump_id, known._replace(amount=amount, is_stuck=False), self._ticks())
            elif census is not None:
                census.grown[dump_id] = amount
            elif account.is_counted:
                account.put_part(dump_id, Part(amount, begun_at=self._ticks()), self._ticks())

    def announced(self, host: HostName, dump_id: DumpId, predicted_size: int | None) -> None:
        """Take over how large a dump that is coming in will be, as far as its host was counted."""
        account = self._account(host)
        with self._lock:
            known = account.find_part(dump_id)
            if known is not None:
                account.put_part(dump_id, known._replace(predicted_size=predicted_size), self._ticks())

    def touched(self, host: HostName, dump_id: DumpId) -> None:
        """Note that a dump was offered, whether it is taken or not: its host has not lost it."""
        with self._lock:
            self._account_unlocked(host).touch(dump_id, self._ticks())

    def could_not_be_opened(self, host: HostName, dump_id: DumpId) -> None:
        """Have a dump go before nobody until it grows; as far as its host was counted."""
        with self._lock:
            account = self._account_unlocked(host)
            known = account.find_part(dump_id)
            if known is not None:
                account.put_part(dump_id, known._replace(is_stuck=True), None)

    def find_first(self, host: HostName) -> tuple[DumpId, Part] | None:
        """Return which of a host's dumps that are coming in goes before the others, as far as the host was counted.

        None where none was offered, or grew, within TURN_LASTS_S, but for those that could not be opened.
        """
        with self._lock:
            return self._account_unlocked(host).find_first(self._ticks() - limits.TURN_LASTS_S)

    def find_part(self, host: HostName, dump_id: DumpId) -> Part | None:
        """Return what there is of a dump that is coming in, as far as it was counted; None for any other."""
        with self._lock:
            return self._account_unlocked(host).find_part(dump_id)

    def held(self, host: HostName, dump_id: DumpId) -> Amount:
        """Return what is here of one dump, published or coming in; nothing of one that is not here."""
        found = self.find_part(host, dump_id)
        if found is not None:
            return found.amount
        place = self._store.find_place(host, dump_id)
        return self._find(place, host, dump_id).amount

    def is_counted_within(self, host: HostName, timeout_s: float | None) -> bool:
        """Return whether a host is counted, after having waited for that so long; None waits for its end.

        The count goes on in a thread of its own. Raises StorageError when its dumps cannot be listed, BusyError after ``stop``.
        """
        account = self._account(host)
        with self._lock:
            if account.is_counted:
                return True
            if self.is_stopping:
                raise BusyError("the receiver is being stopped")
            counting = self._countings.get(host)
            is_ours = counting is None
            if counting is None:
                counting = self._countings[host] = _Counting()
        if is_ours:
            self._start_to_count(host, counting)
        counting.is_over.wait(timeout_s)
        if counting.error is not None:
            raise StorageError(f"what {host} has cannot be counted: {counting.error.message}") from counting.error
        return account.is_counted

    def stop(self, timeout_s: float) -> bool:
        """Make counts that are under way end before the next dump, and return whether all have within *timeout_s*."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self.is_stopping = True
            countings = list(self._countings.values())
        return all(counting.is_over.wait(max(0.0, deadline - time.monotonic())) for counting in countings)

    def _start_to_count(self, host: HostName, counting: _Counting) -> None:
        try:
            Thread(target=self._count_aside, args=(host, counting), name=f"count {host}", daemon=True).start()
        except RuntimeError as error:  # no memory or no process left for another thread
            self._end_count(host, counting, StorageError(str(error)))

    def _count_aside(self, host: HostName, counting: _Counting) -> None:
        failure = None
        try:
            self._count(host, self._account(host))
        except SecurecoreError as error:
            failure = error
        finally:
            self._end_count(host, counting, failure)

    def _end_count(self, host: HostName, counting: _Counting, error: SecurecoreError | None) -> None:
        with self._lock:
            del self._countings[host]
        counting.error = error
        counting.is_over.set()

    @staticmethod
    def _sum(account: Account, ages: tuple[float, ...]) -> HostUsage | None:
        if not account.is_counted:
            return None
        dumps = account.published + account.coming
        coming = account.coming, account.coming_bytes, account.coming_plain
        return HostUsage(account.stored_bytes, account.plain_bytes, dumps, ages, *coming)

    @contextmanager
    def _changing(self, host: HostName, dump_id: DumpId, source: Place | None, target: Place | None) -> Iterator[None]:
        account = self._account(host)
        with account.moves:
            with self._lock:
                census = self._censuses.get(host)
                is_known = census is None or not census.take(str(dump_id))
            if census is None and not account.is_counted:
                yield
                return
            before = self._find(source, host, dump_id).amount if source is Place.HOSTS and is_known else Amount()
            change = _Change(dump_id, is_known, source, before)
            try:
                yield
            except BaseException:
                self._follow_failed(host, change, census)
                raise
            # A dump that is just being made has nothing yet.
            self._follow(host, change, census, target, self._find(target, host, dump_id) if source is not None else Found())

    def _follow_failed(self, host: HostName, change: "_Change", census: Census | None) -> None:
        """Count a dump where it is after a change that has failed."""
        if change.source is None:
            return  # It was to be made, and was not.
        try:
            place = self._store.find_place(host, change.dump_id)
        except SecurecoreError:
            with self._lock:
                self._account_unlocked(host).is_counted = False
                if census is not None:
                    census.is_spoiled = True
            return
        self._follow(host, change, census, place, self._find(place, host, change.dump_id))

    def _follow(self, host: HostName, change: "_Change", census: Census | None, place: Place | None, found: Found) -> None:
        """Count a dump where it is now, and no longer where it was; *found* is what it has there."""
        dump_id, is_known, source, before = change
        with self._lock:
            account = self._account_unlocked(host)
            numbers = account if census is None else census.account
            now = self._ticks()
            if source is None and census is None:
                account.forget_begun(now - HOUR_S)
                account.begin(dump_id, now)
            elif source is None and census is not None:
                census.begun.append((now, dump_id))
            elif census is not None and not is_known and found.begun_at is not None:
                census.begun.append((self._as_ticks(found.begun_at), dump_id))
            if is_known and place is source:
                part = numbers.find_part(dump_id)
                if part is not None and found.amount.stored_bytes < part.amount.stored_bytes:
                    numbers.put_part(dump_id, part._replace(amount=found.amount), now)  # Some of its files are gone.
                return
            if source is Place.HOSTS and is_known:
                numbers.published -= 1
                numbers.add(before, -1)
            elif source is Place.INCOMING:
                numbers.drop_part(dump_id)
            if place is Place.HOSTS:
                numbers.published += 1
                numbers.add(found.amount)
            elif place is Place.INCOMING:
                numbers.put_part(dump_id, Part(found.amount, begun_at=now), now)

    def _count(self, host: HostName, account: Account) -> None:
        """Count what is in the host's directories, while that changes. Raises StorageError, and BusyError after ``stop``."""
        census = Census()
        with account.moves, self._lock:
            self._censuses[host] = census
        try:
            with ExitStack() as closing:
                listed = []
                for place in (Place.HOSTS, Place.INCOMING):
                    host_fd = self._store.find_host_directory(place, host)
                    if host_fd is not None:
                        closing.callback(os.close, host_fd)
                        listed.append((place, host_fd, directory.names_in(host_fd)))
                with self._lock:
                    census.list_names(chain.from_iterable(names for _, _, names in listed))
                since = self._clock() - HOUR_S
                for place, host_fd, names in listed:
                    for name in names:
                        self._count_dump(census, place, host_fd, name, since)
            with account.moves, self._lock:
                if census.is_spoiled:
                    raise StorageError("nobody knows where one of its dumps is")
                account.take_over(census.account)
                now = self._ticks()
                # What is younger than now was written by a clock that has been set back since, and may be of any age.
                account.begun = {}
                for at, dump_id in sorted(census.begun, key=itemgetter(0)):
                    if 0 <= now - at < HOUR_S:
                        account.begin(dump_id, at)
                account.is_counted = True
                del self._censuses[host]
        finally:
            with self._lock:
                self._censuses.pop(host, None)

    def _count_dump(self, census: Census, place: Place, host_fd: int, name: str, since: float) -> None:
        try:
            dump_id = DumpId.parse(name)
        except NameRefused:
            return
        if self.is_stopping:
            raise BusyError("the receiver is being stopped")
        found = look(host_fd, name, since)
        with self._lock:
            if not census.take(name):
                return
            if place is Place.HOSTS:
                census.account.published += 1
                census.account.add(found.amount)
            else:
                # What was written by a clock that has been set back since is taken for new.
                touched_at = min(self._as_ticks(found.changed_at), self._ticks()) if not found.is_whole else None
                begun_at = min(self._as_ticks(found.begun_at or found.changed_at), self._ticks())
                part = Part(census.grown.pop(dump_id, found.amount), begun_at=begun_at)
                census.account.put_part(dump_id, part, touched_at)
            if found.begun_at is not None:
                census.begun.append((self._as_ticks(found.begun_at), dump_id))

    def _find(self, place: Place | None, host: HostName, dump_id: DumpId) -> Found:
        return find_dump(self._store, place, host, dump_id, self._clock() - HOUR_S) if place is not None else Found()

    def _as_ticks(self, moment: float) -> float:
        return self._ticks() - (self._clock() - moment)

    def _account(self, host: HostName) -> Account:
        with self._lock:
            return self._account_unlocked(host)

    def _account_unlocked(self, host: HostName) -> Account:
        account = self._accounts.get(host)
        if account is None:
            account = self._accounts[host] = Account()
        return account


def room_of(store: Store) -> Room:
    """Return what is left of the store's file system; raises StorageError when it does not say."""
    try:
        found = os.fstatvfs(store.fd)
    except OSError as error:
        raise directory.disk_refused(error, f"cannot ask the file system of {store.path} for its room") from error
    unit = found.f_frsize
    return Room(found.f_bavail * unit, found.f_blocks * unit, found.f_favail, found.f_files)
