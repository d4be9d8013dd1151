"""Delivering what the spool holds: oldest first, each dump from where its receiver's durable frames end."""

import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from securecore import limits
from securecore.dump import manifest
from securecore.errors import BrokenError, ClockError, SecurecoreError, StorageError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import Address, DumpId
from securecore.sender.delivery import Delivery, OtherStoreError, connect
from securecore.sender.patience import Patience
from securecore.sender.spool import EntryEnd, Spool, SpoolEntry
from securecore.sender.transfer import Papers, Parcel, answered_already, keep_receipt, settle
from securecore.wire.messages import Accept, Open


class Flushed(NamedTuple):
    """What became of one dump of the spool."""

    dump: DumpId
    receipt: dict[str, Any] | None
    failure: SecurecoreError | None
    sent_frames: int
    """Frames that were sent now; those that the receiver already held were not."""


def flush(
    spool: Spool,
    receivers: Sequence[Address],
    papers: Papers,
    clock: Callable[[], float] = time.time,
    patience: Patience | None = None,
) -> Iterator[Flushed]:
    """Deliver each dump of the spool that no other process has locked, and yield what became of it.

    A dump is removed once its receipt is checked and kept, also that of a dump that was deleted there. What is wrong with one dump
    keeps no other one back. While no receiver can be had, or a clock is wrong, the rest is left for the next time: the exception of
    the last Flushed says why.
    """
    spool.sweep(clock())
    for dump in spool.dump_ids():
        try:
            entry = spool.entry(dump)
        except SecurecoreError as error:
            yield Flushed(dump, None, error, 0)
            continue
        if entry is None:
            continue
        attempt = None
        try:
            attempt = _Attempt(spool, entry, papers, clock, patience)
            receipt = attempt.deliver(receivers)
            spool.remove(entry)
        except SecurecoreError as error:
            entry.close()
            yield Flushed(dump, None, error, attempt.sent_frames if attempt else 0)
            if isinstance(error, ClockError) or (attempt is not None and attempt.has_found_nobody):
                return
            continue
        yield Flushed(dump, receipt, None, attempt.sent_frames)


class _Attempt:
    """One try at one dump."""

    def __init__(
        self, spool: Spool, entry: SpoolEntry, papers: Papers, clock: Callable[[], float], patience: Patience | None
    ) -> None:
        self._spool, self._entry, self._papers, self._clock, self._patience = spool, entry, papers, clock, patience
        self._reader = entry.reader()
        self.sent_frames = 0
        self.has_found_nobody = False
        """No receiver would take any dump: what one says before OPEN is not about this one."""

    def deliver(self, receivers: Sequence[Address]) -> dict[str, Any]:
        """Return the receipt's facts; raises SecurecoreError."""
        try:
            delivery = connect(receivers, self._papers.context, self._entry.start.store, patience=self._patience)
        except SecurecoreError as error:
            self.has_found_nobody = not isinstance(error, OtherStoreError)
            raise
        try:
            return self._deliver(delivery)
        finally:
            delivery.close()

    def _deliver(self, delivery: Delivery) -> dict[str, Any]:
        start, end = self._entry.start, self._end()
        opening = Open(start.dump, self._entry.report, end.predicted_size)
        answer = delivery.open(opening, lambda frames: None)
        if not isinstance(answer, Accept):
            facts = answered_already(answer, delivery, self._papers.credentials, start.dump, self._content(), self._clock)
            return keep_receipt(self._spool, facts)
        tree = self._agree(answer, delivery)
        for index in range(tree.size - start.frontier.size, len(self._reader.entries)):
            frame = self._reader.frame(index)
            delivery.send_frame(frame)
            tree.append(leaf_hash(frame))
            self.sent_frames += 1
        parcel = Parcel(start.dump, self._entry.report, start.started_at)
        return settle(delivery, self._papers.credentials, parcel, end, tree, self._spool, self._clock)

    def _agree(self, answer: Accept, delivery: Delivery) -> Frontier:
        """Return the tree over the frames that the receiver holds, once its root and ours agree there."""
        tree = self._entry.frontier_at(answer.held)
        first, name = self._entry.start.frontier.size, self._entry.start.dump.short
        if tree is None and answer.held > first:
            raise StorageError(f"{delivery.address} holds more frames of {name} than the spool has: {answer.held}")
        if tree is None:
            raise StorageError(
                f"{delivery.address} holds {answer.held} frames of {name}, the spool those from {first} on",
                hint=f"frames 0 to {first - 1} went to store {self._entry.start.store}, which has lost them",
            )
        if answer.root != tree.root():
            raise BrokenError(f"{delivery.address} holds other frames of {self._entry.start.dump.short} than were sent")
        return tree

    def _content(self) -> dict[str, object]:
        """Return what an audit entry of this dump must say, as far as the spool knows it.

        A handler that was killed while it wrote the entry may have sent more than it kept: then the report is all that is known.
        """
        content: dict[str, object] = {"report_sha256": sha256(self._entry.report).hexdigest()}
        end = self._entry.end()
        tree = self._entry.frontier_at(self._entry.start.frontier.size + len(self._reader.entries))
        if end is not None and end.size == self._size() and tree is not None:
            content |= {"size": end.size, "frames": tree.size, "root": tree.root().hex()}
        return content

    def _size(self) -> int:
        """Return the plaintext bytes of the dump up to the last whole frame here."""
        return self._entry.start.frontier.size * limits.PIECE_BYTES + sum(entry.plain for entry in self._reader.entries)

    def _end(self) -> EntryEnd:
        """Return how the source ended; what the entry cannot vouch for is ``cut``."""
        size = self._size()
        end = self._entry.end()
        if end is not None and end.size == size:
            return end
        ended_at = end.ended_at if end is not None else self._entry.start.started_at
        return EntryEnd(size, end.predicted_size if end is not None else None, manifest.CUT, ended_at)
