"""One crash: steps 3 to 5 of handler.py, which are the same wherever the core goes; then the network's way or the local one."""

import os
import time

from securecore import __version__, limits
from securecore.declarations import TYPE_CHECKING, NamedTuple, Self
from securecore.errors import ConfigError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import privileges, procfs
from securecore.sender.confinement import Confinement, confine
from securecore.sender.handler import collect_garbage
from securecore.sender.kernel_arguments import KernelArguments, parse_arguments
from securecore.sender.lifetime import Lifetime
from securecore.sender.local_mode import LocalMode, parse_local_mode
from securecore.sender.system_log import log

if TYPE_CHECKING:
    from securecore.sender.coredump_socket import Gate
    from securecore.sender.program import ProgramReader
    from securecore.sender.provisions import Provisions
    from securecore.sender.settings import LocalSettings


def handle(core: int, argv: list[str], settings_path: str) -> int:
    """Do steps 3 to 10 and return the exit code; closes *core* as soon as it is drained."""
    privileges.forbid_own_core()
    os.umask(0o077)
    mode, numbers = parse_local_mode(argv)
    arguments = parse_arguments(numbers)
    dump = DumpId.make(time.time_ns() // 1_000_000, os.urandom(10))
    # Each way loads what it needs, and only that: a local one no TLS, and both while the kernel fills the pipe.
    if mode is not None:
        return keep(core, arguments, mode, dump, settings_path)
    return send(core, arguments, dump, settings_path)


def send(
    core: int,
    arguments: KernelArguments,
    dump: DumpId,
    settings_path: str,
    gate: "Gate | None" = None,
    provisions: "Provisions | None" = None,
) -> int:
    """Do what is left on a machine that sends its cores, and return the exit code; *gate* is the one of a coredump socket.

    *provisions* are there where settings and roots were read before.
    """
    from securecore.sender.settings import load_settings

    settings = provisions.settings if provisions is not None else load_settings(settings_path)
    confine(settings.confinement)
    deadlines = settings.confinement.deadline_s, settings.confinement.source_deadline_s
    with Lifetime(core, *deadlines) as lifetime, meet(arguments, core) as crash:
        # Only now: a child finds out meanwhile about the program.
        from securecore.sender import spool_directory, tally

        owner = settings.uid, settings.gid
        place = tally.Place(lambda: spool_directory.open_spool_directory(settings.spool), *owner, "spool-missing")
        taken = tally.judge(core, place, settings.admission, dump, crash.report, crash.program, gate)
        if taken is None:
            return 0
        try:
            # Only now: in a storm most crashes have ended before.
            from securecore.sender.late import load_ssl

            load_ssl()
            from securecore.sender import network

            return network.send(core, settings, dump, crash.finish, taken, lifetime, provisions)
        finally:
            crash.leave()
            # An error may have come before anybody knew what becomes of the dump. Root's files in the spool would be no use to
            # anybody.
            privileges.drop(settings.uid, settings.gid)
            taken.conclude(is_kept=spool_directory.has_dump(taken.tally.directory, dump))


def keep(core: int, arguments: KernelArguments, mode: LocalMode, dump: DumpId, settings_path: str) -> int:
    """Do what is left on a machine that keeps its cores, and return the exit code."""
    settings, problem = find_local_settings(settings_path)
    confine(Confinement())
    with Lifetime(core, limits.HANDLER_DEADLINE_S, limits.SOURCE_DEADLINE_S) as lifetime, meet(arguments, core) as crash:
        # Only now, as on the other way.
        from securecore.sender import cores_directory, tally

        fd, owner = cores_directory.open_cores_directory(mode.directory)
        cores_directory.check_owner(owner, mode.directory)
        place = tally.Place(lambda: cores_directory.open_state(fd, owner), *owner)
        taken = tally.judge(core, place, settings.admission, dump, crash.report, crash.program)
        if taken is None:
            return 0
        if problem is not None:
            # Not of each crash of a storm.
            log("untidy", error=f"{problem}; the usual admission and floor hold")
        try:
            # Only now: in a storm most crashes have ended before.
            from securecore.sender import cores, local

            collect_garbage()
            directory = cores.CoreDirectory(fd, owner, settings.floor)
            return local.keep(core, mode, directory, dump, crash.finish(), taken, lifetime)
        finally:
            crash.leave()
            # Of what fails once a core was begun, local.py knows what is there.
            privileges.drop(*owner)
            taken.conclude(is_kept=False)


def find_local_settings(settings_path: str) -> "tuple[LocalSettings, str | None]":
    """Return what stands beside *settings_path*; the usual, and why, where that cannot be read: it must cost no core."""
    from securecore.sender.settings import ADMISSION_NAME, LocalSettings, load_local_settings

    try:
        return load_local_settings(os.path.join(os.path.dirname(settings_path), ADMISSION_NAME)), None
    except ConfigError as error:
        return LocalSettings(), error.message


class Crash(NamedTuple):
    """What is known of a crash so far; as a context it is left at the end, whatever happens."""

    report: CrashReport
    program: "ProgramReader | None"
    """Reads what names the program meanwhile."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Have nobody read of the program any more: by root still, who may end the child; once is enough."""
        if self.program is not None:
            self.program.leave()

    def finish(self) -> CrashReport:
        """Return the report with which file the program is and what names it, as far as that was told in time."""
        return self.report if self.program is None else self.report._replace(**self.program.finish())


def meet(arguments: KernelArguments, core: int) -> Crash:
    """Return the kernel's arguments and what /proc tells as a report.

    A child reads of the program; before anything that may hang it lets go of the descriptor *core*.
    """
    found = procfs.snapshot(arguments, held=(core,))
    report = CrashReport(
        sender=f"securecore {__version__}",
        source="kernel",
        signal=arguments.signal or None,
        pid=arguments.pid,
        tid=arguments.tid,
        uid=arguments.uid,
        gid=arguments.gid,
        dump_mode=arguments.dump_mode,
        core_limit=arguments.core_limit,
        crashed_at=arguments.time,
        **found.fields,
    )
    return Crash(report, found.program)
