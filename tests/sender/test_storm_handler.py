"""A handler that does not take its crash: by a rule, by size, by a storm limit; and what the next dump tells of it."""

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from securecore.errors import StorageError, UnreachableError
from securecore.names import Address
from securecore.report import CrashReport
from securecore.sender import network, storms
from securecore.sender.admission import EXCLUDE, INCLUDE, Admission, Rule, StormLimit
from securecore.sender.buckets import State
from securecore.sender.settings import Settings
from securecore.sender.spool import Spool, open_spool
from securecore.sender.transfer import Outcome
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.kernel import Installed, kernel_arguments
from tests.support.receivers import new_dump_id

NOWHERE = Address("127.0.0.1:9")
FREE = StormLimit(0, 60)
CORE = write_core([Segment(os.urandom(5000))])


class Handler(Installed):
    """An installed handler without a receiver, that meets crashes of this very process."""

    def crash(self, core: bytes = CORE, **changes: str) -> int:
        """Run it and return its exit code; 0 is for what was declined, UnreachableError's for what was spooled."""
        numbers = kernel_arguments()
        for position, number in changes.items():
            numbers[int(position.removeprefix("argument_"))] = number
        return subprocess.run([str(self.handler), *numbers], input=core, env={}, cwd="/", check=False, timeout=60).returncode

    @property
    def state(self) -> State:
        """The state of the storm limits."""
        return State.parse((self.spool / "storms.json").read_bytes())


@pytest.fixture
def handler(fleet: Fleet, tmp_path: Path) -> Handler:
    """A handler whose dumps stay in its spool."""
    return Handler(tmp_path, fleet.host, [NOWHERE])


@pytest.mark.slow
def test_a_rule_declines_before_anything_is_kept(handler: Handler) -> None:
    """Exit code 0, nothing in the spool but the count; the next dump that is taken tells how many, once."""
    segfaults = Admission(rules=(Rule(EXCLUDE, executable="*/python*", signal=11),))
    handler.change(admission=segfaults)
    assert [handler.crash(), handler.crash()] == [0, 0]
    assert handler.spooled() == []
    assert handler.state.declined == 2

    handler.crash(argument_4="6")
    handler.crash(argument_4="6")
    first, second = handler.spooled_reports()
    assert (first["declined"], first["signal"]) == (2, 6)
    assert first["untaken_since"] <= first["crashed_at"]
    assert "declined" not in second


@pytest.mark.slow
def test_an_exception_from_a_rule_is_taken(handler: Handler) -> None:
    """By the user who crashed, as set-up has resolved it."""
    handler.change(admission=Admission(rules=(Rule(INCLUDE, user=str(os.getuid())), Rule(EXCLUDE))))
    handler.crash()

    assert len(handler.spooled()) == 1


@pytest.mark.slow
def test_a_core_that_is_too_large_is_declined_before_anything_is_kept(handler: Handler) -> None:
    """By what its headers announce, also where they are all that has come so far; what is as large as may be is taken whole."""
    handler.change(admission=Admission(max_size=len(CORE)))
    larger = write_core([Segment(filesz=1 << 40)])
    assert handler.crash(larger) == 0
    assert handler.spooled() == []
    assert handler.state.declined == 1

    handler.crash()
    (name,) = handler.spooled()
    end = json.loads((handler.spool / "dumps" / name / "end.json").read_bytes())
    assert (end["size"], end["predicted_size"], end["outcome"]) == (len(CORE), len(CORE), "complete")


@pytest.mark.slow
def test_a_size_that_is_not_known_is_taken(handler: Handler) -> None:
    """What is no ELF core announces nothing."""
    handler.change(admission=Admission(max_size=1))
    handler.crash(b"no core")

    assert len(handler.spooled()) == 1


@pytest.mark.slow
def test_a_limit_on_cores_is_respected_or_ignored(handler: Handler) -> None:
    """RLIMIT_CORE below a page: respected unless the settings say otherwise."""
    assert handler.crash(argument_6="4095") == 0
    assert handler.spooled() == []
    handler.change(admission=Admission(core_limit="ignore"))
    handler.crash(argument_6="0")

    assert len(handler.spooled()) == 1


@pytest.mark.slow
def test_a_storm_is_limited_and_counted(handler: Handler) -> None:
    """Two of one program, three that are counted; when there is room again, the next dump tells of them."""
    handler.change(admission=Admission(program=StormLimit(2, 3600)))
    codes = [handler.crash() for _ in range(5)]
    assert codes[2:] == [0, 0, 0]
    assert len(handler.spooled()) == 2

    handler.change(admission=Admission(program=FREE))
    handler.crash()
    *before, last = handler.spooled_reports()
    assert ["suppressed" in report for report in before] == [False, False]
    assert last["suppressed"] == 3
    assert before[-1]["crashed_at"] <= last["untaken_since"] <= last["crashed_at"]


@pytest.mark.slow
def test_handlers_at_once_keep_to_the_limit(handler: Handler) -> None:
    """Twelve at once, four are taken: none is lost, and none is counted twice."""
    handler.change(admission=Admission(program=FREE, user=StormLimit(4, 3600)))
    threads = [threading.Thread(target=handler.crash) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(handler.spooled()) == 4
    assert handler.state.users[str(os.getuid())].suppressed == 8


@pytest.mark.slow
def test_without_a_state_everything_is_taken(handler: Handler) -> None:
    """Something that is no file stands where the state should be: a lost core is worse than one too many."""
    handler.change(admission=Admission(program=StormLimit(1, 3600)))
    (handler.spool / "storms.json").mkdir()
    for _ in range(3):
        handler.crash()

    assert len(handler.spooled()) == 3


@pytest.mark.slow
def test_the_state_belongs_to_the_handlers_own_user(handler: Handler) -> None:
    """It is written after the drop of privileges, as all else in the spool."""
    handler.change(admission=Admission(rules=(Rule(EXCLUDE, signal=11),)))
    handler.crash()
    declined = (handler.spool / "storms.json").stat()
    handler.crash(argument_4="6")
    taken = (handler.spool / "storms.json").stat()

    assert declined.st_uid == taken.st_uid == handler.spool.stat().st_uid


def test_the_count_of_a_dump_that_went_nowhere_is_counted_again(
    fleet: Fleet, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither delivered nor spooled: the dump is lost, and says so; what it would have told is told by the next one."""
    crash = CrashReport(uid=1, executable_device=8, executable_inode=1)
    storms.count_declined(spool.fd)
    asked: list[dict[str, Any]] = []

    def carry(core: int, parcel: Any, *arguments: object, **options: object) -> Outcome:
        os.close(core)
        asked.append(json.loads(parcel.report))
        is_kept = len(asked) > 1
        return Outcome(None, StorageError("refused"), is_kept, None, 0, 0, 0, None)

    monkeypatch.setattr(network, "carry", carry)
    monkeypatch.setattr(network.privileges, "drop", lambda uid, gid: None)
    settings = Settings((NOWHERE,), str(fleet.host), str(tmp_path / "spool"), 1, 1)
    for _ in range(3):
        reading, writing = os.pipe()
        os.close(writing)
        network.send(reading, settings, new_dump_id(), crash)

    assert [report.get("declined") for report in asked] == [1, 1, None]
    assert asked[0]["untaken_since"] == asked[1]["untaken_since"]


@pytest.mark.slow
def test_a_spool_that_is_gone_limits_nothing(fleet: Fleet, tmp_path: Path, handler: Handler) -> None:
    """There is nowhere to count then, and a healthy receiver must not miss the core for it."""
    handler.change(spool=str(tmp_path / "absent"), admission=Admission(program=StormLimit(1, 3600)))
    assert [handler.crash() for _ in range(2)] == [UnreachableError.exit_code] * 2
    assert open_spool(str(handler.spool)).dump_ids() == []
