"""The counts of one directory as one crash meets them: what is asked, said and counted, in one process."""

import errno
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from securecore.errors import StorageError, UnreachableError
from securecore.names import Address
from securecore.report import CrashReport
from securecore.sender import network, storm_limits, storms, tally, transfer
from securecore.sender.admission import EXCLUDE, Admission, Rule, StormLimit
from securecore.sender.buckets import State, Untaken, Verdict
from securecore.sender.kernel_log import Skips
from securecore.sender.parcel import Outcome
from securecore.sender.program import ProgramReader
from securecore.sender.settings import Settings
from securecore.sender.spool import Spool
from securecore.sender.tally import Tally
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.receivers import new_dump_id

NOWHERE = Address("127.0.0.1:9")
FREE = StormLimit(0, 60)
CORE = write_core([Segment(os.urandom(5000))])


class Said:
    """What a handler has written to the system's log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **facts: Any) -> None:
        self.lines.append((event, facts))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """The log's place, as a tally writes to it."""
    log = Said()
    monkeypatch.setattr(tally, "log", log)
    return log


def test_a_state_that_the_disk_cannot_read_is_said_and_the_crash_taken(
    spool: Spool, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the state as it was: what it has counted is there again when the disk is."""
    admission, crash = Admission(program=StormLimit(1, 3600)), CrashReport(uid=1, executable_device=8, executable_inode=1)
    verdicts = [Tally(spool.fd, crash).admit(admission) for _ in range(3)]

    def fail(fd: int, length: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "read", fail)
        verdicts.append(Tally(spool.fd, crash).admit(admission))
    verdicts.append(Tally(spool.fd, crash).admit(admission))

    assert [verdict.limit for verdict in verdicts] == [None, "program", "program", None, "program"]
    assert verdicts[-1].untaken.suppressed == 3
    assert said.lines == [("untidy", {"error": "cannot read 'storms.json': input/output error"})]


def test_a_damaged_state_is_said_and_begins_anew(spool: Spool, said: Said, tmp_path: Path) -> None:
    """The crash is judged by the new one, and counted in it."""
    admission, crash = Admission(program=StormLimit(1, 3600)), CrashReport(uid=1, executable_device=8, executable_inode=1)
    (tmp_path / "spool" / "storms.json").write_bytes(b"{")
    verdicts = [Tally(spool.fd, crash).admit(admission).limit for _ in range(2)]

    assert verdicts == [None, "program"]
    words = "storms.json is damaged, and is storms.json.damaged now: what was counted there is lost"
    assert said.lines == [("untidy", {"error": words})]


@pytest.mark.parametrize("is_declined", [False, True], ids=["taken", "declined"])
def test_a_state_that_is_kept_from_us_is_waited_for_once(
    is_declined: bool, spool: Spool, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was stopped with it costs a crash one wait, whatever there is to count; the kernel's log waits for the next one."""
    waits: list[float] = []
    log = os.open("/dev/null", os.O_RDONLY)
    monkeypatch.setattr(tally.kernel_log, "open_kernel_log", lambda: log)
    monkeypatch.setattr(storms, "take_turn", lambda fd, patience_s: waits.append(patience_s))
    met = Tally(spool.fd, CrashReport(uid=1, boot_id="boot"))
    if is_declined:
        met.decline(new_dump_id(), "rule 1")
    else:
        met.admit(Admission())
        met.count_skips()

    assert waits == [storm_limits.STORM_LOCK_S]
    assert ("untidy", {"error": "storms.json is locked by another process"}) in said.lines
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log)


def test_of_crashes_that_are_not_taken_one_now_and_then_reads_the_kernels_log(
    spool: Spool, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it has to be read each time, and of those that are taken a process waits meanwhile."""
    read: list[int] = []
    boot = "boot"

    def read_skips(log: int, last: int) -> Skips:
        read.append(last)
        return Skips(100 + len(read), ())

    monkeypatch.setattr(tally.kernel_log, "read_skips", read_skips)
    monkeypatch.setattr(tally.kernel_log, "open_kernel_log", lambda: os.open("/dev/null", os.O_RDONLY))
    for _ in range(3):
        Tally(spool.fd, CrashReport(uid=1, boot_id=boot)).suppress(new_dump_id(), Verdict("user", Untaken(0, 1)))
        Tally(spool.fd, CrashReport(uid=1, boot_id=boot)).decline(new_dump_id(), "rule 1")
    Tally(spool.fd, CrashReport(uid=1, boot_id=boot)).count_skips()
    Tally(spool.fd, CrashReport(uid=1, boot_id="the next")).count_skips()

    assert read == [-1, -1]


def test_the_kernels_log_is_closed_before_a_taken_crash_meets_the_network(
    spool: Spool, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read by then: who takes over the process that talks to a receiver finds nothing of root's open."""
    log = os.open("/dev/null", os.O_RDONLY)
    monkeypatch.setattr(tally.kernel_log, "open_kernel_log", lambda: log)
    monkeypatch.setattr(tally.kernel_log, "read_skips", lambda fd, last: Skips(7, ((7, 3),)) if fd == log else None)
    monkeypatch.setattr(tally.privileges, "Acting", lambda uid, gid: nullcontext())
    storms.count_skips(spool.fd, "earlier", Skips(1, ()), lambda: 1.0)
    place, report = tally.Place(lambda: spool.fd, 1, 1), CrashReport(uid=1, boot_id="boot")
    taken = tally.judge(os.open("/dev/null", os.O_RDONLY), place, Admission(), new_dump_id(), report, None)

    assert taken is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log)
    assert State.parse((tmp_path / "spool" / "storms.json").read_bytes()).skipped == 3


class Program:
    """Stands for who finds out which file the program is, and notes what is asked of it."""

    def __init__(self, noted: list[str]) -> None:
        self._noted = noted

    def find_file(self) -> dict[str, Any]:
        """One file for every crash."""
        self._noted.append("file")
        return {"executable_device": 8, "executable_inode": 1}

    def leave(self) -> None:
        """Only noted."""
        self._noted.append("left")


def test_which_file_it_is_is_asked_for_when_a_storm_limit_needs_it(
    spool: Spool, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file system may be slow to say: what a rule declines waits for no such word, nor does what is too large or never counted.

    Of a crash that is not taken nobody reads any more by the time when root, who may end the child, is given up.
    """
    noted: list[str] = []
    monkeypatch.setattr(tally.privileges, "Acting", lambda uid, gid: nullcontext())
    monkeypatch.setattr(tally.privileges, "drop", lambda uid, gid: noted.append("dropped"))
    admission = Admission(program=StormLimit(1, 3600), user=FREE, host=FREE, rules=(Rule(EXCLUDE, user="2"),))

    def refuse() -> int:
        raise StorageError("no spool")

    def judge(admission: Admission, user: int = 1, find: Callable[[], int] = lambda: os.dup(spool.fd)) -> tuple[bool, list[str]]:
        noted.clear()
        reading, writing = os.pipe()
        os.write(writing, CORE)
        os.close(writing)
        place, report = tally.Place(find, 1, 1), CrashReport(uid=user)
        program = cast(ProgramReader, Program(noted))
        return tally.judge(reading, place, admission, new_dump_id(), report, program) is not None, [*noted]

    assert judge(admission, user=2) == (False, ["left", "dropped"])
    assert judge(admission._replace(max_size=1)) == (False, ["left", "dropped"])
    assert judge(admission, find=refuse) == (True, [])
    assert judge(admission) == (True, ["file"])
    assert judge(admission) == (False, ["file", "left", "dropped"])


def test_the_count_of_a_dump_that_went_nowhere_is_counted_again(
    fleet: Fleet, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither delivered nor spooled: what it would have told is told by the next one, and that it was lost."""
    crash = CrashReport(uid=1, executable_device=8, executable_inode=1)
    storms.count_declined(spool.fd)
    asked: list[dict[str, Any]] = []

    def carry(core: int, parcel: Any, *arguments: object, **options: object) -> Outcome:
        os.close(core)
        asked.append(json.loads(parcel.report))
        is_kept = len(asked) > 2
        return Outcome(None, StorageError("refused"), is_kept, None, 0, 0, 0, None)

    monkeypatch.setattr(transfer, "carry", carry)
    monkeypatch.setattr(network.privileges, "drop", lambda uid, gid: None)
    monkeypatch.setattr(network.privileges, "Acting", lambda uid, gid: nullcontext())
    settings = Settings((NOWHERE,), str(fleet.host), str(tmp_path / "spool"), 1, 1)
    place = tally.Place(lambda: spool.fd, 1, 1)
    settings = settings._replace(admission=Admission(program=StormLimit(3, 3600), user=FREE, host=FREE))
    for _ in range(4):
        reading, writing = os.pipe()
        os.close(writing)
        dump = new_dump_id()
        taken = tally.judge(reading, place, settings.admission, dump, crash, None)
        assert taken is not None
        network.send(reading, settings, dump, lambda: crash, taken)

    assert [(report.get("declined"), report.get("lost")) for report in asked] == [(1, None), (1, 1), (1, 2), (None, None)]
    assert asked[0]["untaken_since"] == asked[1]["untaken_since"]


def test_what_a_receiver_has_a_part_of_is_neither_lost_nor_counted_again(
    fleet: Fleet, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its report, there, has told the counts, and its dump is one that is not complete; the place in the limits is taken."""
    crash = CrashReport(uid=1, executable_device=8, executable_inode=1)
    storms.count_declined(spool.fd)

    def carry(core: int, *arguments: object, **options: object) -> Outcome:
        os.close(core)
        return Outcome(None, UnreachableError("gone"), False, StorageError("refused"), 0, 0, 0, None, None, True)

    monkeypatch.setattr(transfer, "carry", carry)
    monkeypatch.setattr(network.privileges, "drop", lambda uid, gid: None)
    monkeypatch.setattr(network.privileges, "Acting", lambda uid, gid: nullcontext())
    settings = Settings((NOWHERE,), str(fleet.host), str(tmp_path / "spool"), 1, 1)
    settings = settings._replace(admission=Admission(program=StormLimit(1, 3600)))
    reading, writing = os.pipe()
    os.close(writing)
    taken = tally.judge(reading, tally.Place(lambda: spool.fd, 1, 1), settings.admission, new_dump_id(), crash, None)
    assert taken is not None
    network.send(reading, settings, new_dump_id(), lambda: crash, taken)
    verdict = storms.admit(spool.fd, settings.admission, crash)

    assert (verdict.limit, verdict.untaken.suppressed) == ("program", 1)
    state = State.parse((tmp_path / "spool" / "storms.json").read_bytes())
    assert (state.declined, state.lost) == (0, 0)
