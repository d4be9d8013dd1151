"""A program that crashes and means it: names that would forge, numbers that change hands, namespaces, signals for the handler.

Nothing is simulated: the kernel starts the installed handler, which talks to a real receiver.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from securecore.cli import core_pattern
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender.procfs import ARGUMENTS, UNVERIFIED, VERIFIED
from tests.support.certificates import DOMAIN, Fleet
from tests.support.kernel import OWNER, Host, build_crasher, crashing_into, needs_kernel, start_crash, wait_until, write_script
from tests.support.stores import Commands

pytestmark = [needs_kernel, pytest.mark.root, pytest.mark.slow]

CRASHERS: Final = Path(__file__).parents[2] / "scripts" / "crashers"
SUPPORT: Final = Path(__file__).parents[1] / "support"
PROOF: Final = VERIFIED if os.path.exists("/proc/sys/kernel/core_modes") else UNVERIFIED
"""What a report says of /proc where the process is still there: kernels from 6.16 on pass a pidfd."""
GONE: Final = 77
"""How a helper program leaves where the kernel does not let it do its part."""


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the crashers are built."""
    return tmp_path_factory.mktemp("crashers")


@pytest.fixture
def host(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> Host:
    """The first host of the fleet."""
    return Host(tmp_path / "web-1", fleet.hosts["web-1"], receiver.addresses)


@pytest.fixture
def commands(fleet: Fleet, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    """The commands that look at the receiver's store."""
    return Commands(tmp_path / "store", fleet, capsys)


@dataclass(frozen=True)
class Hostile:
    """What a program calls itself: its thread, its file, and its arguments."""

    comm: bytes
    file: bytes
    arguments: tuple[bytes, ...] = ()


HOSTILE: Final = {
    "path upwards": Hostile(b"../../x", b"..x", (b"../../../../etc/passwd",)),
    "a dot": Hostile(b".", b"...", (b".", b"..")),
    "empty": Hostile(b"", b" ", (b"", b"", b"")),
    "long": Hostile(b"x" * 300, b"x" * 255, (b"y" * 100_000,)),
    "new lines": Hostile(b"x\nUid:\t0\t0", b"x\nUid:\t0\t0\t0\t0", (b"\n\n<3>securecore[1]: delivered",)),
    "a closing parenthesis": Hostile(b"a) R 1 1", b"a) R 1 1", (b") Z 1",)),
    "a terminal's language": Hostile(b"\x1b[2J\x1b[1;1H", b"\x1b]0;owned\x07\x1b[31m", (b"\x9b2J\r\x08\x08", b"\x1b[6n")),
    "right to left": Hostile("\u202egpj.exe".encode(), "a\u202e\u2066\u200bgpj".encode(), ("\u202e\u2028\u2029".encode(),)),
    "no UTF-8": Hostile(b"\xff\xfe\xc3(", b"\xff\xfe\xc3(", (b"\xed\xa0\x80\xf5",)),
    "a shell": Hostile(b";id", b"$(id >&2);`id`", (b"';id;'", b"&&id", b"|id")),
    "an audit entry": Hostile(b'\n{"event":', b'\n{"event":"received","dump":"x"}\n', (b'"}\n{"event":"received"}',)),
    "a report": Hostile(b'","pid":1,"', b'","uid":0,"x":"', (b'\\","metadata":"verified',)),
    "formats": Hostile(b"%s%n{0}{}", b"%n%s%d{0.__class__}", (b"{0}", b"%(x)s", b"${jndi:x}")),
}


def copy_as(hostile: Hostile, program: Path, place: Path) -> bytes:
    """Put a copy of *program* under a hostile name into *place*; return its path."""
    own = os.fsencode(place) + b"/" + hostile.file
    shutil.copyfile(program, own)
    os.chmod(own, 0o755)
    return own


def crash_copy(own: bytes, hostile: Hostile, place: Path) -> int:
    """Have the copy crash under its other hostile names, in *place*; return its pid."""
    crash = start_crash([own, hostile.comm, *hostile.arguments], place)
    assert crash.wait() == -signal.SIGSEGV
    return crash.pid


def crash_as(hostile: Hostile, program: Path, place: Path) -> int:
    """Have a copy of *program* crash under hostile names, in *place*; return its pid."""
    return crash_copy(copy_as(hostile, program, place), hostile, place)


def below(place: Path) -> dict[bytes, tuple[int, int, int]]:
    """Return mode, owner and group of *place* and of everything in it."""
    walk = list(os.walk(os.fsencode(place)))
    found = [os.fsencode(place), *(os.path.join(folder, name) for folder, folders, files in walk for name in [*folders, *files])]
    return {path: (status.st_mode, status.st_uid, status.st_gid) for path in found if (status := os.lstat(path))}


def is_harmless(text: str) -> bool:
    """Return whether a terminal shows *text* as it stands: lines of printable characters."""
    return all(line.isprintable() for line in text.split("\n"))


def test_hostile_names_are_data_from_the_crash_to_the_last_command(
    host: Host, commands: Commands, programs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R12 to R15: whatever a program calls itself, each crash is one dump, one audit entry, one line wherever it is told of.

    And R8: nothing appears, and nothing changes its owner, group or mode, where the program runs.
    """
    program = build_crasher(CRASHERS / "renamed.c", programs)
    pids: dict[str, int] = {}
    places: dict[str, Path] = {}
    before: dict[str, dict[bytes, tuple[int, int, int]]] = {}
    with crashing_into(host.handler):
        for name, hostile in HOSTILE.items():
            places[name] = tmp_path / "places" / name
            places[name].mkdir(parents=True)
            places[name].chmod(0o2777)
            os.chown(places[name], 1, 2)
            own = copy_as(hostile, program, places[name])
            before[name] = below(places[name])
            pids[name] = crash_copy(own, hostile, places[name])
        receipts = host.wait_for_receipts(len(HOSTILE))
    directories = {path.name: json.loads((path / "report.json").read_bytes()) for path in commands.dump("x").parent.iterdir()}
    reports = {report["pid"]: report for report in directories.values()}
    rows, entries = commands("list", "--json").document, commands.entries()
    told = [commands("list"), commands("audit", "log"), *(commands("show", receipt["dump"]) for receipt in receipts)]

    assert sorted(directories) == sorted(str(receipt["dump"]) for receipt in receipts)
    assert {path.name for path in commands.store.rglob("*") if path.is_file()} == {
        "FORMAT", "lock", "log-key.jws", "ca.pem", "entries.jsonl", "checkpoint", "catalogue.sqlite", "core.zst", "report.json",
        "manifest.jws", "receipt",
    } | {path.name for pattern in ("catalogue.sqlite-*", "crls/*.pem") for path in commands.store.glob(pattern)}  # fmt: skip
    for name, hostile in HOSTILE.items():
        report = reports[pids[name]]
        expected_comm = hostile.comm[:15].decode("utf-8", "backslashreplace").rstrip("\n")
        assert (name, report.get("comm", "")) == (name, expected_comm)
        assert report["program"] == hostile.file.decode("utf-8", "backslashreplace")
        assert (report["metadata"], report["uid"], report["parent_pid"]) == (PROOF, 0, os.getpid())
        assert below(places[name]) == before[name]
        assert before[name][os.fsencode(places[name])] == (0o42777, 1, 2)
    assert sorted(row["pid"] for row in rows) == sorted(pids.values())
    assert [(entry["event"], entry["host"]) for entry in entries] == [("received", f"web-1.{DOMAIN}")] * len(HOSTILE)
    assert [ran.code for ran in told] == [0] * len(told)
    assert [ran.out for ran in told if not is_harmless(ran.out + ran.err)] == []
    # The log has a heading too, and the entry of the certificate.
    assert [len(ran.out.splitlines()) for ran in told[:2]] == [len(HOSTILE) + 1, len(HOSTILE) + 2]
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if not line.isprintable()] == []
    assert len([line for line in lines if line.startswith("complete ")]) == len(HOSTILE)
    assert commands.audit().code == 0


def test_modes_and_groups_are_the_handlers_after_every_write(host: Host, programs: Path, tmp_path: Path) -> None:
    """R8: spooled and receipted under the loosest umask, for a process of another user: files 0600, directories 0700, our group."""
    program, lonely = build_crasher(CRASHERS / "renamed.c", programs), Host(tmp_path / "l", host.identity, [Address("127.0.0.1:9")])
    before = os.umask(0)
    try:
        with crashing_into(lonely.handler):
            crash_as(Hostile(b"x", b"spooled"), program, tmp_path)
            wait_until(lambda: list((lonely.spool / "dumps").glob("*/end.json")) or None)
        with crashing_into(host.handler):
            crash_as(Hostile(b"x", b"delivered"), program, tmp_path)
            host.wait_for_receipts(1)
    finally:
        os.umask(before)
    found = {path: status for one in (lonely.spool, host.spool) for path, status in below(one).items()}

    assert {(status[0] & 0o777, *status[1:]) for path, status in found.items() if os.path.isdir(path)} == {(0o700, *OWNER)}
    assert {(status[0], *status[1:]) for path, status in found.items() if os.path.isfile(path)} == {(0o100600, *OWNER)}
    assert len(found) > 8


# Lets the crashed process go before the handler has looked at it, as a kernel does that waits for nobody; then waits for a word.
_LATE: Final = """#!{python} -I
import os, subprocess, sys
with open(0, "rb") as source:
    core = source.read()
with open({go!r}) as go:
    go.read()
for fd in (0, 1, 2):
    os.dup2(os.open("/dev/null", os.O_RDWR), fd)
subprocess.run([{handler!r}, *sys.argv[1:]], input=core, pass_fds=(3,), env={{}}, cwd="/", check=False)
"""


@pytest.fixture
def impostor(programs: Path) -> Callable[[int], "subprocess.Popen[bytes]"]:
    """Makes a process of a chosen pid; closing its input ends it."""
    program = build_crasher(SUPPORT / "impostor.c", programs)

    def make(pid: int) -> "subprocess.Popen[bytes]":
        made = subprocess.Popen([str(program), str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert made.stdout is not None
        if made.stdout.readline() != b"made\n":
            made.communicate()
            pytest.skip("this kernel does not let us choose a pid, or somebody else has it")
        return made

    return make


def say(fifo: Path, word: str) -> None:
    """Write to whoever opens *fifo* for reading; fails the test when nobody does."""

    def find_reader() -> int | None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None

    fd = wait_until(find_reader)
    os.write(fd, word.encode())
    os.close(fd)


def crash_late(host: Host, programs: Path, tmp_path: Path, between: Callable[[int], None]) -> tuple[dict[str, Any], int]:
    """Crash a program, let it vanish, do *between* with its pid, then let the handler look; return the report and the pid."""
    program, late, go = build_crasher(CRASHERS / "renamed.c", programs), tmp_path / "late", tmp_path / "go"
    os.mkfifo(go)
    write_script(late, _LATE.format(python=sys.executable, go=str(go), handler=str(host.handler)))
    with crashing_into(late):
        # As it is on a machine that nobody has set up: the kernel keeps /proc/PID for no handler.
        core_pattern.CORE_PIPE_LIMIT.write_text("0")
        pid = crash_as(Hostile(b"victim", b"victim"), program, tmp_path)
        between(pid)
        say(go, "now")
        dump = host.wait_for_receipts(1)[0]["dump"]
    (path,) = (tmp_path / "store/hosts").glob(f"*/{dump}/report.json")
    return dict(json.loads(path.read_bytes())), pid


def test_a_process_that_is_gone_is_reported_from_the_kernels_arguments(host: Host, programs: Path, tmp_path: Path) -> None:
    """R2: with nothing left of it in /proc the crash is stored, under what the kernel said alone."""
    report, pid = crash_late(host, programs, tmp_path, lambda _pid: None)

    assert (report["metadata"], report["pid"], report["uid"], report["signal"]) == (ARGUMENTS, pid, 0, signal.SIGSEGV)
    assert not {"comm", "program", "executable", "command_line", "cgroup", "parent_pid"} & set(report)


@pytest.mark.skipif(PROOF != VERIFIED, reason="this kernel passes no pidfd")
def test_a_pid_that_was_given_to_another_process_names_nobody(
    host: Host, programs: Path, tmp_path: Path, impostor: Callable[[int], "subprocess.Popen[bytes]"]
) -> None:
    """R2, CVE-2025-4598 and CVE-2025-5054: the crashed process's number is another's, of the same user: not a word of that one."""
    made: list[subprocess.Popen[bytes]] = []
    report, pid = crash_late(host, programs, tmp_path, lambda pid: made.append(impostor(pid)))
    alive = Path(f"/proc/{pid}/comm").read_text()
    made[0].communicate()

    assert alive == "impostor\n"
    assert report["metadata"] == ARGUMENTS
    assert "impostor" not in json.dumps(report)


def test_in_a_container_the_report_has_the_machines_numbers_and_names(host: Host, programs: Path, tmp_path: Path) -> None:
    """R4 and R5: pid 1 of a container, with a host name of its own choice, is reported by the pid and the name of the machine."""
    program = build_crasher(CRASHERS / "contained.c", programs)
    with crashing_into(host.handler):
        contained = start_crash([str(program), "../../collector"], tmp_path, stdout=subprocess.PIPE)
        inner, _ = contained.communicate()
        if contained.returncode == GONE:
            pytest.skip("this kernel makes no user namespaces for us")
        dump = host.wait_for_receipts(1)[0]["dump"]
    (path,) = (tmp_path / "store/hosts").glob(f"*/{dump}/report.json")
    report = json.loads(path.read_bytes())

    assert contained.returncode == 0
    assert (report["pid"], report["tid"], report["uid"]) == (int(inner), int(inner), 0)
    assert report["metadata"] == PROOF
    assert report["container"] == "unknown"
    assert report["node"] == os.uname().nodename
    assert path.parts[-3] == f"web-1.{DOMAIN}"


# Counts how often the kernel has started it.
_COUNTED: Final = """#!{python} -I
import os
fd = os.open({starts!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, b"%d\\n" % os.getpid())
os.close(fd)
from securecore.sender.handler import main

main({settings!r})
"""


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener where connections are taken and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


def test_a_crash_of_the_handler_starts_no_other(fleet: Fleet, silent: socket.socket, programs: Path, tmp_path: Path) -> None:
    """R19: killed by SIGSEGV while it waits for a receiver, a handler is gone without a core, and what crashed is let go."""
    host = Host(tmp_path / "web-1", fleet.hosts["web-1"], [Address(f"127.0.0.1:{silent.getsockname()[1]}")])
    program, starts = build_crasher(CRASHERS / "renamed.c", programs), tmp_path / "starts"
    write_script(host.handler, _COUNTED.format(python=sys.executable, starts=str(starts), settings=str(host.settings)))
    with crashing_into(host.handler):
        crash = start_crash([str(program)], tmp_path)
        connection, _ = silent.accept()
        handler = int(starts.read_text())
        limits_of_handler = Path(f"/proc/{handler}/limits").read_text()
        pidfd = os.pidfd_open(handler)
        os.kill(handler, signal.SIGSEGV)
        # With core_pipe_limit above 0 a handler of this crash would have been started and waited for before the pidfd says so.
        assert select.select([pidfd], [], [], 60)[0] == [pidfd]
        os.close(pidfd)
        connection.close()
        assert crash.wait() == -signal.SIGSEGV
        seen = starts.read_text().splitlines()

    assert [line.split()[4:6] for line in limits_of_handler.splitlines() if line.startswith("Max core file")] == [["1", "1"]]
    assert seen == [str(handler)]
