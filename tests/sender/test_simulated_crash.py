"""An agent's child, whole, with a simulated kernel at the other end of its socket: where the real one has no such sockets."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore import limits
from securecore.names import Address
from securecore.sender.admission import EXCLUDE, Admission, Rule, StormLimit
from securecore.sender.coredump_socket import KERNEL, REJECT, WAIT
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.kernel import Installed, kernel_arguments
from tests.support.local_files import noise

pytestmark = pytest.mark.slow

FREE = StormLimit(0, 1)
CORE = write_core([Segment(noise(3 * limits.MIB))])
REQUEST = struct.pack("=IIQ", 16, 16, 0xF)
CONTENT = struct.pack("=I", 0)
CHILD = """
import socket, sys
from securecore.sender import agent, kernel_facts
from securecore.sender.kernel_arguments import parse_arguments
kernel_facts.meet = lambda connection, clock: parse_arguments(sys.argv[3:])
sys.exit(agent.handle(socket.socket(fileno=int(sys.argv[1])), sys.argv[2]))
"""
"""Who has crashed is the test's own process, which is not being dumped: that it is asked for is tested elsewhere."""


class SimulatedKernel:
    """The kernel's end of a connection to an agent's child, which runs as a process of its own."""

    def __init__(self, installed: Installed) -> None:
        self.end, theirs = socket.socketpair()
        self.end.settimeout(60)
        words = [str(theirs.fileno()), str(installed.settings), *kernel_arguments()]
        self.child = subprocess.Popen([sys.executable, "-c", CHILD, *words], pass_fds=(theirs.fileno(),), cwd="/")
        theirs.close()

    def ask(self, request: bytes = REQUEST) -> tuple[int, int, int]:
        """Send a request and return the answer's size, spare and mask."""
        self.end.sendall(request)
        return struct.unpack("=IIQ", self.end.recv(16))

    def is_let_go(self) -> bool:
        """Return whether the process that the kernel holds may go: WAIT ends with the connection, and no byte comes before."""
        return self.end.recv(1) == b""

    def close(self) -> None:
        """End what is there still."""
        self.child.kill()
        self.child.wait()
        self.end.close()


@pytest.fixture
def installed(fleet: Fleet, tmp_path: Path) -> Installed:
    """A host without a receiver: what is kept is in its spool."""
    made = Installed(tmp_path, fleet.host, [Address("127.0.0.1:9")])
    made.change(admission=Admission(program=FREE, user=FREE, host=FREE))
    return made


@pytest.fixture
def kernel(installed: Installed) -> Iterator[SimulatedKernel]:
    """A crash that is handed over; settings are read behind the request."""
    made = SimulatedKernel(installed)
    yield made
    made.close()


def spooled_end(installed: Installed) -> tuple[str, int]:
    """Return outcome and size of the only dump in the spool."""
    (path,) = (installed.spool / "dumps").glob("*/end.json")
    end = json.loads(path.read_bytes())
    return end["outcome"], end["size"]


def test_a_core_is_taken_whole_and_its_process_let_go(installed: Installed, kernel: SimulatedKernel) -> None:
    """KERNEL and WAIT; the process goes once all is drained."""
    answer = kernel.ask()
    kernel.end.sendall(CONTENT + CORE)
    kernel.end.shutdown(socket.SHUT_WR)
    is_let_go = kernel.is_let_go()
    kernel.child.wait(60)
    (report,) = installed.spooled_reports()

    assert answer == (16, 0, KERNEL | WAIT)
    assert is_let_go
    assert spooled_end(installed) == ("complete", len(CORE))
    assert report["pid"] == os.getpid()


def test_a_plain_socket_has_no_questions(installed: Installed, kernel: SimulatedKernel) -> None:
    """The core comes at once, and nothing is answered."""
    kernel.end.sendall(CORE)
    kernel.end.shutdown(socket.SHUT_WR)
    is_let_go = kernel.is_let_go()
    kernel.child.wait(60)

    assert is_let_go
    assert spooled_end(installed) == ("complete", len(CORE))


def test_a_longer_request_of_a_later_kernel_changes_nothing(installed: Installed, kernel: SimulatedKernel) -> None:
    """What it offers beyond is not taken, and what stands there is no part of the core."""
    answer = kernel.ask(struct.pack("=IIQ", 32, 24, 0x7F) + bytes(range(16)))
    kernel.end.sendall(CONTENT + CORE)
    kernel.end.shutdown(socket.SHUT_WR)
    kernel.child.wait(60)

    assert answer == (16, 0, KERNEL | WAIT)
    assert spooled_end(installed) == ("complete", len(CORE))


@pytest.mark.parametrize("length", [1, 64, limits.MIB, len(CORE) - 1])
def test_a_core_that_is_cut_is_kept_as_such(installed: Installed, kernel: SimulatedKernel, length: int) -> None:
    """The process was killed while it was dumped: only the ELF headers tell, as with a pipe."""
    kernel.ask()
    kernel.end.sendall(CONTENT + CORE[:length])
    kernel.end.close()
    kernel.child.wait(60)

    assert spooled_end(installed) == ("source-truncated", length)


@pytest.mark.parametrize("mark", [b"", CONTENT[:2], struct.pack("=I", 3), CONTENT], ids=["none", "half", "complaint", "content"])
def test_a_kernel_that_dumps_nothing_leaves_a_report(installed: Installed, kernel: SimulatedKernel, mark: bytes) -> None:
    """That there was a crash is known; of its core there is nothing, and it does not pass for whole."""
    kernel.ask()
    kernel.end.sendall(mark)
    kernel.end.close()
    kernel.child.wait(60)
    (report,) = installed.spooled_reports()

    assert spooled_end(installed) == ("source-truncated", 0)
    assert report["pid"] == os.getpid()


@pytest.mark.parametrize("request_", [b"", REQUEST[:7], b"\0" * 16, b"\xff" * 16], ids=["none", "half", "zeroes", "ones"])
def test_who_does_not_speak_the_protocol_gets_nothing(installed: Installed, kernel: SimulatedKernel, request_: bytes) -> None:
    """No answer, and nothing in the spool."""
    kernel.end.sendall(request_)
    kernel.end.shutdown(socket.SHUT_WR)
    is_let_go = kernel.is_let_go()

    assert is_let_go
    assert kernel.child.wait(60) != 0
    assert installed.spooled() == []


@pytest.mark.parametrize("kind", ["rule", "storm"])
def test_what_is_declined_is_refused_before_it_is_dumped(installed: Installed, kind: str) -> None:
    """By a rule for its signal, or by a storm limit that is used up."""
    if kind == "rule":
        installed.change(admission=Admission(rules=(Rule(EXCLUDE, signal=11),), program=FREE, user=FREE, host=FREE))
    else:
        installed.change(admission=Admission(program=FREE, user=FREE, host=StormLimit(1, 3600)))
        first = SimulatedKernel(installed)
        first.ask()
        first.end.sendall(CONTENT + CORE)
        first.end.shutdown(socket.SHUT_WR)
        first.child.wait(60)
        first.close()
    before = installed.spooled()
    kernel = SimulatedKernel(installed)
    answer = kernel.ask()
    code = kernel.child.wait(60)
    kernel.close()

    assert (answer, code) == ((16, 0, REJECT), 0)
    assert installed.spooled() == before


def test_a_core_whose_size_counts_is_begun_and_let_go(installed: Installed) -> None:
    """Its headers have to be seen; behind them the connection is closed."""
    installed.change(admission=Admission(max_size=limits.MIB, program=FREE, user=FREE, host=FREE))
    kernel = SimulatedKernel(installed)
    answer = kernel.ask()
    kernel.end.sendall(CONTENT + CORE[: 4 * limits.KIB])
    code = kernel.child.wait(60)
    kernel.close()

    assert (answer, code) == ((16, 0, KERNEL | WAIT), 0)
    assert installed.spooled() == []
