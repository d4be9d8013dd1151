"""One crash, from the kernel's arguments to the last line in the log: steps 3 to 10 of handler.py."""

import os
import sys
import time
from typing import Final

from securecore import __version__, tls
from securecore.errors import ConfigError, SecurecoreError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import privileges, procfs
from securecore.sender.credentials import read_credentials
from securecore.sender.kernel_arguments import KernelArguments, parse_arguments
from securecore.sender.settings import load_settings
from securecore.sender.spool import Spool, open_spool
from securecore.sender.system_log import log
from securecore.sender.transfer import Outcome, Papers, Parcel, carry

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def handle(core: int, argv: list[str], settings_path: str) -> int:
    """Do steps 3 to 10 and return the exit code; closes *core* as soon as it is drained."""
    privileges.forbid_own_core()
    privileges.yield_to_others()
    os.umask(0o077)
    arguments = parse_arguments(argv)
    dump = DumpId.make(time.time_ns() // 1_000_000, os.urandom(10))
    log("started", dump=str(dump), pid=arguments.pid, signal=arguments.signal, uid=arguments.uid)
    if arguments.core_limit < _PAGE_BYTES:
        # The kernel does not enforce RLIMIT_CORE for pipes; below a page it means that nobody wants this core.
        log("declined", dump=str(dump), reason="RLIMIT_CORE")
        return 0
    settings = load_settings(settings_path)
    parcel = Parcel(dump, report_crash(arguments, core).encode(), time.time_ns() // 1_000_000)
    spool = find_spool(settings.spool)
    try:
        papers: Papers | ConfigError = Papers(tls.sender_context(settings.identity), read_credentials(settings.identity))
    except ConfigError as error:
        # Without an identity nothing can be sent, but the core can be kept until there is one.
        papers = error
    if not privileges.can_others_import([os.path.dirname(__file__), *sys.path]):
        # Installed where only root can read, as in a checkout under /root: what is loaded last must be loaded while we still may.
        from securecore.sender import evidence  # noqa: F401
    privileges.drop(settings.uid, settings.gid)
    return conclude(dump, carry(core, parcel, settings.receivers, papers, spool))


def find_spool(path: str) -> Spool | None:
    """Return the spool; None when there is none that can be used, which must not keep a healthy receiver from the core."""
    try:
        return open_spool(path)
    except SecurecoreError as error:
        log("spool-missing", error=error.message)
        return None


def report_crash(arguments: KernelArguments, core: int) -> CrashReport:
    """Return the report: the kernel's arguments, and what /proc tells. Nobody else is left with the descriptor *core*."""
    return CrashReport(
        sender=f"securecore {__version__}",
        source="kernel",
        signal=arguments.signal,
        pid=arguments.pid,
        tid=arguments.tid,
        uid=arguments.uid,
        gid=arguments.gid,
        dump_mode=arguments.dump_mode,
        core_limit=arguments.core_limit,
        crashed_at=arguments.time,
        **procfs.snapshot(arguments, held=(core,)),
    )


def conclude(dump: DumpId, outcome: Outcome) -> int:
    """Say how it ended and return the exit code."""
    facts = {"dump": str(dump), "size": outcome.size, "stored": outcome.stored_bytes, "frames": outcome.frames}
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
