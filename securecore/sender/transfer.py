"""One dump's way from the pump to a receipt, or to the spool.

A thread takes the frames in order and sends them. When no receiver can be had, or the wire fails, stalls with the ring of
unacknowledged frames full, or has held the source for too long in all, what no receiver has goes to the spool, and a later flush
goes on from there; custody.py knows what is where.
"""

import math
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Thread

from securecore import limits
from securecore.declarations import Any, Final
from securecore.errors import Bug, BusyError, ConfigError, PeerError, SecurecoreError, StorageError, UnreachableError
from securecore.merkle import EMPTY_ROOT
from securecore.names import Address
from securecore.sender.allowance import TIME_IS_UP, TOO_SLOW, Allowance
from securecore.sender.alone import keep_alone
from securecore.sender.custody import NO_MEMORY, Custody
from securecore.sender.delivery import Delivery
from securecore.sender.dialling import Dialler
from securecore.sender.effort import eager_pump
from securecore.sender.lifetime import Lifetime
from securecore.sender.parcel import Outcome, Papers, Parcel
from securecore.sender.patience import Patience, usual_patience
from securecore.sender.pump import Frame, Pump
from securecore.sender.settlement import Statement, keep_receipt, settle
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd
from securecore.sender.threads import start
from securecore.wire.messages import Accept, Open

_LEAST_SHARE_S: Final = 0.1
"""Of the time for a connection, for a step that comes late: a round trip in one country."""


class Transfer:
    """Takes a pump's frames to a receiver, else to the spool, in a thread of its own."""

    def __init__(
        self,
        parcel: Parcel,
        pump: Pump,
        receivers: Sequence[Address],
        papers: Papers | ConfigError,
        spool: Spool | None,
        clock: Callable[[], float] = time.time,
        hold_budget_s: float | None = None, patience: Patience | None = None, keeps_copy: bool = False,
        lifetime: Lifetime | None = None, reads_first: bool = False, dialler: Dialler | None = None,
    ) -> None:  # fmt: skip
        """*papers* may be the reason why there are none; then everything goes to the spool.
        *hold_budget_s* is for how long the source, and a process that crashed, may stand still in all at the most before the rest
        goes to the spool, if there is one (allowance.py); None where nobody is held. *patience* has the other deadlines.
        With *keeps_copy* the spool has all frames until the receipt is there, and not only those that no receiver has.
        With *reads_first* no receiver is met before the reading had its head start: a handshake takes the same processors.
        *dialler* may have begun to dial the first of them.
        """
        self._parcel, self._pump, self._receivers, self._papers = parcel, pump, receivers, papers
        self._spool, self._clock, self._patience = spool, clock, patience or usual_patience()
        self._custody = Custody(*parcel, spool)
        self._allowance = Allowance(pump, self._custody, hold_budget_s, lifetime)
        self._keeps_copy, self._reads_first, self._dialler = keeps_copy, reads_first, dialler or Dialler()
        self._connect_ends = math.inf
        """When the time is over that all receivers together have for a connection and the answer to OPEN."""
        self._delivery: Delivery | None = None
        self._given_up: Delivery | None = None
        """One whose receiver may still say why."""
        self._failure: SecurecoreError | None = None
        self._receipt: dict[str, Any] | None = None
        self._piece_failure: SecurecoreError | None = None
        self._sent = 0
        """Frames that have gone out whole."""
        self._finished = False
        self._has_all_frames = False
        """Whether no frame is still to come."""
        self.source_closed = self._allowance.source_closed
        """The caller sets this once the source is closed: only then is anything signed or waited for."""
        self._thread = Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to connect, and to take frames; raises StorageError when there is no memory for a thread."""
        start(self._thread)

    def call_off(self) -> None:
        """Give up the receiver where the spool may take the rest, else the source; from any thread, and at any time."""
        self._allowance.call_off()
        self._pump.wake()

    def give_up(self) -> None:
        """Let go of receiver and source, from any thread and at any time: what is here goes to the spool as far as it takes it."""
        self._allowance.end()
        self._pump.stop()
        self._pump.wake()
        delivery = self._delivery
        if delivery is not None:
            delivery.interrupt()

    def wait(self) -> Outcome:
        """Return how it ended."""
        self._thread.join()
        if not self._finished:
            raise Bug("the transfer's thread died")
        end, custody = self._pump.end, self._custody
        failure = self._piece_failure.message if self._piece_failure else end.failure if end else None
        return Outcome(
            self._receipt, self._failure, custody.entry is not None, custody.failure, custody.size, custody.stored_bytes,
            custody.all.size, failure, custody.copy_failure,
            custody.is_begun_elsewhere or (self._given_up is not None and self._given_up.may_hold),
        )  # fmt: skip

    def _run(self) -> None:
        try:
            self._begin()
            self._take_frames()
            self._conclude()
            self._finished = True
        except SecurecoreError as error:
            self._failure = self._failure or error
            self._finished = True
        except MemoryError:
            self._end_without_memory()
        finally:
            try:
                if not self._finished:
                    self._rescue()
            finally:
                self._leave()

    def _begin(self) -> None:
        """Find who takes the frames. There is none yet, so memory that ends here costs none: the next step may find some again."""
        try:
            if self._keeps_copy:
                self._custody.begin_copy()
        except MemoryError:
            self._custody.copy_failure = StorageError(NO_MEMORY)
        if self._reads_first:
            self._pump.wait_for_head_start()
        try:
            self._connect()
        except MemoryError:
            failure = StorageError(NO_MEMORY)
            with suppress(MemoryError):
                self._keep_what_is_here(failure)
            self._keep_what_is_here(failure)

    def _take_frames(self) -> None:
        for frame in self._whole_frames():
            self._pass_on(frame)
        self._has_all_frames = True
        self.source_closed.wait()

    def _whole_frames(self) -> Iterator[Frame]:
        """Yield the pump's frames up to the first piece that could not become one: a dump has no holes, so it ends there."""
        try:
            yield from self._pump.frames(self._heed_time)
        except StorageError as error:
            self._piece_failure = error
            self._drain()

    def _end_without_memory(self) -> None:
        """End the dump with what is here, as cut unless that is all, and let the source go.

        A frame that was under way may be lost. Where it has not gone out by half, the wire is as well as before.
        """
        failure = StorageError(NO_MEMORY)
        is_wire_whole = self._delivery is not None and self._sent == self._custody.all.size and not self._has_all_frames
        if not self._has_all_frames:
            self._piece_failure = failure
        self._drain()
        try:
            if not is_wire_whole:
                self._keep_what_is_here(failure)
            self.source_closed.wait()
            try:
                self._conclude()
            except MemoryError:
                self._keep_what_is_here(failure)
                self._conclude()
        except SecurecoreError as error:
            self._failure = self._failure or error
        self._finished = True

    def _rescue(self) -> None:
        """An error that nobody foresaw is on its way out: it must not cost the core while there is a spool."""
        try:
            self._keep_what_is_here(Bug("the transfer failed in a way that nobody foresaw"))
            self._take_frames()
            self._conclude()
            self._finished = True
        except SecurecoreError as error:
            self._failure = self._failure or error

    def _keep_what_is_here(self, error: SecurecoreError) -> None:
        """Move all that is in memory to the spool, also where that was begun before and was not ended."""
        try:
            if not self._custody.has_fallen_back:
                self._fall_back(self._failure or error)
                return
        except MemoryError:
            if not self._custody.has_fallen_back:
                raise
        try:
            self._custody.keep_ring()
        except MemoryError:
            pass  # What is still in memory is missed when the end is stated.

    def _leave(self) -> None:
        """Let the source go, whatever has failed, and what was opened: nobody waits for a thread that has ended."""
        try:
            self._drain()
            self._hear_last_words()
        finally:
            self._dialler.leave()
            if self._delivery is not None:
                self._delivery.close()
            self._custody.close()

    def _hear_last_words(self) -> None:
        """Learn why the receiver has ended the wire, if it says so, once nobody waits for us and what it has not is kept."""
        self.source_closed.wait()
        if self._given_up is not None:
            self._failure = self._given_up.last_words() or self._failure
            self._given_up.close()

    def _drain(self) -> None:
        """Take the frames that nobody will keep, if any are left, so that the reading thread does not wait for ever."""
        self._pump.abandon()
        for _ in self._pump.frames():
            pass

    def _connect(self) -> None:
        """Open the dump at the first receiver that will have it."""
        papers = self._papers
        if isinstance(papers, ConfigError):
            self._fall_back(papers)
            return
        failure: SecurecoreError = UnreachableError("no receiver is named")
        self._connect_ends = time.monotonic() + self._patience.connect_s
        for number, address in enumerate(self._receivers):
            try:
                # What an earlier one did not use of its share is the later ones'.
                left_s = max(_LEAST_SHARE_S, self._connect_ends - time.monotonic())
                self._open_at(address, papers.context, left_s / (len(self._receivers) - number))
                return
            except SecurecoreError as error:
                # A refusal tells more than an address where nobody answers.
                if not isinstance(error, UnreachableError) or isinstance(failure, UnreachableError):
                    failure = error
        self._fall_back(failure)

    def _open_at(self, address: Address, context: ssl.SSLContext, share_s: float) -> None:
        """Open the dump at *address*, which has *share_s* for the connection and for its answer."""
        ends = time.monotonic() + share_s
        connect_s = self._allowance.within_s(share_s)
        delivery = self._dialler.connect(
            address, context, connect_s, self._patience, lambda: self._allowance.within_s(math.inf)
        )
        try:
            # The time that the source takes is no receiver's fault: none has less for it.
            began = time.monotonic()
            self._pump.first_piece_read.wait()
            waited_s = time.monotonic() - began
            self._connect_ends += waited_s
            ends = max(ends + waited_s, time.monotonic() + _LEAST_SHARE_S)
            opening = Open(self._parcel.dump, self._parcel.report, self._pump.predicted_size)
            answer = delivery.open(
                opening, self._custody.acknowledge, lambda: min(ends - time.monotonic(), self._allowance.left_s())
            )
            if not isinstance(answer, Accept) or answer.held != 0:
                raise PeerError(f"{address} says that it has this new dump already")
            if answer.root != EMPTY_ROOT:
                raise PeerError(f"{address} gave another root for no frames than that of none")
        except (SecurecoreError, MemoryError) as error:
            words = delivery.last_words() if isinstance(error, SecurecoreError) else None
            delivery.close()
            if words is not None:
                raise words from error
            raise
        self._delivery = delivery
        self._allowance.connected(delivery.store)

    def _pass_on(self, frame: Frame) -> None:
        began = time.monotonic()
        self._custody.take(frame)
        self._allowance.copying_s += time.monotonic() - began
        if self._delivery is None:
            self._custody.keep_ring(self._allowance.rest_bytes)
            self._let_go_of_what_is_lost()
            return
        try:
            self._allowance.within_s(math.inf)
            # Asked while it is waited: the room for the rest is taken when the time is over, and if there is none the wire is kept.
            self._delivery.send_frame(frame.stored, self._allowance.left_s)
            self._sent += 1
            # One wait for all acknowledgements that it takes: a receiver must not buy time with a small frame after the other.
            wait = self._delivery.waiting(self._allowance.left_s)
            while self._custody.ring_bytes > limits.RING_BYTES:
                self._delivery.wait_for_ack(wait)
        except SecurecoreError as error:
            is_late = isinstance(error, UnreachableError) and self._allowance.is_too_slow
            self._fall_back(BusyError(TOO_SLOW) if is_late else error)

    def _heed_time(self) -> None:
        """Give the wire up if its time is over, while no frame comes with which that would be noticed."""
        if self._delivery is not None:
            try:
                self._allowance.within_s(math.inf)
            except BusyError as error:
                self._fall_back(error)

    def _fall_back(self, error: SecurecoreError) -> None:
        """Give the wire up and open the spool; without one the transfer has failed."""
        if self._allowance.is_over:
            error = BusyError(TIME_IS_UP)
        self._failure = error
        if self._delivery is not None:
            self._delivery.give_up()
            self._given_up, self._delivery = self._delivery, None
        if self._spool is None:
            raise error
        try:
            self._custody.fall_back(self._allowance.store, self._allowance.least_bytes())
        except SecurecoreError as spool_error:
            raise error from spool_error
        self._let_go_of_what_is_lost()

    def _let_go_of_what_is_lost(self) -> None:
        """Let the crashed process go once the spool's disk has refused: what fitted is kept, and nobody will keep the rest."""
        if self._custody.failure is not None:
            self._pump.abandon()

    def _end(self) -> EntryEnd:
        source = self._pump.end
        if source is None:
            raise Bug("the source has not ended")
        outcome = source.outcome(is_part_lost=self._custody.failure is not None or self._piece_failure is not None)
        tree = self._custody.all
        return EntryEnd(self._custody.size, source.predicted_size, outcome, int(self._clock() * 1000), tree.size, tree.root())

    def _conclude(self) -> None:
        """Say END and hear the receipt; if that fails, the spool keeps what the receiver has not."""
        end = self._end()
        if self._delivery is not None and not isinstance(self._papers, ConfigError):
            credentials = self._papers.credentials
            # A copy is whole from here on, whatever becomes of this process before the receipt is there.
            self._custody.finish(end)
            try:
                statement = Statement(*self._parcel, end, self._custody.all)
                facts = settle(self._delivery, credentials, statement, self._clock, self._allowance.left_s)
                self._receipt = facts if self._spool is None else keep_receipt(self._spool, facts)
                self._custody.settled()
                return
            except SecurecoreError as error:
                self._fall_back(error)
        self._custody.finish(end)


def carry(
    source: int,
    parcel: Parcel,
    receivers: Sequence[Address],
    papers: Papers | ConfigError,
    spool: Spool | None,
    on_progress: Callable[[int], None] | None = None,
    hold_budget_s: float | None = None, patience: Patience | None = None, keeps_copy: bool = False,
    head: bytes = b"", lifetime: Lifetime | None = None, reads_first: bool = False,
    dialler: Dialler | None = None,
) -> Outcome:  # fmt: skip
    """Drain *source* to a receiver or the spool, close it as soon as it is drained, and return how it ended.

    *on_progress* is told the plaintext bytes read so far; *head* was read before. The others are as Transfer has them. With a
    *lifetime* wire and source are given up when it says so.
    """
    pump = eager_pump(on_progress)
    transfer = Transfer(
        parcel, pump, receivers, papers, spool, hold_budget_s=hold_budget_s, patience=patience, keeps_copy=keeps_copy,
        lifetime=lifetime, reads_first=reads_first, dialler=dialler,
    )  # fmt: skip
    if lifetime is not None:
        lifetime.attend(transfer.call_off, transfer.give_up)
    find_cut = (lambda: lifetime.cut) if lifetime is not None else lambda: None
    piece_s = lifetime.piece_s if lifetime is not None else math.inf
    try:
        transfer.start()
    except StorageError as error:
        if spool is None:
            raise
        return keep_alone(source, parcel, spool, head, find_cut, error, piece_s)
    try:
        pump.read(source, head, find_cut, piece_s)
    finally:
        os.close(source)
        transfer.source_closed.set()
        outcome = transfer.wait()
    return outcome
