"""What a handler writes to the system's log about crashes that are not taken: few lines, however long a storm lasts."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from securecore.errors import StorageError
from securecore.names import Address
from securecore.report import CrashReport
from securecore.sender import stateless, storm_limits, tally
from securecore.sender.admission import EXCLUDE, Admission, Rule, StormLimit
from securecore.sender.buckets import Untaken, Verdict
from securecore.sender.spool import Spool
from securecore.sender.tally import Tally
from tests.support.certificates import Fleet
from tests.support.kernel import Installed, kernel_arguments
from tests.support.launchers import seeing
from tests.support.machines import SystemLog
from tests.support.receivers import new_dump_id

CRASH: Final = CrashReport(uid=1, program="loops", executable_device=8, executable_inode=1)
MANY: Final = 1000
NOW: Final = 1_795_000_000.0
SAID: Final = [*range(1, storm_limits.DECLINED_LINES + 1), *(1 << doubled for doubled in range(5, 10))]
"""Which of so many have a line."""


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a tally has said of crashes that it declined."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(tally, "log", lambda event, **facts: found.append(facts | {"event": event}))
    return found


@pytest.mark.parametrize("kind", ["suppressed", "suppressed_of_user", "suppressed_of_host"])
def test_of_a_storm_the_first_ones_are_said_and_then_each_time_that_they_have_doubled(
    kind: str, spool: Spool, lines: list[dict[str, Any]]
) -> None:
    """Each line has the count, so none is missed. By the number that the limit has suppressed since it was last told."""
    for number in range(1, MANY + 1):
        Tally(spool.fd, CRASH).suppress(new_dump_id(), Verdict("program", Untaken(**{kind: number})))

    assert [line["suppressed"] for line in lines] == SAID


def test_the_same_of_what_a_rule_or_its_size_declines(spool: Spool, lines: list[dict[str, Any]]) -> None:
    """No storm limit holds for these: the count that the next dump tells is all that bounds their lines."""
    for _ in range(MANY):
        Tally(spool.fd, CRASH).decline(new_dump_id(), "rule 2")

    assert [line["declined"] for line in lines] == SAID


def test_what_cannot_be_counted_is_said(lines: list[dict[str, Any]]) -> None:
    """Without a state nobody else tells of it."""
    for _ in range(3):
        Tally(None, CRASH).decline(new_dump_id(), "rule 2")

    assert [line["declined"] for line in lines] == [None] * 3


@pytest.mark.parametrize("missing", ["spool-missing", "untidy"])
def test_without_a_spool_a_crash_now_and_then_has_its_lines(
    missing: str, lines: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing counts them there, and whoever crashes on and on must not fill the log: why it is so, and what was declined."""
    stamp = tmp_path / "stamp"
    monkeypatch.setattr(stateless, "STAMPS", (str(tmp_path / "none/stamp"), str(stamp)))
    monkeypatch.setattr(tally.privileges, "drop", lambda uid, gid: None)
    admission = Admission(rules=(Rule(EXCLUDE),))

    def refuse() -> int:
        raise StorageError("no spool")

    def crash_on_and_on() -> None:
        for _ in range(MANY):
            core = os.open("/dev/null", os.O_RDONLY)
            assert tally.judge(core, tally.Place(refuse, 1, 1, missing), admission, new_dump_id(), CRASH, None) is None

    for _ in range(2):
        crash_on_and_on()
        # As after that time; and after a clock was set back.
        for ahead_s in (-storm_limits.UNCOUNTED_LINE_EVERY_S, 3600):
            moment = time.time() + ahead_s
            os.utime(stamp, (moment, moment))
            crash_on_and_on()

    assert [line["event"] for line in lines] == [missing, "declined"] * 5


def test_where_nothing_can_be_noted_every_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the directory, or where what stands there is no file."""
    monkeypatch.setattr(stateless, "STAMPS", (str(tmp_path / "none/stamp"), "/dev/full/stamp"))

    assert [stateless.is_due(NOW) for _ in range(3)] == [True] * 3


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to stand in for the system's log")
def test_a_crash_that_is_taken_has_two_lines_and_one_that_is_suppressed_one(fleet: Fleet, tmp_path: Path) -> None:
    """That a handler was started is worth a line where a second one may be missing, as of one that is killed."""
    installed = Installed(tmp_path, fleet.host, [Address("127.0.0.1:9")])
    installed.change(admission=Admission(program=StormLimit(1, 3600)))
    with SystemLog(tmp_path / "dev") as log:
        # As everybody may write to the system's log, the handler's user too.
        (tmp_path / "dev/log").chmod(0o666)
        for _ in range(2):
            command = [*seeing(log.places), sys.executable, "-I", str(installed.handler), *kernel_arguments()]
            subprocess.run(command, input=b"core", check=False, timeout=60)
        said = [line.split()[1] for line in log.lines()]

    assert said == ["started", "spooled", "declined"]
