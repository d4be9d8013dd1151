"""Jobs done by threads: what they return comes in their order, few are taken ahead, and none goes on when it is left early."""

import threading
from collections.abc import Callable, Iterator

import pytest

from securecore import limits
from securecore.audit.threads import in_order, usable_cpus
from securecore.errors import BrokenError


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_results_come_in_the_order_of_the_jobs(threads: int) -> None:
    """Whichever is done first."""
    first_may_end = threading.Event()

    def job(number: int) -> int:
        if number == 0 and threads > 1:
            assert first_may_end.wait(30)
        if number == 1:
            first_may_end.set()
        return number

    def make(number: int) -> Callable[[], int]:
        return lambda: job(number)

    assert list(in_order(map(make, range(50)), threads)) == list(range(50))


def test_two_jobs_are_done_at_once() -> None:
    """Each waits for the other."""
    both = threading.Barrier(2, timeout=30)
    assert sorted(in_order([both.wait, both.wait], 2)) == [0, 1]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_few_jobs_are_taken_ahead(threads: int) -> None:
    """A dump of a million frames does not become a million jobs."""
    taken, most_ahead = 0, 0

    def jobs() -> Iterator[Callable[[], None]]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield lambda: None

    for done, _ in enumerate(in_order(jobs(), threads)):
        most_ahead = max(most_ahead, taken - done)
    assert most_ahead <= 2 * threads


def test_what_a_job_raises_comes_in_its_turn() -> None:
    """Behind what those before it returned."""

    def fail() -> int:
        raise BrokenError("third")

    results = in_order([lambda: 1, lambda: 2, fail, lambda: 4], 2)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(BrokenError, match="third"):
        next(results)


@pytest.mark.parametrize("threads", [1, 3])
def test_left_early_nothing_else_is_begun(threads: int) -> None:
    """And no thread is left when it is closed."""
    before, begun = threading.active_count(), []
    results = in_order([lambda number=number: begun.append(number) for number in range(1000)], threads)  # type: ignore[misc]
    next(results)
    results.close()
    assert len(begun) <= 2 * threads
    assert threading.active_count() == before


def test_as_many_as_there_are_cpus_and_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large machine not all are taken, for the memory's sake; `taskset` leaves fewer."""
    for cpus, threads in ((1, 1), (2, 2), (256, limits.MAX_VERIFIERS)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cpus=cpus: set(range(cpus)))
        assert usable_cpus() == threads
