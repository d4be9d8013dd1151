"""What a dump says of the crashes that were not taken before it: to people in words, to programs in the report's fields."""

import subprocess
from pathlib import Path

import pytest

from securecore.cli.show import _untaken
from securecore.receiver.server import Receiver
from securecore.report import CrashReport
from securecore.sender.admission import Admission, StormLimit
from tests.support.certificates import Fleet
from tests.support.kernel import Installed, kernel_arguments
from tests.support.stores import Commands

SINCE = 1_795_000_440


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (CrashReport(), None),
        (CrashReport(untaken_since=SINCE), None),
        (CrashReport(suppressed=43, untaken_since=SINCE), "43 more of this program, since 2026-11-18 11:14:00 UTC"),
        (CrashReport(skipped_by_kernel=7), "7 skipped by the kernel"),
        (
            CrashReport(
                suppressed=1, suppressed_of_user=2, suppressed_of_host=6, suppressed_of_others=3, declined=4, lost=7,
                skipped_by_kernel=5,
            ),
            "1 more of this program, 2 more of this user, 6 more of this host, 3 of others, 4 declined, 7 lost, "
            "5 skipped by the kernel",
        ),
        (CrashReport(declined=1, untaken_since=(1 << 64) - 1), "1 declined"),
    ],
)
def test_only_what_was_counted_is_said(report: CrashReport, words: str | None) -> None:
    """A time that no calendar has is left out, as the sender's word is no more than that."""
    assert _untaken(report) == words


@pytest.mark.slow
def test_a_storm_is_told_by_the_next_dump(
    fleet: Fleet, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a handler's count to `show`, through receipt and store."""
    handler, commands = Installed(tmp_path, fleet.host, receiver.addresses), Commands(tmp_path / "store", fleet, capsys)
    crash = [str(handler.handler), *kernel_arguments()]
    handler.change(admission=Admission(program=StormLimit(1, 3600)))
    for _ in range(3):
        subprocess.run(crash, input=b"core", env={}, cwd="/", check=True)
    handler.change(admission=Admission(program=StormLimit(0, 1)))
    subprocess.run(crash, input=b"core", env={}, cwd="/", check=True)
    first, last = (receipt["dump"] for receipt in handler.receipts())

    assert "not taken   2 more of this program, since 20" in commands("show", last).out
    assert commands("show", last, "--json").document["report"]["suppressed"] == 2
    assert "not taken" not in commands("show", first).out
    listed = {row["id"]: row for row in commands("list", "--json").document}
    assert [listed[dump]["suppressed"] for dump in (first, last)] == [0, 2]
    assert listed[first]["untaken_since"] is None
    assert listed[last]["untaken_since"] == commands("show", last, "--json").document["report"]["untaken_since"]
