"""The real programs, killed at random: a short campaign of ``scripts/torture``, and the proof that it finds what is lost."""

from pathlib import Path

import pytest

from tests.torture.campaign import Campaign
from tests.torture.plan import Program, make_plan

pytestmark = pytest.mark.slow

RUNS = 15
"""Half a minute of two processors; docs/reliability.md has the figures of a long campaign."""

_FORGETFUL = """
from securecore.sender import transfer

take = transfer.Custody.take

def take_and_forget(custody, frame):
    take(custody, frame)
    custody.acknowledge(custody.all.size)

transfer.Custody.take = take_and_forget
"""
"""A sender that takes every frame that it has sent for one that is durable."""


def test_no_kill_loses_anything(tmp_path: Path) -> None:
    """Every program was killed, and all that judgement.py asks for holds after each run."""
    campaign = Campaign(tmp_path)
    for seed in range(RUNS):
        campaign.run(seed)

    assert campaign.problems == {}
    assert {program for program in Program if not any(name.startswith(program.value) for name in campaign.kills)} == set()
    assert sum(campaign.outcomes.values()) == sum(len(make_plan(seed).sources) for seed in range(RUNS))


def test_a_sender_that_forgets_too_early_is_found(tmp_path: Path) -> None:
    """With a bug that only a kill or a cut at the wrong moment shows, a campaign finds a loss soon, and keeps its run."""
    campaign = Campaign(tmp_path, _FORGETFUL)
    seed = 0
    while not campaign.problems and seed < 4 * RUNS:
        campaign.run(seed)
        seed += 1

    assert list(campaign.problems) == [seed - 1]
    assert (tmp_path / f"run-{seed - 1}" / "store").is_dir()


def test_a_seed_is_a_plan() -> None:
    """The seed that is printed gives the same plan again, and another one another plan."""
    assert make_plan(7) == make_plan(7)
    assert make_plan(7) != make_plan(8)
