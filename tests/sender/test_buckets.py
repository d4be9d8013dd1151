"""The arithmetic of storm limits: how many are taken, how long it takes until one more is, and that no count is lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.sender.admission import StormLimit
from securecore.sender.buckets import Bucket, State, Untaken

PROGRAM, USER = StormLimit(3, 60), StormLimit(5, 10)
BOUNDS = (PROGRAM, USER)
NOW = 1_795_000_000_000


def taken(state: State, crashes: int, program: str | None = "8:1", user: str = "33", now_ms: int = NOW) -> int:
    """Return how many of *crashes* at one moment are taken."""
    return sum(state.admit(program, user, BOUNDS, now_ms).limit is None for _ in range(crashes))


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
    state, free = State(), (StormLimit(0, 60), StormLimit(0, 60))
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
    assert sum(state.admit("8:1", "33", (StormLimit(100, 600), USER), NOW).limit is None for _ in range(5)) == 5
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
    """The one used longest ago goes; the next dump counts what was counted with it."""
    state = State()
    taken(state, 10, program="8:0", user="0")
    for number in range(1, limits.MAX_STORM_PROGRAMS + 1):
        assert taken(state, 1, program=f"8:{number}", user=str(number)) == 1

    assert len(state.programs) == limits.MAX_STORM_PROGRAMS
    assert len(state.users) == limits.MAX_STORM_USERS
    assert "8:0" not in state.programs
    assert state.admit("8:1", "1", BOUNDS, NOW).untaken == Untaken(suppressed_of_others=7, untaken_since=NOW // 1000)


def test_a_user_cannot_push_other_programs_out() -> None:
    """Crashes that the user's limit suppresses make no bucket for their programs."""
    state = State()
    taken(state, 3, program="8:0", user="0")
    for number in range(1, 3 * limits.MAX_STORM_PROGRAMS):
        taken(state, 1, program=f"8:{number}")

    assert taken(state, 1, program="8:0", user="0") == 0
    assert len(state.programs) == 1 + USER.burst


def test_what_a_lost_dump_had_counted_is_counted_again() -> None:
    """With its time."""
    state = State()
    taken(state, 10)
    state.count(1, 2, 3, 50)
    untaken = state.admit("8:1", "33", BOUNDS, NOW + 60_000).untaken
    state.give_back("8:1", "33", untaken)

    assert sum(untaken[:-1]) == 13
    assert state.admit("8:1", "33", BOUNDS, NOW + 120_000).untaken == untaken


programs = st.none() | st.integers(0, 5).map("8:{}".format)
crashes = st.lists(st.tuples(programs, st.integers(0, 3).map(str), st.integers(-30_000, 90_000)), max_size=80)


@given(crashes)
def test_taken_and_counted_are_all_that_there_were(met: list[tuple[str | None, str, int]]) -> None:
    """Whoever crashes in whatever order, by whatever clock: taken, reported, and still counted add up."""
    state, admitted, reported, now_ms = State(), 0, 0, NOW
    for program, user, step_ms in met:
        now_ms += step_ms
        verdict = state.admit(program, user, BOUNDS, now_ms)
        if verdict.limit is None:
            admitted, reported = admitted + 1, reported + sum(verdict.untaken[:-1])
    left = state.others + sum(bucket.suppressed for kind in (state.programs, state.users) for bucket in kind.values())

    assert admitted + reported + left == len(met)
    assert State.parse(state.encode()).encode() == state.encode()


def test_the_largest_state_fits_its_file() -> None:
    """Every number at its longest."""
    state = State()
    bucket = Bucket(10**13, 10**13, 10**18, 10**10)
    state.programs = {f"{1 << 63}:{(1 << 64) - 1 - number}": bucket for number in range(limits.MAX_STORM_PROGRAMS)}
    state.users = {str((1 << 32) - number): bucket for number in range(limits.MAX_STORM_USERS)}
    state.boot = "3b241101-e2bb-4255-8caf-4136c566a962"

    assert len(state.encode()) < 40 * limits.KIB


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
                {"version": 2}, {"programs": []}, {"programs": {"8:1": [1, 2, 3]}}, {"programs": {"8:1": 7}}, {"users": 7},
                {"users": {"0": [1, 2, 3, -1]}}, {"users": {"0": [1, 2, 3, "4"]}}, {"users": {"0": [1, 2, 1.5, 4]}},
                {"declined": "3"}, {"declined": -3}, {"skipped": 1.5}, {"since": None}, {"boot": 7}, {"record": "7"},
                {"record": -2}, {"others": 1 << 70},
                {"programs": {f"8:{number}": [1, 2, 3, 4] for number in range(limits.MAX_STORM_PROGRAMS + 1)}},
                {"users": {str(number): [1, 2, 3, 4] for number in range(limits.MAX_STORM_USERS + 1)}},
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
