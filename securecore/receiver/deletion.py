"""Deleting a dump, in the one order that survives a crash at any instant; for whoever holds the store's lock.

1. The dump is moved out of every reader's sight: durable.
2. The audit entry that says who deleted it, then the checkpoint over it: durable. From here on the dump is deleted: this entry is
   its tombstone, by which a sender that offers it once more hears GONE.
3. Its files are removed.

A start, or the caretaker, finds a dump that was moved away and goes on: the log says whether it is to be removed, or put back.
"""

from collections.abc import Mapping
from datetime import datetime
from threading import Lock
from typing import NamedTuple

from securecore import limits
from securecore.audit.entry import DELETED, RECEIVED, Value, deleted_entry, find_time
from securecore.audit.log import HostLogs
from securecore.errors import SecurecoreError, StorageError
from securecore.names import DumpId, HostName
from securecore.store import removal
from securecore.store.layout import Store


class Order(NamedTuple):
    """Who wants a dump deleted, and why."""

    uid: int
    """By the kernel's word (SO_PEERCRED)."""
    user: str | None
    reason: str | None


class Tombstone(NamedTuple):
    """What is left of a dump that was received whole and deleted since."""

    words: str
    """When, for a person."""
    receipt: bytes
    """The proof that it was received."""


def delete(store: Store, logs: HostLogs, host: HostName, dump_id: DumpId, order: Order, now: datetime) -> None:
    """Delete a dump, published or coming in; when this returns, its tombstone is durable and its files are gone.

    Raises NotFoundError when there is none, BusyError while it is being written; a StorageError or BrokenError before the entry was
    durable leaves the dump as it was. One afterwards leaves files that the caretaker or the next start removes; so does a disk that
    does not let the dump be put back, or has taken the entry and not its checkpoint: that error says so.
    """
    try:
        removal.set_aside(store, host, dump_id)
    except StorageError:
        # The disk took the new name, and would not say that it is durable.
        if (host, dump_id) in store.deleting():
            settle_now(store, logs, host, dump_id)
        raise
    is_open = False
    try:
        with logs.using(host) as log:
            is_open = True
            log.append(deleted_entry(now, dump_id, host, uid=order.uid, user=order.user, reason=order.reason))
    except SecurecoreError:
        if not is_open:  # A damaged log says nothing any more, but nothing was written to it either.
            removal.put_back(store, host, dump_id)
        if not is_open or not settle_now(store, logs, host, dump_id):
            raise
        return
    removal.purge(store, host, dump_id)


def roll_forward_deletions(store: Store, logs: HostLogs) -> list[tuple[str, SecurecoreError | None]]:
    """Finish the deletions that a crash has interrupted; return each such dump in words, with what stood in the way."""
    done: list[tuple[str, SecurecoreError | None]] = []
    for host, dump_id in store.deleting():
        try:
            settle(store, logs, host, dump_id)
            done.append((f"{dump_id} of {host}", None))
        except SecurecoreError as error:
            done.append((f"{dump_id} of {host}", error))
    return done


def find_tombstone(logs: HostLogs, host: HostName, dump_id: DumpId) -> Tombstone | None:
    """Return the tombstone of a dump; None for one that was not deleted, or of which only a part was ever here.

    A sender is released by the proof that its dump was received whole, and there is none for a part: what it still has is welcome.
    Reads the host's log twice where it was deleted.
    """
    with logs.using(host) as log:
        standing = log.standing(dump_id)
        if standing is None or standing.event != DELETED:
            return None
        history = log.history(dump_id)
        received = [index for index, fields in history if fields["event"] == RECEIVED]
        return Tombstone(_words(history[-1][1]), log.receipt_for(received[-1])) if received else None


class Tombstones:
    """Tombstones for senders, remembered: whoever asks again costs no more reading of a log. For several threads at once."""

    def __init__(self, logs: HostLogs) -> None:
        self._logs = logs
        self._lock = Lock()
        self._found: dict[tuple[HostName, DumpId], tuple[int, Tombstone | None]] = {}
        """Each with the index of the deletion's entry; the one asked for last is the last in order."""

    def find(self, host: HostName, dump_id: DumpId) -> Tombstone | None:
        """Return what find_tombstone does. What it found once holds as long as no newer entry says where the dump stands."""
        with self._logs.using(host) as log:
            standing = log.standing(dump_id)
        if standing is None or standing.event != DELETED:
            return None
        with self._lock:
            known = self._found.pop((host, dump_id), None)
            if known is not None and known[0] == standing.index:
                self._found[host, dump_id] = known
                return known[1]
        found = find_tombstone(self._logs, host, dump_id)
        with self._lock:
            self._found[host, dump_id] = (standing.index, found)
            if len(self._found) > limits.MAX_TOMBSTONES:
                del self._found[next(iter(self._found))]
        return found


def _words(fields: Mapping[str, Value]) -> str:
    # Who deleted it and why is for those who read the log; a host is not trusted with it.
    when = find_time(fields)
    return f"deleted on {when:%Y-%m-%d %H:%M} UTC" if when is not None else "deleted"


def settle(store: Store, logs: HostLogs, host: HostName, dump_id: DumpId) -> bool:
    """Do with a dump that was set aside what the log says, and return whether it is deleted: remove it, or put it back."""
    with logs.using(host) as log:
        # What was not signed and durable was cut off when the log was opened.
        standing = log.standing(dump_id)
    is_deleted = standing is not None and standing.event == DELETED
    if is_deleted:
        removal.purge(store, host, dump_id)
    else:
        removal.put_back(store, host, dump_id)
    return is_deleted


def settle_now(store: Store, logs: HostLogs, host: HostName, dump_id: DumpId) -> bool:
    """Do what settle does for whoever asked for a deletion; a StorageError says that the dump stays out of sight."""
    try:
        return settle(store, logs, host, dump_id)
    except StorageError as error:
        words = f"dump {dump_id} is out of sight and not deleted yet: {error.message}"
        raise StorageError(f"{words}; the receiver tries again by itself, and at its start", hint=error.hint) from error
