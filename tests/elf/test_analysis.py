"""The analyser process: what it answers, what it cannot do, and what its parent makes of one that misbehaves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from securecore import limits
from securecore.dump.container import FrameEntry, seek_table
from securecore.elf.analysis import CoreKind, analyse
from securecore.elf.summary import CoreSummary
from securecore.errors import BrokenError
from tests.support.crash_cores import Crash
from tests.support.dumps import frames_of

OpenFile = Callable[[bytes], int]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenFile]:
    """Writes bytes to a file of their own and returns a descriptor for reading them."""
    descriptors: list[int] = []

    def open_file(data: bytes) -> int:
        path = tmp_path / f"core-{len(descriptors)}"
        path.write_bytes(data)
        descriptors.append(os.open(path, os.O_RDONLY))
        return descriptors[-1]

    yield open_file
    for fd in descriptors:
        os.close(fd)


def stand_in(script: str) -> list[str]:
    """Return the command of an analyser that does what *script* says."""
    return [sys.executable, "-I", "-c", script]


@pytest.mark.slow
@pytest.mark.real_crash
def test_a_core_file_is_analysed(crash: Callable[..., tuple[Path, int]]) -> None:
    """The real analyser tells a real core's crash."""
    core, pid = crash("null-deref")
    fd = os.open(core, os.O_RDONLY)
    try:
        summary = analyse(fd, CoreKind.FILE)
    finally:
        os.close(fd)
    assert (11, "address not mapped", 0x10, pid, "null-deref") == (
        summary.signal, summary.reason, summary.fault_address, summary.pid, summary.program
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("has_table", [True, False])
def test_a_stored_dump_is_analysed(has_table: bool, opened: OpenFile) -> None:
    """A core.zst tells the same as its core, whether its seek table is there or the dump is still coming in."""
    core = Crash().write() + bytes(2 * limits.PIECE_BYTES)
    frames = frames_of(core)
    table = seek_table([FrameEntry(len(frame), plain) for frame, plain in frames]) if has_table else frames[0][0][:50]
    stored = b"".join(frame for frame, _ in frames) + table

    assert analyse(opened(core), CoreKind.FILE) == analyse(opened(stored), CoreKind.STORED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CoreKind)
@pytest.mark.parametrize("data", [b"", b"no core", b"\x7fELF" * 40])
def test_what_is_no_core_gets_the_analysers_words(kind: CoreKind, data: bytes, opened: OpenFile) -> None:
    """The analyser's refusal arrives as one line."""
    with pytest.raises(BrokenError, match=r"^the core could not be analysed: not an ELF file, or its header is cut off$"):
        analyse(opened(data), kind)


@pytest.mark.slow
def test_a_pipe_is_not_analysed() -> None:
    """Only a regular file is read, so the analyser waits for nobody."""
    reading, writing = os.pipe()
    try:
        with pytest.raises(BrokenError, match="not a regular file"):
            analyse(reading, CoreKind.FILE)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("print('x' * 10_000_000)", "longer than"),
        ("print('[' * 60_000)", "not JSON"),
        ("print('[1]')", "not a JSON object"),
        ("print('nonsense')", "not JSON"),
        ("", "not JSON"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("import json; print(json.dumps({'error': 'a\\x1b[2J\\nb'}))", r"analysed: a\?\[2J\?b$"),
        ("import json; print(json.dumps({'error': 'a' * 60_000}))", f"analysed: a{{{limits.MAX_WORDS}}}$"),
        ("import json; print(json.dumps({'error': ''}))", "analysed: the analyser gave no reason$"),
    ],
)
def test_an_analyser_that_misbehaves_is_one_clean_error(script: str, words: str, opened: OpenFile) -> None:
    """Whatever the analyser says or however it ends, its parent has one bounded line."""
    with pytest.raises(BrokenError, match=words) as caught:
        analyse(opened(b""), CoreKind.FILE, stand_in(script))
    assert caught.value.message.isprintable()


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "os.close(1)", "print('{}', flush=True)", "print('{}', flush=True); os.close(1)"])
def test_an_analyser_that_hangs_is_killed(before: str) -> None:
    """At the deadline the analyser is gone, whether or not it has answered or closed its output."""
    reading, writing = os.pipe()
    with pytest.raises(BrokenError, match="took too long"):
        analyse(writing, CoreKind.FILE, stand_in(f"import os, time; {before or None}; time.sleep(600)"), deadline_s=0.3)
    os.close(writing)
    # The analyser had the pipe's other writing end: the end comes only when nobody has it any more.
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_an_analyser_that_is_not_there_is_one_clean_error(opened: OpenFile) -> None:
    """A program that does not start is the same kind of error."""
    with pytest.raises(BrokenError, match="does not start"):
        analyse(opened(b""), CoreKind.FILE, ["/nonexistent/analyser"])


def test_the_answer_is_not_trusted(opened: OpenFile) -> None:
    """Fields of the wrong type, size or name are dropped; the others are kept."""
    answer = {
        "signal": "11", "pid": -1, "tid": 1 << 64, "uid": True, "program": 5, "executable": "x" * 9999, "extra": 1, "threads": 8,
    }  # fmt: skip
    script = f"print({json.dumps(json.dumps(answer))})"
    expected = CoreSummary(executable="x" * limits.MAX_TEXT, threads=8)
    assert expected == analyse(opened(b""), CoreKind.FILE, stand_in(script))


_PROBE = """
import ctypes, errno, json, os, resource, socket
from securecore.elf import analyser
analyser.confine()

def fails(action, *arguments):
    try:
        action(*arguments)
    except (OSError, MemoryError, ValueError) as error:
        return type(error).__name__
    return "done"

libc = ctypes.CDLL(None)
print(json.dumps({
    "open": fails(open, "/proc/self/status"),
    "socket": fails(socket.socket),
    "memory": fails(bytearray, 2 << 30),
    "raise": fails(resource.setrlimit, resource.RLIMIT_NOFILE, (10, 10)),
    "cpu": resource.getrlimit(resource.RLIMIT_CPU),
    "fsize": resource.getrlimit(resource.RLIMIT_FSIZE),
    "processes": resource.getrlimit(resource.RLIMIT_NPROC),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "dumpable": libc.prctl(3, 0, 0, 0, 0),
    "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
}))
"""

_ROOT_PROBE = """
import json, os
from securecore.elf import analyser
analyser.confine()
refused = []
for action in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.kill(1, 0), os.fork):
    try:
        action()
    except OSError:
        refused.append(True)
print(json.dumps({"uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(), "refused": refused}))
"""


def run_probe(script: str) -> dict[str, object]:
    """Return what a confined process found out about itself."""
    result = subprocess.run(stand_in(script), capture_output=True, check=True, env={})
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


@pytest.mark.slow
def test_the_analyser_can_do_nothing_but_read_its_core() -> None:
    """Confined, a process opens no file and no socket, takes no more memory than its limit, and cannot raise its limits."""
    expected = {
        "open": "OSError", "socket": "OSError", "memory": "MemoryError", "cpu": [20, 20], "fsize": [0, 0], "processes": [0, 0],
        "core": [0, 0], "dumpable": 0, "no_new_privs": 1, "raise": "ValueError",
    }  # fmt: skip
    assert expected == run_probe(_PROBE)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to see it given up")
def test_the_analyser_started_by_root_is_nobody_for_good() -> None:
    """User, groups and capabilities are gone and do not come back (R18)."""
    nobody = [65534] * 3
    assert {"uids": nobody, "gids": nobody, "groups": [], "refused": [True] * 5} == run_probe(_ROOT_PROBE)


@pytest.mark.slow
def test_an_analyser_that_eats_memory_is_ended(opened: OpenFile) -> None:
    """A memory bomb meets the limit, not the machine."""
    script = "from securecore.elf import analyser; analyser.confine(); x = [bytes(1 << 20) for _ in range(1 << 20)]"
    with pytest.raises(BrokenError, match="exit code 1"):
        analyse(opened(b""), CoreKind.FILE, stand_in(script))


@pytest.mark.slow
def test_whoever_asks_for_an_analysis_loads_no_parser() -> None:
    """The commands that start the analyser do not import the ELF library into their own process."""
    script = "import sys, securecore.elf.analysis; print([name for name in sys.modules if 'elftools' in name])"
    assert subprocess.run(stand_in(script), capture_output=True, check=True).stdout == b"[]\n"
