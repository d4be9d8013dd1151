"""The arithmetic of storm limits: token buckets, what was not taken, and the bounded state that holds both; no clock, no disk.

Programs (a file that a user has run) and users have a bucket each, and the host has one. A crash is taken when all three have
room, and then takes from each; otherwise it is counted with the first that had none (the program's, the user's, the host's), and
takes nothing. So a user who crashes ever new programs runs against the user's bucket without filling the state, and whoever
crashes programs as ever new users runs against the host's.

Where there are as many buckets as may be, a new one takes the place of one that is full again, the one used longest ago first:
nothing is owed by it, and what was counted with it goes on counting. Where none is full the newcomers share one bucket. So nobody
gets rid of a limit by pushing its bucket out.
"""


from securecore import plain_json
from securecore.declarations import Any, Final, NamedTuple, Self
from securecore.sender import storm_limits
from securecore.sender.admission import StormLimit

_VERSION: Final = 3
_BEFORE_HOST: Final = 1
"""The version without a limit of the host: what it has counted goes on counting."""
_BEFORE_LOST: Final = 2
"""The version that counted what was lost with what was declined: the same."""
_SHARED: Final = "*"
"""The key of the bucket that newcomers share; no program and no user has it."""
_NUMBER_END: Final = 1 << 62
"""Times, counts and record numbers: what every reader of JSON numbers keeps."""


class Untaken(NamedTuple):
    """Crashes, met or skipped, of which no dump is anywhere, since the last dump that counts them: fields of its report."""

    suppressed: int = 0
    suppressed_of_user: int = 0
    suppressed_of_host: int = 0
    suppressed_of_others: int = 0
    declined: int = 0
    lost: int = 0
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

    def put_back(self, limit: StormLimit) -> "Bucket":
        """Return the bucket with what take took of it but LOST_PAUSE_S: with what it counts, and never more than full."""
        given_s = max(0, limit.every_s - storm_limits.LOST_PAUSE_S) if limit.burst else 0
        return self._replace(missing_ms=max(0, self.missing_ms - given_s * 1000))

    def counting(self, crashes: int, since: int) -> "Bucket":
        """Return the bucket with *crashes* more counted."""
        return self._replace(suppressed=self.suppressed + crashes, since=_first(self.since, since if crashes else 0))


class Verdict(NamedTuple):
    """What becomes of one crash."""

    limit: str | None
    """Which limit suppresses it, ``program``, ``user`` or ``host``; None when it is taken."""
    untaken: Untaken
    """What its report counts when it is taken; otherwise how many its limit has suppressed so far."""


class Bounds(NamedTuple):
    """The limits that one crash is held against."""

    program: StormLimit
    user: StormLimit
    host: StormLimit


class State:
    """All buckets, what is counted without one, and how far the kernel's log was read; the newest buckets come last."""

    def __init__(self) -> None:
        self.programs: dict[str, Bucket] = {}
        self.users: dict[str, Bucket] = {}
        self.host = Bucket()
        self.others, self.declined, self.lost, self.skipped, self.since = 0, 0, 0, 0, 0
        self.boot: str | None = None
        """The boot whose log was read last."""
        self.record = -1
        """The number of the last record that was read of it."""
        self.read_at = 0
        """When that was: Unix seconds, 0 for never."""

    def admit(self, program: str | None, user: str, bounds: Bounds, now_ms: int) -> Verdict:
        """Judge one crash, and take it into account; *program* is None where it is not known which file was run."""
        most_programs, key = storm_limits.MAX_STORM_PROGRAMS, None
        if program is not None:
            key = self._key_of(self.programs, program, most_programs, bounds.program, now_ms)
        of_program = self.programs.get(key or "", Bucket()).at(now_ms, bounds.program)
        if key is not None and not of_program.has_room(bounds.program):
            return Verdict("program", Untaken(self._suppress(self.programs, key, of_program, now_ms)))
        owner = self._key_of(self.users, user, storm_limits.MAX_STORM_USERS, bounds.user, now_ms)
        of_user = self.users.get(owner, Bucket()).at(now_ms, bounds.user)
        if not of_user.has_room(bounds.user):
            return Verdict("user", Untaken(suppressed_of_user=self._suppress(self.users, owner, of_user, now_ms)))
        of_host = self.host.at(now_ms, bounds.host)
        if not of_host.has_room(bounds.host):
            self.host = of_host.counting(1, now_ms // 1000)
            return Verdict("host", Untaken(suppressed_of_host=self.host.suppressed))
        untaken = self._tell(of_program, of_user)
        # Only now: what these push out is counted for the next dump.
        if key is not None:
            self._put(self.programs, key, of_program.take(bounds.program), most_programs, bounds.program)
        self._put(self.users, owner, of_user.take(bounds.user), storm_limits.MAX_STORM_USERS, bounds.user)
        self.host = of_host.take(bounds.host)
        return Verdict(None, untaken)

    def lose(self, program: str | None, user: str, bounds: Bounds, untaken: Untaken, now_s: int) -> None:
        """Count a crash that was taken and of which nothing was kept, and again what its dump would have told; give its place back.

        What its bucket has counted goes to the others' where that is gone meanwhile.
        """
        self.give_back(program, user, bounds)
        self._count_again(program, user, untaken)
        self.count(0, 0, 0, now_s, 1)

    def give_back(self, program: str | None, user: str, bounds: Bounds) -> None:
        """Give the place in the three limits back of a crash that was taken and of whose core nothing was kept, but a short pause.

        The next dump may be the only one there is, but who crashes on and on with cores that nobody can keep must not be without
        limits.
        """
        for buckets, key, limit in ((self.programs, program, bounds.program), (self.users, user, bounds.user)):
            own = key if key in buckets else _SHARED
            if key is not None and own in buckets:
                buckets[own] = buckets[own].put_back(limit)
        self.host = self.host.put_back(bounds.host)

    def _count_again(self, program: str | None, user: str, untaken: Untaken) -> None:
        others, since = untaken.suppressed_of_others, untaken.untaken_since
        for buckets, key, crashes in ((self.programs, program, untaken.suppressed), (self.users, user, untaken.suppressed_of_user)):
            if key in buckets:
                buckets[key] = buckets[key].counting(crashes, since)
            else:
                others += crashes
        self.host = self.host.counting(untaken.suppressed_of_host, since)
        self.count(others, untaken.declined, untaken.skipped_by_kernel, since, untaken.lost)

    def count(self, others: int, declined: int, skipped: int, since: int, lost: int = 0) -> None:
        """Count crashes without a bucket."""
        if others or declined or skipped or lost:
            self.others, self.declined, self.skipped = self.others + others, self.declined + declined, self.skipped + skipped
            self.lost += lost
            self.since = _first(self.since, since)

    def _key_of(self, buckets: dict[str, Bucket], key: str, most: int, limit: StormLimit, now_ms: int) -> str:
        """Return the key of the bucket for a crash: its own, where there is one or room for one, else the shared one."""
        has_room = key in buckets or _own(buckets) < most or _find_full(buckets, limit, now_ms) is not None
        return key if has_room else _SHARED

    def _suppress(self, buckets: dict[str, Bucket], key: str, bucket: Bucket, now_ms: int) -> int:
        """Count a crash with the bucket that has no room, and return how many it has counted so far."""
        if key == _SHARED:
            # The next dump from this bucket may be of anybody: it must not call these its own program's.
            buckets[key] = bucket
            self.count(1, 0, 0, now_ms // 1000)
            return self.others
        buckets.pop(key, None)
        buckets[key] = bucket.counting(1, now_ms // 1000)
        return buckets[key].suppressed

    def _tell(self, of_program: Bucket, of_user: Bucket) -> Untaken:
        """Return what the dump of a crash that is taken tells, and count none of it any more."""
        since = _first(_first(of_program.since, of_user.since), _first(self.host.since, self.since))
        suppressed = (of_program.suppressed, of_user.suppressed, self.host.suppressed, self.others)
        untaken = Untaken(*suppressed, self.declined, self.lost, self.skipped, since)
        self.others, self.declined, self.lost, self.skipped, self.since = 0, 0, 0, 0, 0
        return untaken

    def _put(self, buckets: dict[str, Bucket], key: str, bucket: Bucket, most: int, limit: StormLimit) -> None:
        """Make *bucket* the newest of its kind; one that is full makes room where there are too many."""
        if key not in buckets and key != _SHARED and _own(buckets) >= most:
            full = _find_full(buckets, limit, bucket.at_ms)
            if full is not None:
                gone = buckets.pop(full)
                self.count(gone.suppressed, 0, 0, gone.since)
        buckets.pop(key, None)
        buckets[key] = bucket

    def waiting(self) -> Untaken:
        """Return all that is counted and not told yet, whichever dump will tell it."""
        programs, users = (sum(bucket.suppressed for bucket in buckets.values()) for buckets in (self.programs, self.users))
        times = [bucket.since for bucket in (*self.programs.values(), *self.users.values(), self.host) if bucket.since]
        since = min([*times, self.since] if self.since else times, default=0)
        return Untaken(programs, users, self.host.suppressed, self.others, self.declined, self.lost, self.skipped, since)

    def used_up(self, bounds: Bounds, now_ms: int) -> list[str]:
        """Return the limits that take no crash now: ``program`` or ``user`` with a bucket's key, or ``host``."""
        kinds = (("program", self.programs, bounds.program), ("user", self.users, bounds.user))
        found = [
            f"{kind} {key}" for kind, buckets, limit in kinds for key, bucket in buckets.items()
            if not bucket.at(now_ms, limit).has_room(limit)
        ]  # fmt: skip
        return found if self.host.at(now_ms, bounds.host).has_room(bounds.host) else [*found, "host"]

    def encode(self) -> bytes:
        """Return the file."""
        fields = {
            "version": _VERSION, "programs": self.programs, "users": self.users, "host": self.host, "others": self.others,
            "declined": self.declined, "lost": self.lost, "skipped": self.skipped, "since": self.since, "boot": self.boot,
            "record": self.record, "read_at": self.read_at,
        }  # fmt: skip
        return plain_json.encode(fields).encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return what the file says; raises ValueError unless it is what encode could have written."""
        state = cls()
        try:
            fields = plain_json.parse(data)
            if fields["version"] == _BEFORE_HOST:
                fields |= {"version": _BEFORE_LOST, "host": Bucket(), "read_at": 0}
            if fields["version"] == _BEFORE_LOST:
                fields |= {"version": _VERSION, "lost": 0}
            state.programs, state.users = _buckets(fields["programs"]), _buckets(fields["users"])
            (state.host,) = _buckets({"": fields["host"]}).values()
            state.others, state.declined, state.skipped = fields["others"], fields["declined"], fields["skipped"]
            state.lost, state.since, state.boot, state.record = fields["lost"], fields["since"], fields["boot"], fields["record"]
            state.read_at = fields["read_at"]
            counts = (state.others, state.declined, state.lost, state.skipped)
            numbers = (*counts, state.since, state.record + 1, state.read_at)
            is_ours = fields["version"] == _VERSION and all(map(_is_number, numbers))
            programs, users = _own(state.programs), _own(state.users)
            is_bounded = programs <= storm_limits.MAX_STORM_PROGRAMS and users <= storm_limits.MAX_STORM_USERS
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("not the state of storm limits") from error
        if not is_ours or not is_bounded or not (state.boot is None or type(state.boot) is str):
            raise ValueError("not the state of storm limits")
        return state


def _own(buckets: dict[str, Bucket]) -> int:
    """Return how many buckets there are beside the shared one."""
    return len(buckets) - (_SHARED in buckets)


def _find_full(buckets: dict[str, Bucket], limit: StormLimit, now_ms: int) -> str | None:
    """Return the key of the bucket that was used longest ago of those that are full, one that has counted nothing first."""
    full = (key for key, bucket in buckets.items() if key != _SHARED and not bucket.at(now_ms, limit).missing_ms)
    return min(full, key=lambda key: buckets[key].suppressed > 0, default=None)


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
