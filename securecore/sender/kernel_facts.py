"""What a pipe's handler is told in its arguments, found out at a coredump socket: from the peer's pidfd, and from /proc.

The peer of a connection is the process that connected, and the kernel connects as the process that it dumps. Whoever else connects
is not being dumped, and is told apart by that. The kernel waits for an answer meanwhile, so /proc/PID is the process's own; that
one is killed meanwhile is noticed, for the pidfd is asked again behind the reading.

* The signal: the kernel says it from Linux 6.19 on (PIDFD_INFO_COREDUMP_SIGNAL). Before, the last field of /proc/PID/stat does: the
  exit code, which for a process that is dumped is the signal, for all of its threads together (measured on Linux 6.18).
* The thread: of all threads one has PF_DUMPCORE in its flags, the one that dumps, which is the one that crashed (fs/coredump.c).
* The core limit: /proc/PID/limits.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from socket import SOL_SOCKET, socket
from typing import Final, NamedTuple

from securecore import limits
from securecore.errors import PeerError
from securecore.sender import agent_limits
from securecore.sender.kernel_arguments import KernelArguments
from securecore.sender.pidfd import PidfdInfo, find_info

_SO_PEERPIDFD: Final = 77
"""asm-generic/socket.h, since Linux 6.5; Python's socket has no name for it yet."""
_LOWEST_FD: Final = 10
_PF_DUMPCORE: Final = 0x200
"""include/linux/sched.h: this thread writes the core."""
_SIGNAL_MASK: Final = 0x7F
"""Of an exit code, as wait(2) has it: without the bit that says that a core was dumped."""
_CORE_LIMIT: Final = re.compile(r"^Max core file size +([0-9]{1,20}|unlimited) ", re.MULTILINE)
_UNLIMITED: Final = (1 << 64) - 1
"""What %c prints."""
_STAT_FLAGS, _STAT_EXIT_CODE = 6, 49
"""Fields 9 and 52 of proc_pid_stat(5), counted behind the name, which is the second."""


class _Peer(NamedTuple):
    """Who is at the other end."""

    pidfd: int
    info: PidfdInfo


def meet(connection: socket, clock: float, proc: str = "/proc") -> KernelArguments:
    """Return what the kernel would tell a pipe's handler of the crash behind a connection; *clock* is the time of the crash.

    Its pidfd is a descriptor of ours. A signal that nobody says is 0, a thread the process's first, a core limit none. Raises
    PeerError when the peer is not a process that the kernel dumps, or is gone.
    """
    peer = _find_peer(connection)
    info = peer.info
    if not info.is_dumped:
        os.close(peer.pidfd)
        raise PeerError(f"process {info.pid} of user {info.uid} has connected, which is not the kernel: nobody dumps it")
    exit_code, tid, core_limit = _read_process(info.pid, proc)
    if find_info(peer.pidfd) is None:
        # What was read may be another process's, which has the number by now.
        exit_code, tid, core_limit = 0, info.pid, _UNLIMITED
    signal = info.signal if info.signal is not None else exit_code & _SIGNAL_MASK
    mode = 2 if info.dump_mode is None else info.dump_mode
    return KernelArguments(info.pid, tid, info.uid, info.gid, signal, int(clock), core_limit, mode, peer.pidfd)


def find_peer_pid(connection: socket) -> tuple[int, int] | None:
    """Return the number of the process behind a connection, and its parent's; None when it is gone."""
    try:
        peer = _find_peer(connection)
    except PeerError:
        return None
    os.close(peer.pidfd)
    return peer.info.pid, peer.info.parent_pid


def _find_peer(connection: socket) -> _Peer:
    try:
        found = connection.getsockopt(SOL_SOCKET, _SO_PEERPIDFD)
        pidfd = fcntl.fcntl(found, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD)
        os.close(found)
    except OSError as error:
        raise PeerError(f"the kernel does not say who has connected: {error.strerror}") from error
    info = find_info(pidfd)
    if info is None:
        os.close(pidfd)
        raise PeerError("who has connected is gone")
    return _Peer(pidfd, info)


def _read_process(pid: int, proc: str) -> tuple[int, int, int]:
    """Return exit code, crashed thread and core limit by /proc; 0, *pid* and none where it does not say."""
    try:
        directory = os.open(os.path.join(proc, str(pid)), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return 0, pid, _UNLIMITED
    try:
        exit_code = _stat_field(_read(directory, "stat"), _STAT_EXIT_CODE) or 0
        found = _CORE_LIMIT.search(_read(directory, "limits"))
        core_limit = int(found[1]) if found is not None and found[1] != "unlimited" else _UNLIMITED
        return exit_code, _find_thread(directory, pid), min(core_limit, _UNLIMITED)
    finally:
        os.close(directory)


def _find_thread(directory: int, pid: int) -> int:
    """Return the thread that dumps; the first one where none of those that are looked at does."""
    for tid in _threads(directory, pid):
        flags = _stat_field(_read(directory, f"task/{tid}/stat"), _STAT_FLAGS)
        if flags is not None and flags & _PF_DUMPCORE:
            return tid
    return pid


def _threads(directory: int, pid: int) -> Iterator[int]:
    """Yield thread numbers, the first thread's first: it is the one of most processes, and then nothing else is listed."""
    yield pid
    try:
        tasks = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return
    try:
        with os.scandir(tasks) as entries:
            for _, entry in zip(range(agent_limits.THREADS_MAX), entries, strict=False):
                if entry.name.isdecimal() and int(entry.name) != pid:
                    yield int(entry.name)
    except OSError:
        return
    finally:
        os.close(tasks)


def _stat_field(stat: str, place: int) -> int | None:
    """Return a number of stat, counted behind the *last* parenthesis (R15); None where there is none."""
    fields = stat.rpartition(") ")[2].split()
    text = fields[place] if len(fields) > place else ""
    return int(text) if text.isdecimal() and len(text) < len(str(_UNLIMITED)) else None


def _read(directory: int, name: str) -> str:
    """Return a small file's text; empty when it cannot be read."""
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
