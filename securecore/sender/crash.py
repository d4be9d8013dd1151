"""One crash: steps 3 to 5 of handler.py, which are the same wherever the core goes; then the network's way or the local one."""

import os
import time
from typing import Final

from securecore import __version__
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import privileges, procfs
from securecore.sender.kernel_arguments import KernelArguments, parse_arguments
from securecore.sender.local_mode import parse_local_mode
from securecore.sender.system_log import log

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def handle(core: int, argv: list[str], settings_path: str) -> int:
    """Do steps 3 to 10 and return the exit code; closes *core* as soon as it is drained."""
    privileges.forbid_own_core()
    privileges.yield_to_others()
    os.umask(0o077)
    mode, numbers = parse_local_mode(argv)
    arguments = parse_arguments(numbers)
    dump = DumpId.make(time.time_ns() // 1_000_000, os.urandom(10))
    log("started", dump=str(dump), pid=arguments.pid, signal=arguments.signal, uid=arguments.uid)
    # Each way loads what it needs, and only that: a local one no TLS, and both while the kernel fills the pipe.
    if mode is not None:
        if arguments.core_limit < _PAGE_BYTES:
            return decline(core, dump)
        report = report_crash(arguments, core)
        from securecore.sender import local

        return local.keep(core, mode, dump, report)
    from securecore.sender.settings import load_settings

    settings = load_settings(settings_path)
    if arguments.core_limit < _PAGE_BYTES and settings.admission.respects_core_limit:
        return decline(core, dump)
    report = report_crash(arguments, core)
    refusal = settings.admission.find_refusal(report)
    if refusal is not None:
        from securecore.sender import tally

        return tally.decline(core, settings, dump, report, refusal)
    from securecore.sender import network

    return network.send(core, settings, dump, report)


def decline(core: int, dump: DumpId) -> int:
    """Let a process go whose RLIMIT_CORE is below a page: the kernel does not enforce it for pipes, but nobody wants this core."""
    os.close(core)
    log("declined", dump=str(dump), reason="RLIMIT_CORE")
    return 0


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
