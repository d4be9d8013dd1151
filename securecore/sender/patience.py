"""How long a sender waits for the other end: as long as bytes really move, and never for ever.

What a process hands to the kernel has not left: megabytes may stand in the socket's buffer, for minutes on a slow link. What the
peer's TCP has acknowledged has. So a wait is a stock of seconds. It runs down with time, and each MIN_RATE_BYTES_PER_S bytes that
the peer's host has taken put one second back, up to the whole stock. Who stalls is given up after the whole stock; who takes less
than the minimum rate is, too, a little later.

A receiver that is at work on its answer may be silent for minutes, and so is one that the network has cut off. But the kernel of
the first goes on to acknowledge, and to answer the keep-alive questions of ours. So a wait for an answer is over, too, when
nothing was heard of the peer's TCP for PATH_DEADLINE_S.
"""

import math
import struct
import time
from _socket import (  # settings load this, and a crash that is declined needs no more of the socket module
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SOL_SOCKET,
    TCP_INFO,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
)

from securecore import limits
from securecore.declarations import TYPE_CHECKING, Callable, Final, NamedTuple

if TYPE_CHECKING:
    import socket

_ACKED_AT: Final = 120
"""Offset of tcpi_bytes_acked in struct tcp_info (include/uapi/linux/tcp.h), a count of bytes since Linux 4.1. It only grows, so
unlike SIOCOUTQ, which is what is not acknowledged yet, it needs no account of what was written meanwhile."""
_ACKED: Final = struct.Struct("=Q")

_KEEP_ALIVE_MOST: Final = 127
"""Questions that are not answered until the kernel ends a connection (MAX_TCP_KEEPCNT of linux/tcp.h): it only asks, we judge. At
KEEP_ALIVE_EVERY_S they take longer than MAX_DEADLINE_S."""

_UNACKED_AT: Final = 24
_LAST_HEARD_AT: Final = 56
_UNSENT_AT: Final = 144
"""Offsets in the same struct: tcpi_unacked, segments that are under way; tcpi_last_ack_recv, milliseconds since any segment of the
peer's; tcpi_notsent_bytes, what waits for its window (Linux 4.6). Four bytes each."""
_WORD: Final = struct.Struct("=I")

_LOOK_EVERY_S: Final = 1.0
"""Between two looks at what has moved; a quarter of the stock where that is less, so that it can't run out between two looks."""


Most = float | Callable[[], float]
"""Seconds that a wait may take in all; or who returns, each time that it is asked, how many are left of them now."""


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
        most_s: Most = math.inf,
        count_moved: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        is_cut_off: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait for *stock_s* without progress, and never for longer than *most_s* in all; not at all for a peer that *is_cut_off*.

        *count_moved* returns a number of bytes that only grows.
        """
        self._count_moved, self._clock, self._is_cut_off = count_moved, clock, is_cut_off
        self.was_cut_off = False
        """Whether it was over because the peer is cut off."""
        self._stock_s = self._left_s = stock_s
        self._moved, self._looked_at = count_moved(), clock()
        ends_at = math.inf if callable(most_s) else self._looked_at + most_s
        self._most_left_s = most_s if callable(most_s) else lambda: ends_at - self._looked_at

    def left_s(self) -> float:
        """Return for how many seconds to wait before asking again, 0 when it is enough."""
        now, moved = self._clock(), self._count_moved()
        self._left_s += (moved - self._moved) / limits.MIN_RATE_BYTES_PER_S - (now - self._looked_at)
        self._left_s = min(self._left_s, self._stock_s)
        self._moved, self._looked_at = moved, now
        self.was_cut_off = self._is_cut_off()
        if self.was_cut_off:
            return 0.0
        return max(0.0, min(self._left_s, self._most_left_s(), self._stock_s / 4, _LOOK_EVERY_S))


def keep_asking(connection: "socket.socket") -> None:
    """Have the kernel ask every KEEP_ALIVE_EVERY_S whether the peer's host is there, while nothing else is under way.

    Raises OSError on what is no TCP socket. Not done: to end a connection whose peer does not answer; ``quiet_s`` tells of it.
    """
    connection.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
    connection.setsockopt(IPPROTO_TCP, TCP_KEEPIDLE, limits.KEEP_ALIVE_EVERY_S)
    connection.setsockopt(IPPROTO_TCP, TCP_KEEPINTVL, limits.KEEP_ALIVE_EVERY_S)
    connection.setsockopt(IPPROTO_TCP, TCP_KEEPCNT, _KEEP_ALIVE_MOST)


def count_acknowledged(connection: "socket.socket") -> int:
    """Return the bytes that the peer's TCP has acknowledged on *connection*; always 0 where the kernel does not tell.

    TLS's own bytes are among them.
    """
    info = _tcp_info(connection, _ACKED_AT + _ACKED.size)
    return int(_ACKED.unpack_from(info, _ACKED_AT)[0]) if info else 0


def quiet_s(connection: "socket.socket") -> float:
    """Return for how many seconds nothing was heard of the peer's TCP on *connection*, though it was asked.

    0 where the kernel does not tell, or where it has asked too seldom for that to mean anything: when the peer's window is shut, it
    asks up to two minutes apart. Source: tcp_probe_timer and tcp_keepalive_timer in net/ipv4/tcp_timer.c.
    """
    info = _tcp_info(connection, _UNSENT_AT + _WORD.size)
    if not info:
        return 0.0
    unacked, heard_ms, unsent = (int(_WORD.unpack_from(info, at)[0]) for at in (_UNACKED_AT, _LAST_HEARD_AT, _UNSENT_AT))
    return 0.0 if unsent and not unacked else heard_ms / 1000


def _tcp_info(connection: "socket.socket", length: int) -> bytes:
    """Return the first *length* bytes of struct tcp_info, none where the kernel has fewer."""
    try:
        info = connection.getsockopt(IPPROTO_TCP, TCP_INFO, length)
    except OSError:
        return b""
    return info if len(info) == length else b""
