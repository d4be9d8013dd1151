"""TCP proxies that fail in a chosen way: the network between a sender and a receiver."""

import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Final, NamedTuple, Protocol

from securecore.names import Address


def wait_readable(sockets: Sequence[socket.socket], wait_s: float | None = None) -> list[socket.socket]:
    """Return the sockets that have something to read, or an end, once there is one; select(2) knows no descriptor above 1023."""
    poll, by_fd = select.poll(), {one.fileno(): one for one in sockets}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    return [by_fd[fd] for fd, _ in poll.poll(None if wait_s is None else max(0.0, wait_s) * 1000)]


class _Proxy(Protocol):
    """What passes connections on."""

    def serve(self) -> None:
        """Accept until it is closed."""

    def close(self) -> None:
        """Stop accepting."""


@contextmanager
def serving(proxy: _Proxy) -> Iterator[None]:
    """Serve in a thread while the block runs."""
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield
    finally:
        proxy.close()
        thread.join()


class Cut(NamedTuple):
    """Where and how the connection ends: after so many bytes in one direction."""

    after_bytes: int
    from_sender: bool
    is_reset: bool = False
    """RST instead of FIN."""


NEVER = Cut(1 << 62, True)
"""A connection that is passed to its own end."""


class CuttingProxy:
    """Passes bytes both ways until the cut, *chunk* at a time; only the first connection is cut."""

    def __init__(self, target: Address, cut: Cut, chunk: int = 65536) -> None:
        self._target = target
        self._cut: Cut | None = cut
        self._chunk = chunk
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Accepted sockets inherit it: the kernel then takes little more than one chunk from a sender before it has to wait.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, chunk)
        self.address = Address(f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.was_cut = False

    def serve(self) -> None:
        """Accept until the listener is closed, and wait for what is under way then."""
        threads = []
        while True:
            try:
                sender, _ = self._listener.accept()
            except OSError:
                break
            threads.append(threading.Thread(target=self._pass, args=(sender, self._cut)))
            self._cut = None
            threads[-1].start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Stop accepting."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _pass(self, sender: socket.socket, cut: Cut | None) -> None:
        try:
            receiver = socket.create_connection((self._target.host, self._target.port))
        except OSError:
            sender.close()  # Nobody is there: so it is for the sender.
            return
        passed = {sender: 0, receiver: 0}
        with sender, receiver:
            while True:
                for source in wait_readable([sender, receiver]):
                    try:
                        data = source.recv(self._chunk)
                    except OSError:
                        return
                    if cut is not None and (source is sender) == cut.from_sender:
                        data = data[: cut.after_bytes - passed[source]]
                    target = receiver if source is sender else sender
                    try:
                        target.sendall(data)
                    except OSError:
                        return
                    passed[source] += len(data)
                    is_over = cut is not None and (source is sender) == cut.from_sender and passed[source] >= cut.after_bytes
                    if is_over and cut is not None and cut.is_reset:
                        for end in (sender, receiver):
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    if is_over or not data:
                        self.was_cut = is_over
                        return


@contextmanager
def cutting(target: Address, cut: Cut, chunk: int = 65536) -> Iterator[CuttingProxy]:
    """Run a proxy while the block runs."""
    proxy = CuttingProxy(target, cut, chunk)
    with serving(proxy):
        yield proxy


class Link(NamedTuple):
    """How bad a connection is, in each of its directions."""

    bytes_per_s: float
    latency_s: float = 0.0
    """For one way."""
    cut_after_bytes: int | None = None
    """Bytes from the sender after which every connection is cut; None never ends one.

    What is on its way then is lost. The receiver hears an end, so that what has reached its host is not thrown away as by a reset:
    a link that goes dark throws nothing away either.
    """


class _Lane:
    """What is under way in one direction."""

    def __init__(self, source: socket.socket, target: socket.socket, link: Link) -> None:
        self.source, self.target, self._link = source, target, link
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._free_at = 0.0
        self.brought = 0
        self.has_ended = False

    def has_room(self) -> bool:
        """Whether the link takes more: it holds what its rate lets through in its latency and a twentieth of a second more."""
        return not self.has_ended and self._free_at - time.monotonic() < 0.05

    def take(self) -> None:
        """Read what the source has, up to a small packet."""
        data = self.source.recv(8192)
        self.has_ended = not data
        self._free_at = max(self._free_at, time.monotonic()) + len(data) / self._link.bytes_per_s
        self._under_way.append((self._free_at + self._link.latency_s, data))

    def bring(self) -> float:
        """Hand over what has arrived, and return the seconds until more does; raises EOFError behind the source's last byte."""
        while self._under_way:
            left = self._under_way[0][0] - time.monotonic()
            if left > 0:
                return left
            data = self._under_way.popleft()[1]
            if not data:
                raise EOFError
            self.target.sendall(data)
            self.brought += len(data)
        return max(self._free_at - time.monotonic(), 0.01)


class BadLink:
    """Passes bytes both ways as slowly as a link does, and cuts every connection where it says."""

    def __init__(self, target: Address, link: Link) -> None:
        self._target, self._link = target, link
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Accepted sockets inherit it: what the link does not take must wait in the sender, not here.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        self.address = Address(f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.passed: list[int] = []
        """Bytes from the sender that each connection has brought."""

    def serve(self) -> None:
        """Accept until the listener is closed, one connection after the other."""
        while True:
            try:
                sender, _ = self._listener.accept()
            except OSError:
                return
            with sender, socket.create_connection((self._target.host, self._target.port)) as receiver:
                lanes = [_Lane(sender, receiver, self._link), _Lane(receiver, sender, self._link)]
                try:
                    self._pass(lanes)
                except (OSError, EOFError):
                    pass  # An end has gone: so does the connection.
                self.passed.append(lanes[0].brought)

    def _pass(self, lanes: list[_Lane]) -> None:
        most = self._link.cut_after_bytes
        while most is None or lanes[0].brought < most:
            wait_s = min(lane.bring() for lane in lanes)
            readable = wait_readable([lane.source for lane in lanes if lane.has_room()], wait_s)
            for lane in lanes:
                if lane.source in readable:
                    lane.take()

    def close(self) -> None:
        """Stop accepting; a connection that is open goes on to its end."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def bad_link(target: Address, link: Link) -> Iterator[BadLink]:
    """Run a bad link while the block runs."""
    proxy = BadLink(target, link)
    with serving(proxy):
        yield proxy


class Action(Enum):
    """How a connection fails."""

    FIN = "fin"
    """Both directions end in good order, below TLS."""
    RST = "rst"
    HALF_CLOSE = "half-close"
    """The faulty direction ends, the other one goes on."""
    STALL = "stall"
    """The faulty direction goes dark; neither end hears that the other one goes."""
    DRIP = "drip"
    """The faulty direction goes on byte by byte, and neither end hears that the other one goes."""


class Fault(NamedTuple):
    """At which byte of which TLS record of a direction the connection fails: exactly so much passes, no more and no less."""

    from_sender: bool
    record: int
    offset: int
    action: Action


_RECORD_HEADER_BYTES: Final = 5
"""Type, version and the length of what follows (RFC 8446 section 5.1)."""
_DRIP_EVERY_S: Final = 0.05


class _Direction:
    """One direction's bytes, counted in TLS records."""

    def __init__(self, source: socket.socket, target: socket.socket, fault: Fault | None) -> None:
        self.source, self.target = source, target
        self.records = 0
        self.is_faulty = fault is not None
        self.dripping = bytearray()
        self._fault = fault
        self._header = b""
        self._left = 0
        """Bytes of the current record's body that have not passed yet."""

    def take(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return what of *data* passes, what does not, and whether the fault is reached behind it."""
        at = 0
        while at < len(data) and not self._is_reached():
            at += self._count(data[at:])
        return data[:at], data[at:], self._is_reached()

    def _is_reached(self) -> bool:
        return self._fault is not None and (self.records, self._offset()) >= (self._fault.record, self._fault.offset)

    def _offset(self) -> int:
        return len(self._header) if len(self._header) < _RECORD_HEADER_BYTES else _RECORD_HEADER_BYTES + self._body() - self._left

    def _body(self) -> int:
        return int.from_bytes(self._header[3:], "big")

    def _count(self, data: bytes) -> int:
        """Take a header's next byte or a part of a body, not beyond the fault; return its length."""
        if len(self._header) < _RECORD_HEADER_BYTES:
            self._header += data[:1]
            taken = 1
            self._left = self._body()
        else:
            taken = min(self._left, len(data))
            if self._fault is not None and self.records == self._fault.record:
                taken = min(taken, self._fault.offset - self._offset())
            self._left -= taken
        if len(self._header) == _RECORD_HEADER_BYTES and self._left == 0:
            self.records += 1
            self._header = b""
        return taken


class FaultyProxy:
    """Passes one connection both ways up to a fault that is placed by TLS records, and then fails as it says."""

    def __init__(self, target: Address, fault: Fault | None) -> None:
        self._target, self._fault = target, fault
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.was_reached = False
        self._ends: list[socket.socket] = []
        self.records: tuple[int, int] = (0, 0)
        """TLS records that passed from the sender and from the receiver."""

    def serve(self) -> None:
        """Serve one connection."""
        try:
            sender, _ = self._listener.accept()
        except OSError:
            return
        with sender, socket.create_connection((self._target.host, self._target.port)) as receiver:
            self._ends = [sender, receiver]
            fault = self._fault
            ways = {
                sender: _Direction(sender, receiver, fault if fault and fault.from_sender else None),
                receiver: _Direction(receiver, sender, fault if fault and not fault.from_sender else None),
            }
            try:
                self._pass(ways)
            except OSError:
                pass  # An end has gone in a hurry: so does the connection.
            self.records = (ways[sender].records, ways[receiver].records)

    def close(self) -> None:
        """Stop accepting, and end what is still open."""
        for end in (*self._ends, self._listener):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # It has ended before.
        self._listener.close()

    def _pass(self, ways: dict[socket.socket, _Direction]) -> None:
        open_ends = set(ways)
        while open_ends:
            drops = [way for way in ways.values() if way.dripping and way.target in open_ends]
            ready = wait_readable(list(open_ends), _DRIP_EVERY_S if drops else None)
            for way in drops if not ready else []:
                way.target.sendall(way.dripping[:1])
                del way.dripping[:1]
            for end in ready:
                way, data = ways[end], end.recv(65536)
                if not data and not self._is_dark:
                    return
                if not data:
                    open_ends.discard(end)
                elif self.was_reached and way.is_faulty:
                    self._swallow(way, data)
                elif self._forward(way, data):
                    return

    @property
    def _is_dark(self) -> bool:
        return self.was_reached and self._fault is not None and self._fault.action in (Action.STALL, Action.DRIP)

    def _forward(self, way: _Direction, data: bytes) -> bool:
        """Pass what may pass; return whether the connection is over."""
        passing, rest, is_reached = way.take(data)
        try:
            way.target.sendall(passing)
        except OSError:
            if not self._is_dark:
                raise
        if not is_reached or self._fault is None:
            return False
        self.was_reached = True
        if self._fault.action is Action.HALF_CLOSE:
            way.target.shutdown(socket.SHUT_WR)
        elif self._fault.action is Action.RST:
            for end in (way.source, way.target):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._swallow(way, rest)
        return self._fault.action in (Action.FIN, Action.RST)

    def _swallow(self, way: _Direction, data: bytes) -> None:
        if self._fault is not None and self._fault.action is Action.DRIP:
            way.dripping += data


@contextmanager
def faulty(target: Address, fault: Fault | None) -> Iterator[FaultyProxy]:
    """Run a proxy for one connection while the block runs."""
    proxy = FaultyProxy(target, fault)
    with serving(proxy):
        yield proxy
