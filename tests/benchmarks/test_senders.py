"""The rows of many senders, from the figures of a fleet that is written down here."""

from pathlib import Path
from types import SimpleNamespace

import fleet
import pytest
from benchmarks import machine, plan, senders
from benchmarks.figures import BenchError
from benchmarks.table import HOLDS, MISSED

RUN = plan.QUICK._replace(runs=2, senders=(1, 64))


@pytest.fixture
def run(tmp_path: Path) -> plan.Run:
    """A run of 1 and 64 senders, twice."""
    return plan.Run(machine.Machine(tmp_path), RUN)


def pretend(monkeypatch: pytest.MonkeyPatch, *, slowest: float, problem: object = None) -> None:
    """Have a fleet whose senders take a second, but for one in each measurement."""

    def measure(_: object, count: int, hosts: int) -> SimpleNamespace:
        if problem is not None:
            raise SystemExit(problem)
        seconds = [1.0] * (count - 1) + [slowest]
        return SimpleNamespace(seconds=seconds, cpu_s=2.0 * count, stored_bytes=10**9 * count, elapsed_s=slowest)

    made = SimpleNamespace(frames=[], identity=lambda number: None, receiver_identity=None, directory=None)
    monkeypatch.setattr(fleet, "Fleet", lambda directory, hosts, mib: made)
    monkeypatch.setattr(fleet, "measure", measure)
    monkeypatch.setattr(fleet, "measure_held", lambda fleet, count, hosts: (1 << 19, 0))
    monkeypatch.setattr(senders, "measure_parts", lambda frames, host, receiver, directory: SimpleNamespace(all=2.0 / 10**9))


def test_senders_are_judged_where_something_is_promised(run: plan.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest of 64 against their median, the processor against its parts, the memory against its bound; all are shown."""
    pretend(monkeypatch, slowest=1.5)
    found = senders.measure(run)

    assert [row.ratio for row in found.rows] == [(1.5, 1.5), (1.0, 1.0), (0.5, 0.5)]
    assert [row.verdict for row in found.rows] == [HOLDS, HOLDS, HOLDS]
    assert [cells[0] for cells in found.grids[0].cells] == ["1", "64"]
    pretend(monkeypatch, slowest=2.5)
    assert senders.measure(run).rows[0].verdict == MISSED


def test_a_sender_that_fails_is_no_figure(run: plan.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is the row's trouble, and not the end of the run."""
    pretend(monkeypatch, slowest=1.0, problem="a sender has failed")
    with pytest.raises(BenchError, match="a sender has failed"):
        senders.measure(run)
