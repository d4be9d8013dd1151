"""What one host has in a store, as numbers, and which of its dumps that are coming in goes before the others.

That is the one that was begun here first; after a restart by the time of its report. (Not the oldest one by its id: what a host
flushes from its spool would stop what it sends just now.) A dump that nobody has offered for a while goes before nobody, or one
that its host has lost would hold the others up.
"""

from heapq import heapify, heappop, heappush
from threading import Lock
from typing import Final, NamedTuple

from securecore.names import DumpId

_SLACK: Final = 64
"""So many entries that are out of date wait in a heap before it is made anew: then that costs each of them little."""


class Amount(NamedTuple):
    """What one dump takes."""

    stored_bytes: int = 0
    """Of its core, as it lies on the disk, and of what was cut off that where it was damaged."""
    plain_bytes: int = 0
    """What that stands for."""


class Part(NamedTuple):
    """A dump that is coming in, as far as it has come."""

    amount: Amount
    predicted_size: int | None = None
    """Of all of its plaintext, as its sender has announced it since the receiver's start."""
    begun_at: float = 0.0
    """When it was begun here, or came back here, in ticks."""
    is_stuck: bool = False
    """It could not be opened when it was offered last, and may need a person: it goes before nobody, however often it comes."""


class Account:
    """One host's numbers. ``moves`` is held while a dump of it changes its place, and while it is counted."""

    def __init__(self) -> None:
        self.moves = Lock()
        self.is_counted = False
        self.stored_bytes = self.plain_bytes = self.published = self.coming_bytes = self.coming_plain = 0
        self.begun: dict[DumpId, float] = {}
        """When each dump was begun first within the last hour, in ticks, the oldest first; also one that is gone again."""
        self._parts: dict[DumpId, Part] = {}
        self._turns = _Turns()

    @property
    def coming(self) -> int:
        """How many dumps are coming in."""
        return len(self._parts)

    def take_over(self, counted: "Account") -> None:
        """Have the numbers of an account that was counted just now; what its files do not say of dumps that are in both stays."""
        for dump_id, part in counted._parts.items():
            if (known := self._parts.get(dump_id)) is not None:
                counted._parts[dump_id] = part._replace(predicted_size=known.predicted_size, is_stuck=known.is_stuck)
                if known.is_stuck:
                    counted._turns.drop(dump_id)
        self.stored_bytes, self.plain_bytes, self.published = counted.stored_bytes, counted.plain_bytes, counted.published
        self.coming_bytes, self.coming_plain = counted.coming_bytes, counted.coming_plain
        self._parts, self._turns = counted._parts, counted._turns

    def add(self, amount: Amount, sign: int = 1) -> None:
        """Count an amount; with *sign* -1 no longer."""
        self.stored_bytes += sign * amount.stored_bytes
        self.plain_bytes += sign * amount.plain_bytes

    def find_part(self, dump_id: DumpId) -> Part | None:
        """Return what there is of a dump that is coming in, None for any other."""
        return self._parts.get(dump_id)

    def put_part(self, dump_id: DumpId, part: Part, touched_at: float | None) -> None:
        """Take *part* for what is here of a dump that is coming in; *touched_at* is when it was last offered or grew, None for a
        dump that needs nothing more from its sender.
        """
        self._count_part(self._parts.get(dump_id), -1)
        self._parts[dump_id] = part
        self._count_part(part, 1)
        if touched_at is not None and not part.is_stuck:
            self._turns.touch(dump_id, touched_at, part.begun_at)
        else:
            self._turns.drop(dump_id)

    def begin(self, dump_id: DumpId, at: float) -> None:
        """Count a dump as begun, not earlier than those that were counted before; none twice: its host may try again and again."""
        self.begun.setdefault(dump_id, at)

    def forget_begun(self, until: float) -> None:
        """Count no longer what was begun until then."""
        while self.begun and self.begun[oldest := next(iter(self.begun))] <= until:
            del self.begun[oldest]

    def touch(self, dump_id: DumpId, at: float) -> None:
        """Note that a dump was offered, if it is coming in."""
        if (part := self._parts.get(dump_id)) is not None and not part.is_stuck:
            self._turns.touch(dump_id, at, part.begun_at)

    def drop_part(self, dump_id: DumpId) -> None:
        """Forget a dump that is coming in no more."""
        self._count_part(self._parts.pop(dump_id, None), -1)
        self._turns.drop(dump_id)

    def find_first(self, touched_since: float) -> tuple[DumpId, Part] | None:
        """Return the dump that goes before the others, of those that were touched since then; None where there is none."""
        first = self._turns.find_first(touched_since)
        return (first, self._parts[first]) if first is not None else None

    def _count_part(self, part: Part | None, sign: int) -> None:
        if part is not None:
            self.coming_bytes += sign * part.amount.stored_bytes
            self.coming_plain += sign * part.amount.plain_bytes
            self.add(part.amount, sign)


class _Turns:
    """The first that was begun of those that were touched lately, without a look at all of them each time."""

    def __init__(self) -> None:
        self._entries: dict[DumpId, tuple[_Key, float]] = {}
        """Of each its place in the line, and when it was touched."""
        self._heap: list[_Key] = []

    def touch(self, dump_id: DumpId, at: float, begun_at: float) -> None:
        key = _Key(begun_at, bytes(dump_id), dump_id)
        known = self._entries.get(dump_id)
        if known is None or known[0] != key:
            heappush(self._heap, key)
        self._entries[dump_id] = (key, at)
        if len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._heap = [each for each, _ in self._entries.values()]
            heapify(self._heap)

    def drop(self, dump_id: DumpId) -> None:
        self._entries.pop(dump_id, None)

    def find_first(self, since: float) -> DumpId | None:
        while self._heap:
            key = self._heap[0]
            known = self._entries.get(key.dump_id)
            if known is not None and known[0] == key:
                if known[1] >= since:
                    return key.dump_id
                self.drop(key.dump_id)
            heappop(self._heap)
        return None


class _Key(NamedTuple):
    """Where a dump stands in the line; ids decide between those of one moment."""

    begun_at: float
    raw: bytes
    dump_id: DumpId
