"""What core_send and core_recv got wrong, each as a test that this tool passes.

Those two took cores from `core_pattern` to another machine over plain TCP. Their defects have the numbers of docs/coming-from.md;
what a docstring says that they did was measured on loopback. The handlers here are processes that are started as the kernel
starts them: descriptors 1 and 2 closed, no environment, the core in a pipe. Defects whose opposite is proved elsewhere are not
proved again: that document names their tests.
"""

import os
import random
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import ConfigError, UnreachableError
from securecore.names import Address
from securecore.receiver.policy import Doors, Policy
from securecore.receiver.server import Receiver
from tests.support.certificates import Fleet
from tests.support.crash_cores import Crash
from tests.support.kernel import NOBODY, Installed, kernel_arguments, wait_until, write_script
from tests.support.launchers import as_by_the_kernel
from tests.support.processes import SECURECORE, receiving, send_file
from tests.support.proxies import NEVER, cutting
from tests.support.receivers import papers_of, running_receiver, send_bytes
from tests.support.sizes import size_of
from tests.support.stores import Commands, published
from tests.test_documents import DOCUMENTS, text_of

pytestmark = pytest.mark.slow

Running = subprocess.Popen[bytes]


@pytest.fixture
def installed(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> Installed:
    """A host's handler, whose receiver is running."""
    return Installed(tmp_path, fleet.host, receiver.addresses)


def start(installed: Installed, source: int = subprocess.PIPE) -> Running:
    """Start a handler as the kernel does."""
    return subprocess.Popen(
        [*as_by_the_kernel(), str(installed.handler), *kernel_arguments()],
        stdin=source, env={}, cwd="/",
    )  # fmt: skip


@contextmanager
def handling(installed: Installed) -> Iterator[Running]:
    """Run a handler while the block runs; it does not outlive it."""
    with start(installed) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def feed(popen: Running, data: bytes) -> None:
    """Give a handler a part of its core."""
    assert popen.stdin is not None
    popen.stdin.write(data)
    popen.stdin.flush()


# --- 1: file_read and file_write ---------------------------------------------------------------------------------------

ELF_HEADER = 64
"""What the kernel writes first, and by itself: the size of Elf64_Ehdr (elf(5))."""

CHUNKS: dict[str, Sequence[int]] = {
    "the kernel's ELF header, then pages": [ELF_HEADER, *[4096] * 4],
    "what Ethernet carries": [1448] * 8,
    "a byte at a time": [1] * 700,
    "odd and even": [ELF_HEADER, 56, 1, 4095, 4096, 4097, 2, 3, 8192, 1] * 5,
    "many pages, a piece and more": [ELF_HEADER, 4096 - ELF_HEADER, *[4096] * 400],
}


@pytest.mark.parametrize("name", CHUNKS)
def test_1_short_reads_cost_no_byte(name: str, installed: Installed, tmp_path: Path) -> None:
    """However the kernel cuts the stream, the store has these bytes in this order.

    core_send read each time to the beginning of its buffer and to its whole length: 64 bytes and four pages arrived wrong, eight
    times 1448 bytes too, and a megabyte in one write had its right size and wrong bytes. A pipe in packet mode (O_DIRECT, pipe(2))
    gives each write to a read of its own, so every chunk here is a short read. No chunk goes over the end of a piece: what a read
    has no room for, such a pipe throws away.
    """
    core = random.Random(name).randbytes(sum(CHUNKS[name]))
    reading, writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    with start(installed, reading) as popen:
        os.close(reading)
        at = 0
        for length in CHUNKS[name]:
            os.write(writing, core[at : at + length])
            at += length
        os.close(writing)
        code = popen.wait(60)

    assert code == 0
    assert published(tmp_path / "store") == [core]


def test_1_one_large_write_costs_no_byte(installed: Installed, tmp_path: Path) -> None:
    """A megabyte at once, which a pipe gives in as many reads as it likes."""
    core = random.Random(1).randbytes(limits.MIB)
    with handling(installed) as popen:
        popen.communicate(core, timeout=60)

    assert published(tmp_path / "store") == [core]


def test_1_short_writes_cost_no_byte(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """A network that takes a little at a time, both ways, gets every byte once and in order.

    core_send sent the beginning of its buffer again after each short write.
    """
    core = random.Random(2).randbytes(3 * limits.MIB)
    with cutting(receiver.addresses[0], NEVER, chunk=1448) as proxy:
        outcome = send_bytes(core, papers_of(fleet.host), [proxy.address])

    assert outcome.failure is None
    assert published(tmp_path / "store") == [core]


# --- 2: one file for everybody -----------------------------------------------------------------------------------------


def test_2_two_dumps_at_once_both_survive(installed: Installed, tmp_path: Path) -> None:
    """Two crashes of one host, piece by piece in turn: two dumps, each with its own bytes.

    core_recv wrote both into ./core_dump; the second removed the first, and nobody heard of it.
    """
    cores = [random.Random(number).randbytes(4 * limits.MIB + number) for number in range(2)]
    with handling(installed) as first, handling(installed) as second:
        for at in range(0, 5 * limits.MIB, limits.MIB):
            for popen, core in zip((first, second), cores, strict=True):
                feed(popen, core[at : at + limits.MIB])
        codes = []
        for popen in (first, second):
            assert popen.stdin is not None
            popen.stdin.close()
            codes.append(popen.wait(60))

    assert codes == [0, 0]
    assert sorted(published(tmp_path / "store")) == sorted(cores)
    assert len(installed.receipts()) == 2


def test_2_a_later_crash_removes_none(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """What is stored is never taken away by what comes after it, however alike they are."""
    for _ in range(3):
        send_bytes(b"the same core", papers_of(fleet.host), receiver.addresses)

    assert published(tmp_path / "store") == [b"the same core"] * 3


# --- 3: an end of file is no end ---------------------------------------------------------------------------------------


def test_3_a_dead_sender_never_looks_like_success(
    fleet: Fleet, installed: Installed, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler that is killed in the middle of a core leaves no complete dump and no receipt, and the log says `failed`.

    core_recv took the end of a connection for the end of a core: half a core and a whole one looked the same.
    """
    incoming = tmp_path / "store" / "incoming"
    with handling(installed) as popen:
        feed(popen, random.Random(3).randbytes(9 * limits.MIB))
        wait_until(lambda: next((core for core in incoming.glob("*/*/core.zst") if size_of(core) > limits.MIB), None))
        popen.kill()
        popen.wait()
    wait_until(lambda: True if receiver.session_count == 0 else None)
    rows = Commands(tmp_path / "store", fleet, capsys)("list", "--json").document

    assert [row["state"] for row in rows if row["state"] == "complete"] == []
    assert published(tmp_path / "store") == []
    assert installed.receipts() == []


# --- 4: no bound anywhere ----------------------------------------------------------------------------------------------

_IMPATIENT = """
from securecore import limits
limits.CONNECT_DEADLINE_S = 0.2
from securecore.sender.handler import main
main({settings!r})
"""


def test_4_a_receiver_that_does_not_answer_holds_nobody(fleet: Fleet, tmp_path: Path) -> None:
    """Where a connection is neither made nor refused, the handler gives up in time, and the spool has the whole core.

    core_send waited in connect(2) as long as the kernel does, two minutes and more, with the crashed process held.
    """
    core = random.Random(4).randbytes(20 * limits.MIB)
    with ExitStack() as stack:
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(deaf.getsockname()))
        lonely = Installed(tmp_path, fleet.host, [Address(f"127.0.0.1:{deaf.getsockname()[1]}")])
        write_script(lonely.handler, f"#!{sys.executable} -I\n" + _IMPATIENT.format(settings=str(lonely.settings)))
        with handling(lonely) as popen:
            popen.communicate(core, timeout=60)

    assert popen.returncode == UnreachableError.exit_code
    assert len(lonely.spooled()) == 1
    assert (lonely.spool / "dumps" / lonely.spooled()[0] / "end.json").exists()


def test_4_more_connections_than_the_receiver_serves_push_the_oldest_stranger_out(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Strangers who connect and say nothing take places, up to the bound; who comes then takes the place of one of them.

    core_recv forked for everybody, without an end.
    """
    policy = Policy(doors=Doors(connections=2))
    with running_receiver(fleet.receiver, tmp_path / "store", policy=policy) as running, ExitStack() as stack:
        where = (running.addresses[0].host, running.addresses[0].port)
        strangers = [stack.enter_context(socket.create_connection(where, timeout=20)) for _ in range(2)]
        wait_until(lambda: True if running.session_count == 2 else None)
        assert send_bytes(b"a core", papers_of(fleet.host), running.addresses).failure is None
        assert strangers[0].recv(1) == b""
        wait_until(lambda: True if running.session_count == 1 else None)

    assert sum("made room for others" in record.getMessage() for record in caplog.records) == 1


# --- 5: SIGPIPE, and descriptors that are not there --------------------------------------------------------------------


def test_5_a_receiver_that_is_killed_kills_no_sender(fleet: Fleet, tmp_path: Path) -> None:
    """The receiver's process is gone in the middle of a core: the handler lives, keeps it, and a flush completes it.

    core_send did not ignore SIGPIPE: the next write ended it, and the core with it.
    """
    core = random.Random(5).randbytes(30 * limits.MIB)
    with receiving(fleet.receiver, tmp_path / "store") as process:
        installed = Installed(tmp_path, fleet.host, process.addresses)
        with handling(installed) as popen:
            feed(popen, core[: 10 * limits.MIB])
            process.logged("started host=")
            process.popen.kill()
            process.popen.wait()
            popen.communicate(core[10 * limits.MIB :], timeout=120)
    assert popen.returncode == UnreachableError.exit_code
    assert len(installed.spooled()) == 1
    with running_receiver(fleet.receiver, tmp_path / "store") as again:
        to = ["--spool", str(installed.spool), "--to", str(again.addresses[0]), "--identity", str(installed.identity)]
        flushed = subprocess.run([*SECURECORE, "spool", "flush", *to], capture_output=True, text=True, check=False)

    assert (flushed.returncode, flushed.stderr) == (0, "")
    assert published(tmp_path / "store") == [core]


# --- 6: arguments, and who may read ------------------------------------------------------------------------------------

ODD = {
    "receive: nothing": ["receive"],
    "receive: an address without a port": ["receive", "127.0.0.1", "-v"],
    "receive: only -v": ["receive", "-v"],
    "receive: no such address": ["receive", "--listen", "no address"],
    "send: nothing": ["send"],
    "send: a receiver only": ["send", "192.168.0.102"],
    "send: two cores": ["send", "core", "core", "--to", "127.0.0.1:4455", "--identity", "identity"],
}


@pytest.mark.parametrize("name", ODD)
def test_6_odd_arguments_are_usage_errors(name: str) -> None:
    """One line, a hint, exit code 2, and no memory of somebody else's printed.

    recv_core with one argument printed argv[2], which is no argument.
    """
    ran = subprocess.run([*SECURECORE, *ODD[name]], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(r"securecore: [^\n]+\n  hint: `securecore [a-z ]+ --help` shows how\n", ran.stderr)


def test_6_a_handler_without_arguments_says_so_by_its_exit_code(installed: Installed) -> None:
    """A core_pattern without its specifiers is a configuration error, and nothing is stored under a made-up name."""
    with subprocess.Popen([str(installed.handler)], stdin=subprocess.PIPE, env={}, cwd="/") as popen:
        popen.communicate(b"a core", timeout=60)

    assert popen.returncode == ConfigError.exit_code
    assert installed.receipts() == []


def test_6_nobody_else_reads_a_core(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file 0600 and every directory 0700, whatever the receiver's umask, and so is what `extract` writes.

    core_recv made its file 0444: readable by everybody.
    """
    loose = [sys.executable, "-c", "import os, sys; os.umask(0); from securecore.cli.main import main; main(sys.argv[1:])"]
    with receiving(fleet.receiver, tmp_path / "store", program=loose) as process:
        (tmp_path / "core").write_bytes(Crash().write())
        assert send_file(tmp_path / "core", str(process.addresses[0]), fleet.host).returncode == 0
        store = tmp_path / "store"
        modes = {stat.S_IMODE(path.stat().st_mode) for path in [store, *store.rglob("*")] if not path.is_socket()}
    before = os.umask(0)
    try:
        (dump,) = store.glob("hosts/*/*")
        extracted = Commands(store, fleet, capsys).extract(dump.name, tmp_path / "extracted")
    finally:
        os.umask(before)

    assert modes <= {0o600, 0o700}
    assert extracted.code == 0
    assert stat.S_IMODE((tmp_path / "extracted").stat().st_mode) == 0o600
    assert (tmp_path / "extracted").read_bytes() == Crash().write()


# --- 7: where a receiver runs ------------------------------------------------------------------------------------------

# The checkout of a test may be where only root can read, so everything is loaded before root is given up.
_AS_NOBODY = f"""
import os, sys
from securecore.audit import log, verification
from securecore.cli import receive
from securecore.cli.main import main
from securecore.receiver import configuration, server
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
main(sys.argv[1:])
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that nobody, and everybody else, can get at."""
    directory = Path(tempfile.mkdtemp(prefix="securecore-public-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_7_a_receiver_needs_no_privilege(fleet: Fleet, public: Path, tmp_path: Path) -> None:
    """Run by nobody, without a capability, a receiver makes its store, takes a core and answers with a receipt.

    recv_core had to be started by hand, usually as root, and gave nothing up.
    """
    identity, home = public / "identity", public / "nobody"
    shutil.copytree(fleet.receiver, identity)
    home.mkdir()
    for path in (identity, *identity.iterdir(), home):
        os.chown(path, NOBODY, NOBODY)
    (tmp_path / "core").write_bytes(Crash().write())
    with receiving(identity, home / "store", program=[sys.executable, "-c", _AS_NOBODY]) as process:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process.popen.pid}/status").read_text().splitlines())
        sent = send_file(tmp_path / "core", str(process.addresses[0]), fleet.host)
        owners = {path.stat().st_uid for path in (home / "store").rglob("*")}

    assert status["Uid"].split() == [str(NOBODY)] * 4
    assert int(status["CapEff"], 16) == 0
    assert (sent.returncode, sent.stderr) == (0, "")
    assert owners == {NOBODY}


def test_7_a_store_does_not_follow_the_working_directory(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative --store means the directory that it named at the start, wherever its process is later.

    core_recv wrote ./core_dump, so where a core was depended on where somebody had started it.
    """
    for name in ("first", "second"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path / "first")
    with running_receiver(fleet.receiver, Path("store")) as running:
        monkeypatch.chdir(tmp_path / "second")
        outcome = send_bytes(b"a core", papers_of(fleet.host), running.addresses)

    assert outcome.failure is None
    assert published(tmp_path / "first" / "store") == [b"a core"]
    assert list((tmp_path / "second").iterdir()) == []


# --- 8: commands that do not work as written ---------------------------------------------------------------------------


def test_8_nobody_is_told_to_write_to_proc_by_hand() -> None:
    """`setup sender` sets core_pattern, and `--undo` puts it back; no document redirects anything there.

    core_send's README had `sudo bash -c echo "..." > /proc/...`, whose redirection runs without root, and names of programs that
    its Makefile does not build. That our documented commands exist, with their options, is tested where the documents are.
    """
    wrong = [str(path.name) for path in DOCUMENTS if re.search(r"^(?!\|).*> ?/proc/", text_of(path), re.MULTILINE)]

    assert wrong == []
