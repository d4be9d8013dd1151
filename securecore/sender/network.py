"""The network's way of a crash: steps 6 to 11 of handler.py, with a receiver and a spool."""

import os
import sys
import time

from securecore import tls
from securecore.errors import ConfigError, SecurecoreError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import privileges
from securecore.sender.credentials import read_credentials
from securecore.sender.patience import usual_patience
from securecore.sender.settings import WHOLE, load_settings
from securecore.sender.spool import Spool, open_spool
from securecore.sender.system_log import log
from securecore.sender.transfer import Outcome, Papers, Parcel, carry


def send(core: int, settings_path: str, dump: DumpId, report: CrashReport) -> int:
    """Send the core to a receiver, else spool it, and return the exit code; closes *core* as soon as it is drained."""
    settings = load_settings(settings_path)
    parcel = Parcel(dump, report.encode(), time.time_ns() // 1_000_000)
    spool = find_spool(settings.spool)
    try:
        papers: Papers | ConfigError = Papers(tls.sender_context(settings.identity), read_credentials(settings.identity))
    except ConfigError as error:
        # Without an identity nothing can be sent, but the core can be kept until there is one.
        papers = error
    if not privileges.can_others_import([os.path.dirname(__file__), *sys.path]):
        # Installed where only root can read, as in a checkout under /root: what is loaded last must be loaded while we still may.
        from securecore.sender import backlog, evidence  # noqa: F401
    privileges.drop(settings.uid, settings.gid)
    patience = settings.deadlines or usual_patience()
    outcome = carry(
        core, parcel, settings.receivers, papers, spool,
        hold_budget_s=patience.hold_s, patience=patience, keeps_copy=settings.spool_mode == WHOLE,
    )  # fmt: skip
    code = conclude(dump, outcome)
    if outcome.receipt is not None and spool is not None and isinstance(papers, Papers):
        # Only now: the crashed process has waited for every module that was loaded before.
        from securecore.sender.backlog import deliver_backlog

        deliver_backlog(spool, settings.receivers, papers, patience)
    return code


def find_spool(path: str) -> Spool | None:
    """Return the spool; None when there is none that can be used, which must not keep a healthy receiver from the core."""
    try:
        return open_spool(path)
    except SecurecoreError as error:
        log("spool-missing", error=error.message)
        return None


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
