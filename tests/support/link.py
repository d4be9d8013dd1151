"""A bad link between two networks of their own: real TCP, over IP packets that are kept to a rate, delayed, dropped and cut off.

Each end is a network namespace whose only way out is a TUN device. What the kernel of one end sends comes out of its device as an
IP packet; a thread here holds it for as long as the link would take, or drops it, and writes it into the other end's device. So the
kernel's own TCP does what it does on such a link: it retransmits, backs off and shrinks its window.
"""

import heapq
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.processes import Seclusion, secluded

NEAR: Final = "10.77.0.1"
FAR: Final = "10.77.0.2"
"""The addresses of the two ends; nothing outside the two namespaces can reach them."""

_DEVICE: Final = "link0"
_PACKET_MAX: Final = 65536
_TCP: Final = 6

_ATTACH: Final = f"""
import fcntl, os, socket, struct, sys
device = os.open("/dev/net/tun", os.O_RDWR)
# TUNSETIFF with IFF_TUN | IFF_NO_PI (linux/if_tun.h): packets without a header of the device's own.
fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"{_DEVICE}", 0x1001))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [device])
"""


class Quality(NamedTuple):
    """How bad a link is, each way."""

    bytes_per_s: float
    delay_s: float
    """One way, beside what the rate and the queue take."""
    loss: float
    """Share of the packets that vanish."""
    queue_bytes: int = 64 * 1024
    """What waits for the rate at most; what finds no room is dropped, as a modem does."""


EMBEDDED: Final = Quality(bytes_per_s=256_000 / 8, delay_s=0.25, loss=0.05)
"""256 kbit/s, 500 ms there and back, one packet in twenty lost: a device on a poor mobile network."""


class _Way:
    """One direction of the link."""

    def __init__(self, quality: Quality, seed: int) -> None:
        self._quality = quality
        self._dice = random.Random(seed)
        self._free_at = 0.0
        self.bytes = 0
        """What came out at the far end."""

    def arrival_of(self, packet: bytes, now: float) -> float | None:
        """Return when a packet that is sent now arrives, None when it never does."""
        waiting_s = max(0.0, self._free_at - now)
        if self._dice.random() < self._quality.loss or waiting_s * self._quality.bytes_per_s > self._quality.queue_bytes:
            return None
        self._free_at = now + waiting_s + len(packet) / self._quality.bytes_per_s
        return self._free_at + self._quality.delay_s


class Link:
    """A link that carries packets between two devices until it is closed."""

    def __init__(self, near: Seclusion, far: Seclusion, devices: tuple[int, int], quality: Quality, seed: int) -> None:
        self.near, self.far = near, far
        """The two ends: what runs ``within`` one reaches the other over the link, and nothing else."""
        self.cuts = 0
        self._devices = devices
        self._ways = (_Way(quality, seed), _Way(quality, seed + 1))
        self._flying: list[tuple[float, int, int, bytes]] = []
        self._known: set[tuple[bytes, bytes]] = set()
        self._dead: set[tuple[bytes, bytes]] = set()
        self._lock = threading.Lock()
        self._stop, self._stopper = os.pipe()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    @property
    def carried(self) -> tuple[int, int]:
        """The bytes of all packets that arrived, from the near end and from the far one."""
        return self._ways[0].bytes, self._ways[1].bytes

    def cut(self) -> None:
        """End all connections that there are, in silence: their packets vanish, as when a NAT on the way has forgotten them."""
        with self._lock:
            self._dead |= self._known
            self._known.clear()
            self.cuts += 1

    def close(self) -> None:
        """Carry nothing any more."""
        os.write(self._stopper, b"x")
        self._thread.join()
        for fd in (*self._devices, self._stop, self._stopper):
            os.close(fd)

    def _carry(self) -> None:
        poll, count = select.poll(), 0
        for fd in (*self._devices, self._stop):
            poll.register(fd, select.POLLIN)
        while True:
            wait_s = self._flying[0][0] - time.monotonic() if self._flying else 1.0
            for fd, _ in poll.poll(max(0.0, wait_s) * 1000):
                if fd == self._stop:
                    return
                count += 1
                self._take_off(self._devices.index(fd), os.read(fd, _PACKET_MAX), count)
            while self._flying and self._flying[0][0] <= time.monotonic():
                _, _, way, packet = heapq.heappop(self._flying)
                self._ways[way].bytes += len(packet)
                os.write(self._devices[1 - way], packet)

    def _take_off(self, way: int, packet: bytes, number: int) -> None:
        if self._is_cut_off(way, packet):
            return
        arrival = self._ways[way].arrival_of(packet, time.monotonic())
        if arrival is not None:
            heapq.heappush(self._flying, (arrival, number, way, packet))

    def _is_cut_off(self, way: int, packet: bytes) -> bool:
        """Whether a TCP packet belongs to a connection that was cut; a connection is known by the ports of its two ends."""
        if packet[0] >> 4 != 4 or packet[9] != _TCP:
            return False
        start = (packet[0] & 15) * 4
        ports = (packet[start : start + 2], packet[start + 2 : start + 4])
        connection = ports if way == 0 else ports[::-1]
        with self._lock:
            if connection in self._dead:
                return True
            self._known.add(connection)
        return False


@contextmanager
def linked(directory: Path, quality: Quality, *, cut_every_s: float | None = None, seed: int = 1) -> Iterator[Link]:
    """Hold two ends and the link between them while the block runs, cut again and again where a time is given.

    Skips the test where this machine does not let us make one.
    """
    with ExitStack() as held:
        ends = []
        for name, own, other in (("near", NEAR, FAR), ("far", FAR, NEAR)):
            (directory / name).mkdir()
            set_up = (
                f"ip tuntap add dev {_DEVICE} mode tun",
                f"ip addr add {own} peer {other} dev {_DEVICE}",
                f"ip link set {_DEVICE} up",
            )
            ends.append(held.enter_context(secluded(directory / name, "127.0.0.1 localhost\n", *set_up)))
        link = Link(ends[0], ends[1], (_attach(ends[0]), _attach(ends[1])), quality, seed)
        held.callback(link.close)
        if cut_every_s is not None:
            held.enter_context(_cutting(link, cut_every_s))
        yield link


def _attach(end: Seclusion) -> int:
    """Return the device of an end as a descriptor from which packets are read and to which they are written."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*end.within, sys.executable, "-c", _ATTACH, str(theirs.fileno())]
        subprocess.run(command, pass_fds=[theirs.fileno()], check=True)
        _, (device, *_), _, _ = socket.recv_fds(ours, 1, 1)
    return device


@contextmanager
def _cutting(link: Link, every_s: float) -> Iterator[None]:
    over = threading.Event()

    def cut() -> None:
        while not over.wait(every_s):
            link.cut()

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
