"""Who is connected to an enroller, how often somebody came, and what became of it."""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple

from securecore.networks import network_of, site_of
from securecore.pki.limits import (
    CLIENTS_PER_MINUTE,
    FAULT_LINES,
    HOST_LINES,
    HOSTS_LINES,
    MAX_CLIENTS,
    MAX_CLIENTS_PER_NETWORK,
    MAX_CLIENTS_PER_SITE,
    MAX_NETWORKS,
    SITE_CLIENTS_PER_MINUTE,
    STRANGER_LINES,
    STRANGERS_LINES,
)

_OTHERS: Final = "other addresses"


class Client(NamedTuple):
    """One connection."""

    networks: tuple[str, ...]
    """What it is counted as, the widest first."""
    comes_too_often: bool

    @property
    def site(self) -> str:
        """The most that its owner may have."""
        return self.networks[0]


class _Bound(NamedTuple):
    """How many connections a network may have at once, and within a minute."""

    at_once: int
    in_a_minute: int


class Clients:
    """The connections that there are; for several threads. *clock* returns seconds that only increase."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._connections = 0
        self._here: Counter[str] = Counter()
        """Connections of each network that has any; one may be in two."""
        self._minute = -1
        self._came: Counter[str] = Counter()
        """How often each network came within the minute."""

    def enter(self, where: tuple[Any, ...]) -> Client | None:
        """Return a new connection's client, None when there are too many at once, of its networks or of all."""
        bounds = _bounds(where)
        with self._changed:
            minute = int(self._clock() // 60)
            if minute != self._minute:
                self._minute, self._came = minute, Counter()
            # The widest first, and no narrower one beyond: who has a /48 must not fill the memory with what is in it.
            comes_too_often = any(self._count(network) > bound.in_a_minute for network, bound in bounds.items())
            is_full = any(self._here[network] >= bound.at_once for network, bound in bounds.items())
            if self._connections >= MAX_CLIENTS or is_full:
                return None
            self._connections += 1
            self._here.update(bounds.keys())
            return Client(tuple(bounds), comes_too_often)

    def leave(self, client: Client) -> None:
        """Forget a connection that is over."""
        with self._changed:
            self._connections -= 1
            self._here.subtract(client.networks)
            self._here = +self._here
            self._changed.notify_all()

    def wait_until_none(self, timeout_s: float) -> bool:
        """Return whether all have left, within *timeout_s*."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._connections, timeout_s)

    def _count(self, network: str) -> int:
        """Count that a network came, and return how often it has within the minute."""
        counted = network if network in self._came or len(self._came) < MAX_NETWORKS else _OTHERS
        self._came[counted] += 1
        return self._came[counted]


def _bounds(where: tuple[Any, ...]) -> dict[str, _Bound]:
    """Return what an address is counted as, the widest first, and what each may take; an IPv4 address is one network."""
    return {
        site_of(where): _Bound(MAX_CLIENTS_PER_SITE, SITE_CLIENTS_PER_MINUTE),
        network_of(where): _Bound(MAX_CLIENTS_PER_NETWORK, CLIENTS_PER_MINUTE),
    }


class Cause(NamedTuple):
    """Whom a line is about: lines of one kind are no part of another's, nor of one who is in it of another's."""

    kind: str
    name: str


def stranger(client: Client) -> Cause:
    """Return the cause of what is told about a peer that has not shown who it is."""
    return Cause("strangers", client.site)


def stranger_at(where: tuple[Any, ...]) -> Cause:
    """Return the same for one that was not let in."""
    return Cause("strangers", site_of(where))


def host(name: str) -> Cause:
    """Return the cause of what is told about a host of the fleet, which it has shown to be."""
    return Cause("hosts", name)


THIS_MACHINE: Final = Cause("faults", "")


def _line_bounds() -> dict[str, tuple[int, int]]:
    """Return how many lines of each kind are told in an hour, of one and of all."""
    return {
        "strangers": (STRANGER_LINES, STRANGERS_LINES),
        "hosts": (HOST_LINES, HOSTS_LINES),
        "faults": (FAULT_LINES, FAULT_LINES),
    }


class Tally:
    """What became of connections: counted, and told as long as there are few lines; for several threads."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], datetime]) -> None:
        self._tell, self._clock = tell, clock
        self._lock = threading.Lock()
        self._begin()

    def issued(self, line: str) -> None:
        """Say that a certificate was issued; always told."""
        self.count("issued")
        self._tell(line)

    def refused(self, code: str, line: str, cause: Cause) -> None:
        """Say why nothing was; *line* has nothing that could steer a terminal."""
        of_one, of_all = _line_bounds()[cause.kind]
        with self._lock:
            self._counts[code] += 1
            # Counted are those that are told, so that memory is bounded too.
            is_told = self._lines[cause] < of_one and self._told[cause.kind] < of_all
            if is_told:
                self._lines[cause] += 1
                self._told[cause.kind] += 1
        if is_told:
            self._tell(line)

    def count(self, what: str) -> None:
        """Count something that nobody needs a line for."""
        with self._lock:
            self._counts[what] += 1

    def summarise(self) -> None:
        """Say what was counted, and begin anew; the caller knows when an hour is over."""
        with self._lock:
            counts, since = self._counts, self._since
            self._begin()
        if counts:
            self._tell(f"since {since:%H:%M} UTC: {', '.join(f'{number} {what}' for what, number in sorted(counts.items()))}")

    def _begin(self) -> None:
        self._since = self._clock()
        self._counts: Counter[str] = Counter()
        self._lines: Counter[Cause] = Counter()
        self._told: Counter[str] = Counter()
