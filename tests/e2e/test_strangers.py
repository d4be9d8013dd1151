"""Five hundred connections of peers that never show who they are, while a host sends: the host is served, and nearly as fast."""

import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.names import Address
from tests.receiver.test_strange_clients import client_hello
from tests.support.certificates import Fleet
from tests.support.local_files import noise
from tests.support.processes import receiving
from tests.support.receivers import papers_of, send_bytes

pytestmark = pytest.mark.slow

STRANGERS: Final = 500
HELLO: Final = client_hello()
ADDRESSES: Final = 10
"""Of loopback, that the strangers come from."""


class Crowd:
    """Strangers of three kinds: silent ones, ones that drip a hello byte by byte, ones that stop within the handshake."""

    def __init__(self, where: Address, stack: ExitStack) -> None:
        self._where, self._stack = where, stack
        self._dripping: list[tuple[socket.socket, Iterator[int]]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._drip)
        self.came = 0

    def come(self, number: int) -> None:
        """Open so many connections more."""
        for _ in range(number):
            source = (f"127.0.0.{2 + self.came % ADDRESSES}", 0)
            peer = socket.create_connection((self._where.host, self._where.port), timeout=20, source_address=source)
            self._stack.enter_context(peer)
            if self.came % 3 == 1:
                self._dripping.append((peer, iter(HELLO)))
            elif self.came % 3 == 2:
                peer.sendall(HELLO)
            self.came += 1

    @contextmanager
    def dripping(self) -> Iterator[None]:
        """Drip while the block runs: a byte of each every tenth of a second."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()

    def _drip(self) -> None:
        while not self._stopping.wait(0.1):
            for peer, rest in list(self._dripping):
                try:
                    peer.send(bytes([next(rest)]))
                except (OSError, StopIteration):
                    self._dripping.remove((peer, rest))


def resident_kib(pid: int) -> int:
    """Return a process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def seconds_for(core: bytes, fleet: Fleet, receivers: list[Address]) -> float:
    """Return how long it takes until a dump's receipt is here."""
    began = time.monotonic()
    assert send_bytes(core, papers_of(fleet.host), receivers).failure is None
    return time.monotonic() - began


def test_a_host_gets_through_a_crowd_of_strangers(fleet: Fleet, tmp_path: Path) -> None:
    """Each of its dumps arrives at the first try, in a time of the same order; a stranger takes less than 1 MiB of memory."""
    cores = [noise(2 * limits.MIB, seed) for seed in range(5)]
    with receiving(fleet.receiver, tmp_path / "store") as receiver, ExitStack() as stack:
        alone = statistics.median(seconds_for(core, fleet, receiver.addresses) for core in cores)
        before = resident_kib(receiver.popen.pid)
        crowd = Crowd(receiver.addresses[0], stack)
        with crowd.dripping():
            crowd.come(STRANGERS)
            receiver.logged("made room for others")
            each = (resident_kib(receiver.popen.pid) - before) / limits.MAX_STRANGERS
            amid = []
            for core in cores:
                crowd.come(20)
                amid.append(seconds_for(core, fleet, receiver.addresses))
    print(f"alone {alone:.3f} s, amid strangers {statistics.median(amid):.3f} s; {each:.0f} KiB for each of {limits.MAX_STRANGERS}")
    assert statistics.median(amid) < 5 * alone + 1
    assert each < limits.MIB / limits.KIB
