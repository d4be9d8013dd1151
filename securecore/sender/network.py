"""The network's way of a crash: steps 6 to 11 of handler.py, with a receiver and a spool."""

import os
import sys
import time

from securecore.declarations import TYPE_CHECKING, Callable, Final
from securecore.errors import BusyError, ConfigError, StorageError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import privileges
from securecore.sender.handler import collect_garbage
from securecore.sender.lifetime import Lifetime
from securecore.sender.papers import PapersReader, read_papers
from securecore.sender.parcel import Outcome, Papers, Parcel
from securecore.sender.patience import usual_patience
from securecore.sender.settings import WHOLE, Settings
from securecore.sender.system_log import log
from securecore.sender.tally import Taken

if TYPE_CHECKING:
    from securecore.sender.provisions import Provisions
    from securecore.sender.spool import Spool

_LAST_LOADED: Final = ("transfer", "evidence", "backlog", "schedule")
"""Modules of this package that a crash needs last: they are loaded behind the drop, where they may be."""


def send(
    core: int,
    settings: Settings,
    dump: DumpId,
    report: Callable[[], CrashReport],
    taken: Taken,
    lifetime: Lifetime | None = None,
    provisions: "Provisions | None" = None,
) -> int:
    """Send the core to a receiver, else spool it, and return the exit code; closes *core* as soon as it is drained.

    *report* is called by root, as late as root may: what names the program may still be on its way. *provisions* are the
    agent's.
    """
    # As in the agent's children. Then there is nothing to do meanwhile but to read the core, and a thread or a handshake takes the
    # same processors.
    is_loaded = all(f"securecore.sender.{name}" in sys.modules for name in _LAST_LOADED)
    reader = None if is_loaded else PapersReader(settings.identity)
    # Only now: the identity is read meanwhile.
    from securecore.sender.dialling import Dialler

    anchored = provisions.context if provisions is not None else None
    papers = reader.finish() if reader is not None else read_papers(settings.identity, anchored)
    if not is_loaded and not privileges.can_others_import(_find_packages()):
        # Installed where only root can read, as in a checkout under /root: what is loaded last must be loaded while we still may.
        from securecore.sender import backlog, evidence, schedule, transfer  # noqa: F401
    whole = report()
    privileges.drop(settings.uid, settings.gid)
    patience = settings.deadlines or usual_patience()
    dialler = Dialler()
    if isinstance(papers, Papers) and settings.receivers and not is_loaded:
        dialler.begin(settings.receivers, papers.context, patience)
    # Only now: the receiver is dialled meanwhile.
    from securecore.sender.spool import Spool
    from securecore.sender.transfer import carry

    collect_garbage()
    directory = taken.tally.directory
    spool = Spool(directory, settings.spool_limits) if directory is not None else None
    parcel = Parcel(dump, whole._replace(**taken.untaken.fields()).encode(), time.time_ns() // 1_000_000)
    outcome = carry(
        core, parcel, settings.receivers, papers, spool, hold_budget_s=patience.hold_s, patience=patience,
        keeps_copy=settings.spool_mode == WHOLE, head=taken.head.data, lifetime=lifetime, dialler=dialler,
        reads_first=is_loaded,
    )  # fmt: skip
    dialler.leave()
    taken.conclude(is_kept=outcome.is_kept)
    code = conclude(dump, outcome)
    if lifetime is not None:
        lifetime.release()
    has_time = lifetime is None or not lifetime.is_over
    if outcome.receipt is not None and spool is not None and isinstance(papers, Papers) and has_time:
        # Only now: the crashed process has waited for every module that was loaded before.
        from securecore.sender.backlog import deliver_backlog

        deliver_backlog(spool, settings.receivers, papers, patience)
    elif spool is not None and isinstance(outcome.failure, BusyError):
        _keep_request(spool, outcome.failure.retry_after_s)
    return code


def _find_packages() -> list[str]:
    """Return the directories that may be looked into for what is loaded last."""
    ours = os.path.dirname(os.path.dirname(__file__))
    rooms = [os.path.join(ours, name) for name in ("sender", "dump", "wire", "certs", "audit")]
    return [*rooms, *sys.path, *(os.path.join(path, name) for path in sys.path for name in ("zstandard", "cryptography"))]


def _keep_request(spool: "Spool", retry_after_s: int) -> None:
    """Have a timer's flush come no sooner than a receiver has asked for, 0 for nothing asked; the process that crashed is gone."""
    if not retry_after_s:
        return
    from securecore.sender.schedule import keep_request

    try:
        keep_request(spool.fd, time.time(), retry_after_s)
    except StorageError:
        pass  # The flush that comes too soon for it is told so once more.


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
    has_nothing = outcome.frames == 0 and outcome.source_failure is not None
    if outcome.spooled and outcome.spool_failure is None and not has_nothing:
        log("spooled", **facts, error=why)
    else:
        # Of a spool that is well there is no reason to tell: cut= has it.
        is_spool_well = outcome.spooled and outcome.spool_failure is None
        log("failed", **facts, error=why, spool=None if is_spool_well else failure.message)
    return failure.exit_code
