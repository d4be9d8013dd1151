"""What waits in the spool, delivered by a handler whose own dump has just arrived: the receiver is there, why wait for the timer.

The pipe is closed and the crashed process gone by then; the handler is its own user and has its key in memory.
"""

import time
from collections.abc import Sequence

from securecore import limits
from securecore.errors import SecurecoreError
from securecore.names import Address
from securecore.sender.flush import Flushed, flush
from securecore.sender.parcel import Papers
from securecore.sender.patience import Patience
from securecore.sender.schedule import claim, read_schedule
from securecore.sender.spool import Spool
from securecore.sender.system_log import log


def deliver_backlog(spool: Spool, receivers: Sequence[Address], papers: Papers, patience: Patience | None = None) -> None:
    """Deliver what waits, for CRASH_FLUSH_S at most, and say in the system's log what became of each dump.

    Our own back-off does not count, for a receiver has just been there; what one has asked for does. Does nothing while another
    process flushes this spool. Raises nothing that a receiver or a disk can do: the handler's own dump
    is delivered.
    """
    try:
        if not spool.dump_ids() or read_schedule(spool.fd).is_asked_to_wait(time.time()):
            return
        with claim(spool.fd) as is_ours:
            if is_ours:
                for flushed in flush(spool, receivers, papers, patience=patience, budget_s=limits.CRASH_FLUSH_S):
                    tell(flushed)
    except SecurecoreError as error:
        log("spool-kept", error=error.message)


def tell(flushed: Flushed) -> None:
    """Write the line of one dump."""
    dump, receipt = str(flushed.dump), flushed.receipt
    if receipt is None:
        log("spool-kept", dump=dump, sent=flushed.sent_frames, error=flushed.failure.message if flushed.failure else None)
        return
    log(
        "flushed", dump=dump, receiver=receipt.get("receiver"), entry=receipt.get("index"), sent=flushed.sent_frames,
        lost=flushed.lost_frames or None, delivered_as=str(flushed.delivered_as) if flushed.delivered_as else None,
        gone=receipt.get("gone"), receipt_not_kept=receipt.get("not_kept"),
    )  # fmt: skip
