"""What is found out of a crash at a socket where nobody passes arguments: a simulated /proc, and peers that are not the kernel."""

import os
import socket
from pathlib import Path

import pytest

from securecore.errors import PeerError
from securecore.sender import agent_limits, kernel_facts
from securecore.sender.kernel_arguments import KernelArguments
from securecore.sender.pidfd import PidfdInfo


def has_peer_pidfds() -> bool:
    """Return whether this kernel tells who has connected by a pidfd, by the option's number in asm-generic/socket.h."""
    ours, peers = socket.socketpair()
    with ours, peers:
        try:
            os.close(ours.getsockopt(socket.SOL_SOCKET, 77))
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(not has_peer_pidfds(), reason="SO_PEERPIDFD came with Linux 6.5")

PID = 4711
UNLIMITED = (1 << 64) - 1
DUMPING, OTHER = 0x400600, 0x400408
"""Flags of the thread that dumps, and of one that waits for it: PF_DUMPCORE or PF_POSTCOREDUMP (measured, Linux 6.18)."""


def stat(pid: int, *, name: str = "a", flags: int = DUMPING, code: int = 11) -> str:
    """Return a line of proc_pid_stat(5)."""
    return f"{pid} ({name}) S {' '.join(map(str, [1, 1, 1, 0, -1, flags, *range(42), code]))}\n"


class Proc:
    """A /proc with one process."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.process = directory / str(PID)
        self.process.mkdir(parents=True)
        self.write("stat", stat(PID, flags=OTHER))
        self.write("limits", "Limit   Soft Limit   Hard Limit   Units\nMax core file size        123    unlimited     bytes\n")
        self.add(PID, DUMPING)

    def write(self, name: str, text: str) -> None:
        """Write one of its files."""
        (self.process / name).write_text(text)

    def add(self, tid: int, flags: int) -> None:
        """Add a thread, or change it."""
        (self.process / "task" / str(tid)).mkdir(parents=True, exist_ok=True)
        self.write(f"task/{tid}/stat", stat(tid, flags=flags, code=0))


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """A process of one thread that SIGSEGV ends."""
    return Proc(tmp_path / "proc")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[PidfdInfo | None]:
    """What the kernel tells of the peer, one answer after the other."""
    answers: list[PidfdInfo | None] = [INFO, INFO]
    monkeypatch.setattr(kernel_facts, "find_info", lambda _pidfd: answers.pop(0))
    return answers


INFO = PidfdInfo(PID, 1, 1000, 100, is_dumped=True, dump_mode=1, signal=None)


def meet(proc: Proc) -> KernelArguments:
    """Return what is found out, the pidfd taken out of it."""
    ours, peers = socket.socketpair()
    with ours, peers:
        found = kernel_facts.meet(ours, 1795810401.9, str(proc.path))
    assert found.pidfd is not None
    os.close(found.pidfd)
    return found._replace(pidfd=None)


def test_everything_that_a_pipe_is_told(proc: Proc, told: list[PidfdInfo | None]) -> None:
    """Pid, uid, gid and dump mode by the pidfd; signal and core limit by /proc; the time by the clock."""
    assert meet(proc) == KernelArguments(PID, PID, 1000, 100, 11, 1795810401, 123, 1, None)


def test_the_thread_that_crashed_is_the_one_that_dumps(proc: Proc, told: list[PidfdInfo | None]) -> None:
    """Of many, whichever place it has."""
    proc.add(PID, OTHER)
    for tid in range(PID + 1, PID + 9):
        proc.add(tid, DUMPING if tid == PID + 5 else OTHER)

    assert meet(proc).tid == PID + 5


def test_of_too_many_threads_the_first_stands_for_all(
    proc: Proc, told: list[PidfdInfo | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process waits while they are looked at, so not for as long as it likes."""
    monkeypatch.setattr(agent_limits, "THREADS_MAX", 3)
    proc.add(PID, OTHER)
    for tid in range(PID + 1, PID + 9):
        proc.add(tid, OTHER)

    assert meet(proc).tid == PID


def test_a_later_kernels_own_word_for_the_signal_counts(proc: Proc, told: list[PidfdInfo | None]) -> None:
    """Linux 6.19 says it with the pidfd, which is never another process's."""
    told[:] = [INFO._replace(signal=6)] * 2
    assert meet(proc).signal == 6


def test_a_name_forges_no_signal(proc: Proc, told: list[PidfdInfo | None]) -> None:
    """R15: stat is read behind its last parenthesis."""
    proc.write("stat", stat(PID, name="a) S 1 1 (b"))
    assert meet(proc).signal == 11


def test_a_core_bit_is_no_signal(proc: Proc, told: list[PidfdInfo | None]) -> None:
    """An exit code has it beside the signal once a core was dumped."""
    proc.write("stat", stat(PID, code=0x80 | 6))
    assert meet(proc).signal == 6


@pytest.mark.parametrize("text", ["", "4711", "4711 (a) S", "4711 (a) S x" + " y" * 60, "(" * 9000, "1 (a) S " + "9" * 90])
def test_what_cannot_be_read_costs_no_crash(proc: Proc, told: list[PidfdInfo | None], text: str) -> None:
    """The signal is unknown, the thread is the first one, and no limit is known."""
    for name in ("stat", "limits", f"task/{PID}/stat"):
        proc.write(name, text)
    assert meet(proc) == KernelArguments(PID, PID, 1000, 100, 0, 1795810401, UNLIMITED, 1, None)


def test_without_proc_the_pidfd_tells_what_it_can(tmp_path: Path, proc: Proc, told: list[PidfdInfo | None]) -> None:
    """Who crashed is known all the same."""
    proc.path = tmp_path / "nothing"
    assert meet(proc) == KernelArguments(PID, PID, 1000, 100, 0, 1795810401, UNLIMITED, 1, None)


def test_what_was_read_of_a_process_that_is_gone_is_not_believed(proc: Proc, told: list[PidfdInfo | None]) -> None:
    """CVE-2025-4598: its number may be another's by then. A rule that asks for a signal fits no crash without one."""
    told[1] = None
    assert meet(proc) == KernelArguments(PID, PID, 1000, 100, 0, 1795810401, UNLIMITED, 1, None)


def test_where_no_dump_mode_is_said_it_is_the_sensitive_one(proc: Proc, told: list[PidfdInfo | None]) -> None:
    """R3: what is not known to be ordinary is kept as what is not."""
    told[:] = [INFO._replace(dump_mode=None)] * 2
    assert meet(proc).dump_mode == 2


def test_a_process_that_nobody_dumps_is_not_the_kernel(proc: Proc, told: list[PidfdInfo | None]) -> None:
    """Root itself may connect; it is named."""
    told[:] = [INFO._replace(is_dumped=False)]
    with pytest.raises(PeerError, match=r"process 4711 of user 1000 has connected, which is not the kernel"):
        meet(proc)


def test_a_peer_that_is_gone_is_nobody(proc: Proc, told: list[PidfdInfo | None]) -> None:
    """Nothing can be told of it."""
    told[:] = [None]
    with pytest.raises(PeerError, match="is gone"):
        meet(proc)


def test_this_process_is_not_the_kernel(proc: Proc) -> None:
    """By the kernel's own word, without any part in its place; and no descriptor is left behind."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PeerError):
        meet(proc)
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_has_connected_is_known_with_its_parent() -> None:
    """By that an agent tells its own children."""
    ours, peers = socket.socketpair()
    with ours, peers:
        found = kernel_facts.find_peer_pid(ours)
    if os.path.exists("/proc/sys/kernel/core_modes"):
        assert found == (os.getpid(), os.getppid())
