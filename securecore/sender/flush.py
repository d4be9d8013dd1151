"""Delivering what the spool holds: oldest first as a rule, each dump from where its receiver's durable frames end."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from securecore import limits
from securecore.errors import BrokenError, BusyError, ClockError, SecurecoreError, StorageError, UnreachableError, UntrustedError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import Address, DumpId, StoreId
from securecore.sender import receipt_log
from securecore.sender.consignment import Consignment, Consignments, consign
from securecore.sender.delivery import Delivery, OtherStoreError, connect
from securecore.sender.patience import Patience
from securecore.sender.schedule import Schedule, read_schedule, write_schedule
from securecore.sender.settlement import answered_already, keep_receipt, settle
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import SpoolEntry
from securecore.sender.transfer import Papers
from securecore.wire.messages import Accept, Gone, Open, Receipt


class Flushed(NamedTuple):
    """What became of one dump of the spool."""

    dump: DumpId
    receipt: dict[str, Any] | None
    failure: SecurecoreError | None
    sent_frames: int
    """Frames that were sent now; those that the receiver already held were not. Placeholders do not count."""
    lost_frames: int = 0
    """Frames at the dump's beginning that its store no longer has: it was delivered with placeholders for them."""
    delivered_as: DumpId | None = None
    """The id of the dump that was delivered in its place, where its own id stands for something else at the receiver."""


def flush(
    spool: Spool,
    receivers: Sequence[Address],
    papers: Papers,
    clock: Callable[[], float] = time.time,
    patience: Patience | None = None,
    budget_s: float = math.inf,
) -> Iterator[Flushed]:
    """Deliver each dump of the spool that no other process has locked, in the schedule's order, and yield what became of it.

    A dump is removed once its receipt is checked and kept, also that of a dump that was deleted there. What is wrong with one dump
    keeps no other one back. While no receiver can be had, or a clock is wrong, the rest is left for the next time: the exception of
    the last Flushed says why. So it is after MAX_SILENT dumps in a row for which a receiver greets and then vouches for nothing,
    and once *budget_s* is used up; a receipt that is waited for then has its own deadline.

    What the next flush should know is kept in the spool's schedule. Not checked: that this one is due, and the only one; whoever
    asks looks at the schedule and has the claim.
    """
    spool.sweep(clock())
    this = _Round(spool, receivers, papers, clock, time.monotonic() + budget_s, patience)
    try:
        yield from this.run()
    finally:
        this.remember()


class _Round:
    """One flush: what has come of it so far, and what it knows of receivers."""

    def __init__(
        self,
        spool: Spool,
        receivers: Sequence[Address],
        papers: Papers,
        clock: Callable[[], float],
        deadline: float,
        patience: Patience | None,
    ) -> None:
        self._spool, self._receivers, self._papers, self._clock = spool, list(receivers), papers, clock
        self._deadline, self._patience = deadline, patience
        self._before = read_schedule(spool.fd)
        self._schedule = self._before
        self._resting: dict[Address, float] = {}
        """Addresses where nobody answered, and until when they are left alone, by the monotonic clock."""
        self._silent = 0
        """Dumps in a row that a receiver has greeted for and then left alone."""
        self._has_got_further = self._has_failed = False
        self._retry_after_s = 0

    def run(self) -> Iterator[Flushed]:
        """Try each dump in turn."""
        sought: set[StoreId | None] = set()
        for dump in self._before.in_turn(self._spool.dump_ids()):
            if time.monotonic() >= self._deadline:
                return
            try:
                entry = self._spool.entry(dump)
            except SecurecoreError as error:
                yield Flushed(dump, None, error, 0)
                continue
            if entry is None:
                continue
            attempt = _Attempt(entry, self._papers, self._clock, self._deadline, self._patience, self._let_rest)
            flushed = self._try(attempt, entry)
            self._has_got_further |= flushed.failure is None or attempt.has_got_further(flushed.failure)
            yield flushed
            if flushed.failure is None:
                self._silent = 0
                continue
            sought.add(entry.start.store)
            if self._is_over(attempt, flushed.failure):
                return
        self._schedule = self._schedule.after_all(sought)

    def _try(self, attempt: "_Attempt", entry: SpoolEntry) -> Flushed:
        dump = entry.start.dump
        try:
            receipt = attempt.deliver(self._awake(), self._schedule)
            # A dump that was delivered before, and could not be removed, has its receipt here; nothing was sent of it now.
            if attempt.sent_frames or not receipt_log.holds(self._spool.fd, receipt):
                receipt = keep_receipt(self._spool, receipt)
            self._spool.remove(entry)
        except SecurecoreError as error:
            entry.close()
            return Flushed(dump, None, error, attempt.sent_frames)
        finally:
            self._schedule = attempt.learn(self._schedule)
        return Flushed(dump, receipt, None, attempt.sent_frames, attempt.lost_frames, attempt.delivered_as)

    def _awake(self) -> list[Address]:
        """Return the receivers to try now: where nobody has just answered, the next dump would wait in vain too."""
        now = time.monotonic()
        return [address for address in self._receivers if self._resting.get(address, now) <= now] or self._receivers

    def _let_rest(self, address: Address) -> None:
        self._resting[address] = time.monotonic() + limits.ADDRESS_REST_S

    def _is_over(self, attempt: "_Attempt", failure: SecurecoreError) -> bool:
        """Return whether the other dumps would fare no better."""
        self._has_failed = True
        if isinstance(failure, BusyError):
            self._retry_after_s = max(self._retry_after_s, failure.retry_after_s)
        if isinstance(failure, ClockError) or attempt.has_found_nobody:
            return True
        if attempt.address is None or not attempt.was_left_alone(failure):
            self._silent = 0
            return False
        self._silent += 1
        self._schedule = self._schedule._replace(left_off_at=attempt.dump)
        # Another one may keep its word.
        self._receivers.append(self._receivers.pop(self._receivers.index(attempt.address)))
        return self._silent == limits.MAX_SILENT

    def remember(self) -> None:
        """Keep what the next flush should know; a disk that refuses it must not keep a dump from being delivered."""
        now = self._clock()
        if self._has_got_further:
            self._schedule = self._schedule.after_success()
        elif self._has_failed:
            if self._before.is_due(now):
                # A person who tries again and again does not make the timer wait longer.
                chance = int.from_bytes(os.urandom(4), "big") / (1 << 32)
                self._schedule = self._schedule.after_failure(now, self._retry_after_s, chance)
            self._schedule = self._schedule.after_request(now, self._retry_after_s)
        if self._schedule == self._before:
            return
        try:
            write_schedule(self._spool.fd, self._schedule)
        except StorageError:
            pass  # Without it everything is due again, and a store that is missed is missed from the next flush on.


class _Attempt:
    """One try at one dump."""

    def __init__(
        self,
        entry: SpoolEntry,
        papers: Papers,
        clock: Callable[[], float],
        deadline: float,
        patience: Patience | None,
        on_silence: Callable[[Address], None],
    ) -> None:
        self._entry, self._papers, self._clock = entry, papers, clock
        self.dump = entry.start.dump
        self._deadline, self._patience, self._on_silence = deadline, patience, on_silence
        self._is_store_missed: bool | None = None
        """Whether others answered while the store that has the beginning did not; None when nothing is known of it."""
        self.address: Address | None = None
        """The receiver that has greeted."""
        self.sent_frames = 0
        self._has_acknowledged = False
        """The receiver has made frames durable that it did not hold before."""
        self.lost_frames = 0
        self.delivered_as: DumpId | None = None
        self.has_found_nobody = False
        """No receiver would take any dump: what one says before OPEN is not about this one."""

    def was_left_alone(self, error: SecurecoreError) -> bool:
        """Return whether a receiver has greeted, and *error* is that it then fell silent or went, with nothing made durable."""
        return self.address is not None and isinstance(error, UnreachableError) and not self._has_acknowledged

    def has_got_further(self, error: SecurecoreError) -> bool:
        """Return whether the next try begins further on.

        It may when a wire was cut behind a frame: a receiver keeps what came, acknowledged or not. Where a receiver says no after
        frames that it did not acknowledge, the same would be sent again and again.
        """
        return self._has_acknowledged or (self.sent_frames > 0 and isinstance(error, UnreachableError))

    def learn(self, schedule: Schedule) -> Schedule:
        """Return *schedule* with what this try has shown of the store that has the beginning."""
        store = self._entry.start.store
        if store is None or self._is_store_missed is None:
            return schedule
        return schedule.missing(store, self._clock()) if self._is_store_missed else schedule.met(store)

    @cached_property
    def _ways(self) -> Consignments:
        """How the entry may travel; to know that, all of it is read."""
        return consign(self._entry)

    def deliver(self, receivers: Sequence[Address], schedule: Schedule) -> dict[str, Any]:
        """Return the receipt's facts; raises SecurecoreError."""
        if self._entry.core_bytes() > limits.READ_MEANWHILE_BYTES:
            # A receiver drops who is silent for a minute, and to read all that is here may take longer.
            self._meet(receivers, schedule).close()
            self._ways = consign(self._entry)
        delivery = self._meet(receivers, schedule)
        self.address = delivery.address
        try:
            facts = self._deliver(delivery)
        finally:
            delivery.close()
        if facts is not None:
            return facts
        delivery = self._reach([delivery.address], delivery.store)
        try:
            return self._deliver_apart(delivery)
        finally:
            delivery.close()

    def _meet(self, receivers: Sequence[Address], schedule: Schedule) -> Delivery:
        """Do as _connect does, and note whether nobody is there; so nothing large is read for receivers that are not."""
        try:
            return self._connect(receivers, schedule)
        except SecurecoreError as error:
            self.has_found_nobody = not isinstance(error, OtherStoreError)
            raise

    def _connect(self, receivers: Sequence[Address], schedule: Schedule) -> Delivery:
        """Return a connection to the store that has the beginning; to any, when it was missed for so long that it counts as lost.

        Not by the age of the dump: a host that was switched off for a month, and finds one of two receivers at its return, has
        missed the other for a moment.
        """
        store = self._entry.start.store
        try:
            delivery = self._reach(receivers, store)
            self._is_store_missed = False
            return delivery
        except OtherStoreError:
            self._is_store_missed = True
            if store is None or schedule.missing_s(store, self._clock()) < limits.STORE_LOST_AFTER_S:
                raise
        return self._reach(receivers, None)

    def _reach(self, receivers: Sequence[Address], store: StoreId | None) -> Delivery:
        context, patience = self._papers.context, self._patience
        return connect(receivers, context, store, patience=patience, most_s=self._left_s(), on_silence=self._on_silence)

    def _deliver(self, delivery: Delivery) -> dict[str, Any] | None:
        """Return the receipt's facts; None when what this receiver holds under the dump's id is no beginning of what is here."""
        first, ways = self._ways.as_begun, [way for way in self._ways[:2] if way is not None]
        answer = self._open(delivery, first)
        if not isinstance(answer, Accept):
            return self._answered(answer, delivery, ways)
        for way in ways:
            tree = way.tree_at(answer.held)
            if tree is not None and tree.root() == answer.root:
                return self._carry(delivery, way, tree)
        return None

    def _deliver_apart(self, delivery: Delivery) -> dict[str, Any]:
        """Deliver what is here as a dump of its own, and return the receipt's facts, which name the dump that it stands for."""
        way = self._ways.apart
        answer = self._open(delivery, way)
        if not isinstance(answer, Accept):
            facts = self._answered(answer, delivery, [way])
        else:
            tree = way.tree_at(answer.held)
            if tree is None or tree.root() != answer.root:
                raise BrokenError(f"{delivery.address} holds other frames of {way.dump.short} than were sent")
            facts = self._carry(delivery, way, tree)
        self.delivered_as = way.dump
        return facts | {"instead_of": str(self._entry.start.dump)}

    def _open(self, delivery: Delivery, way: Consignment) -> Accept | Receipt | Gone:
        opening = Open(way.dump, self._entry.report, way.end().predicted_size)
        patience_s = limits.RECEIPT_DEADLINE_S + self._rereading_s()
        return delivery.open(opening, self._note_ack, self._left_s(), patience_s)

    def _note_ack(self, frames: int) -> None:
        self._has_acknowledged = True

    def _rereading_s(self) -> float:
        """Return how long the receiver may take to read again what it holds of this dump, before it can say how much that is."""
        held = self._entry.start.frontier.size or self._ways.as_begun.frames
        return held * limits.PIECE_BYTES / limits.SLOW_DISK_BYTES_PER_S

    def _answered(self, answer: Receipt | Gone, delivery: Delivery, ways: Sequence[Consignment]) -> dict[str, Any]:
        """Return the facts of a receipt for the dump in one of its *ways*; raises UntrustedError when it is for none of them."""
        failure: UntrustedError | None = None
        for way in ways:
            try:
                facts = answered_already(answer, delivery, self._papers.credentials, way.dump, way.content(), self._clock)
            except UntrustedError as error:
                # What is wrong with it as the dump that was begun tells more than as one with placeholders.
                failure = failure or error
                continue
            self.lost_frames = way.lost_frames
            return facts
        raise failure or UntrustedError(f"{delivery.address} gave a receipt for nothing")

    def _carry(self, delivery: Delivery, way: Consignment, tree: Frontier) -> dict[str, Any]:
        """Send the frames behind those of *tree*, which the receiver holds, and return the receipt's facts."""
        self.lost_frames = way.lost_frames
        for frame in way.frames_from(tree.size):
            delivery.send_frame(frame, self._left_s())
            self.sent_frames += tree.size >= self._entry.start.frontier.size
            tree.append(leaf_hash(frame))
        return settle(delivery, self._papers.credentials, way.statement(tree), self._clock)

    def _left_s(self) -> float:
        """Return how much is left of the time for all of the spool; raises BusyError when it is used up."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise BusyError("the time for the spool is used up: the rest waits for the next flush")
        return left_s
