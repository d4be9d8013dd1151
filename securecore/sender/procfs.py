"""A snapshot of the crashed process from /proc, taken while the kernel holds it.

Everything is read through one descriptor on /proc/PID, opened once, and believed only if the process is still the one that
crashed: the pidfd from the kernel (%F, Linux 6.16) must name the same pid *after* the reading, uid and gid must be the kernel's
(CVE-2025-4598 and CVE-2025-5054: judged by /proc after the pid had been used again), and the process must not be younger than we
are. Nothing outside /proc/PID is read, no path that the process chose is opened (R6, R16). A field that cannot be read is left out;
it never costs the core.
"""

import os

from securecore import limits
from securecore.declarations import Any, Final, Iterable, NamedTuple
from securecore.sender.kernel_arguments import KernelArguments
from securecore.sender.program import ProgramReader

VERIFIED: Final = "verified"
UNVERIFIED: Final = "unverified"
ARGUMENTS: Final = "arguments"

_CONTAINER_ID: Final = r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])"
_NUMBER_DIGITS: Final = 19
"""So few stay within the report's 64 bits; the kernel's own numbers here are shorter by far."""
_UNITS: Final = ("service", "scope", "socket", "mount", "swap")
"""Kinds of systemd's units that hold processes, but for slices, which hold units."""


class _Process(NamedTuple):
    """What /proc/PID says of a process, and what tells whether it is the one that crashed."""

    fields: dict[str, Any]
    uid: int | None
    """Real user id, as the reader's user namespace counts."""
    gid: int | None
    start: int | None
    """Clock ticks since the machine booted."""


class Snapshot(NamedTuple):
    """What is known of the crashed process, and who still finds out which file its program is, and what names it."""

    fields: dict[str, Any]
    """Report fields, ``metadata`` always among them."""
    program: ProgramReader | None
    """To be finished, or left; None where nobody reads, or nothing of what is read would be believed."""


def snapshot(arguments: KernelArguments, proc: str = "/proc", held: Iterable[int] = ()) -> Snapshot:
    """Return what /proc tells of the crashed process, while a child finds out about its program, for which nobody waits here.

    *held* are the descriptors that nobody but this process may hold, the core's among them.

    ``verified``: a pidfd proved that the fields are the crashed process's. ``unverified``: no pidfd to prove it, but nothing speaks
    against it. ``arguments``: /proc was gone or another process's; only machine facts are there beside.
    """
    fields: dict[str, Any] = _machine(proc)
    try:
        directory = os.open(os.path.join(proc, str(arguments.pid)), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        fields["metadata"] = ARGUMENTS
        return Snapshot(fields, None)
    thread = _open_thread(arguments.tid, directory)
    try:
        program = ProgramReader(thread, held)
        try:
            process = _process(directory, thread, proc)
            # What the child tells after this is of the same process: it has a descriptor of its directory, which no other one gets.
            proof = _proof(arguments, process, proc)
        except BaseException:
            program.leave()  # Whatever fails: the child may hang in a file of the crashed process's making.
            raise
    finally:
        os.close(thread)
        os.close(directory)
    fields["metadata"] = proof
    if proof == ARGUMENTS:
        program.leave()
        return Snapshot(fields, None)
    return Snapshot(fields | process.fields, program)


def _open_thread(tid: int, directory: int) -> int:
    """Return a descriptor of the crashing thread's directory in that of its process; of the process's own where there is none.

    A process lives on when its main thread has ended (pthread_exit(3)), but then /proc/PID has no exe, no cmdline and no ns.
    """
    try:
        return os.open(f"task/{tid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return os.dup(directory)


def _proof(arguments: KernelArguments, process: _Process, proc: str) -> str:
    if (process.uid, process.gid) != (arguments.uid, arguments.gid):
        return ARGUMENTS
    # The crash came before us; who has the pid and began after us is somebody else. An earlier start proves nothing (R4).
    own_start = _start_ticks(_read(None, os.path.join(proc, "self", "stat")))
    if process.start is not None and own_start is not None and process.start > own_start:
        return ARGUMENTS
    if arguments.pidfd is None:
        return UNVERIFIED
    # fdinfo of a pidfd says "Pid: -1" once the process was reaped (pidfd_open(2)).
    info = _read(None, os.path.join(proc, "self", "fdinfo", str(arguments.pidfd)))
    return VERIFIED if f"\nPid:\t{arguments.pid}\n" in f"\n{info}" else ARGUMENTS


def _machine(proc: str) -> dict[str, Any]:
    uname = os.uname()
    fields: dict[str, Any] = {"kernel": uname.release, "machine": uname.machine, "node": uname.nodename}
    boot_id = _read(None, os.path.join(proc, "sys/kernel/random/boot_id")).strip()
    if boot_id:
        fields["boot_id"] = boot_id
    return fields


def _process(directory: int, thread: int, proc: str) -> _Process:
    """Return what is to be read of the process behind *directory*, and of the one of its threads that is sure to be alive."""
    fields: dict[str, Any] = {}
    comm = _read(directory, "comm").rstrip("\n")
    executable = _link(thread, "exe").removesuffix(" (deleted)")
    command_line = " ".join(_read(thread, "cmdline").rstrip("\0").split("\0"))
    cgroup = _cgroup(_read(directory, "cgroup"))
    status = _status(_read(directory, "status"))
    start = _start_ticks(_read(directory, "stat"))
    found = {
        "comm": comm,
        "executable": executable,
        "program": os.path.basename(executable) or comm,
        "command_line": command_line[: limits.MAX_TEXT],
        "cgroup": cgroup,
        "unit": _unit(cgroup),
        "container": _container(thread, cgroup, proc),
        "parent_pid": _number(status.get("PPid")),
        "threads": _number(status.get("Threads")),
        "started_at": _started_at(start, _read(None, os.path.join(proc, "stat"))),
    }
    for name, value in found.items():
        if value is not None and value != "":
            fields[name] = value
    return _Process(fields, _number(status.get("Uid")), _number(status.get("Gid")), start)


def _status(text: str) -> dict[str, str]:
    """Return the lines of /proc/PID/status; the first of a key counts, for the kernel prints Name first and escapes newlines."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        key, separator, value = line.partition(":\t")
        if separator:
            found.setdefault(key, value)
    return found


def _number(text: str | None) -> int | None:
    """Return the first word of a line as a number; None when it is none, or has more than 19 digits."""
    word = (text or "").split("\t")[0]
    return int(word) if word.isascii() and word.isdigit() and len(word) <= _NUMBER_DIGITS else None


def _start_ticks(stat: str) -> int | None:
    """Return a process's start in ticks since boot: field 22 of stat, counted behind the *last* parenthesis (R15)."""
    fields = stat.rpartition(") ")[2].split(" ")
    return _number(fields[19]) if len(fields) >= 20 else None


def _started_at(start: int | None, machine_stat: str) -> int | None:
    """Return a process's start in Unix seconds."""
    boot = _number(next((line.removeprefix("btime ") for line in machine_stat.split("\n") if line.startswith("btime ")), None))
    return None if boot is None or start is None else boot + start // os.sysconf("SC_CLK_TCK")


def _cgroup(text: str) -> str | None:
    return next((line[3:] for line in text.split("\n") if line.startswith("0::")), None)


def _unit(cgroup: str | None) -> str | None:
    for part in reversed((cgroup or "").split("/")):
        name, _, kind = part.rpartition(".")
        if name and kind in _UNITS:
            return part
    return None


def _container(thread: int, cgroup: str | None, proc: str) -> str | None:
    """Return a container's id, "unknown" when the process lives in other namespaces without one; None on the host itself (R5)."""
    host = _host_namespace("mnt", proc), _host_namespace("pid", proc)
    its = _link(thread, "ns/mnt"), _link(thread, "ns/pid")
    if its == host and all(host):
        return None
    import re  # only few crashed processes live in a container

    identifier = re.search(_CONTAINER_ID, cgroup or "")
    return identifier.group() if identifier else "unknown"


def _host_namespace(name: str, proc: str) -> str:
    """Return init's namespace; our own where init's is not to be read. The agent's unit gives it mounts that are not the host's."""
    return _link(None, os.path.join(proc, "1/ns", name)) or _link(None, os.path.join(proc, "self/ns", name))


def _link(directory: int | None, name: str) -> str:
    try:
        return os.fsencode(os.readlink(name, dir_fd=directory)).decode("utf-8", "backslashreplace")
    except OSError:
        return ""


def _read(directory: int | None, name: str) -> str:
    """Return a small file's text, at most PROC_READ_BYTES of it; empty when it cannot be read."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return ""
    try:
        return os.read(fd, limits.PROC_READ_BYTES).decode("utf-8", "backslashreplace")
    except OSError:
        return ""
    finally:
        os.close(fd)
