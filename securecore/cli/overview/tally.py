"""One host's events, put together as they are read: sums, the newest of each kind, and which of its dumps are unfinished."""

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from securecore.audit.entry import DELETED, EXTRACTED, INCOMPLETE, RECEIVED, REFUSED, VERIFIED
from securecore.cli.overview.crashes import CrashCount
from securecore.cli.overview.events import UNREADABLE, Event
from securecore.cli.overview.model import Listed, RefusalCount, Totals
from securecore.cli.overview.timeline import Histogram
from securecore.wire.messages import Refusal

_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_AHEAD: Final = timedelta(days=1)
"""So far ahead of the report an entry may be: clocks are set, and a log is read on another machine than it was written on."""
_NEWEST: Final = 3
"""Received dumps in which a manifest is looked for, the newest first."""


class _Unfinished(NamedTuple):
    """What was counted of a dump that is incomplete so far; in memory for each of them, so no more than is needed."""

    entry: int
    size: int
    stored: int


class Tally:
    """What is kept of a host's log while it is read: bounded, but for a few numbers for each dump that is incomplete or broken."""

    def __init__(self, made_at: datetime, since: datetime | None, most: int, crashes: CrashCount) -> None:
        """*most* entries of a kind are kept, the newest; *crashes* counts what this host's crashes are added to as well."""
        self._since, self._until, self._most = since, made_at + _AHEAD, most
        self._all_crashes, self.crashes = crashes, CrashCount()
        self.histogram = Histogram()
        self._counts = dict.fromkeys(Totals._fields, 0)
        self._arrivals: dict[str, Event] = {}
        self._unfinished: dict[str, _Unfinished] = {}
        self._refusals: deque[Event] = deque(maxlen=most)
        self._refusal_entries = self._acts_total = 0
        self._acts: deque[Event] = deque(maxlen=most)
        self._others: deque[Event] = deque(maxlen=most)
        self._codes: dict[int | None, RefusalCount] = {}
        self._broken: dict[str, int] = {}
        self.verified_last: Event | None = None
        """The newest verification of a dump that somebody has had recorded, in the period."""
        self.newest: deque[Event] = deque(maxlen=_NEWEST)
        """The newest that were received, in any period."""
        self.first_at: datetime | None = None
        self.newest_at: datetime | None = None

    def take(self, event: Event) -> None:
        """Count one entry; they come in the order of the log."""
        self._follow(event)
        moment = event.time if event.time is not None and _EARLIEST <= event.time <= self._until else None
        if self._since is not None and moment is not None and moment < self._since:
            return
        self._count("entries")
        if moment is None:
            self._count("undated")
        else:
            self.first_at = min(self.first_at or moment, moment)
            self.newest_at = max(self.newest_at or moment, moment)
        if event.event in (RECEIVED, INCOMPLETE):
            self._arrive(event, moment)
        elif event.event == REFUSED:
            self._refuse(event, moment)
        elif event.event in (EXTRACTED, DELETED):
            self._act(event, moment)
        elif event.event == VERIFIED:
            self._count("verified")
            self.verified_last = event
        else:
            self._count(UNREADABLE if event.event == UNREADABLE else "other")
            self._others.append(event)

    @property
    def totals(self) -> Totals:
        """The sums so far."""
        return Totals(**{**self._counts, "unfinished": len(self._unfinished)})

    def arrivals(self) -> Listed:
        """Return the newest dumps, each with the newest that was said of it."""
        return Listed(tuple(reversed(self._arrivals.values())), self._counts["dumps"])

    def unfinished(self) -> set[int]:
        """Return the indices of the newest entries on dumps that are incomplete, as many as are listed."""
        return {kept.entry for kept in sorted(self._unfinished.values())[-self._most :]}

    def broken(self) -> set[int]:
        """Return the indices of the newest entries that say that a dump is broken, as many as are listed, in any period."""
        return set(sorted(self._broken.values())[-self._most :])

    @property
    def broken_total(self) -> int:
        """How many dumps were found broken when they were verified last, and are neither deleted nor received once more."""
        return len(self._broken)

    def refusals(self) -> Listed:
        """Return the newest entries on refusals."""
        return Listed(tuple(reversed(self._refusals)), self._refusal_entries)

    def refusal_codes(self) -> tuple[RefusalCount, ...]:
        """Return how often the host was refused with each code, the most frequent first."""
        return tuple(sorted(self._codes.values(), key=lambda found: (-found.refusals, found.name)))

    def acts(self) -> Listed:
        """Return the newest extractions and deletions."""
        return Listed(tuple(reversed(self._acts)), self._acts_total)

    def others(self) -> Listed:
        """Return the newest of all other entries."""
        return Listed(tuple(reversed(self._others)), self._counts["other"] + self._counts["unreadable"])

    def _follow(self, event: Event) -> None:
        """Note what stands at the end of the log, whatever the period is."""
        if event.event == RECEIVED:
            self.newest.append(event)
        if event.event in (RECEIVED, DELETED, VERIFIED):
            self._broken.pop(event.dump or "", None)
        if event.result == "broken":
            self._broken[event.dump or ""] = event.entry

    def _arrive(self, event: Event, moment: datetime | None) -> None:
        dump = event.dump or ""
        before = self._unfinished.pop(dump, None)
        self._arrivals.pop(dump, None)
        self._arrivals[dump] = event
        if len(self._arrivals) > self._most:
            del self._arrivals[next(iter(self._arrivals))]
        size, stored = event.size_bytes or 0, event.stored_bytes or 0
        if before is None:
            self._count("dumps")
            self.crashes.add(event)
            self._all_crashes.add(event)
        self._count("plain_bytes", size - (before.size if before is not None else 0))
        self._count("stored_bytes", stored - (before.stored if before is not None else 0))
        if event.state != "complete":
            self._unfinished[dump] = _Unfinished(event.entry, size, stored)
        if moment is not None and event.state is not None:
            self.histogram.add(moment, event.state)

    def _refuse(self, event: Event, moment: datetime | None) -> None:
        number = 1 + (event.others or 0)
        self._count("refused", number)
        self._refusal_entries += 1
        self._refusals.append(event)
        code = event.code if event.code in _CODES else None
        before = self._codes.get(code)
        earlier = before.refusals if before is not None else 0
        self._codes[code] = RefusalCount(code, code_name(code), earlier + number, event.time, event.reason)
        if moment is not None:
            self.histogram.add(moment, "refused", number)

    def _act(self, event: Event, moment: datetime | None) -> None:
        self._count(event.event)
        self._acts_total += 1
        self._acts.append(event)
        if moment is not None:
            self.histogram.add(moment, event.event)
        if event.event == DELETED and event.dump is not None:
            self._unfinished.pop(event.dump, None)
            if event.dump in self._arrivals:
                self._arrivals[event.dump] = self._arrivals[event.dump]._replace(state="deleted")

    def _count(self, what: str, number: int = 1) -> None:
        self._counts[what] += number


_CODES: Final = {code.value: code.name for code in Refusal}


def code_name(code: int | None) -> str:
    """Return the name of a code of REFUSE; words for one that docs/wire.md does not have."""
    return _CODES.get(code, "another code") if code is not None else "another code"
