"""When a flush comes again: back-off with jitter, what a receiver may impose, and a file that is only advice."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.errors import BrokenError
from securecore.names import StoreId
from securecore.sender.schedule import Hope, Missed, Schedule, claim, parse_schedule, read_schedule, write_schedule
from securecore.sender.spool import Spool
from tests.support.dumps import dump_id

NOW: Final = 1_795_338_860.0
STORES: Final = [StoreId.make(bytes([number]) * 16) for number in range(100)]
GOOD: Final = Schedule(3, 1_795_338_900, ((STORES[0], Missed(5, 50)), (STORES[1], Missed(7, 70))), 1_795_338_870, dump_id(9))
FIELDS: Final[dict[str, Any]] = json.loads(GOOD.encode())


def canonical(fields: object) -> bytes:
    """Return JSON as it is written."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def waits(failures: int, chance: float, retry_after_s: int = 0) -> int:
    """Return how long is waited after the last of so many failures, all of them at NOW."""
    schedule = Schedule()
    for _ in range(failures):
        schedule = schedule.after_failure(NOW, retry_after_s, chance)
    assert schedule.failures == failures
    return schedule.not_before - int(NOW)


def test_each_failure_doubles_the_longest_wait_up_to_an_hour() -> None:
    """One minute after the first; the seventh would be an hour and four minutes."""
    assert [waits(failures, 1.0) for failures in range(1, 9)] == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert waits(2000, 1.0) == 3600


def test_the_wait_is_drawn_from_nothing_to_the_longest() -> None:
    """Full jitter: hosts that failed in the same second come back in different ones."""
    assert [waits(7, chance) for chance in (0.0, 0.25, 0.5)] == [0, 900, 1800]


def test_a_receiver_is_obeyed_up_to_a_day() -> None:
    """What it asks for is the least; the jitter comes on top, or it would have all of them back at once."""
    assert waits(1, 0.5, retry_after_s=600) == 630
    assert waits(1, 1.0, retry_after_s=limits.MAX_RETRY_AFTER_S) == limits.MAX_RETRY_AFTER_S
    assert waits(1, 1.0, retry_after_s=(1 << 32) - 1) == limits.MAX_RETRY_AFTER_S


def test_what_a_receiver_asks_for_stands_beside_the_back_off() -> None:
    """A day at most; a clock that was set back makes no more of it."""
    schedule = Schedule(2, int(NOW) + 5).after_request(NOW, (1 << 32) - 1)

    assert (schedule.failures, schedule.not_before) == (2, int(NOW) + 5)
    asked = [schedule.is_asked_to_wait(NOW + later) for later in (-60, 0, limits.MAX_RETRY_AFTER_S - 1, limits.MAX_RETRY_AFTER_S)]
    assert asked == [False, True, True, False]
    assert not schedule.is_due(NOW + 5)
    assert schedule.after_request(NOW + 60, 0) == schedule
    assert Schedule(2, int(NOW) + 5).is_asked_to_wait(NOW) is False


def test_success_makes_everything_due() -> None:
    """The next failure is the first again."""
    schedule = Schedule().after_failure(NOW, 600, 1.0).after_request(NOW, 600).after_success()

    assert schedule == Schedule()
    assert schedule.is_due(NOW)


def test_nothing_is_due_before_its_time() -> None:
    """And everything is from then on."""
    schedule = Schedule(1, int(NOW) + 60)

    assert [schedule.is_due(NOW + later) for later in (0, 59.9, 60, 1e6)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("asked_until", "most_s"),
    [(0, limits.BACK_OFF_MAX_S), (int(NOW) + 60, limits.MAX_RETRY_AFTER_S)],
    ids=["by us", "by a receiver"],
)
def test_a_clock_that_was_set_back_puts_nothing_off_for_long(asked_until: int, most_s: int) -> None:
    """A time to come again that is further ahead than anything could have put it counts as due."""
    until = int(NOW) + 60
    schedule = Schedule(1, until, asked_until=asked_until)

    assert schedule.is_due(until - most_s - 1)
    assert not schedule.is_due(until - most_s)
    assert schedule.is_due(NOW - 20 * 365 * 24 * 3600)


@pytest.mark.parametrize("retry_after_s", [0, 1, 7200, limits.MAX_RETRY_AFTER_S, 10**9])
def test_what_a_failure_puts_off_is_not_due_before(retry_after_s: int) -> None:
    """However long a receiver has asked for, and whatever the lot adds, up to a day."""
    schedule = Schedule(40).after_failure(NOW, retry_after_s, 1.0).after_request(NOW, retry_after_s)

    assert not any(schedule.is_due(schedule.not_before - early) for early in range(1, schedule.not_before - int(NOW), 60))
    assert schedule.is_due(schedule.not_before)


def test_a_store_is_missed_since_the_first_time() -> None:
    """Until it is met; a store that was never missed is missed for no time."""
    schedule = Schedule().missing(STORES[0], NOW).missing(STORES[0], NOW + 50).missing(STORES[1], NOW + 60)

    assert [schedule.missing_s(store, NOW + 100) for store in STORES[:3]] == [100, 40, 0]
    assert schedule.met(STORES[0]).missing_s(STORES[0], NOW + 100) == 0
    assert schedule.met(STORES[2]) == schedule


def test_between_two_looks_a_store_is_missed_for_as_long_as_a_host_at_work_leaves_between_them() -> None:
    """What is longer is a host that was off, or a clock that jumped; what is less than nothing, one that was set back."""
    schedule = Schedule().missing(STORES[0], NOW)

    assert schedule.missing_s(STORES[0], NOW + limits.STORE_LOOK_MAX_S) == limits.STORE_LOOK_MAX_S
    assert schedule.missing_s(STORES[0], NOW + 1e9) == limits.STORE_LOOK_MAX_S
    assert schedule.missing(STORES[0], NOW + 1e9).missing_s(STORES[0], NOW + 1e9 + 5) == limits.STORE_LOOK_MAX_S + 5
    assert schedule.missing_s(STORES[0], NOW - 1e9) == 0
    assert schedule.missing(STORES[0], NOW - 1e9).missing_s(STORES[0], NOW - 1e9 + 5) == 5


HOPE: Final = Hope(dump_id(1), STORES[0], 4, 100)


@pytest.mark.parametrize(
    ("next_one", "is_progress"),
    [
        (HOPE, False),
        (HOPE._replace(held_frames=3, torn_bytes=500), False),
        (HOPE._replace(held_frames=5, torn_bytes=0), True),
        (HOPE._replace(torn_bytes=101), True),
        (HOPE._replace(dump=dump_id(2)), True),
        (HOPE._replace(store=STORES[1]), True),
    ],
    ids=["as much", "less", "a frame", "a byte of one", "another dump", "another store"],
)
def test_frames_that_nobody_vouched_for_are_progress_where_they_were_kept(next_one: Hope, is_progress: bool) -> None:
    """The first ones are, for a receiver keeps what came. Of the next ones its ACCEPT tells; others say nothing of it."""
    first, is_first = Schedule().hoping(HOPE)

    assert is_first is True
    assert first.hoping(next_one)[1] is is_progress


def test_nothing_is_hoped_of_who_has_kept_nothing_until_somebody_vouches() -> None:
    """Nor for other dumps; a dump that has left the spool tells nothing any more, and what is kept after all does."""
    vain, _ = Schedule().hoping(HOPE)[0].hoping(HOPE)
    other = HOPE._replace(dump=dump_id(2))

    assert vain.hoping(other) == (vain, False)
    assert vain.knowing([HOPE.dump]) == vain
    for begun_anew in (vain.vouched(), vain.knowing([other.dump]), vain.hoping(HOPE._replace(held_frames=5))[0]):
        assert begun_anew.hoping(other)[1] is True


def test_the_stores_that_are_remembered_are_bounded() -> None:
    """What is written can be read, however many there were."""
    schedule = Schedule()
    for store in STORES:
        schedule = schedule.missing(store, NOW)

    assert parse_schedule(schedule.encode()).missing_s(STORES[99], NOW + 5) == 5


numbers = st.integers(0, (1 << 62) - 1)
schedules = st.builds(
    lambda failures, not_before, missed, *more: Schedule(failures, not_before, tuple(sorted(missed.items(), key=str)), *more),
    numbers,
    numbers,
    st.dictionaries(st.sampled_from(STORES), st.builds(Missed, numbers, numbers), max_size=64),
    numbers,
    st.none() | st.builds(dump_id, st.integers(0, 255)),
    st.none() | st.builds(Hope, st.builds(dump_id, st.integers(0, 255)), st.sampled_from(STORES), numbers, numbers, st.booleans()),
)


@given(schedules, st.floats(0, 1e11), st.integers(0, (1 << 32) - 1), st.floats(0, 1))
def test_a_schedule_survives_whatever_comes(schedule: Schedule, now: float, retry_after_s: int, chance: float) -> None:
    """It is read as it was written, and so is what becomes of it; a wait is never longer than a receiver may impose."""
    assert parse_schedule(schedule.encode()) == schedule
    after = schedule.after_failure(now, retry_after_s, chance)
    assert parse_schedule(after.encode()) == after
    asked = schedule.after_request(now, retry_after_s)
    assert parse_schedule(asked.encode()) == asked
    assert now - 1 <= after.not_before <= now + limits.MAX_RETRY_AFTER_S
    assert parse_schedule(schedule.missing(STORES[0], now).encode()).missing_s(STORES[0], now) >= 0


TIMES: Final = [5, None, [], [5], [5, -1], [-1, 5], [5, None], [5, 5, 5], {"seconds": 5}]
"""What is not for how long a store was missed, and when it was looked for last."""

_OF: Final = [str(dump_id(9)), str(STORES[0])]
HOPES: Final[list[object]] = [
    None, [], "", {}, _OF, [*_OF, 1, 2], [*_OF, 1, 2, 0], [*_OF, 1, 2, None], [*_OF, -1, 2, True], [*_OF, 1, True, True],
    [*_OF, 1, 2, True, 3], ["x", _OF[1], 1, 2, True], [_OF[0], "x", 1, 2, True], [5, 5, 1, 2, True],
]  # fmt: skip
"""What is nobody's hope of frames."""

WRONG: Final[list[bytes]] = [
    b"", b"{}", b"[]", b"null", b"\xff", b"[" * 60_000, b"9" * 5000,
    GOOD.encode() + b"\n",
    json.dumps(FIELDS).encode(),
    *(canonical({key: value for key, value in FIELDS.items() if key != left_out}) for left_out in FIELDS),
    *(canonical(FIELDS | {key: value}) for key in FIELDS for value in (-1, True, 1.0, "", [], 1 << 62)),
    *(canonical(FIELDS | {key: None}) for key in FIELDS if key != "left_off_at"),
    *(canonical(FIELDS | {"left_off_at": text}) for text in ("x", str(STORES[0]), str(dump_id(9)).upper())),
    *(canonical(FIELDS | {"missed": missed}) for missed in ({"x": [1, 2]}, *({str(STORES[0]): times} for times in TIMES))),
    canonical(FIELDS | {"missed": {str(store): [1, 2] for store in STORES[:65]}}),
    *(canonical(FIELDS | {"hope": hope}) for hope in HOPES),
    canonical(FIELDS | {"more": 1}),
    canonical(FIELDS | {"version": 1}),
    canonical(FIELDS | {"version": 3}),
]  # fmt: skip


@pytest.mark.parametrize("data", WRONG, ids=range(len(WRONG)))
def test_what_was_not_written_by_a_schedule_is_refused(data: bytes) -> None:
    """One spelling, and numbers within their bounds."""
    with pytest.raises(BrokenError, match=r"schedule\.json is malformed"):
        parse_schedule(data)


def test_a_schedule_cut_at_every_offset_is_refused() -> None:
    """No beginning of one is another."""
    data = GOOD.encode()
    for cut in range(len(data)):
        with pytest.raises(BrokenError):
            parse_schedule(data[:cut])


def test_a_torn_schedule_is_none(spool: Spool, tmp_path: Path) -> None:
    """Missing, torn, no file, too long: everything is due, and the next one is written in its place."""
    assert read_schedule(spool.fd) == Schedule()
    for data in (GOOD.encode()[:-1], b"", bytes(100_000)):
        (tmp_path / "spool/schedule.json").write_bytes(data)
        assert read_schedule(spool.fd) == Schedule()

    write_schedule(spool.fd, GOOD)

    assert read_schedule(spool.fd) == GOOD
    assert (tmp_path / "spool/schedule.json").stat().st_mode & 0o777 == 0o600


def test_one_flush_at_a_time_has_the_claim(spool: Spool) -> None:
    """The second one is told at once, and the next has it again."""
    with claim(spool.fd) as first, claim(spool.fd) as second:
        assert (first, second) == (True, False)
    with claim(spool.fd) as third:
        assert third
