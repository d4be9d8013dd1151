"""The network's way of a crash: steps 6 to 11 of handler.py, with a receiver and a spool."""

import os
import sys
import time

from securecore import tls
from securecore.errors import ConfigError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import privileges
from securecore.sender.credentials import read_credentials
from securecore.sender.head import Head, read_head
from securecore.sender.patience import usual_patience
from securecore.sender.settings import WHOLE, Settings
from securecore.sender.system_log import log
from securecore.sender.tally import Tally, find_spool
from securecore.sender.transfer import Outcome, Papers, Parcel, carry


def send(core: int, settings: Settings, dump: DumpId, report: CrashReport) -> int:
    """Send the core to a receiver, else spool it, and return the exit code; closes *core* as soon as it is drained.

    One that is too large, or that a storm limit suppresses, is let go before a byte of it is kept or sent.
    """
    spool = find_spool(settings.spool)
    tally = Tally(spool, report)
    try:
        papers: Papers | ConfigError = Papers(tls.sender_context(settings.identity), read_credentials(settings.identity))
    except ConfigError as error:
        # Without an identity nothing can be sent, but the core can be kept until there is one.
        papers = error
    if not privileges.can_others_import([os.path.dirname(__file__), *sys.path]):
        # Installed where only root can read, as in a checkout under /root: what is loaded last must be loaded while we still may.
        from securecore.sender import backlog, evidence  # noqa: F401
    privileges.drop(settings.uid, settings.gid)
    most = settings.admission.max_size
    head = read_head(core) if most is not None else Head()
    if most is not None and head.predicted_size is not None and head.predicted_size > most:
        os.close(core)
        return tally.decline(dump, f"{head.predicted_size} bytes, max_size is {most}")
    verdict = tally.admit(settings.admission)
    if verdict.limit is not None:
        os.close(core)
        return tally.suppress(dump, verdict)
    parcel = Parcel(dump, report._replace(**verdict.untaken.fields()).encode(), time.time_ns() // 1_000_000)
    patience = settings.deadlines or usual_patience()
    outcome = carry(
        core, parcel, settings.receivers, papers, spool,
        hold_budget_s=patience.hold_s, patience=patience, keeps_copy=settings.spool_mode == WHOLE, head=head.data,
    )  # fmt: skip
    if outcome.receipt is None and not outcome.spooled:
        tally.give_back(verdict.untaken)
    code = conclude(dump, outcome)
    tally.count_skips()
    if outcome.receipt is not None and spool is not None and isinstance(papers, Papers):
        # Only now: the crashed process has waited for every module that was loaded before.
        from securecore.sender.backlog import deliver_backlog

        deliver_backlog(spool, settings.receivers, papers, patience)
    return code


def conclude(dump: DumpId, outcome: Outcome) -> int:
    """Say how it ended and return the exit code."""
    sizes = {"size": outcome.size, "stored": outcome.stored_bytes, "frames": outcome.frames}
    facts: dict[str, object] = {"dump": str(dump), **sizes, "cut": outcome.source_failure}
    if outcome.copy_failure is not None:
        facts["not_copied"] = outcome.copy_failure.message
    if outcome.receipt is not None:
        told = {"receiver": outcome.receipt.get("receiver"), "entry": outcome.receipt.get("index")}
        log("delivered", **facts, **told, receipt_not_kept=outcome.receipt.get("not_kept"))
        return 0
    failure = outcome.spool_failure or outcome.failure or ConfigError("nothing was delivered")
    why = outcome.failure.message if outcome.failure else None
    if outcome.spooled and outcome.spool_failure is None:
        log("spooled", **facts, error=why)
    else:
        log("failed", **facts, error=why, spool=failure.message)
    return failure.exit_code
