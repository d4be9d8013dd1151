"""Which dumps are to go so that a store holds what its operator wants it to hold, and no more: values in, values out.

In this order, each time the oldest first by received_at, and no more than the bound asks for:

1. what is older than the oldest age;
2. of what is left, what takes a host above its number of dumps or its bytes;
3. of what is left, what takes the store above its number of dumps or its bytes.

So what one host has too much of is taken from that host, before the store's bounds take from all. What is younger than the youngest
age is counted like the rest and never taken: a bound that only such dumps break stays broken.

What a host has coming in is never taken. Of its own bounds it is counted for that of its bytes: its quota counts it too, and a host
whose parts fill that would otherwise wait for ever. But whoever has stolen a host need not end what he begins, and is not to delete
what was received before. So parts displace published dumps down to half of the bound and no further, and none by their number.
There is no size from which on they displace fewer: a host would wait behind that for ever, and a thief would stop short of it. For
the store's bounds they don't count: what one host never ends must not cost others their dumps.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from securecore import units
from securecore.store.rows import format_time


class Retention(NamedTuple):
    """What ``vacuum`` leaves."""

    max_age: timedelta | None = None
    max_bytes: int | None = None
    """Stored, of all hosts together."""
    max_dumps: int | None = None
    host_bytes: int | None = None
    """The same of one host; what it has coming in takes up to half of it."""
    host_dumps: int | None = None
    """Published, of one host."""
    min_age: timedelta = timedelta()
    """Younger dumps are left by whatever else is said."""

    @property
    def is_bounded(self) -> bool:
        """Whether anything is ever to go."""
        return any(bound is not None for bound in self[:-1])


class Held(NamedTuple):
    """A published dump, as far as its retention depends on it; whole or given up makes no difference."""

    received_at: str
    """As a DumpRow has it: text order is time order."""
    id: str
    host: str
    stored_bytes: int


class Due(NamedTuple):
    """A dump that is to go."""

    held: Held
    reason: str
    """For a person and for the audit log."""


class _Sum:
    """What is left of some dumps, and what of that is too much."""

    def __init__(self, whose: str, max_dumps: int | None, max_bytes: int | None, coming_bytes: int = 0) -> None:
        self._bounds = (max_dumps, max_bytes)
        self._words = (
            f"{whose} has more than {units.count(max_dumps, 'dump')}" if max_dumps is not None else "",
            f"{whose} has more than {units.exact_size(max_bytes)}" if max_bytes is not None else "",
        )
        self._dumps, self._bytes = 0, _displaced(coming_bytes, max_bytes)

    def add(self, held: Held) -> None:
        """Count a dump."""
        self._dumps += 1
        self._bytes += held.stored_bytes

    def find_excess(self, held: Held) -> str | None:
        """Return why a dump is to go, and count it no longer; None when it may stay."""
        max_dumps, max_bytes = self._bounds
        if max_dumps is not None and self._dumps > max_dumps:
            reason = self._words[0]
        elif max_bytes is not None and self._bytes > max_bytes and held.stored_bytes:  # What takes nothing frees nothing.
            reason = self._words[1]
        else:
            return None
        self._dumps -= 1
        self._bytes -= held.stored_bytes
        return reason


def select(dumps: Iterable[Held], retention: Retention, now: datetime, coming: Iterable[Held] = ()) -> list[Due]:
    """Return the dumps that are to go, the oldest first.

    *dumps* are all that are published, in any order, and *coming* those that are coming in; *now* is aware. A bound of one host may
    be above that of the store.
    """
    ordered = sorted(dumps)
    # A dump from the future, as after a clock that was wrong, is young to those who spare the young, and to nobody else.
    young = _before(now, retention.min_age) if retention.min_age else None
    may_go = [held for held in ordered if young is None or held.received_at <= young]
    reasons: dict[Held, str] = {}
    if retention.max_age is not None:
        earliest, reason = _before(now, retention.max_age), f"older than {units.exact_span(retention.max_age)}"
        reasons.update((held, reason) for held in may_go if held.received_at < earliest)
    parts: dict[str, int] = {}
    for part in coming:
        parts[part.host] = parts.get(part.host, 0) + part.stored_bytes
    bounds = retention.host_dumps, retention.host_bytes
    hosts = {host: _Sum("host", *bounds, parts.get(host, 0)) for host in {held.host for held in ordered}}
    _take(ordered, may_go, reasons, lambda held: hosts[held.host])
    store = _Sum("store", retention.max_dumps, retention.max_bytes)
    _take(ordered, may_go, reasons, lambda held: store)
    return [Due(held, reasons[held]) for held in may_go if held in reasons]


def _displaced(coming_bytes: int, max_bytes: int | None) -> int:
    """Return for how many bytes what is coming in counts beside what is published."""
    return min(coming_bytes, max_bytes // 2) if max_bytes is not None else 0


def _take(ordered: Sequence[Held], may_go: Sequence[Held], reasons: dict[Held, str], sum_of: Callable[[Held], _Sum]) -> None:
    """Add to *reasons* the dumps that take the sums of what is left above their bounds."""
    for held in ordered:
        if held not in reasons:
            sum_of(held).add(held)
    for held in may_go:
        if held not in reasons and (reason := sum_of(held).find_excess(held)) is not None:
            reasons[held] = reason


def _before(now: datetime, age: timedelta) -> str:
    """Return the moment so long ago, as received_at is written; the first there is where the calendar does not go so far back."""
    try:
        return format_time(now - age)
    except OverflowError:
        return ""
