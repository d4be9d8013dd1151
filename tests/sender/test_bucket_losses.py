"""Dumps that were taken and then lost: what they had counted is counted again, and they keep no place in any limit."""

import pytest

from securecore.sender import storm_limits
from securecore.sender.admission import Admission, StormLimit
from securecore.sender.buckets import Bounds, State, Untaken, Verdict
from tests.support.storm_buckets import BOUNDS, HOST, NOW, PAUSE_MS, PROGRAM, taken


def test_what_a_lost_dump_had_counted_is_counted_again() -> None:
    """With its time, and the dump itself as one that was lost."""
    state = State()
    taken(state, 10)
    state.count(1, 2, 3, 50)
    untaken = state.admit("8:1", "33", BOUNDS, NOW + 60_000).untaken
    state.lose("8:1", "33", BOUNDS, untaken, NOW // 1000 + 60)

    assert sum(untaken[:-1]) == 13
    assert state.admit("8:1", "33", BOUNDS, NOW + 120_000).untaken == untaken._replace(lost=1)


def test_a_lost_dump_keeps_no_place_in_any_limit_but_for_a_pause() -> None:
    """Nothing was kept of it, so the next crash after the pause is the first that may be; a bucket is never more than full."""
    state, bounds = State(), Bounds(StormLimit(1, 60), StormLimit(1, 60), StormLimit(1, 60))
    for number in range(3):
        verdict = state.admit("8:1", "33", bounds, NOW + number * PAUSE_MS)
        assert verdict.limit is None
        state.lose("8:1", "33", bounds, verdict.untaken, NOW // 1000)
    state.lose("8:1", "33", bounds, Untaken(), NOW // 1000)

    verdicts = [state.admit("8:1", "33", bounds, NOW + 3 * PAUSE_MS) for _ in range(2)]
    assert [verdict.limit for verdict in verdicts] == [None, "program"]
    assert verdicts[0].untaken == Untaken(lost=4, untaken_since=NOW // 1000)


@pytest.mark.parametrize(("limit", "at_once"), [(StormLimit(2, 60), 7), (StormLimit(3, 10), 3), (StormLimit(4, 1), 4)])
@pytest.mark.parametrize("kind", ["program", "user", "host"])
def test_a_storm_of_crashes_that_are_all_lost_is_limited(kind: str, limit: StormLimit, at_once: int) -> None:
    """Whoever has cores that nobody can keep drains so many at once, and one after each pause; the rest is suppressed and counted.

    Where a limit takes one more sooner than after a pause, what was lost gives nothing back.
    """
    state, free = State(), StormLimit(0, 60)
    bounds = Bounds(free, free, free)._replace(**{kind: limit})
    pause_ms = min(PAUSE_MS, limit.every_s * 1000)

    def lost(crashes: int, now_ms: int) -> int:
        verdicts: list[Verdict] = []
        for _ in range(crashes):
            verdicts.append(state.admit("8:1", "33", bounds, now_ms))
            if verdicts[-1].limit is None:
                state.lose("8:1", "33", bounds, verdicts[-1].untaken, now_ms // 1000)
        return [verdict.limit for verdict in verdicts].count(None)

    assert lost(20, NOW) == at_once
    assert [lost(20, NOW + number * pause_ms) for number in (1, 2, 3)] == [1, 1, 1]
    told = state.admit("8:1", "33", bounds, NOW + 4 * pause_ms).untaken
    assert sum(told[:-1]) == 80


def test_the_first_crash_after_an_outage_is_taken() -> None:
    """By the usual limits: of a service that was restarted and crashed every pause for an hour, with nothing that kept a core."""
    state, usual = State(), Admission()
    bounds = Bounds(usual.program, usual.user, usual.host)
    for second in range(0, 3600, storm_limits.LOST_PAUSE_S):
        verdict = state.admit("8:1", "33", bounds, NOW + second * 1000)
        assert verdict.limit is None
        state.lose("8:1", "33", bounds, verdict.untaken, NOW // 1000 + second)

    assert state.admit("8:1", "33", bounds, NOW + 3_600_000).limit is None


def test_a_lost_dump_gives_nothing_back_where_there_is_no_limit_and_no_bucket() -> None:
    """A program whose file is not known, a burst of nothing, and buckets that are gone meanwhile."""
    state = State()
    taken(state, 5, program=None)
    state.lose(None, "33", Bounds(PROGRAM, StormLimit(0, 60), HOST), Untaken(), NOW // 1000)
    state.lose("8:7", "77", BOUNDS, Untaken(2, 3), NOW // 1000)

    assert taken(state, 1, program=None) == 0
    assert (state.others, state.lost) == (5, 2)


def test_a_lost_newcomer_gives_its_place_back_to_those_that_share_one() -> None:
    """Where it had taken it from."""
    state, bounds = State(), BOUNDS._replace(user=StormLimit(5, 60))
    for number in range(storm_limits.MAX_STORM_USERS):
        taken(state, 6, program=None, user=str(number), bounds=bounds)
    assert taken(state, 9, program=None, user="1000", bounds=bounds) == 5
    state.lose(None, "1000", bounds, Untaken(), NOW // 1000)

    assert taken(state, 9, program=None, user="1001", now_ms=NOW + PAUSE_MS, bounds=bounds) == 1
