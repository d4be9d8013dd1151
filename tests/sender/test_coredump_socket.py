"""The kernel's words at a coredump socket, by a simulated kernel at the other end of a socketpair."""

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.errors import PeerError, UnreachableError
from securecore.sender.coredump_socket import KERNEL, REJECT, REQUEST_MAX, WAIT, Gate, Request, hear, parse_request

LONG_S: Final = 60.0
REQUEST: Final = struct.pack("=IIQ", 16, 16, 0xF)
"""What Linux 6.17 and 6.18 send."""
CONTENT: Final = struct.pack("=I", 0)
CORE: Final = b"\x7fELF and all that follows"


class Kernel:
    """The other end of a connection."""

    def __init__(self) -> None:
        self.agent, self.end = socket.socketpair()

    def close(self) -> None:
        """Close what is open still."""
        self.agent.close()
        self.end.close()

    def hear_request(self, wait_s: float = LONG_S) -> Request | None:
        """Return what the agent hears."""
        return hear(self.agent, wait_s)

    def gate(self, data: bytes = REQUEST, wait_s: float = LONG_S) -> Gate:
        """Send a request and return the agent's gate."""
        self.end.sendall(data)
        return Gate(self.agent.fileno(), self.hear_request(), wait_s)

    def rest(self) -> bytes:
        """Return what the agent's end still has to read, up to the end."""
        data = b""
        while part := os.read(self.agent.fileno(), 4096):
            data += part
        return data


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """A connection from the kernel."""
    made = Kernel()
    yield made
    made.close()


def test_a_request_is_read_whole_and_nothing_behind_it(kernel: Kernel) -> None:
    """16 bytes; what comes next is another's to read."""
    kernel.end.sendall(REQUEST + b"next")

    assert kernel.hear_request() == Request(16, 16, 0xF)
    assert kernel.agent.recv(9) == b"next"


def test_a_request_comes_in_any_parts(kernel: Kernel) -> None:
    """Byte after byte, each of them sent when the one before it was read."""

    def send() -> None:
        for at in range(len(REQUEST)):
            kernel.end.sendall(REQUEST[at : at + 1])

    sender = threading.Thread(target=send)
    sender.start()
    found = kernel.hear_request()
    sender.join()

    assert found == Request(16, 16, 0xF)


@pytest.mark.parametrize("size", [24, 32, 40, REQUEST_MAX])
def test_a_later_kernels_longer_request_is_passed_over(kernel: Kernel, size: int) -> None:
    """Its first fields mean the same, and the others are no part of the core."""
    kernel.end.sendall(struct.pack("=IIQ", size, 24, 0x7F).ljust(size, b"\xff") + b"core")

    assert kernel.hear_request() == Request(size, 24, 0x7F)
    assert kernel.agent.recv(9) == b"core"


def test_a_plain_socket_begins_with_the_core(kernel: Kernel) -> None:
    """core_pattern @/path: nothing of it is read, nothing is answered, and the core is there whole."""
    kernel.end.sendall(CORE)
    kernel.end.shutdown(socket.SHUT_WR)
    request = kernel.hear_request()
    gate = Gate(kernel.agent.fileno(), request, LONG_S)
    gate.open()
    gate.refuse()

    assert request is None
    assert kernel.rest() == CORE
    assert not select.select([kernel.end], [], [], 0)[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("=IIQ", 15, 16, 0xF), "15 bytes"),
        (struct.pack("=IIQ", REQUEST_MAX + 1, 16, 0xF), "4097 bytes"),
        (b"\xff" * 16, "4294967295 bytes"),
        (struct.pack("=IIQ", 16, 15, 0xF), "cannot say anything"),
        (struct.pack("=IIQ", 16, 16, 0xE), "does not offer"),
        (b"\0" * 16, "0 bytes"),
    ],
)
def test_what_is_no_request_is_refused_in_words(kernel: Kernel, data: bytes, words: str) -> None:
    """Before a byte of memory is given to a length that it claims."""
    kernel.end.sendall(data)
    with pytest.raises(PeerError, match=words):
        kernel.hear_request()


@pytest.mark.parametrize("length", range(len(REQUEST)))
def test_a_kernel_that_goes_away_at_any_byte_is_noticed(kernel: Kernel, length: int) -> None:
    """The process was killed while it waited."""
    kernel.end.sendall(REQUEST[:length])
    kernel.end.close()
    with pytest.raises((UnreachableError, PeerError), match=r"ended|gone"):
        kernel.hear_request()


@pytest.mark.parametrize("length", range(len(REQUEST)))
def test_a_kernel_that_says_no_more_is_given_up(kernel: Kernel, length: int) -> None:
    """It has its time, and no more."""
    kernel.end.sendall(REQUEST[:length])
    with pytest.raises(UnreachableError, match="says nothing"):
        kernel.hear_request(0)


def test_an_open_gate_has_the_kernel_dump_and_hold_the_process(kernel: Kernel) -> None:
    """KERNEL and WAIT, in 16 bytes; behind a content mark comes the core."""
    gate = kernel.gate()
    kernel.end.sendall(CONTENT + CORE)
    kernel.end.shutdown(socket.SHUT_WR)
    gate.open()
    gate.open()
    gate.refuse()

    assert struct.unpack("=IIQ", kernel.end.recv(99)) == (16, 0, KERNEL | WAIT)
    assert kernel.rest() == CORE


def test_a_refusal_comes_before_the_kernel_dumps(kernel: Kernel) -> None:
    """REJECT, alone; and a gate that has refused does not open."""
    gate = kernel.gate()
    gate.refuse()
    gate.open()

    assert struct.unpack("=IIQ", kernel.end.recv(99)) == (16, 0, REJECT)


@pytest.mark.parametrize(("offer", "answer"), [(0x7F, KERNEL | WAIT), (0xF, KERNEL | WAIT), (0x5, KERNEL), (0x1, KERNEL)])
def test_only_what_is_offered_and_known_is_answered(kernel: Kernel, offer: int, answer: int) -> None:
    """A kernel refuses an answer with a bit that it has not offered; we say none that we do not know."""
    gate = kernel.gate(struct.pack("=IIQ", 16, 16, offer))
    kernel.end.sendall(CONTENT)
    gate.open()

    assert struct.unpack("=IIQ", kernel.end.recv(99)) == (16, 0, answer)


def test_a_kernel_that_cannot_be_refused_is_told_nothing(kernel: Kernel) -> None:
    """The connection that is closed without an answer says it."""
    kernel.gate(struct.pack("=IIQ", 16, 16, 0x9)).refuse()

    assert not select.select([kernel.end], [], [], 0)[0]


@pytest.mark.parametrize("mark", [1, 2, 3, 4, 5, 1 << 31])
def test_a_mark_that_complains_ends_the_core(kernel: Kernel, mark: int, logged: list[str]) -> None:
    """Whatever comes behind it is no core: who reads it meets the end, and one line says why."""
    gate = kernel.gate()
    kernel.end.sendall(struct.pack("=I", mark) + CORE)
    gate.open()

    assert kernel.rest() == b""
    assert len(logged) == 1
    assert "the kernel does not dump" in logged[0]


@pytest.mark.parametrize("length", range(len(CONTENT)))
@pytest.mark.parametrize("leave", [lambda end: end.close(), lambda end: None], ids=["gone", "silent"])
def test_a_mark_that_does_not_come_ends_the_core(
    kernel: Kernel, length: int, leave: Callable[[socket.socket], None], logged: list[str]
) -> None:
    """A process that was killed, or a kernel that says no more: at each byte."""
    gate = kernel.gate(wait_s=0)
    kernel.end.sendall(CONTENT[:length])
    leave(kernel.end)
    gate.open()

    assert kernel.rest() == b""
    assert len(logged) == 1


def test_a_kernel_that_is_gone_before_the_answer_costs_nothing(kernel: Kernel, logged: list[str]) -> None:
    """Neither to open nor to refuse raises anything."""
    gate = kernel.gate()
    kernel.end.close()
    gate.open()
    other = Kernel()
    refusing = other.gate()
    other.end.close()
    refusing.refuse()
    other.close()

    assert kernel.rest() == b""
    assert len(logged) == 1


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that go to the system's log."""
    lines: list[str] = []
    monkeypatch.setattr("securecore.sender.coredump_socket.log", lambda event, **facts: lines.append(f"{event} {facts}"))
    return lines


@given(st.binary(max_size=40))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    """And what is taken can be answered."""
    try:
        request = parse_request(data)
    except PeerError:
        return
    assert 16 <= request.size <= REQUEST_MAX
    assert request.answer_max >= 16
    assert request.mask & KERNEL
