"""The arithmetic of storm limits: token buckets, what was not taken, and the bounded state that holds both; no clock, no disk.

Programs (a file that a user has run) and users have a bucket each. A crash is taken when both have room, and then takes from both;
otherwise it is counted with the bucket that had none, the program's first, and takes nothing. So a user who crashes ever new
programs runs against the user's bucket without filling the state. The bucket used longest ago makes room for a new one; what was
counted with it goes on counting.
"""

import json
from typing import Any, Final, NamedTuple, Self

from securecore import limits
from securecore.sender.admission import StormLimit

_VERSION: Final = 1
_NUMBER_END: Final = 1 << 62
"""Times, counts and record numbers: what every reader of JSON numbers keeps."""


class Untaken(NamedTuple):
    """Crashes that were met, or skipped, and not taken since the last dump that counts them: fields of its report."""

    suppressed: int = 0
    suppressed_of_user: int = 0
    suppressed_of_others: int = 0
    declined: int = 0
    skipped_by_kernel: int = 0
    untaken_since: int = 0
    """Unix seconds; 0 where nothing was counted."""

    def fields(self) -> dict[str, Any]:
        """Return the report's fields: those that say something."""
        return {name: number for name, number in self._asdict().items() if number}


class Bucket(NamedTuple):
    """What is left of a storm limit, and what was counted while nothing was."""

    at_ms: int = 0
    """When *missing_ms* was so: Unix milliseconds, by this host's clock."""
    missing_ms: int = 0
    """How long the bucket takes to be full again."""
    suppressed: int = 0
    since: int = 0

    def at(self, now_ms: int, limit: StormLimit) -> "Bucket":
        """Return the bucket as it is now. A clock that was set back fills nothing and takes nothing; more than empty is empty."""
        missing = max(0, self.missing_ms - max(0, now_ms - self.at_ms))
        return self._replace(at_ms=now_ms, missing_ms=min(missing, limit.whole_ms))

    def has_room(self, limit: StormLimit) -> bool:
        """Return whether one more can be taken."""
        return limit.burst == 0 or self.missing_ms + limit.every_s * 1000 <= limit.whole_ms

    def take(self, limit: StormLimit) -> "Bucket":
        """Return the bucket with one less in it, and nothing counted."""
        return Bucket(self.at_ms, self.missing_ms + (limit.every_s * 1000 if limit.burst else 0))

    def counting(self, crashes: int, since: int) -> "Bucket":
        """Return the bucket with *crashes* more counted."""
        return self._replace(suppressed=self.suppressed + crashes, since=_first(self.since, since if crashes else 0))


class Verdict(NamedTuple):
    """What becomes of one crash."""

    limit: str | None
    """Which limit suppresses it, ``program`` or ``user``; None when it is taken."""
    untaken: Untaken
    """What its report counts when it is taken; otherwise how many its limit has suppressed so far."""


class State:
    """All buckets, what is counted without one, and how far the kernel's log was read; the newest buckets come last."""

    def __init__(self) -> None:
        self.programs: dict[str, Bucket] = {}
        self.users: dict[str, Bucket] = {}
        self.others, self.declined, self.skipped, self.since = 0, 0, 0, 0
        self.boot: str | None = None
        """The boot whose log was read last."""
        self.record = -1
        """The number of the last record that was read of it."""

    def admit(self, program: str | None, user: str, bounds: tuple[StormLimit, StormLimit], now_ms: int) -> "Verdict":
        """Judge one crash, and take it into account; *program* is None where it is not known which file was run."""
        of_program, of_user = bounds
        bucket = self.programs.get(program or "", Bucket()).at(now_ms, of_program)
        if program is not None and not bucket.has_room(of_program):
            bucket = bucket.counting(1, now_ms // 1000)
            self._put_program(program, bucket)
            return Verdict("program", Untaken(bucket.suppressed))
        users = self.users.get(user, Bucket()).at(now_ms, of_user)
        if not users.has_room(of_user):
            users = users.counting(1, now_ms // 1000)
            self._put_user(user, users)
            return Verdict("user", Untaken(0, users.suppressed))
        since = _first(bucket.since, _first(users.since, self.since))
        untaken = Untaken(bucket.suppressed, users.suppressed, self.others, self.declined, self.skipped, since)
        self.others, self.declined, self.skipped, self.since = 0, 0, 0, 0
        # Only now: what these two push out is counted for the next dump.
        if program is not None:
            self._put_program(program, bucket.take(of_program))
        self._put_user(user, users.take(of_user))
        return Verdict(None, untaken)

    def give_back(self, program: str | None, user: str, untaken: Untaken) -> None:
        """Count again what a dump had counted that was lost on its way."""
        since = untaken.untaken_since
        self._put_user(user, self.users.get(user, Bucket()).counting(untaken.suppressed_of_user, since))
        if program is not None:
            self._put_program(program, self.programs.get(program, Bucket()).counting(untaken.suppressed, since))
        self.count(untaken.suppressed_of_others, untaken.declined, untaken.skipped_by_kernel, since)

    def count(self, others: int, declined: int, skipped: int, since: int) -> None:
        """Count crashes without a bucket."""
        if others or declined or skipped:
            self.others, self.declined, self.skipped = self.others + others, self.declined + declined, self.skipped + skipped
            self.since = _first(self.since, since)

    def _put_program(self, key: str, bucket: Bucket) -> None:
        self._put(self.programs, key, bucket, limits.MAX_STORM_PROGRAMS)

    def _put_user(self, key: str, bucket: Bucket) -> None:
        self._put(self.users, key, bucket, limits.MAX_STORM_USERS)

    def _put(self, buckets: dict[str, Bucket], key: str, bucket: Bucket, most: int) -> None:
        """Make *bucket* the newest of its kind; the oldest ones go where there are too many."""
        buckets.pop(key, None)
        buckets[key] = bucket
        while len(buckets) > most:
            gone = buckets.pop(next(iter(buckets)))
            self.count(gone.suppressed, 0, 0, gone.since)

    def encode(self) -> bytes:
        """Return the file."""
        fields = {
            "version": _VERSION, "programs": self.programs, "users": self.users, "others": self.others, "declined": self.declined,
            "skipped": self.skipped, "since": self.since, "boot": self.boot, "record": self.record,
        }  # fmt: skip
        return json.dumps(fields, separators=(",", ":")).encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return what the file says; raises ValueError unless it is what encode could have written."""
        state = cls()
        try:
            fields = json.loads(data)
            state.programs, state.users = _buckets(fields["programs"]), _buckets(fields["users"])
            state.others, state.declined, state.skipped = fields["others"], fields["declined"], fields["skipped"]
            state.since, state.boot, state.record = fields["since"], fields["boot"], fields["record"]
            numbers = (state.others, state.declined, state.skipped, state.since, state.record + 1)
            is_ours = fields["version"] == _VERSION and all(map(_is_number, numbers))
            is_bounded = len(state.programs) <= limits.MAX_STORM_PROGRAMS and len(state.users) <= limits.MAX_STORM_USERS
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("not the state of storm limits") from error
        if not is_ours or not is_bounded or not (state.boot is None or type(state.boot) is str):
            raise ValueError("not the state of storm limits")
        return state


def _buckets(fields: dict[str, list[int]]) -> dict[str, Bucket]:
    found = {key: Bucket._make(numbers) for key, numbers in fields.items()}
    if not all(_is_number(number) for bucket in found.values() for number in bucket):
        raise ValueError("not the state of storm limits")
    return found


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < _NUMBER_END


def _first(one: int, other: int) -> int:
    """Return the earlier of two times, of which 0 is none."""
    return min(one, other) if one and other else one or other
