"""A program crashes, the kernel hands it to the agent's socket, and the core arrives: on the real kernel."""

import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from securecore.cli.main import run
from securecore.sender.admission import EXCLUDE, Admission, Rule, StormLimit
from tests.support.agents import (
    CRASHERS,
    FREE,
    SLOW,
    crash,
    crashing_into_socket,
    needs_coredump_socket,
    noisy,
    running_agent,
    stored_reports,
)
from tests.support.certificates import Fleet
from tests.support.kernel import NOBODY, Host, build_crasher, needs_kernel, start_crash, wait_until
from tests.support.launchers import limited
from tests.support.receivers import running_receiver

pytestmark = [needs_kernel, needs_coredump_socket, pytest.mark.root, pytest.mark.slow]

CONTAINED_NOWHERE = 77
"""What contained.c ends with where there are no namespaces for it."""


@pytest.mark.parametrize("prefix", ["@@", "@"])
def test_a_core_arrives_whole_with_what_the_kernel_knows_of_it(
    prefix: str, fleet: Fleet, host: Host, programs: Path, tmp_path: Path
) -> None:
    """By either of the kernel's protocols: signal, pid, thread and ids as a pipe's handler is told them."""
    program = build_crasher(CRASHERS / "threads.c", programs)
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket, prefix):
        crashed = start_crash([str(program)], programs, NOBODY)
        assert crashed.wait() == -signal.SIGSEGV
        (receipt,) = host.wait_for_receipts(1)
        agent.wait_until_idle()
        stopped = agent.stop()
    (report,) = stored_reports(tmp_path / "store")
    core = tmp_path / "core"
    extracted = run(
        ["extract", str(receipt["dump"]), "-o", str(core), "--store", str(tmp_path / "store"), "--identity", str(fleet.receiver)]
    )

    assert (stopped, extracted) == (0, 0)
    assert (report["state"], report["metadata"], report["signal"]) == ("complete", "verified", signal.SIGSEGV)
    assert (report["pid"], report["uid"], report["gid"], report["dump_mode"]) == (crashed.pid, NOBODY, NOBODY, 1)
    assert report["core_limit"] == (1 << 64) - 1
    assert (report["executable"], report["threads"]) == (str(program), 8)
    # The core's first thread is the one that crashed.
    assert report["tid"] == crashing_thread(core)
    assert report["tid"] != crashed.pid


def crashing_thread(core: Path) -> int:
    """Return the thread of the first NT_PRSTATUS, by a reader that is not ours."""
    with core.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_NOTE"):
            for note in segment.iter_notes():
                if note["n_type"] == "NT_PRSTATUS":
                    # elf_prstatus: siginfo 12, cursig 2 and padding 2, sigpend 8, sighold 8, then pr_pid.
                    return int(struct.unpack_from("=i", note["n_descdata"], 32)[0])
    raise AssertionError("no NT_PRSTATUS")


def test_memory_arrives_byte_for_byte(fleet: Fleet, host: Host, programs: Path, tmp_path: Path) -> None:
    """What the program had written is in its core as it wrote it, all of it, though the socket holds a fraction of it."""
    words, word = [], 1
    for _ in range(1 << 18):
        word = (word * 1664525 + 1013904223) % (1 << 32)
        words.append(word)
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        assert start_crash(noisy(programs, 1), programs).wait() == -signal.SIGABRT
        (receipt,) = host.wait_for_receipts(1)
    core = tmp_path / "core"
    run(["extract", str(receipt["dump"]), "-o", str(core), "--store", str(tmp_path / "store"), "--identity", str(fleet.receiver)])

    assert struct.pack(f"={len(words)}I", *words) in core.read_bytes()


def test_what_a_rule_declines_is_not_dumped(host: Host, programs: Path, small: list[str], tmp_path: Path) -> None:
    """By its signal, which the kernel tells nobody before the core: then nothing of it is written, and the process is not "dumped".

    A second one, with another signal, is taken.
    """
    rules = (Rule(EXCLUDE, signal=signal.SIGABRT),)
    host.change(admission=Admission(rules=rules, program=FREE, user=FREE, host=FREE))
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        declined = crash(small, programs)
        agent.wait_until_idle()
        taken = crash([str(build_crasher(CRASHERS / "null-deref.c", programs))], programs)
        host.wait_for_receipts(1)
    (report,) = stored_reports(tmp_path / "store")

    assert (os.WTERMSIG(declined), os.WCOREDUMP(declined)) == (signal.SIGABRT, False)
    assert (os.WTERMSIG(taken), os.WCOREDUMP(taken)) == (signal.SIGSEGV, True)
    assert (report["signal"], report["declined"]) == (signal.SIGSEGV, 1)


def test_a_process_that_wants_no_core_is_not_dumped(host: Host, programs: Path, small: list[str], tmp_path: Path) -> None:
    """RLIMIT_CORE, which the kernel honours at no socket: the agent reads it while the kernel waits for its answer."""
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        process = subprocess.Popen([*limited([(resource.RLIMIT_CORE, 0)]), *small], cwd=programs, stdout=subprocess.DEVNULL)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        agent.wait_until_idle()

    assert (os.WTERMSIG(status), os.WCOREDUMP(status)) == (signal.SIGABRT, False)
    assert host.receipts() == []
    assert host.spooled() == []


def test_a_storm_limit_declines_before_the_kernel_dumps(host: Host, programs: Path, small: list[str], tmp_path: Path) -> None:
    """What it suppresses costs no byte, and the process is let go at once."""
    host.change(admission=Admission(program=StormLimit(1, 3600), user=FREE, host=FREE))
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        statuses = []
        for _ in range(3):
            statuses.append(crash(small, programs))
            agent.wait_until_idle()
    assert [os.WCOREDUMP(status) for status in statuses] == [True, False, False]
    assert len(host.receipts()) == 1


def test_a_core_that_is_too_large_is_let_go(host: Host, programs: Path, small: list[str], tmp_path: Path) -> None:
    """Its headers have to be seen for that: the kernel has begun, and is not let go on."""
    host.change(admission=Admission(max_size=1 << 20, program=FREE, user=FREE, host=FREE))
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        status = crash(small, programs)
        agent.wait_until_idle()

    assert os.WTERMSIG(status) == signal.SIGABRT
    assert host.receipts() == []
    assert host.spooled() == []


def test_crashes_beyond_the_places_wait_and_all_arrive(host: Host, programs: Path, small: list[str], tmp_path: Path) -> None:
    """Two places, and six crashes at once: never more children than places, and each crash is stored once."""
    limits_of_two = "from securecore.sender import agent_limits\nagent_limits.PLACES = 2"
    most = 0
    with running_agent(host, tmp_path, limits_of_two) as agent, crashing_into_socket(agent.socket):
        crashes = [start_crash(small, programs) for _ in range(6)]
        while any(crashed.poll() is None for crashed in crashes):
            most = max(most, len(agent.children()))
        host.wait_for_receipts(6)
    reports = stored_reports(tmp_path / "store")

    assert 1 <= most <= 2
    assert sorted(report["pid"] for report in reports) == sorted(crashed.pid for crashed in crashes)
    assert {report["state"] for report in reports} == {"complete"}


def test_what_fits_neither_the_places_nor_the_backlog_is_counted(
    host: Host, programs: Path, small: list[str], tmp_path: Path
) -> None:
    """The kernel skips it, says so in its log, and a later dump's report tells how many there were."""
    go = tmp_path / "go"
    narrow = (
        f"{SLOW}from securecore import limits\nfrom securecore.sender import agent_limits\n"
        "agent_limits.PLACES, agent_limits.BACKLOG, limits.KERNEL_LOG_EVERY_S = 1, 0, -1\n"
        "import os\n"
        "def wait(*arguments):\n"
        f"    while not os.path.exists({str(go)!r}):\n        time.sleep(0.01)\n"
        "    return send(*arguments)\n"
        "crash.send = wait\n"
    )
    with running_agent(host, tmp_path, narrow) as agent, crashing_into_socket(agent.socket):
        go.touch()
        # What the log said before is nobody's now.
        crash(small, programs)
        host.wait_for_receipts(1)
        agent.wait_until_idle()
        go.unlink()
        first = start_crash(small, programs)
        wait_until(lambda: agent.children() or None)
        # The one has the place, and one of these waits; the others the kernel lets go at once.
        crashes = [start_crash(small, programs) for _ in range(4)]
        wait_until(lambda: True if sum(crashed.poll() is not None for crashed in crashes) == 3 else None)
        go.touch()
        host.wait_for_receipts(3)
        agent.wait_until_idle()
        assert {crashed.wait() for crashed in (first, *crashes)} == {-signal.SIGABRT}
        crash(small, programs)
        host.wait_for_receipts(4)
    reports = stored_reports(tmp_path / "store")

    assert {report["state"] for report in reports} == {"complete"}
    assert sum(report.get("skipped_by_kernel", 0) for report in reports) == 3


def test_without_a_receiver_the_core_is_spooled_and_flushed_by_the_agent(
    fleet: Fleet, lonely: Host, programs: Path, small: list[str], tmp_path: Path
) -> None:
    """The agent's own flush delivers it once there is a receiver: when its time has come, or at once by SIGHUP."""
    with running_agent(lonely, tmp_path, options=()) as agent, crashing_into_socket(agent.socket):
        status = crash(small, programs)
        wait_until(lambda: list((lonely.spool / "dumps").glob("*/end.json")) or None)
        agent.wait_until_idle()
        with running_receiver(fleet.receiver, tmp_path / "store") as running:
            lonely.change(receivers=tuple(running.addresses))
            agent.process.send_signal(signal.SIGHUP)
            lonely.wait_for_receipts(1)
            agent.wait_until_idle()
            assert agent.stop() == 0
    (report,) = stored_reports(tmp_path / "store")

    assert os.WCOREDUMP(status)
    assert (report["state"], report["signal"]) == ("complete", signal.SIGABRT)
    assert lonely.spooled() == []


def test_a_machine_that_is_short_of_processes_costs_no_crash(host: Host, programs: Path, small: list[str], tmp_path: Path) -> None:
    """The process is held until there is one for its core."""
    short = (
        "from securecore.sender import agent\nstart, refusals = agent.start_child, [1, 2, 3]\n"
        "def refuse(*words):\n    if refusals:\n        raise BlockingIOError(refusals.pop(), 'no process')\n"
        "    return start(*words)\n"
        "agent.start_child, agent._RETRY_S = refuse, 0.01\n"
    )
    with running_agent(host, tmp_path, short) as agent, crashing_into_socket(agent.socket):
        status = crash(small, programs)
        host.wait_for_receipts(1)

    assert os.WCOREDUMP(status)
    assert len(stored_reports(tmp_path / "store")) == 1


def test_who_is_not_the_kernel_is_refused(host: Host, programs: Path, small: list[str], tmp_path: Path) -> None:
    """Root may connect and say what the kernel would: nothing is taken from it, and the next crash is handled."""
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(agent.socket))
            stranger.sendall(struct.pack("=IIQ", 16, 16, 0xF))
            answer = b""
            # What it has sent is not read, and so the connection is reset.
            with suppress(ConnectionResetError):
                answer = stranger.recv(16)
        crash(small, programs)
        host.wait_for_receipts(1)

    assert answer == b""
    assert len(stored_reports(tmp_path / "store")) == 1


def test_settings_that_are_broken_cost_their_crashes_and_no_more(
    host: Host, programs: Path, small: list[str], tmp_path: Path
) -> None:
    """As with the pipe's handler: the process is let go, nothing is kept, and once they are mended the next one arrives."""
    sound = host.settings.read_bytes()
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        host.settings.write_bytes(sound[: len(sound) // 2])
        lost = crash(small, programs)
        agent.wait_until_idle()
        host.settings.write_bytes(sound)
        kept = crash(small, programs)
        host.wait_for_receipts(1)

    assert (os.WCOREDUMP(lost), os.WCOREDUMP(kept)) == (False, True)


def test_in_a_container_the_report_has_the_machines_numbers_and_names(host: Host, programs: Path, tmp_path: Path) -> None:
    """R4 and R5: the kernel connects for pid 1 of namespaces of its own too; pidfd and /proc are read from outside of them."""
    program = build_crasher(CRASHERS / "contained.c", programs)
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        contained = start_crash([str(program), "../../collector"], programs, stdout=subprocess.PIPE)
        inner, _ = contained.communicate()
        if contained.returncode == CONTAINED_NOWHERE:
            pytest.skip("this kernel makes no user namespaces for us")
        host.wait_for_receipts(1)
    (report,) = stored_reports(tmp_path / "store")

    assert contained.returncode == 0
    assert (report["pid"], report["tid"], report["uid"], report["signal"]) == (int(inner), int(inner), 0, signal.SIGSEGV)
    assert (report["metadata"], report["container"], report["node"]) == ("verified", "unknown", os.uname().nodename)


@pytest.fixture
def suid_dumpable() -> Iterator[None]:
    """fs.suid_dumpable as systemd-coredump and apport set it, with a guardian that puts the machine's own value back."""
    path = Path("/proc/sys/fs/suid_dumpable")
    before = path.read_text().strip()
    guardian = subprocess.Popen(
        ["/bin/sh", "-c", f"trap '' INT TERM HUP; read word; echo {before} > {path}"], stdin=subprocess.PIPE, start_new_session=True
    )
    path.write_text("2")
    try:
        yield
    finally:
        guardian.communicate(b"done\n")


def test_a_set_uid_program_is_told_as_sensitive(
    host: Host, programs: Path, tmp_path: Path, suid_dumpable: None
) -> None:
    """R3: dump mode 2, by the kernel's own word; its user is the one who ran it."""
    program = programs / "set-uid"
    shutil.copy(build_crasher(CRASHERS / "null-deref.c", programs), program)
    program.chmod(0o4755)
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        status = crash([str(program)], programs, NOBODY)
        host.wait_for_receipts(1)
    (report,) = stored_reports(tmp_path / "store")

    assert os.WCOREDUMP(status)
    assert (report["dump_mode"], report["uid"], report["state"]) == (2, NOBODY, "complete")
