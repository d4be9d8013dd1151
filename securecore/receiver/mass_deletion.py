"""Deleting many dumps in the order of deletion.py, which a batch of one host's dumps keeps together, to share its fsyncs."""

from collections.abc import Sequence
from datetime import datetime

from securecore.audit.entry import DELETED, deleted_entry
from securecore.audit.log import HostLogs
from securecore.errors import SecurecoreError
from securecore.names import DumpId, HostName
from securecore.receiver.deletion import Order, settle
from securecore.store.clearance import purge_all, set_aside_all
from securecore.store.layout import Store


def delete_all(
    store: Store, logs: HostLogs, host: HostName, dump_ids: Sequence[DumpId], order: Order, now: datetime
) -> dict[DumpId, SecurecoreError]:
    """Delete published dumps of one host, as deletion.delete does with one; return those that were not deleted, each with why.

    What stands in the way of one leaves the others to go; a disk that takes no entries leaves all of them as they were. One whose
    entry is durable and whose files are not all gone is among the returned; the next start removes them.
    """
    try:
        # The log first: beside one that is damaged no dump could be put back either, for nobody knows what it says.
        with logs.using(host) as log:
            staying = set_aside_all(store, host, dump_ids)
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


def _settle_all(
    store: Store, logs: HostLogs, host: HostName, dump_ids: Sequence[DumpId], error: SecurecoreError
) -> dict[DumpId, SecurecoreError]:
    """Do with each dump that was set aside what the log says; return those that are not deleted."""
    aside, failed = set(store.deleting()), dict[DumpId, SecurecoreError]()
    for dump_id in dump_ids:
        try:
            if (host, dump_id) not in aside or not settle(store, logs, host, dump_id):
                failed[dump_id] = error
        except SecurecoreError as unsettled:
            failed[dump_id] = unsettled
    return failed
