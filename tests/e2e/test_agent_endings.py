"""What becomes of dumps when the agent, or its child that has one, ends or is ended: on the real kernel."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agents import SLOW, crash, crashing_into_socket, needs_coredump_socket, noisy, running_agent, stored_reports
from tests.support.certificates import Fleet
from tests.support.kernel import Host, needs_kernel, start_crash, wait_until
from tests.support.receivers import running_receiver
from tests.support.sizes import size_of

pytestmark = [needs_kernel, needs_coredump_socket, pytest.mark.root, pytest.mark.slow]


def wait_for_part(host: Host) -> Path:
    """Return the core of the only dump in the spool, of which a part is there."""
    return wait_until(lambda: next((core for core in (host.spool / "dumps").glob("*/core.zst") if size_of(core)), None))


def test_a_dump_whose_handler_is_killed_is_labelled(fleet: Fleet, lonely: Host, programs: Path, tmp_path: Path) -> None:
    """Agent and handler are killed in the middle: the process is let go, and what is there is delivered later, as cut."""
    with running_agent(lonely, tmp_path) as agent, crashing_into_socket(agent.socket):
        crashed = start_crash(noisy(programs, 256), programs)
        wait_for_part(lonely)
        agent.kill()
        assert crashed.wait() == -signal.SIGABRT
    with running_receiver(fleet.receiver, tmp_path / "store") as running:
        arguments = ["--spool", str(lonely.spool), "--to", str(running.addresses[0]), "--identity", str(lonely.identity)]
        flushed = subprocess.run([sys.executable, "-m", "securecore.cli.main", "spool", "flush", *arguments], check=False)
    (report,) = stored_reports(tmp_path / "store")

    assert flushed.returncode == 0
    assert (report["state"], report["pid"]) == ("incomplete", crashed.pid)


def test_the_agents_death_costs_no_dump_that_is_under_way(host: Host, programs: Path, tmp_path: Path) -> None:
    """It alone is killed: its child goes on, as a handler does that nobody waits for."""
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        crashed = start_crash(noisy(programs, 64), programs)
        wait_until(lambda: agent.children() or None)
        agent.process.kill()
        agent.process.wait()
        host.wait_for_receipts(1)
        assert crashed.wait() == -signal.SIGABRT
    (report,) = stored_reports(tmp_path / "store")

    assert (report["state"], report["pid"]) == ("complete", crashed.pid)


def test_a_handler_that_crashes_starts_no_other_and_leaves_the_agent_alive(
    lonely: Host, programs: Path, small: list[str], tmp_path: Path
) -> None:
    """The kernel knows no mark of a handler at a socket: the agent's children are not dumped at all. The next crash is handled."""
    with running_agent(lonely, tmp_path) as agent, crashing_into_socket(agent.socket):
        crashed = start_crash(noisy(programs, 256), programs)
        wait_for_part(lonely)
        (handler,) = agent.children()
        os.kill(handler, signal.SIGSEGV)
        assert crashed.wait() == -signal.SIGABRT
        agent.wait_until_idle()
        before = lonely.spooled()
        crash(small, programs)
        wait_until(lambda: list((lonely.spool / "dumps").glob("*/end.json")) or None)
        agent.wait_until_idle()
        alive = agent.process.poll() is None

    assert alive
    assert len(before) == 1
    assert len(lonely.spooled()) == 2


def test_a_child_that_could_be_dumped_is_not_handled_either(lonely: Host, programs: Path, small: list[str], tmp_path: Path) -> None:
    """Should it be dumpable for a moment, the agent knows its own children: the crash comes to the socket and has no child."""
    dumpable = (
        f"{SLOW}import ctypes, os, resource, signal\n"
        "def die(*arguments):\n"
        "    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
        "    resource.setrlimit(resource.RLIMIT_CORE, (1, resource.RLIM_INFINITY))\n"
        "    signal.pthread_sigmask(signal.SIG_SETMASK, ())\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "crash.send = die\n"
    )
    with running_agent(lonely, tmp_path, dumpable) as agent, crashing_into_socket(agent.socket):
        status = crash(small, programs)
        agent.wait_until_idle()
        stopped = agent.stop()

    assert (os.WTERMSIG(status), os.WCOREDUMP(status), stopped) == (signal.SIGABRT, False, 0)
    assert lonely.spooled() == []


def test_a_dump_that_outlives_the_agents_patience_is_cut_and_durable(lonely: Host, programs: Path, tmp_path: Path) -> None:
    """Its child hears SIGTERM, as a handler does at a shutdown: what it has read is in the spool, with an end that says cut."""
    hurried = (
        "from securecore import limits\nfrom securecore.sender import agent_limits, pump\nimport time\n"
        "agent_limits.STOP_S, limits.TERMINATION_GRACE_S = 0.1, 0.2\n"
        "fill = pump.fill\n"
        "pump.fill = lambda *words: time.sleep(0.2) or fill(*words)\n"
    )
    with running_agent(lonely, tmp_path, hurried) as agent, crashing_into_socket(agent.socket):
        crashed = start_crash(noisy(programs, 256), programs)
        wait_for_part(lonely)
        stopped = agent.stop()
        assert crashed.wait() == -signal.SIGABRT
        (end,) = (lonely.spool / "dumps").glob("*/end.json")

    assert stopped == 0
    assert json.loads(end.read_bytes())["outcome"] == "cut"


def test_sigterm_lets_a_dump_finish(host: Host, programs: Path, tmp_path: Path) -> None:
    """What the agent has is delivered whole; what comes then finds no socket; it ends with 0."""
    with running_agent(host, tmp_path) as agent, crashing_into_socket(agent.socket):
        crashed = start_crash(noisy(programs, 64), programs)
        wait_until(lambda: agent.children() or None)
        stopped = agent.stop()
        late = crash(noisy(programs, 1), programs)
        assert crashed.wait() == -signal.SIGABRT
    (report,) = stored_reports(tmp_path / "store")

    assert (stopped, report["state"], report["pid"]) == (0, "complete", crashed.pid)
    assert not os.WCOREDUMP(late)
    assert not agent.socket.exists()


def test_sigterm_ends_in_time_where_a_dump_does_not(lonely: Host, programs: Path, small: list[str], tmp_path: Path) -> None:
    """A handler that hangs is told to end, and killed when it does not; the process that it held is let go."""
    hanging = (
        f"{SLOW}from securecore.sender import agent_limits\nagent_limits.STOP_S = agent_limits.STOP_GRACE_S = 0.2\n"
        "crash.send = lambda *arguments: time.sleep(600)\n"
    )
    with running_agent(lonely, tmp_path, hanging) as agent, crashing_into_socket(agent.socket):
        crashed = start_crash(small, programs)
        wait_until(lambda: agent.children() or None)
        stopped = agent.stop()
        assert crashed.wait() == -signal.SIGABRT

    assert stopped == 0
