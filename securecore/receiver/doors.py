"""Who holds connections, and who must make room when there are too many.

Until it is let in as a host a peer is a stranger, and strangers cost whoever opens them nothing; one that was refused, and stays to
read why, is a stranger still. So none is refused for being one too many: the oldest of the network that has most of them goes
instead. A flood pushes out itself, and a host, whose handshake takes a few round trips, comes through as long as the flood opens
fewer than MAX_STRANGERS connections in that time. (Refusing the newest would shut out everybody for as long as one peer holds all
places.)
"""

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from securecore import limits, units
from securecore.errors import BusyError
from securecore.names import HostName
from securecore.networks import network_of, site_of
from securecore.receiver.listeners import SocketAddress, written
from securecore.receiver.policy import Doors
from securecore.receiver.refusals import NotAdmitted
from securecore.wire.messages import Refusal

if TYPE_CHECKING:
    from securecore.receiver.session import Session

_OTHERS: Final = "other addresses"

log = logging.getLogger("securecore.receiver")


class Visitor:
    """One connection, from the moment it is accepted."""

    def __init__(self, where: SocketAddress) -> None:
        self.peer = written(where)
        self.network, self.site = network_of(where), site_of(where)
        self.session: Session | None = None
        """Once the handshake is done."""
        self.host: HostName | None = None
        """Once it is judged; until then it is a stranger."""
        self.is_sent_away = False
        """It had to make room."""
        self._handle: socket.socket | None = None
        """By which others can end the connection, as long as it is a stranger's."""

    def hang_up(self) -> None:
        """End a stranger's connection below TLS, and so wake the thread that waits for its peer."""
        if self._handle is not None:
            try:
                self._handle.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # The peer was faster.

    def let_go(self) -> None:
        """Close what others could end the connection by."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


class Doorkeeper:
    """The connections that there are; for several threads. *doors* returns the bounds that hold now."""

    def __init__(self, doors: Callable[[], Doors]) -> None:
        self._doors = doors
        self._changed = threading.Condition()
        self._visitors: list[Visitor] = []
        """In the order in which they came."""

    @property
    def count(self) -> int:
        """Connections that are being served, those in their handshake included."""
        with self._changed:
            return len(self._visitors)

    def enter(self, where: SocketAddress) -> Visitor | None:
        """Return a new connection's visitor, after a stranger was sent away if one had to be; None when hosts have all places."""
        visitor, doors = Visitor(where), self._doors()
        with self._changed:
            if len(self._visitors) >= doors.connections + doors.strangers:
                return None  # Who was sent away is here for a moment still, and there are only so many such moments.
            strangers = self._strangers()
            own = [other for other in strangers if other.network == visitor.network]
            if len(own) >= doors.strangers_per_address:
                _send_away(own[0])
            elif len(strangers) >= doors.strangers:
                self._make_room(strangers)
            elif sum(not other.is_sent_away for other in self._visitors) >= doors.connections and not self._make_room(strangers):
                return None
            self._visitors.append(visitor)
        return visitor

    def make_room(self) -> None:
        """Send a stranger away, if there is one: the process has no descriptor left."""
        with self._changed:
            self._make_room(self._strangers())

    def hold(self, visitor: Visitor, handle: socket.socket) -> None:
        """Keep a descriptor of the visitor's connection, to end it by; it is closed when the visitor is identified, or leaves."""
        with self._changed:
            visitor._handle = handle
            if visitor.is_sent_away:
                visitor.hang_up()

    def identify(self, visitor: Visitor, host: HostName) -> None:
        """Note which host a visitor is; raises NotAdmitted when that host has too many connections.

        Raises BusyError when the visitor was sent away meanwhile.
        """
        most = self._doors().per_host
        with self._changed:
            if visitor.is_sent_away:
                raise BusyError("too many connections are in their handshake here")
            if sum(other.host == host for other in self._visitors) >= most:
                words = f"this host has {units.count(most, 'connection')} here already, the most that one may have"
                raise NotAdmitted(Refusal.BUSY, words, retry_after_s=limits.BUSY_RETRY_AFTER_S)
            visitor.host = host
            visitor.let_go()

    def leave(self, visitor: Visitor) -> None:
        """Forget a connection that is over."""
        with self._changed:
            self._visitors.remove(visitor)
            visitor.let_go()
            self._changed.notify_all()

    def visitors(self) -> list[Visitor]:
        """Return all that are here, the oldest first."""
        with self._changed:
            return list(self._visitors)

    def hang_up_strangers(self) -> None:
        """End every handshake; who is through with it can be told why it ends."""
        with self._changed:
            for visitor in self._visitors:
                if visitor.session is None:
                    visitor.hang_up()

    def wait_for_change(self, timeout_s: float) -> None:
        """Return when somebody leaves, or after *timeout_s*."""
        with self._changed:
            self._changed.wait(timeout_s)

    def _strangers(self) -> list[Visitor]:
        return [visitor for visitor in self._visitors if visitor.host is None and not visitor.is_sent_away]

    def _make_room(self, strangers: list[Visitor]) -> bool:
        """Send the oldest stranger away of the network with most of them in the site with most; return whether there was one."""
        if not strangers:
            return False
        # By site first: who has a /48 could come from another /64 each time, and none would have more than an honest peer's.
        site = _most(visitor.site for visitor in strangers)
        network = _most(visitor.network for visitor in strangers if visitor.site == site)
        _send_away(next(visitor for visitor in strangers if visitor.network == network))
        return True


class StrangerLog:
    """The log's lines about peers that have not proved who they are: so many in an hour, and the others are counted.

    Nobody must fill the disk with lines by knocking, nor memory, nor keep an operator from hearing what ails the machine itself.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._begin()

    def failed(self, site: str, line: str) -> None:
        """Say why a connection ended; *site* is whose it was, and what its peer has chosen is quoted in *line* already."""
        with self._lock:
            counted = site if site in self._came or len(self._came) < limits.MAX_CONNECTIONS else _OTHERS
            self._came[counted] += 1
            is_told = self._lines[counted] < limits.STRANGER_LINES and self._lines.total() < limits.ALL_STRANGERS_LINES
            self._lines[counted] += is_told
        if is_told:
            log.warning("%s", line)

    def faulted(self, line: str) -> None:
        """Say that the machine could not take a connection, whoever came: out of lines of its own."""
        with self._lock:
            self._faults += 1
            is_told = self._faults <= limits.FAULT_LINES
        if is_told:
            log.warning("%s", line)

    def summarise(self) -> None:
        """Say how many were only counted, and begin anew; the caller knows when an hour is over."""
        with self._lock:
            untold, since, faults = self._came - self._lines, f"{self._since:%H:%M}", self._faults - limits.FAULT_LINES
            self._begin()
        for site, number in untold.items():
            log.warning("%d more connections of %s were not let in since %s", number, site, since)
        if faults > 0:
            log.warning("%d more connections of any address were not let in since %s, by a fault of this machine", faults, since)

    def _begin(self) -> None:
        self._since = self._clock()
        self._came: Counter[str] = Counter()
        """The sites that are known, at most MAX_CONNECTIONS and one, and how often each came."""
        self._lines: Counter[str] = Counter()
        self._faults = 0


def _most(names: Iterable[str]) -> str:
    """Return the name that is there most often, of several the first."""
    numbers = Counter(names)
    # Not by most_common, which loads a module, and there may be no descriptor left.
    return max(numbers, key=lambda name: numbers[name])


def _send_away(visitor: Visitor) -> None:
    visitor.is_sent_away = True
    visitor.hang_up()
