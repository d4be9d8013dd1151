"""A program crashes, the kernel starts our handler, and the core arrives: on the real kernel."""

import filecmp
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from securecore import limits
from securecore.cli import core_pattern
from securecore.cli.main import run
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender.admission import Admission, StormLimit
from securecore.store.catalogue import open_catalogue
from securecore.store.layout import open_store
from securecore.store.lookup import find_dump
from tests.support.certificates import DOMAIN, Fleet
from tests.support.kernel import NOBODY, Host, build_crasher, crashing_into, needs_kernel, start_crash, wait_until, write_script
from tests.support.launchers import limited
from tests.support.receivers import running_receiver

pytestmark = [needs_kernel, pytest.mark.root, pytest.mark.slow]

CRASHERS = Path(__file__).parents[2] / "scripts" / "crashers"
HANDLER_MEMORY_KIB = 64 * limits.KIB
SIZE_RATIO = 1.02


@pytest.fixture
def host(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> Host:
    """The first host of the fleet."""
    return Host(tmp_path / "web-1", fleet.hosts["web-1"], receiver.addresses)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the crashers are built."""
    return tmp_path_factory.mktemp("crashers")


def extract(store: Path, dump: str, output: Path, identity: Path) -> None:
    """Extract a core as an analyst does."""
    assert run(["extract", dump, "-o", str(output), "--store", str(store), "--identity", str(identity)]) == 0


def test_a_1_gib_core_arrives_whole_within_memory_and_size(
    fleet: Fleet, receiver: Receiver, host: Host, programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 GiB of heap: extracted byte for byte, handler under 64 MiB resident, stored within 2 % of `zstd -1`."""
    program = build_crasher(CRASHERS / "large-heap.c", programs)
    tee, copy, facts_path = host.tee()
    with crashing_into(tee):
        crash = start_crash([str(program), "1024"], tmp_path)
        assert crash.wait() == -signal.SIGABRT
        facts = json.loads(wait_until(lambda: facts_path.read_text() if facts_path.exists() else None, 300))
    receipt = host.receipts()[0]
    extract(tmp_path / "store", str(receipt["dump"]), tmp_path / "extracted", fleet.receiver)
    reference = zstd_size(copy)
    with open_store(str(tmp_path / "store")) as store, open_catalogue(store) as catalogue:
        catalogue.reconcile()
        row = catalogue.rows()[0]

    assert facts["code"] == 0
    assert facts["max_resident_kib"] < HANDLER_MEMORY_KIB
    assert copy.stat().st_size > limits.GIB
    assert filecmp.cmp(copy, tmp_path / "extracted", shallow=False)
    assert row.stored_bytes < SIZE_RATIO * reference
    assert (row.state, row.program, row.signal, row.pid) == ("complete", "large-heap", signal.SIGABRT, crash.pid)


def zstd_size(path: Path) -> int:
    """Return how large the zstd program makes a file at level 1, as one stream."""
    zstd = shutil.which("zstd")
    if zstd is None:
        pytest.skip("no zstd program to compare the size with")
    counted = subprocess.Popen([zstd, "-1", "-q", "-c", str(path)], stdout=subprocess.PIPE)
    assert counted.stdout is not None
    total = 0
    while part := counted.stdout.read(limits.MIB):
        total += len(part)
    counted.stdout.close()
    assert counted.wait() == 0
    return total


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory in which every user may start programs, as no directory of pytest's is."""
    directory = Path(tempfile.mkdtemp(prefix="securecore-crashers-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_sixteen_crashes_at_once_from_two_hosts_are_all_stored_and_none_mixed(
    fleet: Fleet, receiver: Receiver, host: Host, public: Path, tmp_path: Path
) -> None:
    """Eight of each host: each core is its own process's, under its own host, and every receipt was verified by its sender.

    The machine stands for both hosts: what crashes as root is web-1's, what crashes as nobody is db-2's.
    """
    hosts = {0: host, NOBODY: Host(tmp_path / "db-2", fleet.hosts["db-2"], receiver.addresses)}
    settings = {str(user): str(one.settings) for user, one in hosts.items()}
    both = tmp_path / "both"
    write_script(
        both,
        f"#!{sys.executable} -I\nimport sys\nfrom securecore.sender.handler import main\n\nmain({settings!r}[sys.argv[3]])\n",
    )
    program = build_crasher(CRASHERS / "large-heap.c", public)
    with crashing_into(both):
        crashes = [(user, start_crash([str(program), "4"], public, user)) for _ in range(8) for user in hosts]
        assert {crash.wait() for _, crash in crashes} == {-signal.SIGABRT}
        for one in hosts.values():
            one.wait_for_receipts(8)
    with open_store(str(tmp_path / "store")) as store, open_catalogue(store) as catalogue:
        catalogue.reconcile()
        rows = catalogue.rows()

    names = {0: f"web-1.{DOMAIN}", NOBODY: f"db-2.{DOMAIN}"}
    assert sorted((row.host, row.pid) for row in rows) == sorted((names[user], crash.pid) for user, crash in crashes)
    assert {row.state for row in rows} == {"complete"}
    for user, one in hosts.items():
        kept = sorted(str(receipt["dump"]) for receipt in one.receipts())
        assert kept == sorted(row.id for row in rows if row.host == names[user])
    assert run(["verify", "--all", "--store", str(tmp_path / "store"), "--root", str(fleet.host / "ca.pem")]) == 0
    assert run(["audit", "verify", "--store", str(tmp_path / "store"), "--root", str(fleet.host / "ca.pem")]) == 0
    for row in rows:
        own = tmp_path / row.id
        extract(tmp_path / "store", row.id, own, fleet.receiver)
        assert core_pid(own) == row.pid


def core_pid(core: Path) -> int:
    """Return the pid in a core's NT_PRPSINFO, by a reader that is not ours."""
    with core.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_NOTE"):
            for note in segment.iter_notes():
                if note["n_type"] == "NT_PRPSINFO":
                    return int(note["n_desc"]["pr_pid"])
    raise AssertionError("no NT_PRPSINFO")


def test_nothing_but_the_core_is_in_the_core(fleet: Fleet, receiver: Receiver, host: Host, programs: Path, tmp_path: Path) -> None:
    """The kernel leaves descriptors 1 and 2 closed; no socket, file or message of the handler ends up in the stream."""
    program = build_crasher(CRASHERS / "large-heap.c", programs)
    tee, copy, facts_path = host.tee()
    with crashing_into(tee):
        start_crash([str(program), "2"], tmp_path).wait()
        wait_until(lambda: facts_path.read_text() if facts_path.exists() else None)
    dump = str(host.receipts()[0]["dump"])
    extract(tmp_path / "store", dump, tmp_path / "extracted", fleet.receiver)

    assert filecmp.cmp(copy, tmp_path / "extracted", shallow=False)


def test_the_report_is_proved_by_the_pidfd(fleet: Fleet, receiver: Receiver, host: Host, programs: Path, tmp_path: Path) -> None:
    """On a kernel that passes %F the report's /proc fields are verified, and they are the crashed process's."""
    program = build_crasher(CRASHERS / "large-heap.c", programs)
    with crashing_into(host.handler):
        crash = start_crash([str(program), "2", "a b\nc"], tmp_path)
        crash.wait()
        receipt = host.wait_for_receipts(1)[0]
    with open_store(str(tmp_path / "store")) as store:
        found, dump = find_dump(store, str(receipt["dump"]))
        with store.open_dump(found, dump) as files:
            report = json.loads(files.read_report() or b"")

    expected = "verified" if os.path.exists("/proc/sys/kernel/core_modes") else "unverified"
    assert report["metadata"] == expected
    assert report["pid"] == crash.pid
    assert report["executable"] == str(program)
    assert report["command_line"] == f"{program} 2 a b\nc"
    assert report["signal"] == signal.SIGABRT


def test_a_program_whose_main_thread_has_ended_is_known_and_limited(host: Host, programs: Path, tmp_path: Path) -> None:
    """The kernel names the thread that crashed, and the file that it runs is read there: a storm of such crashes has its limit."""
    program, unlimited = build_crasher(CRASHERS / "main-gone.c", programs), StormLimit(0, 1)
    host.change(admission=Admission(program=StormLimit(1, 3600), user=unlimited, host=unlimited))
    with crashing_into(host.handler):
        for _ in range(2):
            crash = start_crash([str(program)], tmp_path, stdin=subprocess.PIPE)
            wait_until(lambda pid=crash.pid: None if os.access(f"/proc/{pid}/exe", os.F_OK) else True)
            crash.communicate()
        host.wait_for_receipts(1)
        wait_until(lambda: True if any(bucket.suppressed for bucket in host.state.programs.values()) else None)
    status = program.stat()

    assert list(host.state.programs) == [f"{status.st_dev}:{status.st_ino}:{os.getuid()}"]
    assert len(host.receipts()) == 1


def test_a_core_that_nobody_wants_is_let_go_at_once(host: Host, programs: Path, tmp_path: Path) -> None:
    """RLIMIT_CORE below a page: the kernel starts the handler all the same, and it stores nothing."""
    program = build_crasher(CRASHERS / "large-heap.c", programs)
    with crashing_into(host.handler):
        subprocess.run([*limited([(resource.RLIMIT_CORE, 0)]), str(program), "2"], cwd=tmp_path, check=False)
        start_crash([str(program), "2"], tmp_path).wait()
        receipts = host.wait_for_receipts(1)

    assert len(receipts) == 1
    assert host.spooled() == []


def test_without_a_receiver_the_crash_is_kept_and_flushed_later(fleet: Fleet, programs: Path, tmp_path: Path) -> None:
    """The receiver is down: the process is let go, the core is in the spool, and `spool flush` delivers it."""
    lonely = Host(tmp_path / "lonely", fleet.hosts["web-1"], [Address("127.0.0.1:9")])
    program = build_crasher(CRASHERS / "large-heap.c", programs)
    with crashing_into(lonely.handler):
        start_crash([str(program), "8"], tmp_path).wait()
        wait_until(lambda: list((lonely.spool / "dumps").glob("*/end.json")) or None)
    with running_receiver(fleet.receiver, tmp_path / "store") as running:
        arguments = ["--spool", str(lonely.spool), "--to", str(running.addresses[0]), "--identity", str(lonely.identity)]
        # As root's timer does it: a process of its own, which becomes the spool's owner before it connects.
        flush = [sys.executable, "-m", "securecore.cli.main", "spool", "flush", *arguments]
        result = subprocess.run(flush, capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")
    assert lonely.spooled() == []
    assert "receipt verified" in result.stdout
    assert (lonely.spool / "receipts.jsonl").stat().st_uid == NOBODY


def test_the_pattern_comes_back_after_kill_9(tmp_path: Path) -> None:
    """A borrower that is killed outright leaves the machine as it found it: its guardian sees to that."""
    before = core_pattern.CORE_PATTERN.read_text(), core_pattern.CORE_PIPE_LIMIT.read_text()
    code = (
        "import sys, time\nfrom securecore.cli import core_pattern\n"
        "with core_pattern.borrowed('|/nonexistent/handler'):\n    print('borrowed', flush=True)\n    time.sleep(600)\n"
    )
    borrower = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert borrower.stdout is not None
    assert borrower.stdout.readline() == b"borrowed\n"
    during = core_pattern.CORE_PATTERN.read_text()
    borrower.kill()
    borrower.wait()
    borrower.stdout.close()

    wait_until(lambda: True if core_pattern.CORE_PATTERN.read_text() == before[0] else None, 10)
    assert during == "|/nonexistent/handler\n"
    assert (core_pattern.CORE_PATTERN.read_text(), core_pattern.CORE_PIPE_LIMIT.read_text()) == before
