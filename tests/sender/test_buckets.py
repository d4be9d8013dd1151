"""The arithmetic of storm limits: how many are taken, how long it takes until one more is, and that no count is lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.sender import storm_limits
from securecore.sender.admission import StormLimit
from securecore.sender.buckets import Bounds, Bucket, State, Untaken
from tests.support.storm_buckets import BOUNDS, HOST, NOW, PAUSE_MS, PROGRAM, USER, taken

OF_PROGRAMS = Bounds(PROGRAM, HOST, HOST)
"""No limit but the programs'."""


def test_a_program_gets_its_burst_and_then_one_every_interval() -> None:
    """Not a moment before, and however long nothing happens never more than the burst at once."""
    state = State()

    assert taken(state, 10) == 3
    assert taken(state, 10, now_ms=NOW + 59_999) == 0
    assert taken(state, 10, now_ms=NOW + 60_000) == 1
    assert taken(state, 10, now_ms=NOW + 180_000) == 2
    assert taken(state, 10, now_ms=NOW + 10**12) == 3


def test_programs_of_one_user_share_the_users_bucket() -> None:
    """Copies of a program are other programs, but no other user's."""
    state = State()

    assert [taken(state, 1, program=f"8:{number}") for number in range(8)] == [1] * 5 + [0] * 3
    assert taken(state, 4, program="8:99", user="34") == 3


def test_a_suppressed_crash_takes_nothing() -> None:
    """Neither from its program's bucket when the user has none left, nor the other way round."""
    state = State()
    taken(state, 5, program=None)
    assert state.admit("8:1", "33", BOUNDS, NOW).limit == "user"
    assert taken(state, 3, program="8:1", user="34") == 3
    assert state.admit("8:1", "35", BOUNDS, NOW).limit == "program"
    assert taken(state, 9, program=None, user="35") == 5


def test_a_burst_of_nothing_is_no_limit() -> None:
    """Everything is taken."""
    state, free = State(), Bounds(*[StormLimit(0, 60)] * 3)
    assert {state.admit("8:1", "33", free, NOW).limit for _ in range(1000)} == {None}


def test_what_cannot_be_told_apart_has_its_users_limit_only() -> None:
    """A program whose file is not known."""
    assert taken(State(), 9, program=None) == 5


def test_a_clock_that_is_set_back_punishes_nobody() -> None:
    """Full buckets stay full, empty ones fill as fast as ever."""
    state = State()
    taken(state, 1, program="8:1")
    taken(state, 3, program="8:2", user="34")
    before = NOW - 10**10

    assert taken(state, 9, program="8:1", now_ms=before) == 2
    assert taken(state, 9, program="8:2", user="34", now_ms=before) == 0
    assert taken(state, 9, program="8:2", user="34", now_ms=before + 60_000) == 1


def test_a_limit_that_was_lowered_holds_at_once_and_no_longer_than_its_own() -> None:
    """What an earlier, larger burst had used up is not owed for longer than the new one takes to fill."""
    state = State()
    assert sum(state.admit("8:1", "33", Bounds(StormLimit(100, 600), USER, HOST), NOW).limit is None for _ in range(5)) == 5
    assert taken(state, 9, user="34") == 0
    assert taken(state, 9, user="34", now_ms=NOW + 60_000) == 1


def test_the_next_dump_of_a_program_counts_what_was_suppressed() -> None:
    """Once, with the time of the first one."""
    state = State()
    taken(state, 3)
    taken(state, 40, now_ms=NOW + 5000)
    taken(state, 3, now_ms=NOW + 9000)

    later = NOW + 10**6
    assert state.admit("8:1", "33", BOUNDS, later).untaken == Untaken(suppressed=43, untaken_since=NOW // 1000 + 5)
    assert state.admit("8:1", "33", BOUNDS, later).untaken == Untaken()


def test_the_next_dump_of_a_user_counts_what_the_users_limit_suppressed() -> None:
    """Whichever program it is of; but not what a program's own limit did."""
    state = State()
    for number in range(9):
        taken(state, 1, program=f"8:{number}")
    taken(state, 2, program="8:1", user="34")
    taken(state, 7, program="8:1", user="34", now_ms=NOW + 1000)

    later = NOW + 10**6
    assert state.admit("8:77", "33", BOUNDS, later).untaken == Untaken(suppressed_of_user=4, untaken_since=NOW // 1000)
    assert state.admit("8:1", "35", BOUNDS, later).untaken == Untaken(suppressed=7, untaken_since=NOW // 1000 + 1)


def test_any_dump_counts_what_has_no_bucket() -> None:
    """Declined and skipped crashes."""
    state = State()
    state.count(0, 2, 5, 100)
    state.count(0, 1, 0, 90)

    assert state.admit("8:1", "33", BOUNDS, NOW).untaken == Untaken(declined=3, skipped_by_kernel=5, untaken_since=90)
    assert state.admit("8:1", "33", BOUNDS, NOW).untaken == Untaken()


def test_a_verdict_says_how_many_were_suppressed_so_far() -> None:
    """This one included."""
    state = State()
    taken(state, 3)
    assert [max(state.admit("8:1", "33", BOUNDS, NOW).untaken) for _ in range(3)] == [1, 2, 3]


def test_the_number_of_buckets_is_bounded_and_forgotten_counts_go_on_counting() -> None:
    """One that is full again goes, for nothing is owed by it; the next dump counts what was counted with it."""
    state, later = State(), NOW + 10**6
    taken(state, 10, program="8:0", user="0")
    for number in range(1, storm_limits.MAX_STORM_PROGRAMS + 1):
        assert taken(state, 1, program=f"8:{number}", user=str(number), now_ms=later, bounds=OF_PROGRAMS) == 1

    assert len(state.programs.keys() - {"*"}) == storm_limits.MAX_STORM_PROGRAMS
    assert len(state.users.keys() - {"*"}) == storm_limits.MAX_STORM_USERS
    assert "8:0" not in state.programs
    assert state.admit("8:1", "1", BOUNDS, later).untaken == Untaken(suppressed_of_others=7, untaken_since=NOW // 1000)


def test_of_full_buckets_those_that_have_counted_nothing_go_first() -> None:
    """What they have counted stays with its program as long as it can."""
    state, later = State(), NOW + 10**6
    taken(state, 8, program="8:0")
    for number in range(1, storm_limits.MAX_STORM_PROGRAMS):
        taken(state, 1, program=f"8:{number}", bounds=OF_PROGRAMS)
    taken(state, 1, program="9:1", now_ms=later, bounds=OF_PROGRAMS)

    assert "8:1" not in state.programs
    assert state.programs["8:0"].suppressed == 5


def test_newcomers_share_one_bucket_where_none_is_full() -> None:
    """129 users in turn push nobody's bucket out: those beyond have one limit among them, and each other one keeps its own."""
    state = State()
    for number in range(storm_limits.MAX_STORM_USERS):
        assert taken(state, 6, program=None, user=str(number)) == 5
    newcomers = [state.admit(None, str(number), BOUNDS, NOW) for number in range(1000, 1009)]

    assert [verdict.limit for verdict in newcomers] == [None] * 5 + ["user"] * 4
    assert max(newcomers[-1].untaken) == state.others == 4
    assert [taken(state, 1, program=None, user=str(number)) for number in range(storm_limits.MAX_STORM_USERS)] == [0] * 128
    assert taken(state, 9, program=None, user="2000", now_ms=NOW + 10_000) == 1


def test_the_next_dump_of_anybody_counts_what_newcomers_lost() -> None:
    """It is of another program, so it must not call them its own."""
    state = State()
    for number in range(storm_limits.MAX_STORM_PROGRAMS):
        taken(state, 1, program=f"8:{number}", bounds=OF_PROGRAMS)
    verdicts = [state.admit(f"9:{number}", "7", OF_PROGRAMS, NOW).limit for number in range(4)]
    told = state.admit("9:9", "8", OF_PROGRAMS, NOW + 60_000).untaken

    assert verdicts == [None] * 3 + ["program"]
    assert (told.suppressed, told.suppressed_of_others) == (0, 1)


def test_the_host_has_a_limit_over_all_programs_and_users() -> None:
    """Which counts for itself what it suppresses, and the next dump of anybody tells it."""
    state, bounds = State(), Bounds(PROGRAM, USER, StormLimit(7, 60))
    limits_met = [state.admit(f"8:{number}", str(number), bounds, NOW).limit for number in range(10)]
    assert limits_met == [None] * 7 + ["host"] * 3

    assert state.admit("9:1", "99", bounds, NOW + 59_999).untaken == Untaken(suppressed_of_host=4)
    untaken = state.admit("9:1", "99", bounds, NOW + 60_000).untaken
    assert untaken == Untaken(suppressed_of_host=4, untaken_since=NOW // 1000)
    state.lose("9:1", "99", bounds, untaken, NOW // 1000 + 60)
    assert state.admit("9:2", "98", bounds, NOW + 60_000 + PAUSE_MS).untaken == untaken._replace(lost=1)


def test_what_the_host_suppresses_takes_nothing() -> None:
    """A program and a user whose crash it kept from being taken have their own limits whole."""
    state, bounds = State(), Bounds(PROGRAM, USER, StormLimit(1, 60))
    taken(state, 0)
    assert [state.admit("8:1", "33", bounds, NOW).limit for _ in range(9)] == [None] + ["host"] * 8

    assert taken(state, 9) == 2


def test_a_user_cannot_push_other_programs_out() -> None:
    """Crashes that the user's limit suppresses make no bucket for their programs."""
    state = State()
    taken(state, 3, program="8:0", user="0")
    for number in range(1, 3 * storm_limits.MAX_STORM_PROGRAMS):
        taken(state, 1, program=f"8:{number}")

    assert taken(state, 1, program="8:0", user="0") == 0
    assert len(state.programs) == 1 + USER.burst


programs = st.none() | st.integers(0, 5).map("8:{}".format)
crashes = st.lists(st.tuples(programs, st.integers(0, 3).map(str), st.integers(-30_000, 90_000)), max_size=80)


def left_of(state: State) -> int:
    """Return how many suppressed crashes no dump has told yet."""
    return state.others + state.host.suppressed + sum(b.suppressed for kind in (state.programs, state.users) for b in kind.values())


@given(crashes, st.integers(0, 9))
def test_taken_and_counted_are_all_that_there_were(met: list[tuple[str | None, str, int]], burst: int) -> None:
    """Whoever crashes in whatever order, by whatever clock: taken, reported, and still counted add up."""
    state, bounds, admitted, reported, now_ms = State(), Bounds(PROGRAM, USER, StormLimit(burst, 5)), 0, 0, NOW
    with pytest.MonkeyPatch.context() as few:
        few.setattr(storm_limits, "MAX_STORM_PROGRAMS", 3)
        few.setattr(storm_limits, "MAX_STORM_USERS", 2)
        for program, user, step_ms in met:
            now_ms += step_ms
            verdict = state.admit(program, user, bounds, now_ms)
            if verdict.limit is None:
                admitted, reported = admitted + 1, reported + sum(verdict.untaken[:-1])
        assert State.parse(state.encode()).encode() == state.encode()

    assert admitted + reported + left_of(state) == len(met)


storms = st.lists(
    st.tuples(st.none() | st.integers(0, 40).map("8:{}".format), st.integers(0, 40).map(str), st.integers(0, 4_000)),
    min_size=10, max_size=120,
)  # fmt: skip


@given(storms, st.integers(1, 6))
def test_no_more_than_the_hosts_limit_is_taken_in_any_window(met: list[tuple[str | None, str, int]], burst: int) -> None:
    """However many programs and users crash in whatever order, far more than are remembered too.

    One user gets his own limit at most, and what newcomers share.
    """
    host, user, twice = StormLimit(burst, 7), StormLimit(2, 12), StormLimit(4, 6)
    state, now_ms, times, owners = State(), NOW, [], []
    with pytest.MonkeyPatch.context() as few:
        few.setattr(storm_limits, "MAX_STORM_PROGRAMS", 3)
        few.setattr(storm_limits, "MAX_STORM_USERS", 2)
        for program, owner, step_ms in met:
            now_ms += step_ms
            if state.admit(program, owner, Bounds(PROGRAM, user, host), now_ms).limit is None:
                times.append(now_ms)
                owners.append(owner)

    assert most_beyond(times, host) <= 0
    for owner in set(owners):
        own = [at_ms for at_ms, whose in zip(times, owners, strict=True) if whose == owner]
        assert most_beyond(own, twice) <= 0


def most_beyond(times: list[int], limit: StormLimit) -> int:
    """Return by how many, in the worst window, crashes taken at *times* are more than a limit allows; below 0 where none is."""
    windows = ((last - first + 1) - limit.burst - (times[last] - times[first]) // (1000 * limit.every_s)
               for first in range(len(times)) for last in range(first, len(times)))  # fmt: skip
    return max(windows, default=0)


def test_the_largest_state_fits_its_file() -> None:
    """Every number at its longest."""
    state = State()
    bucket = Bucket(10**13, 10**13, 10**18, 10**10)
    state.programs = {f"{1 << 63}:{(1 << 64) - 1 - number}": bucket for number in range(storm_limits.MAX_STORM_PROGRAMS)}
    state.users = {str((1 << 32) - number): bucket for number in range(storm_limits.MAX_STORM_USERS)}
    state.programs["*"] = state.users["*"] = state.host = bucket
    state.boot = "3b241101-e2bb-4255-8caf-4136c566a962"

    assert len(state.encode()) < 40 * limits.KIB


@pytest.mark.parametrize(("version", "missing"), [(1, {"host", "read_at", "lost"}), (2, {"lost"})])
def test_what_an_earlier_version_has_counted_goes_on_counting(version: int, missing: set[str]) -> None:
    """Its state is read, and written as ours."""
    state = State()
    taken(state, 5)
    state.host = Bucket()
    fields = {key: value for key, value in json.loads(state.encode()).items() if key not in missing} | {"version": version}

    assert State.parse(json.dumps(fields).encode()).encode() == state.encode()


GOOD = json.loads(State().encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\xff",
        b"[" * 100_000,
        *(json.dumps({key: value for key, value in GOOD.items() if key != missing}).encode() for missing in GOOD),
        *(
            json.dumps(GOOD | fields).encode()
            for fields in (
                {"version": 4}, {"programs": []}, {"programs": {"8:1": [1, 2, 3]}}, {"programs": {"8:1": 7}}, {"users": 7},
                {"users": {"0": [1, 2, 3, -1]}}, {"users": {"0": [1, 2, 3, "4"]}}, {"users": {"0": [1, 2, 1.5, 4]}},
                {"host": 7}, {"host": [1, 2, 3]}, {"host": [1, 2, 3, -1]},
                {"declined": "3"}, {"declined": -3}, {"lost": None}, {"lost": -1}, {"skipped": 1.5},
                {"since": None}, {"boot": 7}, {"record": "7"},
                {"record": -2}, {"read_at": None}, {"read_at": -1}, {"others": 1 << 70},
                {"programs": {f"8:{number}": [1, 2, 3, 4] for number in range(storm_limits.MAX_STORM_PROGRAMS + 1)}},
                {"users": {str(number): [1, 2, 3, 4] for number in range(storm_limits.MAX_STORM_USERS + 1)}},
            )
        ),
    ],
    ids=lambda data: repr(data[:60]),
)  # fmt: skip
def test_a_state_that_is_none_is_refused(data: bytes) -> None:
    """By one kind of error, which stands for an empty state."""
    with pytest.raises(ValueError):  # whatever the words
        State.parse(data)


def test_a_state_cut_at_every_offset_is_refused() -> None:
    """No beginning of a state is one, and nothing may stand behind it."""
    state = State()
    taken(state, 5)
    data = state.encode()
    for other in [*(data[:cut] for cut in range(len(data))), data + b"x", data + data]:
        with pytest.raises(ValueError):
            State.parse(other)
