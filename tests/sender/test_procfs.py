"""What the report believes of /proc: a tree of files that lies in every way that a process can make it lie."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from securecore.elfid import ProgramIds
from securecore.report import CrashReport, parse_report
from securecore.sender import procfs, program
from securecore.sender.kernel_arguments import KernelArguments
from securecore.sender.procfs import ARGUMENTS, UNVERIFIED, VERIFIED, Snapshot, snapshot
from securecore.sender.program import ProgramReader
from tests.support.kernel import build_crasher, wait_until

STATUS = "Name:\t{name}\nPPid:\t1\nUid:\t33\t33\t33\t33\nGid:\t34\t34\t34\t34\nThreads:\t7\n"
STAT = "4711 ({comm}) R 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 7 0 12345 0 0"


class Proc:
    """A tree that looks like /proc with one crashed process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = path / "4711"
        for directory in (self.process / "ns", path / "self/ns", path / "self/fdinfo", path / "sys/kernel/random"):
            directory.mkdir(parents=True)
        for name in ("mnt", "pid"):
            (path / "self/ns" / name).symlink_to(f"{name}:[1]")
            (self.process / "ns" / name).symlink_to(f"{name}:[1]")
        (path / "stat").write_text("cpu 1\nbtime 1700000000\n")
        (path / "sys/kernel/random/boot_id").write_text("0f8d\n")
        (path / "self/fdinfo/3").write_text("pos:\t0\nPid:\t4711\nNSpid:\t4711\n")
        self.write(comm="nginx\n", cmdline=b"nginx: worker\0-x\0", cgroup="0::/system.slice/nginx.service\n")
        self.write(status=STATUS.format(name="nginx"), stat=STAT.format(comm="nginx"))
        (self.process / "exe").symlink_to("/usr/sbin/nginx")

    def write(self, **files: str | bytes) -> None:
        """Replace files of the process."""
        for name, content in files.items():
            (self.process / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def snapshot(self, *, uid: int = 33, gid: int = 34, pidfd: int | None = 3) -> dict[str, Any]:
        """Take the snapshot for a crash of pid 4711."""
        return whole(snapshot(KernelArguments(4711, 4711, uid, gid, 11, 1, 0, 1, pidfd), str(self.path)))


def whole(found: Snapshot) -> dict[str, Any]:
    """Return the report fields of a snapshot, with what names the program."""
    return found.fields | (found.program.finish() if found.program is not None else {})


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """A tree of one test."""
    return Proc(tmp_path)


def test_fields_are_verified_when_the_pidfd_still_names_the_process(proc: Proc) -> None:
    """pidfd and uid agree: the fields are the crashed process's."""
    fields = proc.snapshot()

    assert fields["metadata"] == VERIFIED
    assert fields["program"] == "nginx"
    assert fields["executable"] == "/usr/sbin/nginx"
    assert fields["command_line"] == "nginx: worker -x"
    assert fields["unit"] == "nginx.service"
    assert fields["threads"] == 7
    assert fields["parent_pid"] == 1
    assert fields["started_at"] == 1700000000 + 12345 // os.sysconf("SC_CLK_TCK")
    assert "container" not in fields


@pytest.mark.parametrize("line", ["Pid:\t-1", "Pid:\t47110", "Pid:\t1", "NSpid:\t4711", ""])
def test_a_pidfd_that_names_nobody_or_another_costs_the_proc_fields(proc: Proc, line: str) -> None:
    """R2: the process was reaped, and its number may be another's by now: only the kernel's arguments are kept."""
    (proc.path / "self/fdinfo/3").write_text(f"pos:\t0\n{line}\n")

    fields = proc.snapshot()

    assert fields["metadata"] == ARGUMENTS
    assert not {"program", "executable", "command_line", "comm", "cgroup"} & set(fields)


def test_a_uid_that_is_not_the_kernels_costs_the_proc_fields(proc: Proc) -> None:
    """R1: the kernel's word goes before /proc's."""
    assert proc.snapshot(uid=0)["metadata"] == ARGUMENTS


def test_a_gid_that_is_not_the_kernels_costs_the_proc_fields(proc: Proc) -> None:
    """R1: a process of the same user and another group is another process."""
    assert proc.snapshot(gid=33)["metadata"] == ARGUMENTS


@pytest.mark.parametrize(("start", "metadata"), [(12344, ARGUMENTS), (12345, UNVERIFIED), (12346, UNVERIFIED)])
def test_a_process_younger_than_the_handler_is_another_one(proc: Proc, start: int, metadata: str) -> None:
    """R2 and R4: what began after us cannot have crashed before; that it began earlier proves nothing."""
    (proc.path / "self/stat").write_text(STAT.format(comm="handler").replace("12345", str(start)))

    assert proc.snapshot(pidfd=None)["metadata"] == metadata


def test_a_process_that_is_reaped_while_it_is_read_costs_the_proc_fields(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """R2: the pidfd is asked after the last file was read: between opening /proc/PID and that moment the number changes hands."""
    fdinfo, real = proc.path / "self/fdinfo/3", os.readlink
    assert proc.snapshot()["metadata"] == VERIFIED

    def reap(path: str, *, dir_fd: int | None = None) -> str:
        fdinfo.write_text("pos:\t0\nPid:\t-1\n")
        return real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", reap)
    fields = proc.snapshot()

    assert fields["metadata"] == ARGUMENTS
    assert not {"program", "executable", "command_line", "comm", "cgroup", "started_at"} & set(fields)


def test_without_a_pidfd_the_fields_say_that_nothing_proves_them(proc: Proc) -> None:
    """Before Linux 6.16 there is no proof, and the report does not claim one."""
    assert proc.snapshot(pidfd=None)["metadata"] == UNVERIFIED


def test_a_process_that_is_gone_costs_nothing_but_its_fields(tmp_path: Path) -> None:
    """No /proc/PID at all: the crash is reported from the arguments."""
    found = snapshot(KernelArguments(1, 1, 0, 0, 11, 1, 0, 1, None), str(tmp_path))

    assert (found.fields["metadata"], found.program) == (ARGUMENTS, None)


@pytest.mark.parametrize("comm", ["a) R 1 1", "x\nUid:\t0\t0\t0\t0", "a\tb", ")", "((((", "x\ny"])
def test_a_name_cannot_forge_other_fields(proc: Proc, comm: str) -> None:
    """R15: stat is read behind its last parenthesis, and of status the first line of each key counts."""
    proc.write(comm=comm, stat=STAT.format(comm=comm))
    proc.write(status=STATUS.format(name=comm.replace("\n", "\\n")))

    fields = proc.snapshot()

    assert fields["metadata"] == VERIFIED
    assert fields["parent_pid"] == 1
    assert fields["started_at"] == 1700000000 + 12345 // os.sysconf("SC_CLK_TCK")


NO_NUMBERS = ["9" * 5000, "9" * 21, str(1 << 64), "²", "٣", "1\x1c", "", "-1"]


@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda text: ascii(text[:9]))
def test_a_number_that_is_none_costs_its_field_and_nothing_else(proc: Proc, number: str) -> None:
    """Thousands of digits, digits that are not ASCII, more than 64 bits: the kernel writes none of them, and none is handed on."""
    proc.write(
        status=f"PPid:\t{number}\nUid:\t33\t33\t33\t33\nGid:\t34\t34\t34\t34\nThreads:\t{number}\n",
        stat=STAT.format(comm="nginx").replace("12345", number or "x"),
    )

    fields = proc.snapshot()

    assert fields["metadata"] == VERIFIED
    assert not {"parent_pid", "threads", "started_at"} & set(fields)


@pytest.mark.parametrize("name", ["comm", "cmdline", "cgroup", "status", "stat"])
def test_a_link_or_fifo_in_place_of_a_file_neither_blocks_nor_is_followed(proc: Proc, name: str, tmp_path: Path) -> None:
    """R15 and R16: nothing outside /proc/PID is read, and a FIFO does not hold the handler up."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for make in (lambda path: path.symlink_to(secret), os.mkfifo):
        (proc.process / name).unlink()
        make(proc.process / name)
        assert "secret" not in repr(proc.snapshot())


def test_hostile_text_survives_as_a_report(proc: Proc) -> None:
    """Invalid UTF-8, control characters and megabytes end as bounded JSON that reads back."""
    proc.write(cmdline=b"\xff\xfe\x1b[2J\0" + b"A" * 300_000, comm=b"\xc3\x28\n")

    encoded = CrashReport(**proc.snapshot()).encode()
    report = parse_report(encoded)

    assert report.comm == "\\xc3("
    assert report.command_line is not None
    assert report.command_line.startswith("\\xff\\xfe\x1b[2J AAA")


@pytest.mark.parametrize("name", ["comm", "cmdline", "cgroup", "status", "stat"])
def test_a_file_cut_at_every_offset_costs_fields_and_never_the_core(proc: Proc, name: str) -> None:
    """Texts are at most shorter, other files' fields are all there, and without the uid nothing is believed."""
    whole, path = proc.snapshot(), proc.process / name
    data = path.read_bytes()
    texts = {"comm", "command_line", "cgroup"}
    seen = set()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        fields = proc.snapshot()
        seen.add(fields["metadata"])
        if fields["metadata"] == VERIFIED:
            lost = {key for key in whole if fields.get(key) != whole[key]}
            assert lost <= FIELDS_OF[name]
            assert all(whole[key].startswith(fields[key]) for key in lost & texts & set(fields))
        CrashReport(**fields).encode()
    assert seen == ({VERIFIED, ARGUMENTS} if name == "status" else {VERIFIED})


FIELDS_OF = {
    "comm": {"comm"},
    "cmdline": {"command_line"},
    "cgroup": {"cgroup", "unit"},
    "status": {"parent_pid", "threads"},
    "stat": {"started_at"},
}


def test_a_container_is_told_by_its_namespaces_and_its_id(proc: Proc) -> None:
    """R5: other namespaces make a container, whatever the process calls itself; the id comes from the cgroup."""
    identifier = "ab" * 32
    (proc.process / "ns/mnt").unlink()
    (proc.process / "ns/mnt").symlink_to("mnt:[2]")
    unnamed = proc.snapshot()["container"]
    proc.write(cgroup=f"0::/system.slice/docker-{identifier}.scope\n")

    assert unnamed == "unknown"
    assert proc.snapshot()["container"] == identifier


def test_a_reader_with_mounts_of_its_own_takes_no_process_for_a_container_s(proc: Proc) -> None:
    """R5: the host is where init is. The unit of the agent gives it mounts of its own; a process in those is still told apart."""
    (proc.path / "1/ns").mkdir(parents=True)
    for name in ("mnt", "pid"):
        (proc.path / "1/ns" / name).symlink_to(f"{name}:[1]")
    (proc.path / "self/ns/mnt").unlink()
    (proc.path / "self/ns/mnt").symlink_to("mnt:[2]")
    on_the_host = proc.snapshot()
    (proc.process / "ns/mnt").unlink()
    (proc.process / "ns/mnt").symlink_to("mnt:[2]")

    assert "container" not in on_the_host
    assert proc.snapshot()["container"] == "unknown"


@pytest.mark.parametrize("missing", ["4711/ns", "self/ns"])
def test_namespaces_that_cannot_be_read_are_a_container_s(proc: Proc, missing: str) -> None:
    """R5: the answer in doubt is that it is one, also where our own cannot be read either."""
    for directory in {missing, "4711/ns"}:
        for name in ("mnt", "pid"):
            (proc.path / directory / name).unlink()

    assert proc.snapshot()["container"] == "unknown"


_READER = """
import json, os, sys
from securecore.sender.kernel_arguments import KernelArguments
from securecore.sender.procfs import snapshot

pid, pidfd, tid = map(int, sys.argv[1:])
found = snapshot(KernelArguments(pid, tid, os.getuid(), os.getgid(), 11, 1, 0, 1, pidfd))
print(json.dumps(found.fields | (found.program.finish() if found.program else {})))
"""


def read_from_outside(pid: int, pidfd: int, tid: int | None = None) -> dict[str, Any]:
    """Take the snapshot of a process in one that is younger, as a handler is."""
    reader = [sys.executable, "-I", "-c", _READER, str(pid), str(pidfd), str(tid or pid)]
    result: dict[str, Any] = json.loads(subprocess.run(reader, pass_fds=(pidfd,), capture_output=True, check=True).stdout)
    return result


@pytest.mark.slow
def test_a_live_process_on_the_real_proc() -> None:
    """The real thing: a child of ours, with a real pidfd."""
    child = subprocess.Popen([sys.executable, "-I", "-c", "input()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    try:
        alive = read_from_outside(child.pid, pidfd)
        child.communicate(b"\n")
        reaped = read_from_outside(child.pid, pidfd)
    finally:
        os.close(pidfd)

    assert alive["metadata"] == VERIFIED
    assert alive["executable"] == os.path.realpath(sys.executable)
    assert reaped["metadata"] == ARGUMENTS


@pytest.mark.slow
def test_a_process_whose_main_thread_has_ended_is_read_through_the_one_that_crashed(tmp_path: Path) -> None:
    """Without it the file that was run would not be known, and no rule and no storm limit of a program would hold."""
    program = build_crasher(Path(__file__).parents[2] / "scripts" / "crashers" / "main-gone.c", tmp_path)
    with subprocess.Popen([program, "--an-option"], stdin=subprocess.PIPE) as child:
        pidfd = os.pidfd_open(child.pid)
        try:
            wait_until(lambda: None if os.access(f"/proc/{child.pid}/exe", os.F_OK) else True)
            (tid,) = (int(name) for name in os.listdir(f"/proc/{child.pid}/task") if int(name) != child.pid)
            found = read_from_outside(child.pid, pidfd, tid)
            without = read_from_outside(child.pid, pidfd, os.getpid())
        finally:
            os.close(pidfd)
            child.kill()

    status = program.stat()
    assert found["metadata"] == without["metadata"] == VERIFIED
    assert (found["executable"], found["program"]) == (str(program), "main-gone")
    assert found["command_line"] == f"{program} --an-option"
    assert (found["executable_device"], found["executable_inode"]) == (status.st_dev, status.st_ino)
    assert found.get("container") is None
    assert "executable" not in without


def test_nobody_waits_for_the_program_while_the_process_is_read(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for which file it is, which its file system may be slow to say: the rules decide meanwhile."""
    holding, letting_go = os.pipe()
    tell_file = program._tell_file

    def tell_later(process: int, writing: int) -> None:
        os.read(holding, 1)
        tell_file(process, writing)

    monkeypatch.setattr(program, "_tell_file", tell_later)
    (proc.process / "exe").unlink()
    (proc.process / "exe").write_bytes(b"anything")
    found = snapshot(KernelArguments(4711, 4711, 33, 34, 11, 1, 0, 1, 3), str(proc.path))
    os.write(letting_go, b".")

    assert found.fields["metadata"] == VERIFIED
    assert "executable_inode" not in found.fields
    assert whole(found)["executable_inode"] == (proc.process / "exe").stat().st_ino
    os.close(holding)
    os.close(letting_go)


def test_a_reading_that_fails_leaves_no_child(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that reads the program is root's at first, and may hang where the program wants it: it is ended in any case."""
    ended: list[int] = []

    class Watched(ProgramReader):
        def leave(self) -> None:
            ended.append(self.child)
            super().leave()

    def fail(*_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(procfs, "ProgramReader", Watched)
    monkeypatch.setattr(procfs, "_process", fail)
    with pytest.raises(MemoryError):
        snapshot(KernelArguments(4711, 4711, 33, 34, 11, 1, 0, 1, 3), str(proc.path))

    assert len(ended) == 1


def test_a_crash_is_judged_before_its_program_is_named(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which file it is, is known at once; what its bytes name may come while the core does, and is in the report then."""
    holding, letting_go = os.pipe()

    def identify(*_: object) -> ProgramIds:
        os.read(holding, 1)
        return ProgramIds(build_id="00ff")

    monkeypatch.setattr(program, "identify", identify)
    (proc.process / "exe").unlink()
    (proc.process / "exe").write_bytes(b"anything")
    found = snapshot(KernelArguments(4711, 4711, 33, 34, 11, 1, 0, 1, 3), str(proc.path))
    assert found.program is not None
    assert found.program.find_file()["executable_inode"] == (proc.process / "exe").stat().st_ino
    os.write(letting_go, b".")

    assert whole(found)["build_id"] == "00ff"
    os.close(holding)
    os.close(letting_go)


def test_what_would_not_be_believed_is_not_read_to_its_end(proc: Proc) -> None:
    """Where /proc is another process's, nobody goes on reading that one's program."""
    found = snapshot(KernelArguments(4711, 4711, 0, 34, 11, 1, 0, 1, 3), str(proc.path))

    assert (found.fields["metadata"], found.program) == (ARGUMENTS, None)
