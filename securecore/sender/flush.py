"""Delivering what the spool holds: oldest first as a rule, each dump from where its receiver's durable frames end."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from securecore import limits
from securecore.errors import BusyError, ClockError, SecurecoreError, StorageError
from securecore.names import Address, DumpId, StoreId
from securecore.sender import receipt_log
from securecore.sender.attempt import Attempt, OutOfTimeError
from securecore.sender.parcel import Papers
from securecore.sender.patience import Patience
from securecore.sender.schedule import read_schedule, write_schedule
from securecore.sender.settlement import keep_receipt
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import SpoolEntry


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
    the last Flushed says why. So it is after MAX_SILENT receivers in a row that greet and then vouch for nothing,
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
        self._closed: set[Address] = set()
        """Addresses that took no dump at all, behind one that might have taken another. They are asked for their own dumps only."""
        self._silent = 0
        """How often in a row a receiver has greeted and then left a dump alone."""
        self._has_got_further = self._has_failed = False
        self._retry_after_s = 0

    def run(self) -> Iterator[Flushed]:
        """Try each dump in turn."""
        sought: set[StoreId | None] = set()
        has_passed_over = False
        dumps = self._spool.dump_ids()
        self._schedule = self._schedule.knowing(dumps)
        for dump in self._before.in_turn(dumps):
            if time.monotonic() >= self._deadline:
                return
            try:
                entry = self._spool.entry(dump)
            except SecurecoreError as error:
                has_passed_over = True
                yield Flushed(dump, None, error, 0)
                continue
            if entry is None:
                has_passed_over = True
                continue
            flushed, is_over = self._try_in_order(entry)
            yield flushed
            if flushed.failure is not None:
                sought.add(entry.start.store)
            if is_over:
                return
        # Of one that another process has, or that cannot be read, nobody knows which store it seeks.
        self._schedule = self._schedule._replace(left_off_at=None) if has_passed_over else self._schedule.after_all(sought)

    def _try_in_order(self, entry: SpoolEntry) -> tuple[Flushed, bool]:
        """Return what became of a dump, and whether the flush is over.

        Where one receiver does not take it, the next one is asked; what the first has said is told, unless one takes it.
        """
        told: Flushed | None = None
        receivers, next_entry = list(self._awake()), entry
        while True:
            attempt = Attempt(next_entry, self._papers, self._clock, self._deadline, self._patience, self._let_rest)
            flushed = self._try(attempt, next_entry, receivers)
            if flushed.failure is None:
                self._has_got_further, self._silent = True, 0
                self._schedule = self._schedule.vouched()
                return flushed, False
            self._has_got_further |= self._is_progress(attempt, flushed.failure)
            if told is not None and attempt.has_found_nobody:
                self._closed.update(receivers)
                self._note_request(flushed.failure)
                return told, False
            told = told or flushed
            if self._is_over(attempt, flushed.failure):
                return told, True
            if attempt.address is None or not attempt.may_go_elsewhere(flushed.failure):
                return told, False
            behind = receivers[receivers.index(attempt.address) + 1 :]
            receivers = [address for address in behind if address not in self._closed]
            reopened = self._reopen(attempt.dump) if receivers else None
            if reopened is None:
                return told, False
            next_entry = reopened

    def _is_progress(self, attempt: Attempt, failure: SecurecoreError) -> bool:
        """Return whether the next try begins further on, as far as the receiver is not known to keep nothing of what it is sent."""
        if not attempt.has_got_further(failure):
            return False
        if attempt.has_acknowledged or attempt.hope is None:
            self._schedule = self._schedule.vouched()
            return True
        self._schedule, is_progress = self._schedule.hoping(attempt.hope)
        return is_progress

    def _reopen(self, dump: DumpId) -> SpoolEntry | None:
        """Return a dump's entry anew, None where it is not to be had any more: an attempt that failed has given it up."""
        try:
            return self._spool.entry(dump)
        except SecurecoreError:
            return None

    def _try(self, attempt: Attempt, entry: SpoolEntry, receivers: Sequence[Address]) -> Flushed:
        dump = entry.start.dump
        try:
            receipt = attempt.deliver(receivers, self._schedule)
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

    def _is_over(self, attempt: Attempt, failure: SecurecoreError) -> bool:
        """Return whether the other dumps would fare no better."""
        if isinstance(failure, OutOfTimeError):
            # One that takes all the time there is, and gets nowhere, must not be the first again.
            if not attempt.has_acknowledged:
                self._schedule = self._schedule._replace(left_off_at=attempt.dump)
            return True
        self._has_failed = True
        self._note_request(failure)
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

    def _note_request(self, failure: SecurecoreError) -> None:
        if isinstance(failure, BusyError):
            self._retry_after_s = max(self._retry_after_s, failure.retry_after_s)

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
