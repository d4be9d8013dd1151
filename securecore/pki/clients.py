"""Who is connected to an enroller, how often somebody came, and what became of it."""

import ipaddress
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple

from securecore.pki.limits import CLIENTS_PER_MINUTE, LINES_PER_HOUR, MAX_CLIENTS, MAX_CLIENTS_PER_NETWORK, MAX_NETWORKS

_NETWORK_BITS: Final = 64
"""Of an IPv6 address: what one subscriber has, who may use as many addresses in it as he likes (RFC 6177)."""
_OTHERS: Final = "other addresses"


class Client(NamedTuple):
    """One connection."""

    network: str
    comes_too_often: bool


class Clients:
    """The connections that there are; for several threads. *clock* returns seconds that only increase."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._here: Counter[str] = Counter()
        self._minute = -1
        self._came: Counter[str] = Counter()
        """How often each network came within the minute."""

    def enter(self, where: tuple[Any, ...]) -> Client | None:
        """Return a new connection's client, None when there are too many at once, of its network or of all."""
        network = network_of(where)
        with self._changed:
            minute = int(self._clock() // 60)
            if minute != self._minute:
                self._minute, self._came = minute, Counter()
            counted = network if network in self._came or len(self._came) < MAX_NETWORKS else _OTHERS
            self._came[counted] += 1
            if self._here.total() >= MAX_CLIENTS or self._here[network] >= MAX_CLIENTS_PER_NETWORK:
                return None
            self._here[network] += 1
            return Client(network, self._came[counted] > CLIENTS_PER_MINUTE)

    def leave(self, client: Client) -> None:
        """Forget a connection that is over."""
        with self._changed:
            self._here[client.network] -= 1
            if not self._here[client.network]:
                del self._here[client.network]
            self._changed.notify_all()

    def wait_until_none(self, timeout_s: float) -> bool:
        """Return whether all have left, within *timeout_s*."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._here, timeout_s)


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

    def refused(self, code: str, line: str) -> None:
        """Say why nothing was; *line* has nothing that could steer a terminal."""
        with self._lock:
            self._counts[code] += 1
            self._lines += 1
            is_told = self._lines <= LINES_PER_HOUR
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
        self._lines = 0


def network_of(where: tuple[Any, ...]) -> str:
    """Return what a socket's address is counted as: an IPv4 address itself, of an IPv6 one its first 64 bits."""
    address = ipaddress.ip_address(where[0])
    if address.version == 4:
        return str(address)
    # Without its zone: a network has none.
    return str(ipaddress.IPv6Network((address.packed, _NETWORK_BITS), strict=False))
