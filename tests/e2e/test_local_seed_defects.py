"""What gzCoredump got wrong, each as a test that this tool passes.

That one compressed cores from `core_pattern` into local files, and decompressed them. Its defects have the numbers of
docs/coming-from.md; what a docstring says that it did was measured. Handlers are processes that are started as the kernel starts
them, or that the kernel starts; disks that are full are full.
"""

import gzip
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest

from securecore import limits
from tests.support.crash_cores import Crash
from tests.support.kernel import build_crasher, crashing_into, kernel_arguments, needs_kernel, start_crash, wait_until
from tests.support.local_files import small_disk
from tests.support.local_handlers import LocalHost
from tests.support.processes import SECURECORE

pytestmark = pytest.mark.slow

CRASHERS = Path(__file__).parents[2] / "scripts" / "crashers"
CORE = Crash().write() + random.Random(1).randbytes(2 * limits.MIB)
FORMATS = ("zst", "gz", "zlib")
NO_SPACE, DAMAGED, USAGE = 5, 6, 2


def securecore(*arguments: object, output: int = subprocess.PIPE) -> "subprocess.CompletedProcess[bytes]":
    """Run a command in a process of its own, with the loosest umask."""
    return subprocess.run(
        [*SECURECORE, *map(str, arguments)], stdout=output, stderr=subprocess.PIPE, check=False, umask=0
    )  # fmt: skip


@pytest.fixture
def handler(tmp_path: Path) -> LocalHost:
    """A handler with an empty directory."""
    return LocalHost(tmp_path)


def plaintext(path: Path) -> bytes:
    """Return what a compressed file holds, by programs and libraries that are not ours."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zlib":
        return zlib.decompress(path.read_bytes())
    if shutil.which("zstd") is None:
        pytest.skip("no zstd program to read it with")
    return subprocess.run(["zstd", "-d", "-c", str(path)], capture_output=True, check=True).stdout


# --- 1: two crashes in one second -----------------------------------------------------------------------------------------


def test_1_two_crashes_with_one_name_are_two_cores(handler: LocalHost) -> None:
    """The same program, pid and second, which is all that there is in a name: both cores are there, each with its report.

    gzCoredump's names had a second's resolution and it wrote over what was there: one file was left, and both exited with 0.
    """
    crash = dict(enumerate(kernel_arguments()))
    codes = [handler.run(core, changes=crash) for core in (CORE, CORE[:-1])]

    assert codes == [0, 0]
    assert sorted(plaintext(path) for path in handler.kept()) == sorted([CORE, CORE[:-1]])
    assert {path.with_suffix(".json") for path in handler.kept()} == set(handler.cores.glob("*.json"))


@needs_kernel
@pytest.mark.root
def test_1_two_real_crashes_in_one_second_are_two_cores(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The kernel starts two handlers at once: two cores and two reports, each with its own pid."""
    home = Path(tempfile.mkdtemp(prefix="sc-"))  # a short path: core_pattern has 127 characters
    try:
        local = LocalHost(home)
        program = build_crasher(CRASHERS / "large-heap.c", tmp_path_factory.mktemp("crashers"))
        with crashing_into(local.handler, *local.words()):
            crashes = [start_crash([str(program), "2"], home) for _ in range(2)]
            for crash in crashes:
                crash.wait()
            wait_until(lambda: True if len(local.kept()) == len(list(local.cores.glob("*.json"))) == 2 else None)
        reports = [json.loads(path.with_suffix(".json").read_bytes()) for path in local.kept()]
        names = sorted(path.name for path in local.kept())
    finally:
        shutil.rmtree(home)

    assert {report["pid"] for report in reports} == {crash.pid for crash in crashes}
    assert all(any(f"-large-heap-{crash.pid}" in name for name in names) for crash in crashes)


# --- 2: a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
@pytest.mark.parametrize("kind", FORMATS)
def test_2_a_full_disk_is_an_error_and_leaves_nothing_that_looks_whole(kind: str, tmp_path: Path) -> None:
    """The handler's exit code says so, and no file has a core's name.

    gzCoredump left a truncated .gz on a full disk, and exited with 0.
    """
    with small_disk(tmp_path / "small", "256k") as small:
        local = LocalHost(small)
        code = local.run(CORE, "--format", kind)
        left = local.kept(kind)

    assert (code, left) == (NO_SPACE, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
@pytest.mark.parametrize("kind", FORMATS)
def test_2_compressing_and_decompressing_onto_a_full_disk_leave_no_file(kind: str, tmp_path: Path) -> None:
    """One line, exit code 5, and nothing under the name that was asked for; the input is as it was."""
    core, packed = tmp_path / "core", tmp_path / f"packed.{kind}"
    core.write_bytes(CORE)
    assert securecore("compress", core, "--format", kind, "-o", packed).returncode == 0
    with small_disk(tmp_path / "small", "256k") as small:
        there = securecore("compress", core, "--format", kind, "-o", small / f"core.{kind}")
        back = securecore("decompress", packed, "-o", small / "core")
        left = list(small.iterdir())

    assert (there.returncode, back.returncode, left) == (NO_SPACE, NO_SPACE, [])
    assert all(b"no space left on device" in ran.stderr and ran.stderr.count(b"\n") <= 2 for ran in (there, back))
    assert core.read_bytes() == CORE


# --- 3: a cut file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_3_a_cut_file_is_an_error(kind: str, tmp_path: Path) -> None:
    """Cut anywhere, in its head, its middle or its last byte: exit code 6 and no output file.

    gzCoredump wrote what it could, and exited with 0.
    """
    core, packed, cut = tmp_path / "core", tmp_path / f"packed.{kind}", tmp_path / f"cut.{kind}"
    core.write_bytes(CORE)
    securecore("compress", core, "--format", kind, "-o", packed)
    data = packed.read_bytes()
    found = []
    for length in (1, 5, 11, 1000, len(data) // 2, len(data) - 9, len(data) - 1):
        cut.write_bytes(data[:length])
        ran = securecore("decompress", cut, "-o", tmp_path / "out")
        found.append((ran.returncode, (tmp_path / "out").exists(), b"Traceback" in ran.stderr))

    assert set(found) == {(DAMAGED, False, False)}


# --- 4: errors that nobody looks at ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_4_what_could_not_be_written_out_is_an_error(command: str, tmp_path: Path) -> None:
    """Where writing fails, the exit code says so, even when nothing could be noticed before the last buffer.

    gzCoredump ignored what io.Copy and Close returned.
    """
    core, packed = tmp_path / "core", tmp_path / "core.gz"
    core.write_bytes(b"a small core, which fits into any buffer")
    packed.write_bytes(gzip.compress(core.read_bytes()))
    with open("/dev/full", "wb") as full:
        ran = securecore(command, core if command == "compress" else packed, "-o", "-", output=full.fileno())

    assert ran.returncode == NO_SPACE
    assert b"no space left on device" in ran.stderr
    assert b"Traceback" not in ran.stderr


# --- 5: links -------------------------------------------------------------------------------------------------------------


def test_5_a_planted_link_is_not_followed(handler: LocalHost, tmp_path: Path) -> None:
    """Where a core would go stands a link: what it points to stays as it was, and the core is kept under another name.

    gzCoredump followed it, as root.
    """
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    crash = dict(enumerate(kernel_arguments()))
    handler.run(CORE, changes=crash)
    names = [path.name for ending in ("zst", "json") for path in handler.kept(ending)]
    for name in names:
        (handler.cores / name).unlink()
        (handler.cores / name).symlink_to(victim)
    code = handler.run(CORE, changes=crash)
    kept = [path for path in handler.kept() if not path.is_symlink()]

    assert code == 0
    assert victim.read_bytes() == b"precious"
    assert [plaintext(path) for path in kept] == [CORE]


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_5_no_command_writes_through_a_link(command: str, tmp_path: Path) -> None:
    """A link that leads nowhere is not filled, and what stands where the output goes is not replaced: exit code 5."""
    core, packed = tmp_path / "core", tmp_path / "other.gz"
    core.write_bytes(CORE)
    packed.write_bytes(gzip.compress(CORE, 1))
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    source = core if command == "compress" else packed
    through = securecore(command, source, "-o", tmp_path / "link")
    over = securecore(command, source, "-o", core)

    assert (through.returncode, over.returncode) == (NO_SPACE, NO_SPACE)
    assert not target.exists()
    assert core.read_bytes() == CORE


# --- 6: who may read ------------------------------------------------------------------------------------------------------


def test_6_cores_are_their_owner_s_alone(handler: LocalHost, tmp_path: Path) -> None:
    """0600 under the loosest umask, kept, compressed or decompressed. gzCoredump's were 0644."""
    core = tmp_path / "core"
    core.write_bytes(CORE)
    handler.run(CORE)
    securecore("compress", core)
    securecore("decompress", tmp_path / "core.zst", "-o", tmp_path / "back")
    kept = [path for path in handler.cores.rglob("*") if path.is_file()]
    found = [*kept, tmp_path / "core.zst", tmp_path / "back"]

    assert len(handler.kept()) == len(handler.kept("json")) == 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}


# --- 7: no bound ----------------------------------------------------------------------------------------------------------


def test_7_keep_bounds_what_a_crash_loop_leaves(handler: LocalHost) -> None:
    """With --keep 2 the fifth crash leaves the two newest cores with their reports. gzCoredump had one or no end."""
    for number in range(5):
        assert handler.run(CORE[: -1 - number], "--keep", "2") == 0
    kept = handler.kept()

    assert sorted(plaintext(path) for path in kept) == sorted([CORE[:-4], CORE[:-5]])
    assert sorted(handler.cores.glob("*.json")) == sorted(path.with_suffix(".json") for path in kept)


# --- 8: a name that is a path ---------------------------------------------------------------------------------------------

NAMES = {
    "..x": "__x", "..%2f..%2fetc%2fevil": "___2f.._2fetc_2fevil", "a\nb\x1b[2Jc": "a_b__2Jc", "-rf": "_rf", "%s%n": "_s_n",
    " ": "_", "$(id);`id`": "__id___id_", "\u202ecod.exe": "_cod.exe", "x\\..\\y": "x_.._y", "...": "___", "n" * 255: "n" * 64,
}  # fmt: skip
"""Hostile names of programs, and what a core's name makes of them: written down by hand, not by the rule that is tested."""


def middle_of_the_only_name(handler: LocalHost, pid: int) -> str:
    """Return what stands between time and pid in the name of the one core that is there, once its report has the same."""
    (kept,), (report,) = handler.kept(), handler.kept("json")
    assert report.stem == kept.stem
    moment, _, rest = kept.stem.partition("-")
    middle, _, number = rest.rpartition("-")
    assert (len(moment), number) == (len("20261124T065359Z"), str(pid))
    return middle


def of_process(pid: int) -> dict[int, str]:
    """Return what a handler is told of who crashed, by the place of the argument."""
    return {0: str(pid), 1: str(pid)}


@pytest.mark.parametrize("name", NAMES)
def test_8_a_program_s_name_is_no_path(name: str, handler: LocalHost, tmp_path: Path) -> None:
    """Whatever a program's file is called, its core lies in the directory, and its name has harmless characters in that place.

    gzCoredump put %e, the process's own choice, into a path that root then wrote.
    """
    program = tmp_path / "bin" / name
    program.parent.mkdir()
    shutil.copy(shutil.which("cat") or "/bin/cat", program)
    before = {path for path in tmp_path.rglob("*") if handler.cores not in path.parents}
    # A cat waits for input that does not come.
    with subprocess.Popen(["cat"], executable=program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        code = handler.run(CORE, changes=of_process(process.pid))
        process.kill()

    assert code == 0
    assert middle_of_the_only_name(handler, process.pid) == NAMES[name]
    assert {path for path in tmp_path.rglob("*") if handler.cores not in path.parents} == before


@pytest.mark.parametrize(("name", "middle"), [("../../etc/evil", "___.._etc_evil"), ("/etc/evil", "_etc_evil"), ("..", "__")])
def test_8_nor_is_what_a_process_calls_itself(name: str, middle: str, handler: LocalHost, tmp_path: Path) -> None:
    """Slashes, which no file's name has, are in the names of processes: these count where the kernel says of no file any more."""
    renamed = f"open('/proc/self/comm', 'w').write({name!r})"
    before = {path for path in tmp_path.rglob("*") if handler.cores not in path.parents}
    process = subprocess.Popen([sys.executable, "-c", renamed])
    # It has ended, and nobody has taken its exit code: its name is there to the last, its executable is not.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    code = handler.run(CORE, changes=of_process(process.pid))
    process.wait()

    assert code == 0
    assert middle_of_the_only_name(handler, process.pid) == middle
    assert {path for path in tmp_path.rglob("*") if handler.cores not in path.parents} == before


# --- 9: level 9 -----------------------------------------------------------------------------------------------------------


def test_9_the_slowest_level_is_nobody_s_default(handler: LocalHost) -> None:
    """A crashed process is held while its core is compressed, so the default is the fastest; who wants level 9 says so.

    gzCoredump always took gzip's level 9, some 6 MB/s. A level is told by the bytes that it makes.
    """
    text = Path(__file__).read_bytes() * 40

    def kept(*options: str, ending: str) -> bytes:
        assert handler.run(text, *options) == 0
        (path,) = [path for path in handler.cores.iterdir() if path.suffix not in (".json", "")]
        assert path.suffix == f".{ending}"
        assert plaintext(path) == text
        data = path.read_bytes()
        path.unlink()
        return data

    for kind in FORMATS:
        default, first, ninth = (kept("--format", kind, *level, ending=kind) for level in ((), ("--level", "1"), ("--level", "9")))
        assert default == first
        assert len(default) > len(ninth)
    assert kept(ending="zst") == kept("--format", "zst", "--level", "1", ending="zst")


# --- 10: rotation that takes what is not its own ----------------------------------------------------------------------------


def test_10_rotation_takes_nothing_of_others(handler: LocalHost) -> None:
    """Files that no handler has written stay, whatever they are called and however old they are.

    gzCoredump removed everything in /home/Coredump, whatever it was, and whatever directory it then wrote to.
    """
    strangers = ["notes.txt", "Core_20220506_120000.gz", "core.zst", "report.json", "20220506T120000Z.zst", ".hidden"]
    for name in strangers:
        (handler.cores / name).write_text("a stranger's")
        os.utime(handler.cores / name, (0, 0))
    (handler.cores / "directory").mkdir()
    (handler.cores / "directory" / "20220506T120000Z-nginx-1.zst").write_text("a stranger's")
    for number in range(3):
        assert handler.run(CORE[: -1 - number], "--keep", "1") == 0
    left = {str(path.relative_to(handler.cores)) for path in handler.cores.rglob("*")}

    assert {*strangers, "directory/20220506T120000Z-nginx-1.zst"} <= left
    assert [path.name for path in handler.kept() if path.name not in strangers] == [f"{path.stem}.zst" for path in own(handler)]
    assert len(own(handler)) == 1


def own(handler: LocalHost) -> list[Path]:
    """Return the reports of a handler whose directory has reports of strangers too."""
    return [path for path in handler.kept("json") if path.name != "report.json"]


# --- 11: usage ------------------------------------------------------------------------------------------------------------

ODD = {
    "compress: nothing": ["compress"],
    "decompress: nothing": ["decompress"],
    "decompress: no output for standard output's terminal": ["decompress", "-f", "in", "-o", "out"],
    "compress: a level that is none": ["compress", "core", "--level", "x"],
    "compress: a format that is none": ["compress", "core", "--format", "rar"],
    "both at once": ["compress", "-d", "core"],
}


@pytest.mark.parametrize("name", ODD)
def test_11_odd_arguments_are_usage_errors(name: str) -> None:
    """Exit code 2, one line and a hint. gzCoredump printed its usage and exited with 0, so a script noticed nothing."""
    ran = securecore(*ODD[name])

    assert (ran.returncode, ran.stdout) == (USAGE, b"")
    assert ran.stderr.startswith(b"securecore: ")
    assert ran.stderr.count(b"\n") == 2


def test_11_help_is_no_error() -> None:
    """Who asks for help gets it, with exit code 0, by -h too."""
    assert [securecore(command, "-h").returncode for command in ("compress", "decompress")] == [0, 0]


# --- 12: what it claimed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_12_every_format_is_read_by_programs_that_are_not_ours(kind: str, tmp_path: Path) -> None:
    """And none is passed off as encryption: gzCoredump's README said so of zlib, because 7-zip did not open it."""
    core = tmp_path / "core"
    core.write_bytes(CORE)
    made = securecore("compress", core, "--format", kind)
    back = securecore("decompress", tmp_path / f"core.{kind}", "-o", tmp_path / "back")

    assert (made.returncode, back.returncode) == (0, 0)
    assert plaintext(tmp_path / f"core.{kind}") == (tmp_path / "back").read_bytes() == core.read_bytes() == CORE
