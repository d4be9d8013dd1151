"""One try at one dump of the spool: find its store, send what that has not, and have the receipt."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from securecore import limits
from securecore.errors import (
    BrokenError,
    BusyError,
    PeerError,
    RefusedError,
    SecurecoreError,
    UnreachableError,
    UntrustedError,
)
from securecore.merkle import Frontier, leaf_hash
from securecore.names import Address, DumpId, StoreId
from securecore.sender.consignment import Consignment, Consignments, consign
from securecore.sender.delivery import Delivery, OtherStoreError, connect
from securecore.sender.parcel import Papers
from securecore.sender.patience import Patience
from securecore.sender.schedule import Hope, Schedule
from securecore.sender.settlement import answered_already, settle
from securecore.sender.spool_entry import SpoolEntry
from securecore.wire.messages import Accept, Gone, Open, Receipt


class OutOfTimeError(BusyError):
    """The time for the spool is used up: nothing has failed, and the next flush goes on."""

    def __init__(self) -> None:
        super().__init__("the time for the spool is used up: the rest waits for the next flush")


class Attempt:
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
        self.has_acknowledged = False
        """The receiver has made frames durable that it did not hold before."""
        self.hope: Hope | None = None
        """What may come of frames that were sent, should the receiver acknowledge none; None before it has said what it holds."""
        self.lost_frames = 0
        self.delivered_as: DumpId | None = None
        self.has_found_nobody = False
        """No receiver would take any dump: what one says before OPEN is not about this one."""

    def was_left_alone(self, error: SecurecoreError) -> bool:
        """Return whether a receiver has greeted, and *error* is that it then fell silent or went, with nothing made durable."""
        return self.address is not None and isinstance(error, UnreachableError) and not self.has_acknowledged

    def has_got_further(self, error: SecurecoreError) -> bool:
        """Return whether the next try begins further on.

        It may when a wire was cut behind a frame: a receiver keeps what came, acknowledged or not. Where a receiver says no after
        frames that it did not acknowledge, the same would be sent again and again.
        """
        return self.has_acknowledged or (self.sent_frames > 0 and isinstance(error, (UnreachableError, OutOfTimeError)))

    def may_go_elsewhere(self, error: SecurecoreError) -> bool:
        """Return whether another receiver might take the dump now: all of it is here, and *error* is what one has said or done.

        Not one that has got further, for it would begin again there.
        """
        is_a_receivers = isinstance(error, (UnreachableError, UntrustedError, PeerError, RefusedError, BusyError))
        is_free = self.address is not None and self._entry.start.store is None
        return is_free and is_a_receivers and not self.has_got_further(error)

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
        """Return the receipt's facts; raises SecurecoreError, OutOfTimeError when the time was over before somebody had failed."""
        try:
            return self._find_and_deliver(receivers, schedule)
        except UnreachableError as error:
            # A wait that ended with the time for all of the spool was shorter than what the other end may take.
            if self._is_out_of_time():
                raise OutOfTimeError from error
            raise

    def _find_and_deliver(self, receivers: Sequence[Address], schedule: Schedule) -> dict[str, Any]:
        if self._entry.core_bytes() > limits.READ_MEANWHILE_BYTES:
            # A receiver drops who is silent for a minute, and to read all that is here may take longer.
            self._meet(receivers, schedule).close()
            self._ways = consign(self._entry)
        delivery = self._meet(receivers, schedule)
        self.address = delivery.address
        with _closing(delivery):
            facts = self._deliver(delivery)
        if facts is not None:
            return facts
        delivery = self._reach([delivery.address], delivery.store)
        with _closing(delivery):
            return self._deliver_apart(delivery)

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
        except OtherStoreError as error:
            if not error.is_missed:
                raise
            if self._is_out_of_time():
                # Whoever has that store may not have had the time to say so.
                raise OutOfTimeError from error
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
        answer = delivery.open(opening, self._note_ack, self._left_s(), patience_s)
        if isinstance(answer, Accept):
            self.hope = Hope(self.dump, delivery.store, answer.held, answer.torn_bytes)
        return answer

    def _note_ack(self, frames: int) -> None:
        self.has_acknowledged = True

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

    def _is_out_of_time(self) -> bool:
        return time.monotonic() >= self._deadline

    def _left_s(self) -> float:
        """Return how much is left of the time for all of the spool; raises OutOfTimeError when it is used up."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise OutOfTimeError
        return left_s


@contextmanager
def _closing(delivery: Delivery) -> Iterator[None]:
    """Close *delivery* when the block ends, and raise the receiver's own words for a send that failed in it."""
    try:
        yield
    except UnreachableError as error:
        if (words := delivery.last_words()) is not None:
            raise words from error
        raise
    finally:
        delivery.close()
