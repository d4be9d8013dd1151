"""What one flush of a spool leaves for the next: when to come again, and which stores were missed for how long.

SPOOL/schedule.json; docs/store.md has the fields. It is advice: a file that is missing, torn or strange means that everything is
due and nothing is missed, and the next flush writes it anew.
"""

import fcntl
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from securecore import limits
from securecore.dump import directory as files
from securecore.errors import BrokenError, SecurecoreError
from securecore.names import DumpId, NameRefused, StoreId

SCHEDULE: Final = "schedule.json"
"""The file's name in the spool."""
_VERSION: Final = 2
_MAX_BYTES: Final = 64 * limits.KIB
_MAX_MISSED: Final = 64
"""Stores that are remembered: a sender has a few receivers, and 64 of them are below 4 KiB."""
_TIME_END: Final = 1 << 62
"""Seconds and failures: what every reader of JSON numbers keeps."""


class Missed(NamedTuple):
    """For how long a store was missed, as far as anybody looked."""

    seconds: int
    looked_at: int
    """Unix seconds of the last look."""

    def at(self, now: float) -> "Missed":
        """Return what a look *now* that misses it again makes of it.

        The time between two looks counts up to STORE_LOOK_MAX_S: for a host that was switched off meanwhile, or whose clock has
        jumped, the rest of it says nothing of the store. A clock that was set back adds nothing.
        """
        passed_s = max(0, min(int(now) - self.looked_at, limits.STORE_LOOK_MAX_S))
        return Missed(min(self.seconds + passed_s, _TIME_END - 1), max(0, int(now)))


class Hope(NamedTuple):
    """Frames that went out and were not acknowledged: a receiver keeps what came, and its next ACCEPT for the dump tells."""

    dump: DumpId
    store: StoreId
    held_frames: int
    """Of the dump, by the ACCEPT before they were sent."""
    torn_bytes: int
    """Of the frame behind these, likewise."""
    is_vain: bool = False
    """The last time, too, frames had gone out, and the receiver then held no more than before."""


class Schedule(NamedTuple):
    """When to come again; times are Unix seconds by this host's clock."""

    failures: int = 0
    """Flushes in a row that delivered nothing."""
    not_before: int = 0
    missed: tuple[tuple[StoreId, Missed], ...] = ()
    """Stores that hold the beginning of a dump here and did not answer while others did."""
    asked_until: int = 0
    """How long a receiver has asked to be left alone; unlike our own back-off this binds a handler that has just delivered, too."""
    left_off_at: DumpId | None = None
    """The dump for which a receiver fell silent last, in a flush that did not come to its end."""
    hope: Hope | None = None
    """The first one since a receiver has vouched for anything; another dump's does not take its place before it was looked at."""

    def is_due(self, now: float) -> bool:
        """Return whether a timer's flush should go on; what no schedule of ours could say counts as due: the clock was set back.

        Beyond what a receiver has asked for, we put nothing off for longer than BACK_OFF_MAX_S.
        """
        return not self.is_asked_to_wait(now) and not _is_ahead(self.not_before, now, limits.BACK_OFF_MAX_S)

    def is_asked_to_wait(self, now: float) -> bool:
        """Return whether a receiver has asked to be left alone until later than *now*."""
        return _is_ahead(self.asked_until, now, limits.MAX_RETRY_AFTER_S)

    def in_turn(self, dumps: Sequence[DumpId]) -> list[DumpId]:
        """Return *dumps*, which come oldest first, as a flush tries them: from behind the one where the last one left off.

        So dumps for which receivers always fall silent, and which end each flush, keep no other one back for ever.
        """
        last = bytes(self.left_off_at) if self.left_off_at is not None else b""
        return [dump for dump in dumps if bytes(dump) > last] + [dump for dump in dumps if bytes(dump) <= last]

    def after_success(self) -> "Schedule":
        """Return the schedule once something was delivered, or has got further."""
        return self._replace(failures=0, not_before=0, asked_until=0)

    def hoping(self, hope: Hope) -> tuple["Schedule", bool]:
        """Return the schedule once frames went out that nobody has acknowledged, and whether that is progress.

        It is, until a receiver is found to have kept nothing of what it was sent before.
        """
        last = self.hope
        if last is None:
            return self._replace(hope=hope), True
        if (last.dump, last.store) != (hope.dump, hope.store):
            return self, not last.is_vain
        has_grown = (hope.held_frames, hope.torn_bytes) > (last.held_frames, last.torn_bytes)
        return self._replace(hope=hope._replace(is_vain=not has_grown)), has_grown

    def vouched(self) -> "Schedule":
        """Return the schedule once a receiver has acknowledged frames, or given a receipt."""
        return self._replace(hope=None)

    def knowing(self, dumps: Collection[DumpId]) -> "Schedule":
        """Return the schedule of a spool with these dumps: what was hoped of others nobody will learn."""
        return self if self.hope is None or self.hope.dump in dumps else self.vouched()

    def after_request(self, now: float, retry_after_s: int) -> "Schedule":
        """Return the schedule once a receiver has asked to be left alone for so long; 0 for nothing asked."""
        if not retry_after_s:
            return self
        return self._replace(asked_until=max(0, int(now + min(retry_after_s, limits.MAX_RETRY_AFTER_S))))

    def after_failure(self, now: float, retry_after_s: int, chance: float) -> "Schedule":
        """Return the schedule once nothing was delivered.

        *retry_after_s* is what a receiver asked for, 0 for nothing; *chance* is 0 to 1, evenly distributed: full jitter, so that a
        fleet whose receiver was down does not come back to it in one second.
        """
        failures = min(self.failures + 1, _TIME_END - 1)
        longest = min(limits.BACK_OFF_MAX_S, limits.BACK_OFF_S * 2 ** min(failures - 1, 32))
        wait_s = min(retry_after_s + chance * longest, limits.MAX_RETRY_AFTER_S)
        return self._replace(failures=failures, not_before=max(0, int(now + wait_s)))

    def missing_s(self, store: StoreId, now: float) -> int:
        """Return for how many seconds *store* has been missed, when it is missed *now* too; 0 when it was not before."""
        return dict(self.missed).get(store, Missed(0, int(now))).at(now).seconds

    def missing(self, store: StoreId, now: float) -> "Schedule":
        """Return the schedule once *store* was missed *now*."""
        missed = dict(self.missed)
        missed[store] = missed.get(store, Missed(0, int(now))).at(now)
        return self._replace(missed=tuple(missed.items())[-_MAX_MISSED:])

    def met(self, store: StoreId) -> "Schedule":
        """Return the schedule once *store* has answered."""
        return self._replace(missed=tuple(pair for pair in self.missed if pair[0] != store))

    def after_all(self, sought: Collection[StoreId | None]) -> "Schedule":
        """Return the schedule once each dump was tried, and those that are still here seek these stores.

        Others are missed no more, though they were not met: one that was given up may come back, and be away for a moment later.
        """
        return self._replace(missed=tuple(pair for pair in self.missed if pair[0] in sought), left_off_at=None)

    def encode(self) -> bytes:
        """Return the file."""
        missed = {str(store): list(times) for store, times in self.missed}
        fields = self._asdict() | {
            "version": _VERSION,
            "missed": missed,
            "left_off_at": str(self.left_off_at) if self.left_off_at is not None else None,
        }
        hope = fields.pop("hope")
        if hope is not None:
            fields["hope"] = [str(hope.dump), str(hope.store), *hope[2:]]
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def parse_schedule(data: bytes) -> Schedule:
    """Return what schedule.json says; raises BrokenError unless it is what Schedule.encode could have written."""
    try:
        fields = json.loads(data)
        missed = tuple((StoreId.parse(text), Missed(*times)) for text, times in fields["missed"].items())
        left_off_at = DumpId.parse(fields["left_off_at"]) if fields["left_off_at"] is not None else None
        hope = _parse_hope(fields["hope"]) if "hope" in fields else None
        schedule = Schedule(fields["failures"], fields["not_before"], missed, fields["asked_until"], left_off_at, hope)
        numbers = [schedule.failures, schedule.not_before, schedule.asked_until]
        numbers += [number for _, times in missed for number in times]
        is_ours = all(map(_is_count, numbers)) and len(missed) <= _MAX_MISSED and schedule.encode() == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, NameRefused) as error:
        raise BrokenError("spool: schedule.json is malformed") from error
    if not is_ours:
        raise BrokenError("spool: schedule.json is malformed")
    return schedule


def read_schedule(spool_fd: int) -> Schedule:
    """Return the schedule of the spool behind a descriptor; an empty one when there is none that can be read."""
    try:
        data = files.read_file(SCHEDULE, spool_fd, _MAX_BYTES)
        return parse_schedule(data) if data is not None else Schedule()
    except SecurecoreError:
        return Schedule()


def write_schedule(spool_fd: int, schedule: Schedule) -> None:
    """Keep *schedule* for the next flush; raises StorageError when the disk refuses."""
    files.replace_file(SCHEDULE, spool_fd, schedule.encode())


def keep_request(spool_fd: int, now: float, retry_after_s: int) -> None:
    """Keep for the next flush that a receiver has asked a handler to be left alone for so long, where that is not kept already.

    Not while a flush is at work: it hears what is asked for itself. Raises StorageError when the disk refuses.
    """
    with claim(spool_fd) as is_ours:
        before = read_schedule(spool_fd)
        after = before.after_request(now, retry_after_s)
        if is_ours and (after.asked_until > before.asked_until or not before.is_asked_to_wait(now)) and after != before:
            write_schedule(spool_fd, after)


@contextmanager
def claim(spool_fd: int) -> Iterator[bool]:
    """Hold the spool for one flush while the block runs; yields False when another process has it.

    The lock is on ``dumps/``, which a handler that adds an entry does not lock.
    """
    dumps = files.enter_directory("dumps", spool_fd)
    try:
        try:
            fcntl.flock(dumps, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except OSError:
            is_ours = False
        yield is_ours
    finally:
        os.close(dumps)


def _parse_hope(fields: Any) -> Hope:
    dump, store, held_frames, torn_bytes, is_vain = fields
    if not (_is_count(held_frames) and _is_count(torn_bytes) and type(is_vain) is bool):
        raise ValueError
    return Hope(DumpId.parse(dump), StoreId.parse(store), held_frames, torn_bytes, is_vain)


def _is_ahead(moment: int, now: float, most_s: int) -> bool:
    return now < moment <= now + most_s


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _TIME_END
