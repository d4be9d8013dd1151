"""The handler in local mode, as a process of its own: what it keeps, what it calls it, and what it does when it cannot."""

import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.errors import ConfigError, StorageError
from securecore.report import parse_report
from tests.support.elf import Segment, write_core
from tests.support.kernel import NOBODY, OWNER, kernel_arguments, wait_until, write_script
from tests.support.local_files import KINDS, filter_through, heap, noise, small_disk
from tests.support.local_handlers import LocalHost, is_well_named
from tests.support.sizes import size_of

CORE: Final = write_core([Segment(heap(2 * limits.MIB)), Segment(bytes(2 * limits.MIB)), Segment(noise(100_000))])

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

pytestmark = pytest.mark.slow


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    """A machine in local mode."""
    return LocalHost(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_core_is_kept_with_its_report(kind: str, host: LocalHost) -> None:
    """One file that standard programs read, one report that says what is stored; private, and the directory owner's."""
    assert host.run(CORE, "--format", kind, changes={5: "1795503239"}) == 0
    stem = f"20261124T065359Z-{Path(os.readlink('/proc/self/exe')).name}-{os.getpid()}"
    data = (host.cores / f"{stem}.{kind}").read_bytes()
    report = host.reports()[stem]

    assert host.names() == sorted([f"{stem}.{kind}", f"{stem}.json"])
    assert host.plain(f"{stem}.{kind}") == CORE
    assert {key: value for key, value in report["local"].items() if key != "id"} == {
        "file": f"{stem}.{kind}", "format": kind, "outcome": "complete", "size": len(CORE), "predicted_size": len(CORE),
        "stored_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    assert report["signal"] == signal.SIGSEGV
    found = [(host.cores / name).stat() for name in host.names()]
    assert {(stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid) for one in found} == {(0o600, *OWNER)}


_WATCHED: Final = """
import os, resource, signal
from securecore.sender import crash, handler

real = crash.meet

def watched(*arguments):
    with open({facts!r}, "w") as facts:
        timer, core = signal.getitimer(signal.ITIMER_REAL)[0], resource.getrlimit(resource.RLIMIT_CORE)
        print(os.getpriority(os.PRIO_PROCESS, 0), core, resource.getrlimit(resource.RLIMIT_DATA)[0], timer > 0, file=facts)
    return real(*arguments)

crash.meet = watched
handler.main("none")
"""


def test_the_handler_has_its_place_and_its_deadline_before_it_looks_at_the_process(host: LocalHost, tmp_path: Path) -> None:
    """What it reads of a hostile process, and of its program, it reads within its bounds."""
    facts = tmp_path / "facts"
    write_script(host.handler, f"#!{sys.executable} -I\n" + _WATCHED.format(facts=str(facts)))
    assert host.run(CORE) == 0

    assert facts.read_text() == f"{limits.HANDLER_NICE} (1, 1) {limits.HANDLER_MEMORY_BYTES} True\n"


def test_programs_read_what_is_kept(host: LocalHost) -> None:
    """`zstd -d` and `gzip -d`, without our code."""
    host.run(CORE)
    host.run(CORE, "--format", "gz", "--level", "9")
    by_ending = {Path(name).suffix: (host.cores / name).read_bytes() for name in host.cores_kept()}

    assert filter_through(["zstd", "-dcq"], by_ending[".zst"]) == CORE
    assert filter_through(["gzip", "-dc"], by_ending[".gz"]) == CORE


def test_the_report_is_one_as_it_is_sent(host: LocalHost) -> None:
    """The wire's reader takes it: what is local is an unknown field to it, and skipped."""
    host.run(CORE)
    (data,) = ((host.cores / name).read_bytes() for name in host.names() if name.endswith(".json"))

    report = parse_report(data)
    assert (report.pid, report.source) == (os.getpid(), "kernel")
    assert report.program == Path(os.readlink("/proc/self/exe")).name


LENGTHS: Final = [0, 1, 63, 64, 100, 4096, limits.MIB, len(CORE) - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_core_that_was_cut_never_looks_whole(kind: str, host: LocalHost) -> None:
    """The crasher was killed while it dumped: ELF arithmetic tells, within the headers too; the name of what came says so."""
    for length in LENGTHS:
        assert host.run(CORE[:length], "--format", kind) == 0

    kept = host.cores_kept()
    assert len(kept) == len(LENGTHS)
    assert all(name.endswith(f".truncated.{kind}") for name in kept)
    assert sorted(host.plain(name) for name in kept) == sorted(CORE[:length] for length in LENGTHS)
    assert {report["local"]["outcome"] for report in host.reports().values()} == {"source-truncated"}


def test_what_is_no_core_is_complete_as_it_is(host: LocalHost) -> None:
    """Without ELF headers there is no length that it could miss; such are tried by hand."""
    assert host.run(b"not an ELF file at all" * 100) == 0
    assert [report["local"]["outcome"] for report in host.reports().values()] == ["complete"]


def test_crashes_in_one_second_are_kept_apart(host: LocalHost) -> None:
    """gzCoredump kept one of two: here the same second, program and pid make as many dumps as crashes."""
    cores = [write_core([Segment(bytes([number]) * 5000)]) for number in range(4)]
    running = [host.start("--format", "gz", changes={5: "1795503239"}) for _ in cores]
    for handler, core in zip(running, cores, strict=True):
        handler.communicate(core, timeout=60)

    assert [handler.returncode for handler in running] == [0] * 4
    assert sorted(map(host.plain, host.cores_kept())) == sorted(cores)


@needs_root
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_lets_go_at_once_and_says_so(kind: str, tmp_path: Path) -> None:
    """gzCoredump left a part and exit code 0: here the part says in its name that it is one, the report says why, exit code 5.

    The source goes on for ever: the handler ends all the same, and whoever writes hears that nobody listens.
    """
    with small_disk(tmp_path / "small", "3m") as small:
        host = LocalHost(small)
        handler = host.start("--format", kind)
        assert handler.stdin is not None
        with pytest.raises(BrokenPipeError):
            write_for_ever(handler.stdin.fileno())
        handler.stdin.close()
        assert handler.wait(60) == StorageError.exit_code
        names, reports = host.names(), host.reports()

        ((stem, report),) = reports.items()
        assert names == [f"{stem}.json", f"{stem}.truncated.{kind}"]
        assert (report["local"]["outcome"], report["local"]["file"]) == ("cut", f"{stem}.truncated.{kind}")
        assert "0.1 MiB are to stay free" in report["local"]["error"]
        assert report["local"]["size"] == len(host.plain(f"{stem}.truncated.{kind}")) == 2 * limits.MIB


def write_for_ever(fd: int) -> None:
    """Write noise to a pipe until nobody reads it."""
    for number in range(10_000):
        view = memoryview(noise(limits.MIB, number))
        while view:
            view = view[os.write(fd, view) :]


@needs_root
def test_a_disk_without_room_for_a_name_is_an_error(tmp_path: Path) -> None:
    """Not even the report: exit code 5, nothing left."""
    with small_disk(tmp_path / "small", "64k") as small:
        host = LocalHost(small)
        fill(small / "filler")
        assert host.run(CORE) == StorageError.exit_code
        assert host.names() == []


def fill(path: Path) -> None:
    """Take all the room that a disk has."""
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_frsize)


@needs_root
@pytest.mark.parametrize("keep", ["1", "2", "5"])
def test_a_disk_without_room_for_one_more_gives_up_its_oldest(keep: str, tmp_path: Path) -> None:
    """With --keep: each of many crashes is kept, byte for byte, for as many older ones as its room takes, and no report is lost."""
    with small_disk(tmp_path / "small", "3m") as small:
        host = LocalHost(small)
        for second in range(5):
            core = write_core([Segment(noise(1_700_000, second))])
            assert host.run(core, "--keep", keep, changes={5: str(second)}) == 0
            (name,) = host.cores_kept()
            assert host.plain(name) == core

        assert [report["local"]["outcome"] for report in host.reports().values()] == ["complete"]


@needs_root
def test_a_disk_without_a_name_left_gives_up_its_oldest(tmp_path: Path) -> None:
    """The same for inodes: a disk for 2 dumps and what the third needs while it is written."""
    with small_disk(tmp_path / "small", "8m,nr_inodes=12") as small:
        host = LocalHost(small)
        codes = [host.run(CORE, "--keep", "3", changes={5: str(second)}) for second in range(5)]

        assert codes == [0] * 5
        assert any(name.startswith("19700101T000004Z") for name in host.cores_kept())


@needs_root
def test_without_keep_a_full_disk_costs_nothing_that_is_there(tmp_path: Path) -> None:
    """Nobody has said that an old core may go: of the new one what fits is kept."""
    with small_disk(tmp_path / "small", "3m") as small:
        host = LocalHost(small)
        cores = [write_core([Segment(noise(1_700_000, second))]) for second in range(2)]
        assert [host.run(core, changes={5: str(second)}) for second, core in enumerate(cores)] == [0, StorageError.exit_code]
        whole, cut = host.cores_kept()
        assert host.plain(whole) == cores[0]
        assert host.plain(cut) == cores[1][: limits.MIB]
        assert cut.endswith(".truncated.zst")


@needs_root
def test_leftovers_are_named_even_when_no_core_can_be_begun(tmp_path: Path) -> None:
    """An inode is left, and a core takes two: what a killed handler has left is put in order all the same."""
    with small_disk(tmp_path / "small", "8m,nr_inodes=100") as small:
        host = LocalHost(small)
        (host.cores / ".20261124T065359Z-nginx-4711.gz.new").write_bytes(b"left by a killed one")
        (host.cores / ".20261124T065359Z-nginx-4711.json.new").write_bytes(b"{}")
        (host.cores / ".lock").touch()
        for path in host.cores.iterdir():
            os.chown(path, *OWNER)
        # The state of the storm limits takes two: its directory and its file.
        for number in range(os.statvfs(small).f_ffree - 3):
            (small / str(number)).touch()

        assert host.run(CORE) == StorageError.exit_code
        assert host.names() == ["20261124T065359Z-nginx-4711.json", "20261124T065359Z-nginx-4711.truncated.gz"]


def test_a_lock_that_somebody_keeps_holds_no_crashed_process(host: LocalHost) -> None:
    """A stopped process has the lock: the core is kept under a number of its own, and only the tidying waits for another time."""
    with (host.cores / ".lock").open("w") as lock:
        os.chown(host.cores / ".lock", *OWNER)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [host.run(CORE, changes={5: "7"}) for _ in range(2)] == [0, 0]

    assert [host.plain(name) for name in host.cores_kept()] == [CORE, CORE]
    assert [name for name in host.names() if not is_well_named(name)] == []


def test_a_killed_handlers_core_is_kept_by_the_next(host: LocalHost) -> None:
    """kill -9 in the middle: hidden until another handler has ended, then named as cut, with the report of its own crash."""
    handler = host.start("--format", "gz")
    assert handler.stdin is not None
    for number in range(12):
        handler.stdin.write(noise(limits.MIB, number))
    wait_until(lambda: next((path for path in host.cores.glob(".*.gz.new") if size_of(path) > limits.MIB), None))
    handler.kill()
    handler.wait()
    handler.stdin.close()
    between = host.names()
    assert host.run(CORE, "--format", "zst") == 0

    assert all(name.startswith(".") for name in between)
    cut, whole = sorted(host.cores_kept(), key=lambda name: "truncated" not in name)
    assert cut.endswith(".truncated.gz")
    assert whole.endswith(".zst")
    assert len(host.names()) == 4
    stated = host.reports()[cut.removesuffix(".truncated.gz")]["local"]
    assert (stated["outcome"], stated["format"], len(stated["id"])) == ("cut", "gz", 36)
    assert stated.keys() == {"file", "format", "id", "outcome", "sha256", "stored_bytes"}
    assert (host.cores / cut).stat().st_size > limits.MIB


def test_handlers_at_work_do_not_disturb_each_other(host: LocalHost) -> None:
    """One that ends, names leftovers and keeps only the newest leaves alone what another still writes."""
    slow = host.start("--keep", "1")
    assert slow.stdin is not None
    wait_until(lambda: next(host.cores.glob(".*.json.new"), None))
    for _ in range(3):
        assert host.run(write_core(), "--keep", "1") == 0
    slow.communicate(CORE, timeout=60)

    assert slow.returncode == 0
    assert [host.plain(name) for name in host.cores_kept()] == [CORE]


def test_the_newest_are_kept(host: LocalHost) -> None:
    """--keep 2: two pairs, the last ones; what people put there stays."""
    (host.cores / "core.gz").write_bytes(b"mine")
    for second in range(5):
        assert host.run(CORE, "--keep", "2", changes={5: str(second)}) == 0

    assert (host.cores / "core.gz").read_bytes() == b"mine"
    assert sorted(name[:16] for name in host.names() if name != "core.gz") == ["19700101T000003Z"] * 2 + ["19700101T000004Z"] * 2


def test_a_core_that_nobody_wants_is_not_kept(host: LocalHost) -> None:
    """RLIMIT_CORE below a page: exit code 0, nothing there."""
    assert host.run(CORE, changes={6: "4095"}) == 0
    assert host.names() == []


@pytest.mark.parametrize(
    "words",
    [
        ["--local", "relative"],
        ["--local", "/nonexistent/cores"],
        ["--local", "/etc/passwd"],
        ["--local", "/tmp"],
        ["--local", "CORES", "--format", "rar"],
        ["--local", "CORES", "--keep", "0"],
    ],
    ids=" ".join,
)
def test_a_wrong_core_pattern_ends_in_words(words: list[str], host: LocalHost) -> None:
    """Exit code 3, and nothing is written anywhere."""
    arguments = [str(host.cores) if word == "CORES" else word for word in words]
    answer = subprocess.run([str(host.handler), *arguments, *kernel_arguments()], input=CORE, check=False, env={}, cwd="/")

    assert answer.returncode == ConfigError.exit_code
    assert host.names() == []


def test_a_directory_that_others_can_write_is_refused(host: LocalHost) -> None:
    """Exit code 3 at the first crash, not a core in somebody's hands."""
    host.cores.chmod(0o770)
    assert host.run(CORE) == ConfigError.exit_code
    assert host.names() == []


@pytest.fixture
def suspended(host: LocalHost) -> Iterator["subprocess.Popen[bytes]"]:
    """A handler that waits for the rest of its core."""
    handler = host.start()
    wait_until(lambda: next(host.cores.glob(".*.json.new"), None))
    yield handler
    handler.communicate(CORE, timeout=60)
    assert handler.returncode == 0


@needs_root
def test_the_handler_is_the_directorys_owner_and_nothing_more(suspended: "subprocess.Popen[bytes]") -> None:
    """R18: ids, groups and capabilities are gone before the first byte of the core is read, in every thread."""
    texts = [task.read_text() for task in Path(f"/proc/{suspended.pid}/task").glob("*/status")]
    for text in texts:
        status = dict(line.split(":\t", 1) for line in text.splitlines())
        assert (status["Uid"], status["Gid"]) == ("\t".join([str(NOBODY)] * 4), "\t".join([str(NOBODY)] * 4))
        assert status["Groups"].split() == []
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"


@needs_root
def test_it_has_no_socket_and_nothing_to_print_to(suspended: "subprocess.Popen[bytes]") -> None:
    """The pipe, the directory, the core, /dev/null."""
    found = {int(fd): os.readlink(f"/proc/{suspended.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{suspended.pid}/fd")}

    assert {fd: found[fd] for fd in (0, 1, 2)} == dict.fromkeys((0, 1, 2), "/dev/null")
    assert [name for name in found.values() if name.startswith("socket:")] == []


@needs_root
@pytest.mark.parametrize("owner", [(0, 0), (0, NOBODY), (NOBODY, 0)], ids=str)
def test_a_directory_of_root_is_refused(owner: tuple[int, int], tmp_path: Path) -> None:
    """The handler would stay root, or in root's group, while it reads what a crashed process has made: exit code 3."""
    host = LocalHost(tmp_path, owner)
    assert host.run(CORE) == ConfigError.exit_code
    assert host.names() == []


_NO_LATE_IMPORTS: Final = """
import sys
from securecore.sender import handler, privileges

class Refuse:
    def find_spec(self, name, path=None, target=None):
        raise ImportError(f"{name} is loaded after the drop")

drop = privileges.drop
def drop_and_refuse(uid, gid):
    drop(uid, gid)
    sys.meta_path.insert(0, Refuse())

privileges.drop = drop_and_refuse
handler.main("/no-settings")
"""


@needs_root
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_loaded_after_the_drop(kind: str, host: LocalHost) -> None:
    """Installed where only root can read, the handler works all the same."""
    write_script(host.handler, f"#!{sys.executable} -I\n{_NO_LATE_IMPORTS}")
    leftover = host.cores / ".20261124T065359Z-nginx-4711.gz.new"
    leftover.write_bytes(b"left by a killed one")
    os.chown(leftover, *OWNER)

    assert host.run(CORE, "--format", kind, "--keep", "5") == 0
    assert len(host.cores_kept()) == 2
    assert "20261124T065359Z-nginx-4711.truncated.gz" in host.cores_kept()


@pytest.mark.parametrize("call", ["fsync", "link", "close"])
def test_a_disk_that_fails_at_the_end_is_an_error(call: str, host: LocalHost) -> None:
    """What may not have reached the disk is not called kept: exit code 5, and the report says so where it can be written."""
    program = f"""#!{sys.executable} -I
import os
from securecore.sender import handler
real, calls = os.{call}, []

def fail(*arguments, **options):
    if {call!r} == "close" and not os.readlink(f"/proc/self/fd/{{arguments[0]}}").endswith(".zst.new"):
        return real(*arguments, **options)
    calls.append(1)
    if len(calls) > 1:
        return real(*arguments, **options)
    raise OSError(5, "Input/output error")

os.{call} = fail
handler.main("/no-settings")
"""
    write_script(host.handler, program)

    assert host.run(CORE) == StorageError.exit_code
    assert host.cores_kept() == []
    assert [report["local"]["outcome"] for report in host.reports().values()] == ["not-kept"]


def test_a_hostile_process_cannot_make_its_report_too_long(host: LocalHost, tmp_path: Path) -> None:
    """A command line of 128 KiB outside ASCII: the report stays one that readers take, with what is local in it."""
    crasher = subprocess.Popen([sys.executable, "-c", "input()", "\U0001f4a9" * 30_000], stdin=subprocess.PIPE)
    pid = str(crasher.pid)
    try:
        wait_until(lambda: True if b"input" in Path(f"/proc/{pid}/cmdline").read_bytes() else None)
        assert host.run(CORE, changes={0: pid, 1: pid}) == 0
    finally:
        crasher.communicate(b"\n")
    (path,) = host.cores.glob("[!.]*.json")

    assert path.stat().st_size <= limits.MAX_REPORT_BYTES
    assert parse_report(path.read_bytes()).pid == crasher.pid
    assert json.loads(path.read_bytes())["local"]["outcome"] == "complete"


def test_names_are_those_of_the_documents(host: LocalHost) -> None:
    """Every file that a handler leaves has a name that people can tell apart from their own."""
    host.run(CORE)
    host.run(CORE[:100], "--format", "zlib")
    host.run(CORE, "--format", "gz")

    assert [name for name in host.names() if not is_well_named(name)] == []
