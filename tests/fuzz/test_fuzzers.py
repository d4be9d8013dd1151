"""The fuzzers themselves: a short run of each, by executions and not by time, and the proof that they find what is there."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.campaign import Outcome, fuzz
from tests.fuzz.planted import check_planted
from tests.fuzz.table import TARGETS

RUNS = 1_000
"""Executions of each target: several times its seeds, so that most inputs are of the fuzzer's making."""
COVERED = 10
"""Places in the product that every target reaches: the smallest parser has a dozen. Without counters in it there are none."""
PLANTED_RUNS = 3_000_000
"""At most; with this seed, guided by coverage, half a million are enough. By chance the header alone would take 2**40."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not here: wheels for CPython 3.11-3.13, Linux x86-64 only"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The outcome of a short run of every target, the same in every run."""
    directory = tmp_path_factory.mktemp("fuzz")
    return {outcome.target: outcome for outcome in fuzz(list(TARGETS), directory, [f"-runs={RUNS}", "-seed=1"])}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_fuzzed_and_nothing_is_found(name: str, outcomes: dict[str, Outcome]) -> None:
    """It was really executed so often, coverage of the product really guided it, and its property held each time."""
    outcome = outcomes[name]
    assert outcome.is_good, outcome.log.read_text("utf-8", "replace")[-4000:]
    # One more was seen once, on a busy machine; fewer is what must not be.
    assert outcome.executions >= RUNS
    assert outcome.coverage >= COVERED
    assert outcome.features >= outcome.coverage
    assert 3 * len(list(TARGETS[name].seeds())) <= RUNS


def test_a_planted_bug_is_found_and_kept(tmp_path: Path) -> None:
    """A property that does not hold is broken by an input that nobody gave the fuzzer, and the input stays to be run again."""
    (outcome,) = fuzz(["planted"], tmp_path, [f"-runs={PLANTED_RUNS}", "-seed=3"], table="tests.fuzz.planted")

    assert not outcome.is_good
    assert 0 < outcome.executions < PLANTED_RUNS
    assert outcome.finding is not None
    with pytest.raises(AssertionError):
        check_planted(outcome.finding.read_bytes())
    assert "AssertionError" in outcome.log.read_text("utf-8", "replace")
