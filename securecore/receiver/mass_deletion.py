"""Deleting many dumps in the order of deletion.py, which a batch of one host's dumps keeps together, to share its fsyncs."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from securecore.audit.entry import DELETED, deleted_entry
from securecore.audit.log import HostLog, HostLogs
from securecore.errors import NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName
from securecore.receiver.deletion import Order, settle_now
from securecore.store.clearance import purge_all, set_aside_all
from securecore.store.layout import Store
from securecore.store.reading import DumpFiles
from securecore.store.rows import read_entry, read_received_at


def delete_all(
    store: Store,
    logs: HostLogs,
    host: HostName,
    dump_ids: Sequence[DumpId],
    order: Order,
    now: datetime,
    received_at: Mapping[DumpId, str] | None = None,
) -> dict[DumpId, SecurecoreError]:
    """Delete published dumps of one host, as deletion.delete does with one; return those that were not deleted, each with why.

    *received_at* is what a DumpRow said of each when it was chosen: NotFoundError for one of which it is not so any more. Its
    sender has come back and finished it, and nobody chose that dump. The caller keeps sessions from these dumps.

    What stands in the way of one leaves the others to go; a disk that takes no entries leaves all of them as they were. One whose
    entry is written and whose files are not all gone is among the returned; the caretaker, or the next start, removes them.
    """
    try:
        # The log first: beside one that is damaged no dump could be put back either, for nobody knows what it says.
        with logs.using(host) as log:
            staying = _find_changed(store, log, host, received_at or {})
            staying |= set_aside_all(store, host, [dump_id for dump_id in dump_ids if dump_id not in staying])
            moved = [dump_id for dump_id in dump_ids if dump_id not in staying]
            # What a backup brought back has its entry already; a second one would be refused, and keep the whole batch.
            standings = ((dump_id, log.standing(dump_id)) for dump_id in moved)
            fresh = [dump_id for dump_id, standing in standings if standing is None or standing.event != DELETED]
            log.append_all(
                [deleted_entry(now, dump_id, host, uid=order.uid, user=order.user, reason=order.reason) for dump_id in fresh]
            )
    except SecurecoreError as error:
        return _settle_all(store, logs, host, dump_ids, error)
    try:
        return staying | purge_all(store, host, moved)
    except SecurecoreError as error:
        return staying | dict.fromkeys(moved, error)


def _find_changed(store: Store, log: HostLog, host: HostName, received_at: Mapping[DumpId, str]) -> dict[DumpId, SecurecoreError]:
    changed: dict[DumpId, SecurecoreError] = {}
    for dump_id, said in received_at.items():
        try:
            with store.open_dump(host, dump_id) as files:
                if not _is_chosen(files, log, said):
                    raise NotFoundError(f"dump {dump_id} is another one than was chosen: it was received since")
        except SecurecoreError as error:
            changed[dump_id] = error
    return changed


def _is_chosen(files: DumpFiles, log: HostLog, said: str) -> bool:
    """Return whether a dump is still the one whose row said that.

    The row may be older than the damage to a receipt that cannot be read any more, or no longer names this dump. Then the log says
    what that said; who passed such a dump over would do so for ever.
    """
    entry = read_entry(files)
    if read_received_at(files, entry) == said:
        return True
    history = log.history(files.dump_id) if not entry else []
    return bool(history) and read_received_at(files, history[-1][1]) == said


def _settle_all(
    store: Store, logs: HostLogs, host: HostName, dump_ids: Sequence[DumpId], error: SecurecoreError
) -> dict[DumpId, SecurecoreError]:
    """Do with each dump that was set aside what the log says; return those that are not deleted."""
    aside, failed = set(store.deleting()), dict[DumpId, SecurecoreError]()
    for dump_id in dump_ids:
        try:
            if (host, dump_id) not in aside or not settle_now(store, logs, host, dump_id):
                failed[dump_id] = error
        except SecurecoreError as unsettled:
            failed[dump_id] = unsettled
    return failed
