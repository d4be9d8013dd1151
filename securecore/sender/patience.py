"""How long a sender waits for the other end: as long as bytes really move, and never for ever.

What a process hands to the kernel has not left: megabytes may stand in the socket's buffer, for minutes on a slow link. What the
peer's TCP has acknowledged has. So a wait is a stock of seconds. It runs down with time, and each MIN_RATE_BYTES_PER_S bytes that
the peer's host has taken put one second back, up to the whole stock. Who stalls is given up after the whole stock; who takes less
than the minimum rate is, too, a little later.
"""

import math
import struct
import time
from _socket import IPPROTO_TCP, TCP_INFO  # settings load this, and a crash that is declined needs no more of the socket module
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from securecore import limits

if TYPE_CHECKING:
    import socket

_ACKED_AT: Final = 120
"""Offset of tcpi_bytes_acked in struct tcp_info (include/uapi/linux/tcp.h), a count of bytes since Linux 4.1. It only grows, so
unlike SIOCOUTQ, which is what is not acknowledged yet, it needs no account of what was written meanwhile."""
_ACKED: Final = struct.Struct("=Q")

_LOOK_EVERY_S: Final = 1.0
"""Between two looks at what has moved; a quarter of the stock where that is less, so that it can't run out between two looks."""


class Patience(NamedTuple):
    """The deadlines of sender.toml, in seconds."""

    connect_s: float
    """For TCP, TLS and READY together; at a crash, for the answer to OPEN too."""
    progress_s: float
    """For which what was sent may stand still."""
    hold_s: float
    """For which a crashed process may stand still for the network in all, while there is a spool."""


def usual_patience() -> Patience:
    """Return the deadlines of limits.py."""
    return Patience(limits.CONNECT_DEADLINE_S, limits.PROGRESS_DEADLINE_S, limits.HOLD_BUDGET_S)


def is_deadline(value: object) -> bool:
    """Return whether *value* is a number of seconds that a deadline may have: above 0, at most MAX_DEADLINE_S."""
    # Not by isinstance: to Python, true is a number. Infinity and NaN fail the comparison.
    return type(value) in (int, float) and 0 < value <= limits.MAX_DEADLINE_S  # type: ignore[operator]


class Wait:
    """One wait for the peer."""

    def __init__(
        self,
        stock_s: float,
        most_s: float = math.inf,
        count_moved: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wait for *stock_s* without progress, and never for longer than *most_s* in all.

        *count_moved* returns a number of bytes that only grows.
        """
        self._count_moved, self._clock = count_moved, clock
        self._stock_s = self._left_s = stock_s
        self._moved, self._looked_at = count_moved(), clock()
        self._ends_at = self._looked_at + most_s

    def left_s(self) -> float:
        """Return for how many seconds to wait before asking again, 0 when it is enough."""
        now, moved = self._clock(), self._count_moved()
        self._left_s += (moved - self._moved) / limits.MIN_RATE_BYTES_PER_S - (now - self._looked_at)
        self._left_s = min(self._left_s, self._stock_s)
        self._moved, self._looked_at = moved, now
        return max(0.0, min(self._left_s, self._ends_at - now, self._stock_s / 4, _LOOK_EVERY_S))


def count_acknowledged(connection: "socket.socket") -> int:
    """Return the bytes that the peer's TCP has acknowledged on *connection*; always 0 where the kernel does not tell.

    TLS's own bytes are among them.
    """
    try:
        info = connection.getsockopt(IPPROTO_TCP, TCP_INFO, _ACKED_AT + _ACKED.size)
    except OSError:
        return 0
    return int(_ACKED.unpack_from(info, _ACKED_AT)[0]) if len(info) >= _ACKED_AT + _ACKED.size else 0
