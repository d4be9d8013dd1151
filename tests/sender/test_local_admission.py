"""Which crashes a handler takes in local mode: by rule, by size, by storm limit; and what the next report tells of the others."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.errors import StorageError
from securecore.sender import crash
from securecore.sender.admission import EXCLUDE, Admission, Rule, StormLimit
from securecore.sender.buckets import State
from securecore.sender.settings import LocalSettings
from tests.support.elf import Segment, write_core
from tests.support.kernel import OWNER, before_handler, kernel_arguments, write_script
from tests.support.launchers import seeing
from tests.support.local_files import KINDS, noise, small_disk
from tests.support.local_handlers import LocalHost
from tests.support.machines import SystemLog

FREE: Final = StormLimit(0, 60)
CORE: Final = write_core([Segment(noise(2 * limits.MIB))])
SEGFAULTS: Final = Admission(rules=(Rule(EXCLUDE, signal=11),))
ABORT: Final = {4: "6"}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    """A machine in local mode."""
    return LocalHost(tmp_path)


def state_of(host: LocalHost) -> State:
    """Return the state of the storm limits."""
    return State.parse((host.cores / ".storms/storms.json").read_bytes())


@pytest.mark.slow
def test_a_rule_declines_before_anything_is_kept(host: LocalHost) -> None:
    """Exit code 0, no core and no report; the next one that is taken tells how many, once."""
    host.admit(SEGFAULTS)
    assert [host.run(CORE), host.run(CORE)] == [0, 0]
    assert host.names() == []

    assert [host.run(CORE, changes=ABORT | {5: str(second)}) for second in (1, 2)] == [0, 0]
    first, second = (report for _, report in sorted(host.reports().items()))
    assert (first["declined"], first["signal"]) == (2, 6)
    assert "declined" not in second


@pytest.mark.slow
def test_a_core_that_is_too_large_is_declined_before_anything_is_kept(host: LocalHost) -> None:
    """By what its headers announce; what is as large as may be is kept whole, with the beginning that was read for that."""
    host.admit(Admission(max_size=len(CORE)))
    assert host.run(write_core([Segment(filesz=1 << 40)])) == 0
    assert host.names() == []

    assert host.run(CORE) == 0
    (name,), (report,) = host.cores_kept(), host.reports().values()
    assert host.plain(name) == CORE
    assert (report["declined"], report["local"]["outcome"]) == (1, "complete")


@pytest.mark.slow
def test_a_storm_is_limited_and_counted(host: LocalHost) -> None:
    """Two of one program, three that are counted; when there is room again, the next report tells of them."""
    host.admit(Admission(program=StormLimit(2, 3600)))
    assert [host.run(CORE, changes={5: str(second)}) for second in range(5)] == [0] * 5
    assert len(host.cores_kept()) == 2

    host.admit(Admission(program=FREE))
    host.run(CORE, changes={5: "9"})
    assert [report.get("suppressed") for _, report in sorted(host.reports().items())] == [None, None, 3]


@pytest.mark.slow
def test_a_limit_on_cores_is_respected_or_ignored(host: LocalHost) -> None:
    """RLIMIT_CORE below a page: respected unless the admission says otherwise."""
    assert host.run(CORE, changes={6: "0"}) == 0
    assert host.names() == []
    host.admit(Admission(core_limit="ignore"))
    host.run(CORE, changes={6: "0"})

    assert len(host.cores_kept()) == 1


@pytest.mark.slow
def test_the_state_is_the_owners_alone_and_no_dump(host: LocalHost) -> None:
    """Written by whom the handler becomes; what `--keep` removes is cores and reports."""
    host.admit(SEGFAULTS)
    host.run(CORE)
    declined = state_of(host).declined
    for second in range(3):
        host.run(CORE, "--keep", "1", changes=ABORT | {5: str(second)})

    assert (declined, len(host.names())) == (1, 2)
    for path, mode in ((host.cores / ".storms", 0o700), (host.cores / ".storms/storms.json", 0o600)):
        status = path.stat()
        assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (mode, *OWNER)


@pytest.mark.slow
@pytest.mark.parametrize("obstacle", ["a file", "a link"])
def test_without_a_state_everything_is_taken(obstacle: str, host: LocalHost, tmp_path: Path) -> None:
    """Something stands where it should be; a link is not followed."""
    host.admit(Admission(program=StormLimit(1, 3600)))
    (tmp_path / "elsewhere").mkdir(mode=0o777)
    (tmp_path / "elsewhere").chmod(0o777)
    if obstacle == "a file":
        (host.cores / ".storms").touch()
    else:
        (host.cores / ".storms").symlink_to(tmp_path / "elsewhere")

    assert [host.run(CORE, changes={5: str(second)}) for second in range(3)] == [0] * 3
    assert len(host.cores_kept()) == 3
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.slow
@needs_root
def test_the_count_of_a_crash_of_which_nothing_was_kept_is_counted_again(tmp_path: Path) -> None:
    """A disk that has no room for a report either: the next one tells what this one would have, and of this crash."""
    with small_disk(tmp_path / "small", "16m,nr_inodes=100") as small:
        host = LocalHost(small)
        host.admit(SEGFAULTS)
        host.run(CORE)
        (host.cores / ".lock").touch()
        os.chown(host.cores / ".lock", *OWNER)
        # The state takes one inode while a new one is put in its place; a core and its report take two.
        fillers = [small / str(number) for number in range(os.statvfs(small).f_ffree - 1)]
        for path in fillers:
            path.touch()
        assert host.run(CORE, changes=ABORT) == StorageError.exit_code
        assert (host.names(), state_of(host).declined, state_of(host).lost) == ([], 1, 1)

        for path in fillers:
            path.unlink()
        host.run(CORE, changes=ABORT)
        (report,) = host.reports().values()
        assert (report["declined"], report["lost"]) == (1, 1)


@pytest.mark.slow
@needs_root
def test_a_report_without_its_core_tells_too(tmp_path: Path) -> None:
    """The disk did not take the core, and its report says so: what that tells is told."""
    with small_disk(tmp_path / "small", "1m") as small:
        host = LocalHost(small)
        host.admit(SEGFAULTS)
        host.run(CORE)
        assert host.run(CORE, changes=ABORT | {5: "1"}) == StorageError.exit_code
        assert host.run(write_core(), changes=ABORT | {5: "2"}) == 0
        first, second = (report for _, report in sorted(host.reports().items()))

    assert (first["local"]["outcome"], first["declined"]) == ("not-kept", 1)
    assert "declined" not in second


@pytest.mark.slow
@needs_root
def test_a_report_without_its_core_keeps_no_place_in_the_limits(tmp_path: Path) -> None:
    """But for the pause; and it is not counted as lost, for there it is."""
    with small_disk(tmp_path / "small", "1m") as small:
        host = LocalHost(small)
        host.admit(Admission(program=StormLimit(2, 3600), user=FREE, host=FREE))
        codes = [host.run(CORE, changes={5: str(second)}) for second in (1, 2)]
        codes.append(host.run(write_core(), changes={5: "3"}))

        assert codes == [StorageError.exit_code] * 2 + [0]
        assert len(host.cores_kept()) == 1
        state = state_of(host)
        assert (state.lost, untaken(state)) == (0, 0)


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_may_start_no_thread_keeps_its_core(kind: str, host: LocalHost) -> None:
    """As where somebody has used up all processes: whole, with its report, and with nothing counted as lost."""
    host.admit(Admission(max_size=1 << 30))
    assert host.run(CORE, "--format", kind, limits=[(resource.RLIMIT_NPROC, 1)]) == 0
    (name,), (report,) = host.cores_kept(), host.reports().values()

    assert host.plain(name) == CORE
    assert report["local"]["outcome"] == "complete"
    assert state_of(host).lost == 0


_FAILS_LATE: Final = """
from securecore.sender import packer

def fail(*arguments):
    raise MemoryError

packer.Packer._pack_with_pump = fail
"""


@pytest.mark.slow
def test_what_an_unforeseen_error_leaves_is_not_lost_and_tells_its_counts_once(host: LocalHost) -> None:
    """The next handler gives it a name, and its report has told what was not taken before it."""
    host.admit(SEGFAULTS)
    host.run(CORE)
    script = host.handler.read_text()
    write_script(host.handler, before_handler(script, _FAILS_LATE))
    assert host.run(CORE, changes=ABORT | {5: "1"}) == 1
    write_script(host.handler, script)
    assert host.run(CORE, changes=ABORT | {5: "2"}) == 0
    reports = [report for _, report in sorted(host.reports().items())]

    assert [report["local"]["outcome"] for report in reports] == ["cut", "complete"]
    assert [(report.get("declined"), report.get("lost")) for report in reports] == [(1, None), (None, None)]


_LIGHT: Final = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        own = {f"securecore.{name}" for name in ("dump.zstd", "sender.cores", "sender.local")}
        if name in {"ssl", "socket", "hashlib", "zlib"} | own:
            raise ImportError(f"{name} is loaded")

sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "admission",
    [Admission(program=StormLimit(1, 3600)), Admission(max_size=len(CORE) - 1), SEGFAULTS],
    ids=["storm", "size", "rule"],
)
def test_what_is_not_taken_asks_for_nothing_that_writes_a_core(admission: Admission, host: LocalHost) -> None:
    """A handler that could load neither compressor nor digest lets the process go all the same, and counts."""
    host.run(CORE, changes={5: "1"})
    host.admit(Admission(program=StormLimit(1, 3600)))
    host.run(CORE, changes={5: "2"})
    host.admit(admission)
    before = untaken(state_of(host))
    write_script(host.handler, before_handler(host.handler.read_text(), _LIGHT))

    assert host.run(CORE) == 0
    assert untaken(state_of(host)) == before + 1


def untaken(state: State) -> int:
    """Return how many crashes a state counts."""
    return state.declined + sum(bucket.suppressed for bucket in state.programs.values())


_WATCHED: Final = """
import fcntl, os
from securecore.sender import storms, tally

# Above the descriptors that the handler binds anew.
file = os.fdopen(fcntl.fcntl(os.open({facts!r}, os.O_WRONLY | os.O_CREAT), fcntl.F_DUPFD_CLOEXEC, 20), "w")

def watch(module, name):
    real = getattr(module, name)
    def watched(*arguments, **options):
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        print(name, os.geteuid(), os.getegid(), os.getgroups(), int(status["CapEff"], 16), file=file, flush=True)
        return real(*arguments, **options)
    setattr(module, name, watched)

watch(tally, "read_head")
watch(storms, "_read")
"""


@pytest.mark.slow
@needs_root
def test_what_is_hostile_is_read_without_roots_rights(host: LocalHost, tmp_path: Path) -> None:
    """The head of a core, and a state that the directory's owner can write: no capability works then."""
    host.admit(Admission(max_size=1 << 40))
    write_script(host.handler, before_handler(host.handler.read_text(), _WATCHED.format(facts=str(tmp_path / "facts"))))
    assert host.run(CORE) == 0

    uid, gid = OWNER
    assert set((tmp_path / "facts").read_text().splitlines()) == {f"{name} {uid} {gid} [] 0" for name in ("read_head", "_read")}


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["missing", "damaged", "loose"])
def test_a_handler_without_its_admission_keeps_the_core(harm: str, host: LocalHost) -> None:
    """By the usual admission: a process that wants no core is still taken at its word."""
    spoil(host.admission, harm)
    assert host.run(CORE, changes={6: "0"}) == 0
    assert host.names() == []
    assert host.run(CORE) == 0
    assert len(host.cores_kept()) == 1


@pytest.mark.parametrize(
    ("harm", "why"),
    [("missing", "No such file or directory"), ("damaged", "not an admission of this version"), ("loose", "only root can write")],
)
def test_why_an_admission_does_not_hold_is_known(harm: str, why: str, host: LocalHost) -> None:
    """With the file and the reason; what then holds is the usual."""
    spoil(host.admission, harm)
    settings, words = crash.find_local_settings(str(host.admission.parent / "handler.json"))

    assert settings == LocalSettings()
    assert words is not None
    assert words.startswith(f"{host.admission}: ")
    assert why in words


@pytest.mark.slow
@needs_root
def test_an_admission_that_does_not_hold_is_said_with_each_crash_that_is_taken(host: LocalHost, tmp_path: Path) -> None:
    """And not of each one of a storm, which would fill the log."""
    spoil(host.admission, "missing")
    taken, declined = kernel_arguments(), kernel_arguments()
    declined[6] = "0"
    with SystemLog(tmp_path / "dev") as log:
        # As everybody may write to the system's log, the handler's user too.
        (tmp_path / "dev/log").chmod(0o666)
        for numbers in (declined, taken, declined):
            command = [*seeing(log.places), sys.executable, "-I", str(host.handler), *host.words(), *numbers]
            subprocess.run(command, input=CORE, check=False, timeout=60)
        lines = log.lines()

    assert [line.split()[1] for line in lines] == ["declined", "started", "untidy", "kept", "declined"]
    assert lines[2].endswith('; the usual admission and floor hold"')


def spoil(admission: Path, harm: str) -> None:
    """Take an admission away, or make it one that must not be believed."""
    match harm:
        case "missing":
            admission.unlink()
        case "damaged":
            admission.write_bytes(b'{"version": 1, "admission"')
        case _:
            admission.chmod(0o666)
