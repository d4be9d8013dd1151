"""A handler that does not take its crash: by a rule, by size, by a storm limit; and what the next dump tells of it."""

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from securecore.dump.compression import Decompressor
from securecore.dump.reader import scan_frames
from securecore.errors import StorageError, UnreachableError
from securecore.names import Address
from securecore.report import CrashReport
from securecore.sender import network, storm_limits, storms, tally, transfer
from securecore.sender.admission import EXCLUDE, INCLUDE, Admission, Rule, StormLimit
from securecore.sender.buckets import State, Untaken, Verdict
from securecore.sender.kernel_log import Skips
from securecore.sender.parcel import Outcome
from securecore.sender.program import ProgramReader
from securecore.sender.settings import Settings
from securecore.sender.spool import Spool, open_spool
from securecore.sender.tally import Tally
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.kernel import OWNER, Installed, before_handler, kernel_arguments, write_script
from tests.support.launchers import Limits, limited
from tests.support.receivers import new_dump_id

NOWHERE = Address("127.0.0.1:9")
FREE = StormLimit(0, 60)
CORE = write_core([Segment(os.urandom(5000))])


class Handler(Installed):
    """An installed handler without a receiver, that meets crashes of this very process."""

    def crash(self, core: bytes = CORE, limits: Limits = (), **changes: str) -> int:
        """Run it and return its exit code; 0 is for what was declined, UnreachableError's for what was spooled."""
        numbers = kernel_arguments()
        for position, number in changes.items():
            numbers[int(position.removeprefix("argument_"))] = number
        return subprocess.run(
            [*limited(limits), str(self.handler), *numbers], input=core, env={}, cwd="/", check=False, timeout=60,
        ).returncode  # fmt: skip


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
    """RLIMIT_CORE below a page: respected unless the settings say otherwise, and counted like what a rule declines."""
    assert handler.crash(argument_6="4095") == 0
    assert handler.spooled() == []
    assert handler.state.declined == 1
    handler.change(admission=Admission(core_limit="ignore"))
    handler.crash(argument_6="0")

    (report,) = handler.spooled_reports()
    assert report["declined"] == 1


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


_NO_NETWORK = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in {{"ssl", "_ssl", "socket", "securecore.dump.zstd", "securecore.tls", "securecore.sender.credentials"}}:
            raise ImportError(f"{{name}} is loaded")

sys.meta_path.insert(0, Refuse())
from securecore.sender.handler import main
main({settings!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "admission",
    [Admission(program=StormLimit(1, 3600)), Admission(max_size=len(CORE) - 1), Admission(rules=(Rule(EXCLUDE, signal=11),))],
    ids=["storm", "size", "rule"],
)
def test_what_is_not_taken_asks_for_no_network_and_no_key(admission: Admission, handler: Handler, tmp_path: Path) -> None:
    """A handler that could load neither, and whose identity is gone, lets the process go all the same, and counts."""
    handler.crash()
    handler.change(admission=admission, identity=str(tmp_path / "gone"))
    write_script(handler.handler, f"#!{sys.executable} -I\n" + _NO_NETWORK.format(settings=str(handler.settings)))

    assert handler.crash() == 0
    state = handler.state
    assert state.declined + sum(bucket.suppressed for bucket in state.programs.values()) == 1


_WATCHED = """
import os, sys
from securecore.sender import handler, storms, tally, transfer

file = open({facts!r}, "a")

def watch(module, name):
    real = getattr(module, name)
    def watched(*arguments, **options):
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        facts = os.geteuid(), os.getegid(), os.getgroups(), int(status["CapEff"], 16), os.stat("/proc/self/mem").st_uid
        print(name, *facts, file=file, flush=True)
        return real(*arguments, **options)
    setattr(module, name, watched)

watch(tally, "read_head")
watch(storms, "_read")
handler.main({settings!r})
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")
def test_what_is_hostile_is_read_without_roots_rights(handler: Handler, tmp_path: Path) -> None:
    """The head of a core, and a state that the handler's own user can write: no capability works then, nobody may look on."""
    handler.change(admission=Admission(max_size=1 << 40))
    facts = tmp_path / "facts"
    script = _WATCHED.format(facts=str(facts), settings=str(handler.settings))
    write_script(handler.handler, f"#!{sys.executable} -I\n{script}")
    handler.crash()

    uid, gid = OWNER
    assert set(facts.read_text().splitlines()) == {f"{name} {uid} {gid} [] 0 0" for name in ("read_head", "_read")}


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


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="RLIMIT_NPROC does not bind root, who a handler begins as")
def test_a_handler_that_may_start_no_thread_keeps_its_core_in_the_spool(handler: Handler) -> None:
    """As where somebody has used up all processes: no receiver is asked, but the core is whole."""
    handler.change(admission=Admission(max_size=1 << 30))
    core = write_core([Segment(os.urandom(3_000_000))])
    code = handler.crash(core, limits=[(resource.RLIMIT_NPROC, 1)])
    (name,) = handler.spooled()
    entry = handler.spool / "dumps" / name
    end = json.loads((entry / "end.json").read_bytes())

    assert code == StorageError.exit_code
    assert (end["outcome"], end["size"], end["predicted_size"]) == ("complete", len(core), len(core))
    with (entry / "core.zst").open("rb") as frames:
        assert b"".join(Decompressor().piece(frame.data) for frame in scan_frames(frames.fileno())) == core
    assert handler.state.lost == 0


_FAILS = """
import sys
from securecore.sender import handler

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise MemoryError

sys.meta_path.insert(0, Refuse())
handler.main({settings!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["securecore.sender.network", "securecore.sender.transfer", "securecore.tls"])
def test_a_handler_that_fails_on_its_way_counts_its_crash_as_lost(name: str, handler: Handler) -> None:
    """Whatever fails, as memory does: what its dump would have told is not forgotten, and its place in the limits is free again."""
    handler.change(admission=Admission(program=StormLimit(2, 3600), rules=(Rule(EXCLUDE, signal=5),)))
    handler.crash(argument_4="5")
    script = handler.handler.read_text()
    write_script(handler.handler, f"#!{sys.executable} -I\n" + _FAILS.format(name=name, settings=str(handler.settings)))
    codes = [handler.crash() for _ in range(2)]
    state = (handler.spool / "storms.json").stat()
    write_script(handler.handler, script)
    handler.crash()
    (report,) = handler.spooled_reports()

    assert codes == [1, 1]
    assert state.st_uid == handler.spool.stat().st_uid
    assert (report["declined"], report["lost"]) == (1, 2)


_FAILS_LATE = """
from securecore.sender import transfer

class Broken(transfer.Transfer):
    def wait(self):
        super().wait()
        raise MemoryError

transfer.Transfer = Broken
"""


@pytest.mark.slow
def test_what_an_unforeseen_error_leaves_in_the_spool_is_not_lost(handler: Handler) -> None:
    """Its report tells what was not taken before it, and nobody else does."""
    handler.change(admission=Admission(rules=(Rule(EXCLUDE, signal=5),)))
    handler.crash(argument_4="5")
    write_script(handler.handler, before_handler(handler.handler.read_text(), _FAILS_LATE))
    code = handler.crash()
    (report,) = handler.spooled_reports()

    assert (code, report["declined"]) == (1, 1)
    assert (handler.state.declined, handler.state.lost) == (0, 0)


@pytest.mark.slow
def test_a_spool_that_is_gone_limits_nothing(fleet: Fleet, tmp_path: Path, handler: Handler) -> None:
    """There is nowhere to count then, and a healthy receiver must not miss the core for it."""
    handler.change(spool=str(tmp_path / "absent"), admission=Admission(program=StormLimit(1, 3600)))
    assert [handler.crash() for _ in range(2)] == [UnreachableError.exit_code] * 2
    assert open_spool(str(handler.spool)).dump_ids() == []
