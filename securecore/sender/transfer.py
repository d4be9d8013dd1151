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
from threading import Event, Thread
from typing import Any, Final, NamedTuple

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.errors import Bug, BusyError, ConfigError, PeerError, SecurecoreError, StorageError, UnreachableError
from securecore.merkle import EMPTY_ROOT
from securecore.names import Address, DumpId, StoreId
from securecore.sender.credentials import Credentials
from securecore.sender.custody import Custody
from securecore.sender.delivery import Delivery, connect
from securecore.sender.patience import Patience, usual_patience
from securecore.sender.pump import Frame, Pump
from securecore.sender.settlement import Statement, keep_receipt, settle
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd
from securecore.wire.messages import Accept, Open

_LEAST_SHARE_S: Final = 0.1
"""Of the time for a connection, for a step that comes late: a round trip in one country."""
_TOO_SLOW: Final = "the receiver is slower than the core: the rest waits in the spool"

_UNKNOWN_BYTES: Final = 16 * limits.MIB
"""Counts as incompressible beside what was seen, for a guess at what is to come: as much as a ring of frames."""


class Parcel(NamedTuple):
    """What is known of a dump before its first byte."""

    dump: DumpId
    report: bytes
    started_at: int
    """Unix milliseconds."""


class Papers(NamedTuple):
    """What a sender shows and signs with."""

    context: ssl.SSLContext
    credentials: Credentials


class Outcome(NamedTuple):
    """How a transfer ended."""

    receipt: dict[str, Any] | None
    """The receipt's facts, as they stand in the receipt log; None when there is none yet."""
    failure: SecurecoreError | None
    """Why the dump did not reach a receiver."""
    spooled: bool
    """Whether the spool has what the receiver has not."""
    spool_failure: SecurecoreError | None
    """Why the spool could not keep all of it."""
    size: int
    stored_bytes: int
    frames: int
    source_failure: str | None
    """Why the dump ends before its source did: it could not be read, or not be compressed, from there on."""
    copy_failure: SecurecoreError | None = None
    """Why the spool could not keep the copy that it should, beside a wire that was well."""


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
        hold_budget_s: float | None = None,
        patience: Patience | None = None,
        keeps_copy: bool = False,
    ) -> None:
        """*papers* may be the reason why there are none; then everything goes to the spool.

        *hold_budget_s* is for how long the source may stand still in all before the rest goes to the spool, if there is one: a
        process that crashed is held as long. None where nobody is. *patience* has the other deadlines; usual_patience by default.
        With *keeps_copy* the spool has all frames until the receipt is there, and not only those that no receiver has.
        """
        self._parcel, self._pump, self._receivers, self._papers = parcel, pump, receivers, papers
        self._spool, self._clock, self._patience = spool, clock, patience or usual_patience()
        self._hold_budget_s = hold_budget_s
        self._custody = Custody(*parcel, spool)
        self._keeps_copy = keeps_copy
        self._connect_ends = math.inf
        """When the time is over that all receivers together have for a connection and the answer to OPEN."""
        self._hold_ends = math.inf
        """When the budget would be used up, if the source stood still from the last look at it on."""
        self._delivery: Delivery | None = None
        self._failure: SecurecoreError | None = None
        self._receipt: dict[str, Any] | None = None
        self._piece_failure: SecurecoreError | None = None
        self._size = 0
        """Plaintext bytes that the frames so far stand for."""
        self._stored_bytes = 0
        self._copying_s = 0.0
        """For how long the spool's disk took frames that the wire took as well: nobody's fault but its own."""
        self._finished = False
        self.source_closed = Event()
        """The caller sets this once the source is closed: only then is anything signed or waited for."""
        self._thread = Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to connect, and to take frames."""
        self._thread.start()

    def wait(self) -> Outcome:
        """Return how it ended."""
        self._thread.join()
        if not self._finished:
            raise Bug("the transfer's thread died")
        end = self._pump.end
        return Outcome(
            self._receipt,
            self._failure,
            self._custody.entry is not None,
            self._custody.failure,
            end.size if end else 0,
            self._stored_bytes,
            self._custody.all.size,
            self._piece_failure.message if self._piece_failure else end.failure if end else None,
            self._custody.copy_failure,
        )

    def _run(self) -> None:
        try:
            if self._keeps_copy:
                self._custody.begin_copy()
            self._connect()
            self._take_frames()
            self._conclude()
            self._finished = True
        except SecurecoreError as error:
            self._failure = self._failure or error
            self._finished = True
        finally:
            if not self._finished:
                self._rescue()
            self._drain()
            if self._delivery is not None:
                self._delivery.close()
            self._custody.close()

    def _take_frames(self) -> None:
        for frame in self._whole_frames():
            self._size += frame.plain
            self._stored_bytes += len(frame.stored)
            self._pass_on(frame)
        self.source_closed.wait()

    def _whole_frames(self) -> Iterator[Frame]:
        """Yield the pump's frames up to the first piece that could not become one: a dump has no holes, so it ends there."""
        try:
            yield from self._pump.frames()
        except StorageError as error:
            self._piece_failure = error
            self._drain()

    def _rescue(self) -> None:
        """An error that nobody foresaw is on its way out: it must not cost the core while there is a spool."""
        try:
            if not self._custody.has_fallen_back:
                self._fall_back(Bug("the transfer failed in a way that nobody foresaw"))
            self._take_frames()
            self._conclude()
            self._finished = True
        except SecurecoreError as error:
            self._failure = self._failure or error

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
        delivery = connect([address], context, deadline_s=self._patience_s(share_s), patience=self._patience)
        try:
            # The time that the source takes is no receiver's fault: none has less for it.
            began = time.monotonic()
            self._pump.first_piece_read.wait()
            waited_s = time.monotonic() - began
            self._connect_ends += waited_s
            left_s = max(_LEAST_SHARE_S, ends + waited_s - time.monotonic())
            opening = Open(self._parcel.dump, self._parcel.report, self._pump.predicted_size)
            answer = delivery.open(opening, self._custody.acknowledge, self._patience_s(left_s))
            if not isinstance(answer, Accept) or answer.held != 0:
                raise PeerError(f"{address} says that it has this new dump already")
            if answer.root != EMPTY_ROOT:
                raise PeerError(f"{address} gave another root for no frames than that of none")
        except SecurecoreError:
            delivery.close()
            raise
        self._delivery = delivery

    def _pass_on(self, frame: Frame) -> None:
        began = time.monotonic()
        self._custody.take(frame)
        self._copying_s += time.monotonic() - began
        if self._delivery is None:
            self._custody.keep_ring()
            self._let_go_of_what_is_lost()
            return
        try:
            self._delivery.send_frame(frame.stored, self._patience_s(math.inf))
            # One wait for all acknowledgements that it takes: a receiver must not buy time with a small frame after the other.
            wait = self._delivery.waiting(self._patience_s(math.inf))
            while self._custody.ring_bytes > limits.RING_BYTES:
                self._delivery.wait_for_ack(wait)
        except SecurecoreError as error:
            is_late = isinstance(error, UnreachableError) and time.monotonic() >= self._hold_ends
            self._fall_back(BusyError(_TOO_SLOW) if is_late else error)

    def _patience_s(self, deadline_s: float) -> float:
        """Return how long to wait for what has *deadline_s*; raises BusyError when the source has stood still for long enough."""
        left_s = math.inf
        # Without a spool that takes the rest the process must wait: a lost core is worse than one that takes long.
        if self._hold_budget_s is not None and not self.source_closed.is_set() and self._custody.can_fall_back(self._rest_bytes()):
            left_s = self._hold_budget_s + self._copying_s - self._pump.held_s
        if left_s <= 0:
            raise BusyError(_TOO_SLOW)
        self._hold_ends = time.monotonic() + left_s
        return min(deadline_s, left_s)

    def _rest_bytes(self) -> int:
        """Return how many bytes the frames that are still to come may take: as many of each as so far; nothing where none is known.

        Before there is much to go by, what comes is taken for incompressible: a core begins with what compresses well.
        """
        rest = max(0, (self._pump.predicted_size or 0) - self._size)
        return rest * (self._stored_bytes + _UNKNOWN_BYTES) // (self._size + _UNKNOWN_BYTES)

    def _fall_back(self, error: SecurecoreError) -> None:
        """Give the wire up and open the spool; without one the transfer has failed."""
        self._failure = error
        store: StoreId | None = None
        if self._delivery is not None:
            store = self._delivery.store
            self._delivery.close()
            self._delivery = None
        if self._spool is None:
            raise error
        try:
            self._custody.fall_back(store)
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
        return EntryEnd(self._size, source.predicted_size, outcome, int(self._clock() * 1000), tree.size, tree.root())

    def _conclude(self) -> None:
        """Say END and hear the receipt; if that fails, the spool keeps what the receiver has not."""
        end = self._end()
        if self._delivery is not None and not isinstance(self._papers, ConfigError):
            credentials = self._papers.credentials
            # A copy is whole from here on, whatever becomes of this process before the receipt is there.
            self._custody.finish(end)
            try:
                facts = settle(self._delivery, credentials, Statement(*self._parcel, end, self._custody.all), self._clock)
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
    hold_budget_s: float | None = None,
    patience: Patience | None = None,
    keeps_copy: bool = False,
    head: bytes = b"",
) -> Outcome:
    """Drain *source* to a receiver or the spool, close it as soon as it is drained, and return how it ended.

    *on_progress* is told the plaintext bytes read so far; *head* was read before. *hold_budget_s*, *patience* and
    *keeps_copy* are as Transfer has them.
    """
    pump = Pump(Compressor, on_progress)
    transfer = Transfer(
        parcel, pump, receivers, papers, spool, hold_budget_s=hold_budget_s, patience=patience, keeps_copy=keeps_copy
    )
    transfer.start()
    try:
        pump.read(source, head)
    finally:
        os.close(source)
        transfer.source_closed.set()
        outcome = transfer.wait()
    return outcome
