"""The child that reads what names the crashed program: what it tells, what it may, and what becomes of one that hangs."""

import ctypes
import errno
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from securecore.elf.stamping import stamp
from securecore.sender import program
from securecore.sender.program import ProgramReader
from tests.support.programs import Section, compile_program, needed, write_program

CRASHERS = Path(__file__).parents[2] / "scripts" / "crashers"


@contextmanager
def directory(path: Path) -> Iterator[int]:
    """Open a directory as a crash handler opens /proc/PID."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def read(process: Path) -> dict[str, Any]:
    """Return what the child finds in *process*, a /proc/PID or something in its place."""
    with directory(process) as fd:
        return ProgramReader(fd).finish()


def file_of(path: Path) -> dict[str, Any]:
    """Return what tells the file at *path* from others of its name."""
    status = path.stat()
    return {"executable_device": status.st_dev, "executable_inode": status.st_ino}


def test_the_program_of_a_live_process_is_named_though_its_path_is_gone(tmp_path: Path) -> None:
    """The file that the process runs is read, not what stands at its path: that was deleted, and is another program's now."""
    needed("objcopy")
    path = compile_program(CRASHERS / "null-deref.c", tmp_path / "app", "-Wl,--build-id=0xabcdef0123456789")
    stamp(path, path, "build-77")
    sleeper = tmp_path / "sleeper.c"
    sleeper.write_text("#include <unistd.h>\nint main(void) { char byte; return (int) read(0, &byte, 1); }\n")
    compile_program(sleeper, tmp_path / "sleeper", "-Wl,--build-id=0x0011223344556677")
    stamp(tmp_path / "sleeper", tmp_path / "sleeper", "build-78")
    file = file_of(tmp_path / "sleeper")
    process = subprocess.Popen([tmp_path / "sleeper"], stdin=subprocess.PIPE)
    (tmp_path / "app").rename(tmp_path / "sleeper")
    try:
        found = read(Path(f"/proc/{process.pid}"))
    finally:
        process.communicate(b"\n")

    assert found == {"build_id": "0011223344556677", "uuid": "build-78"} | file


@pytest.mark.parametrize(
    "content",
    [b"", b"#!/bin/sh\n", b"\x7fELF" + bytes(60), os.urandom(4096)],
    ids=["empty", "script", "header", "noise"],
)
def test_what_names_nothing_costs_nothing(content: bytes, tmp_path: Path) -> None:
    """No ids, no error; which file it is, is known all the same."""
    (tmp_path / "exe").write_bytes(content)
    assert read(tmp_path) == file_of(tmp_path / "exe")


def test_a_link_to_nothing_a_directory_and_a_fifo_cost_nothing(tmp_path: Path) -> None:
    """Nothing but a regular file is read, and a FIFO holds nobody up."""
    (tmp_path / "exe").symlink_to("missing")
    missing = read(tmp_path)
    (tmp_path / "exe").unlink()
    os.mkfifo(tmp_path / "exe")
    fifo = read(tmp_path)
    (tmp_path / "exe").unlink()
    (tmp_path / "exe").mkdir()

    assert (missing, fifo, read(tmp_path)) == ({}, {}, {})


def test_a_uuid_of_the_programs_choosing_stays_bounded_text(tmp_path: Path) -> None:
    """The longest section that counts, of bytes that are no text."""
    (tmp_path / "exe").write_bytes(write_program([Section(b".uuid", b"\xff" * 256)]))
    assert read(tmp_path) == {"uuid": "ff" * 256} | file_of(tmp_path / "exe")


def test_the_child_holds_nothing_of_the_core(tmp_path: Path) -> None:
    """While the child lives, the writer of the core sees that nobody but the handler reads: closing there lets the process go."""
    (tmp_path / "exe").write_bytes(write_program([]))
    reading, writing = os.pipe()
    with directory(tmp_path) as fd:
        reader = ProgramReader(fd, (reading,))
        os.close(reading)
        poll = select.poll()
        poll.register(writing, 0)
        # The child closes its copy before it does anything that may hang; its answer comes after.
        assert reader.finish() == file_of(tmp_path / "exe")
    assert poll.poll(0) == [(writing, select.POLLERR)]
    os.close(writing)


def test_which_file_it_is_does_not_wait_for_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that take for ever to be read cost the names, and not what a storm limit goes by."""
    holding, letting_go = os.pipe()
    monkeypatch.setattr(program, "DEADLINE_S", 0.2)
    monkeypatch.setattr(program, "identify", lambda read_at, size: os.read(holding, 1))
    (tmp_path / "exe").write_bytes(b"anything")
    with directory(tmp_path) as fd:
        found = ProgramReader(fd, (letting_go,)).finish()
    os.close(holding)
    os.close(letting_go)

    assert found == file_of(tmp_path / "exe")


def test_a_line_cut_at_every_offset_says_nothing() -> None:
    """Nor does one that is none of ours; the lines before and behind it count."""
    file, names = b'{"executable_device": 8, "executable_inode": 7}\n', b'{"build_id": "00ff", "uuid": null}\n'
    whole = {"executable_device": 8, "executable_inode": 7}
    for cut in range(len(names)):
        assert program._fields(file + names[:cut]) == whole
    for cut in range(len(file)):
        assert program._fields(file[:cut]) == {}
    for other in (b"7\n", b"[]\n", b"\xff\n", b'{"executable_inode": "7"}\n', b"[" * 100_000 + b"\n"):
        assert program._fields(other + file + other + names) == whole | {"build_id": "00ff"}


def test_what_was_said_as_root_is_not_said_otherwise() -> None:
    """Who has met the program's bytes may be the program's: a storm limit goes by the file that was named before."""
    file = b'{"executable_device": 8, "executable_inode": 7}\n'
    found = program._fields(file + b'{"build_id": "00ff", "executable_inode": 9}\n')

    assert found == {"executable_device": 8, "executable_inode": 7, "build_id": "00ff"}


_UMOUNT_DETACH = 2


@pytest.fixture
def dead_file_system(tmp_path: Path) -> Iterator[Path]:
    """A FUSE file system whose server never answers: whoever opens a file there waits for ever."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs root and /dev/fuse")
    libc = ctypes.CDLL(None, use_errno=True)
    place = tmp_path / "fuse"
    place.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"none", str(place).encode(), b"fuse", 0, options) != 0:
        os.close(server)
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield place
    finally:
        libc.umount2(str(place).encode(), _UMOUNT_DETACH)
        os.close(server)


def test_a_file_system_that_never_answers_holds_the_handler_for_its_deadline_only(
    dead_file_system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child that hangs in it is killed and holds no pipe; the report does without."""
    monkeypatch.setattr(program, "DEADLINE_S", 0.2)
    (tmp_path / "exe").symlink_to(dead_file_system / "app")
    reading, writing = os.pipe()
    with directory(tmp_path) as fd:
        reader = ProgramReader(fd, (reading,))
        os.close(reading)
        child = os.pidfd_open(reader.child)
        found = reader.finish()
    poll = select.poll()
    poll.register(writing, 0)
    has_ended = select.poll()
    has_ended.register(child, select.POLLIN)

    assert found == {}
    assert poll.poll(0) == [(writing, select.POLLERR)]
    assert has_ended.poll(5000) != []
    os.close(child)
    os.close(writing)


def test_a_child_that_does_not_end_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has answered and closed, and hangs on its way out in a call which no signal ends: its answer counts, nobody waits."""
    holding, letting_go = os.pipe()

    def answer_and_hang(process: int, writing: int, unwanted: Iterable[int]) -> NoReturn:
        try:
            os.write(writing, b'{"build_id": "00ff"}\n')
            os.close(writing)
            os.close(letting_go)
            select.select([holding], [], [], 30)
        finally:
            os._exit(0)

    with monkeypatch.context() as broken, directory(tmp_path) as fd:
        broken.setattr(program, "_read_program", answer_and_hang)
        broken.setattr(os, "kill", lambda pid, signal: None)
        reader = ProgramReader(fd)
        child = os.pidfd_open(reader.child)
        found = reader.finish()
    has_ended = select.poll()
    has_ended.register(child, select.POLLIN)
    is_there = has_ended.poll(0) == []
    os.close(letting_go)
    os.waitpid(reader.child, 0)
    os.close(holding)
    os.close(child)

    assert (found, is_there) == ({"build_id": "00ff"}, True)


def test_who_has_left_waits_for_nothing_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash that is declined needs no names: the child is ended, though it would read for long; to leave once more is nothing."""
    holding, letting_go = os.pipe()
    monkeypatch.setattr(program, "identify", lambda read_at, size: os.read(holding, 1))
    (tmp_path / "exe").write_bytes(b"anything")
    with directory(tmp_path) as fd:
        reader = ProgramReader(fd, (letting_go,))
        child = os.pidfd_open(reader.child)
        reader.find_file()
        reader.leave()
    has_ended = select.poll()
    has_ended.register(child, select.POLLIN)
    assert has_ended.poll(5000) != []
    reader.leave()
    os.close(child)
    os.close(holding)
    os.close(letting_go)

    assert reader.finish() == file_of(tmp_path / "exe")


def test_a_child_that_writes_on_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the program's by now: a line that never ends holds the crash no longer than one in time, and has a bound."""

    def write_on(writing: int, fields: object) -> None:
        program.signal.signal(program.signal.SIGALRM, program.signal.SIG_IGN)
        while True:
            os.write(writing, b"x" * 1000)

    monkeypatch.setattr(program, "_tell", write_on)
    (tmp_path / "exe").write_bytes(b"anything")
    with directory(tmp_path) as fd:
        reader = ProgramReader(fd)
        child = os.pidfd_open(reader.child)
        assert reader.finish() == {}
    has_ended = select.poll()
    has_ended.register(child, select.POLLIN)

    assert len(reader._told) == program._ANSWER_BYTES
    assert has_ended.poll(5000) != []
    os.close(child)


def test_a_child_that_nobody_may_end_ends_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has become another user meanwhile has no right to end it, and need not: it hangs no longer than anybody would wait."""
    holding, letting_go = os.pipe()
    monkeypatch.setattr(program, "DEADLINE_S", 0.2)
    monkeypatch.setattr(program, "identify", lambda read_at, size: os.read(holding, 1))
    (tmp_path / "exe").write_bytes(b"anything")

    def refuse(pid: int, number: int) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as dropped, directory(tmp_path) as fd:
        dropped.setattr(os, "kill", refuse)
        reader = ProgramReader(fd, (letting_go,))
        child = os.pidfd_open(reader.child)
        reader.leave()
    has_ended = select.poll()
    has_ended.register(child, select.POLLIN)

    assert has_ended.poll(10_000) != []
    os.close(child)
    os.close(holding)
    os.close(letting_go)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")
def test_the_child_parses_as_nobody(tmp_path: Path) -> None:
    """Before the first byte of the file is parsed, the child has no user, no group and no capability left."""
    script = f"""
import os
from securecore import elfid
from securecore.sender import program

def identify(read_at, size):
    status = open("/proc/self/status").read()
    words = {{line.split(":")[0]: line.split(":")[1].split() for line in status.splitlines()}}
    facts = [words[name] for name in ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "NoNewPrivs")]
    return elfid.ProgramIds(build_id=repr(facts))

program.identify = identify
print(program.ProgramReader(os.open({str(tmp_path)!r}, os.O_RDONLY)).finish()["build_id"])
"""
    (tmp_path / "exe").write_bytes(b"anything")
    result = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)

    nobody, none = ["65534"] * 4, ["0000000000000000"]
    assert result.stdout.strip() == repr([nobody, nobody, [], none, none, ["1"]])
