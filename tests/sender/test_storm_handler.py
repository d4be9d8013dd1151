"""A handler that does not take its crash: by a rule, by size, by a storm limit; and what the next dump tells of it."""

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from securecore.dump.compression import Decompressor
from securecore.dump.reader import scan_frames
from securecore.errors import StorageError, UnreachableError
from securecore.names import Address
from securecore.sender.admission import EXCLUDE, INCLUDE, Admission, Rule, StormLimit
from securecore.sender.spool import open_spool
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.kernel import OWNER, Installed, before_handler, kernel_arguments, write_script
from tests.support.launchers import Limits, limited

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
