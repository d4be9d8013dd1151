"""What a running handler is, seen from outside while it is held back: its descriptors, its user, what it may still do.

It is held back in two places: by settings that are a FIFO, which is before it has given anything up, and by a receiver that has it
wait, which is after.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from securecore import limits, tls
from securecore.certs import jws
from securecore.dump.manifest import CUT, parse_manifest
from securecore.errors import ConfigError, UnreachableError
from securecore.names import Address
from securecore.sender.confinement import IDLE, Confinement
from securecore.sender.flush import flush
from securecore.sender.spool import open_spool
from tests.support.certificates import Fleet
from tests.support.kernel import Installed, kernel_arguments, wait_until, write_script
from tests.support.launchers import as_by_the_kernel
from tests.support.receivers import papers_of, running_receiver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up, and may look at who has"),
]

USER, GROUP = 65534, 65533
"""Two numbers, so that one cannot stand in for the other."""

STRANGER = 61234
"""A group that nobody is in."""

Running = subprocess.Popen[bytes]
Hold = Callable[[socket.socket], socket.socket]


def before_tls(plain: socket.socket) -> socket.socket:
    """Be a receiver that takes a connection and says nothing at all."""
    return plain


def start(handler: Path, group: int = 0) -> Running:
    """Start a handler as the kernel does, 1 and 2 closed, but in some groups that it should leave."""
    return subprocess.Popen(
        [*as_by_the_kernel(), str(handler), *kernel_arguments()],
        stdin=subprocess.PIPE, env={}, cwd="/", group=group, extra_groups=[1, 2, 3],
    )  # fmt: skip


def let_go(handler: Running) -> int:
    """Close the handler's source and return its exit code; it does not outlive the test in any case."""
    try:
        handler.communicate(timeout=60)
    finally:
        handler.kill()
        handler.wait()
    return handler.returncode


class Waiting:
    """A receiver that keeps a handler waiting, and the handler."""

    def __init__(self, directory: Path, fleet: Fleet) -> None:
        self._context = tls.receiver_context(str(fleet.receiver))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(30)
        self.address = Address(f"127.0.0.1:{self.listener.getsockname()[1]}")
        self.installed = Installed(directory, fleet.host, [self.address], (USER, GROUP))

    def before_ready(self, plain: socket.socket) -> socket.socket:
        """Be a receiver that greets a host with TLS, and then takes its time to say READY."""
        return tls.secure(self._context, plain, deadline_s=10)

    @contextmanager
    def handler(self, hold: Hold) -> Iterator[int]:
        """Yield the pid of a handler that is held back by *hold*; see that it ends in words when the receiver hangs up."""
        handler = start(self.installed.handler)
        try:
            plain, _ = self.listener.accept()
            with hold(plain):
                yield handler.pid
        finally:
            code = let_go(handler)
        assert code == UnreachableError.exit_code
        assert len(self.installed.spooled()) == 1


@pytest.fixture
def waiting(tmp_path: Path, fleet: Fleet) -> Iterator[Waiting]:
    """A receiver that keeps handlers waiting."""
    made = Waiting(tmp_path, fleet)
    with made.listener:
        yield made


def descriptors(pid: int) -> dict[int, str]:
    """Return what each descriptor of a process leads to."""
    return {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}


def statuses(pid: int) -> list[dict[str, list[str]]]:
    """Return /proc/PID/status of each thread of a process, as words by their names."""
    texts = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/status")]
    lines = [[line.partition(":") for line in text.splitlines()] for text in texts]
    return [{name: value.split() for name, _, value in status} for status in lines]


def socket_owners(port: int) -> list[int]:
    """Return the users who made the sockets that are connected to a port on loopback."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[7]) for row in rows if row[2] == f"0100007F:{port:04X}" and row[3] == "01"]


def may_look_at(pid: int) -> bool:
    """Return whether the handler's user may look into a process: the kernel lets nobody look into one that is not dumpable."""
    look = subprocess.run(
        ["readlink", f"/proc/{pid}/exe"], user=USER, group=GROUP, extra_groups=[], capture_output=True, check=False, cwd="/"
    )
    return look.returncode == 0


def test_nothing_can_be_printed_anywhere(waiting: Waiting) -> None:
    """Started with 1 and 2 closed, the handler has /dev/null at 0, 1 and 2, and no socket, file or core."""
    with waiting.handler(before_tls) as pid:
        found = descriptors(pid)

    assert {fd: found.get(fd) for fd in (0, 1, 2)} == dict.fromkeys((0, 1, 2), "/dev/null")
    assert len([name for name in found.values() if name.startswith("pipe:")]) == 1


def test_every_thread_has_given_everything_up_before_the_receiver_is_heard(waiting: Waiting) -> None:
    """R18: ids, groups, capabilities and the way back are gone while nothing but a handshake has been read from the network."""
    with waiting.handler(waiting.before_ready) as pid:
        found = statuses(pid)

    assert len(found) >= 2
    for status in found:
        assert status["Uid"] == [str(USER)] * 4
        assert status["Gid"] == [str(GROUP)] * 4
        assert status["Groups"] == []
        assert {status[name][0] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == ["1"]


def test_every_thread_keeps_to_its_place_in_the_machine(waiting: Waiting) -> None:
    """Nice 5, the lowest of the usual disk priorities, a bound on memory, the OOM killer's first choice, no core of its own."""
    with waiting.handler(waiting.before_ready) as pid:
        found = place_of(pid)

    assert found == ({5}, {"best-effort: prio 7"}, limits.HANDLER_MEMORY_BYTES, 500, ["1", "1"])


def test_the_settings_give_another_place(waiting: Waiting) -> None:
    """Each value that sender.toml may give is taken as it is."""
    waiting.installed.change(confinement=Confinement(1, IDLE, 1 << 30, 60))
    with waiting.handler(waiting.before_ready) as pid:
        found = place_of(pid)

    assert found == ({1}, {"idle"}, 1 << 30, 500, ["1", "1"])


def place_of(pid: int) -> tuple[set[int], set[str], int, int, list[str]]:
    """Return the nice values and disk priorities of a process's threads, its bound on memory, its OOM score, its core limits."""
    tasks = os.listdir(f"/proc/{pid}/task")
    disk = subprocess.run(["ionice", "-p", *tasks], capture_output=True, check=True, text=True).stdout
    bounds = {line[:25].strip(): line[25:].split()[:2] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
    assert len(tasks) >= 2
    assert len(set(bounds["Max data size"])) == 1
    return (
        {os.getpriority(os.PRIO_PROCESS, int(task)) for task in tasks},
        set(disk.splitlines()),
        int(bounds["Max data size"][1]),
        int(Path(f"/proc/{pid}/oom_score_adj").read_text()),
        bounds["Max core file size"],
    )


def test_the_connection_is_the_user_s_own(waiting: Waiting) -> None:
    """The socket was made after the drop: a socket belongs to who made it, whatever its process becomes later."""
    with waiting.handler(before_tls):
        owners = socket_owners(waiting.address.port)

    assert owners == [USER]


# What setresuid does to a process where fs.suid_dumpable is 1, which is a setting of the whole machine: a test leaves it alone.
_WHERE_SUID_DUMPABLE_IS_1 = """
import ctypes, os
from securecore.sender import handler

setresuid = os.setresuid
def setresuid_and_become_dumpable(*ids):
    setresuid(*ids)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)

os.setresuid = setresuid_and_become_dumpable
handler.main({settings!r})
"""


def test_nobody_looks_into_a_handler_that_has_changed_its_user(waiting: Waiting) -> None:
    """R19: with the key in its memory it stays closed to its own user's other processes, whatever fs.suid_dumpable says."""
    script = _WHERE_SUID_DUMPABLE_IS_1.format(settings=str(waiting.installed.settings))
    write_script(waiting.installed.handler, f"#!{sys.executable} -I\n{script}")

    with waiting.handler(waiting.before_ready) as pid:
        seen = may_look_at(pid)
        owner = os.stat(f"/proc/{pid}/environ").st_uid

    assert (seen, owner) == (False, 0)


def test_a_process_of_that_user_can_be_looked_into() -> None:
    """The control of the test above: an ordinary process of the same user is open to it."""
    with subprocess.Popen(["sleep", "60"], user=USER, group=GROUP, extra_groups=[], cwd="/") as sleeper:
        try:
            wait_until(lambda: may_look_at(sleeper.pid) or None, 10)
            owner = os.stat(f"/proc/{sleeper.pid}/environ").st_uid
        finally:
            sleeper.kill()

    assert owner == USER


def test_a_handler_does_not_dump_core_even_as_root(waiting: Waiting) -> None:
    """R19: non-dumpable from its first step, before there is a user to change: a crash while settings are read starts nothing.

    For a dumpable process /proc shows its own effective group as the owner, else root's (proc(5)); so root in another group tells.
    """
    settings = waiting.installed.settings
    settings.unlink()
    os.mkfifo(settings, 0o600)
    handler = start(waiting.installed.handler, group=STRANGER)
    try:
        # Opening the other end waits until the handler has come to its settings. What it reads is no file and refused.
        with settings.open("wb"):
            status = statuses(handler.pid)[0]
            owner = os.stat(f"/proc/{handler.pid}/environ").st_gid
            names = descriptors(handler.pid).values()
    finally:
        code = let_go(handler)

    assert (status["Uid"][1], status["Gid"][1]) == ("0", str(STRANGER))
    assert owner == 0
    assert not [name for name in names if name.startswith("socket:")]
    assert code == ConfigError.exit_code


def test_what_a_crashing_handler_had_spooled_is_kept_and_labelled(fleet: Fleet, tmp_path: Path) -> None:
    """R19: a signal that dumps core ends a handler in the middle; the frames that it had kept arrive later, as a cut dump."""
    installed = Installed(tmp_path, fleet.host, [Address("127.0.0.1:9")], (USER, GROUP))
    handler = start(installed.handler)
    assert handler.stdin is not None
    try:
        handler.stdin.write(os.urandom(3 * limits.PIECE_BYTES))
        handler.stdin.flush()
        # Once the second frame is begun the first one is whole.
        cores = (installed.spool / "dumps").glob
        wait_until(lambda: any(core.stat().st_size > limits.MAX_FRAME_BYTES for core in cores("*/core.zst")) or None)
        handler.send_signal(signal.SIGSEGV)
    finally:
        code = let_go(handler)
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        flushed = list(flush(open_spool(str(installed.spool)), receiver.addresses, papers_of(fleet.host)))

    assert code == -signal.SIGSEGV
    assert [(one.failure, one.sent_frames > 0) for one in flushed] == [(None, True)]
    assert installed.spooled() == []
    (manifest,) = (tmp_path / "store/hosts").glob("*/*/manifest.jws")
    assert parse_manifest(jws.parse(manifest.read_bytes(), limits.MAX_MANIFEST_BYTES).payload).outcome == CUT
