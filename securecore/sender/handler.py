"""The crash handler: what the kernel starts for each crash, with the core on standard input.

The order of work:

 1  move the core's descriptor above 2 and bind 0, 1 and 2 to /dev/null: the kernel leaves 1 and 2 closed, and the first file
    opened would otherwise be written to by whatever prints
 2  widen the pipe, so that the kernel goes on dumping while we prepare
 3  make ourselves non-dumpable, yield to others, create nothing that others may read
 4  parse the kernel's arguments; say in one line that a crash was met, before anything that may take time
 5  read the settings, then /proc of the crashed process, which waits for us
 6  open as root what root must open: identity, spool
 7  become the handler's own user, for good; only now the first network byte
 8  drain the pipe: pieces, frames, and from there to the receiver or the spool (transfer.py)
 9  close the pipe: the crashed process is let go
10  sign, hear the receipt, or finish the spool's entry; say in one line how it ended

Nobody waits for a handler's exit code, but it is one of docs/exit-codes.md all the same.
"""

import fcntl
import json
import os
import socket
import sys
import time
from typing import Final, NoReturn

from securecore import __version__, limits, tls
from securecore.errors import ConfigError, SecurecoreError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import privileges, procfs
from securecore.sender.credentials import read_credentials
from securecore.sender.kernel_arguments import KernelArguments, parse_arguments
from securecore.sender.settings import load_settings
from securecore.sender.spool import Spool, open_spool
from securecore.sender.transfer import Outcome, Papers, Parcel, carry

_DAEMON, _ERROR, _WARNING, _NOTICE = 3 << 3, 3, 4, 5
"""Facility and severities of RFC 3164 section 4.1.1, as /dev/log takes them."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def main(settings_path: str) -> NoReturn:
    """Handle one crash with the settings in *settings_path* and leave."""
    try:
        core = claim_core()
        code = handle(core, sys.argv[1:], settings_path)
    except SecurecoreError as error:
        log("failed", error=error.message, code=error.exit_code)
        code = error.exit_code
    except Exception as error:  # noqa: BLE001  # a top level: whatever happens, one line says so
        log("failed", error=f"bug: {type(error).__name__}: {error}", code=1)
        code = 1
    sys.exit(code)


def claim_core() -> int:
    """Return the core's descriptor, moved away from 0, with 0, 1 and 2 bound to /dev/null; step 1."""
    # Above 9 it stays clear of the pidfd that %F passes as descriptor 3.
    core = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
    return core


def handle(core: int, argv: list[str], settings_path: str) -> int:
    """Do steps 2 to 10 and return the exit code; closes *core* as soon as it is drained."""
    widen(core)
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
    parcel = Parcel(dump, report_crash(arguments).encode(), time.time_ns() // 1_000_000)
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


def widen(core: int) -> None:
    """Let the pipe hold 1 MiB instead of 64 KiB; a descriptor that is no pipe is left as it is."""
    try:
        fcntl.fcntl(core, fcntl.F_SETPIPE_SZ, limits.PIPE_BYTES)
    except OSError:
        pass


def report_crash(arguments: KernelArguments) -> CrashReport:
    """Return the report: the kernel's arguments, and what /proc tells."""
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
        **procfs.snapshot(arguments),
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


def log(event: str, **facts: object) -> None:
    """Write one line ``event key=value …`` to the system's log, or drop it where the log does not take it at once.

    Values are quoted as JSON, so that no value can look like another line. Not through syslog(3): that waits while the log's socket
    is full, and the log's own daemon may be the process that crashed and waits for us.
    """
    words = " ".join(f"{key}={json.dumps(value)}" for key, value in facts.items() if value is not None)
    level = _ERROR if event == "failed" else _WARNING if event.startswith("spool") else _NOTICE
    line = f"<{_DAEMON | level}>securecore[{os.getpid()}]: {event} {words}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system_log:
            system_log.setblocking(False)
            system_log.connect("/dev/log")
            system_log.send(line.encode("ascii", "backslashreplace"))
    except OSError:
        pass
