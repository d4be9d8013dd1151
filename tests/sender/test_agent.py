"""The agent as a process, with peers that are not the kernel: what it is, what it does beside crashes, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.cli.main import run
from securecore.names import Address
from securecore.sender import agent_limits
from tests.support.agents import NO_CHORES, RunningAgent, running_agent
from tests.support.certificates import Fleet
from tests.support.kernel import Installed, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="the agent needs root")]

STRANGER = 61234
"""A group that nobody is in: /proc shows it as the owner of a process that may be dumped, and root as that of one that may not
(proc(5))."""
PLANNED = """
import os, signal, sys, time
from securecore.sender import agent_chores
from securecore.sender.agent_children import become
from securecore.sender.chores import Chore
def note(word):
    with open({notes!r}, "a") as notes:
        notes.write(f"{{word}} {{os.getpid()}}\\n")
def begin():
    note("begun")
    {work}
agent_chores.plan = lambda program, settings: [Chore("chore", begin, 0, {every_s}, 0, {most_s})]
"""
"""The beginning of an agent with one chore, of the test's own."""


@pytest.fixture
def installed(fleet: Fleet, tmp_path: Path) -> Installed:
    """A handler's settings, without a receiver."""
    return Installed(tmp_path, fleet.host, [Address("127.0.0.1:9")])


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where a chore writes a line."""
    return tmp_path / "notes"


def planned(notes: Path, work: str, every_s: float = 3600, most_s: float = 3600) -> str:
    """Return the beginning of an agent whose chore does *work*."""
    return PLANNED.format(notes=str(notes), work=work, every_s=every_s, most_s=most_s)


def lines(notes: Path, count: int) -> list[list[str]]:
    """Return the lines once there are *count*, each as its words."""

    def find() -> list[list[str]] | None:
        found = [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
        return found if len(found) >= count else None

    return wait_until(find)


def connect(agent: RunningAgent) -> bytes:
    """Connect as somebody who is not the kernel, and return what is answered."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(60)
        stranger.connect(str(agent.socket))
        return stranger.recv(16)


def status_of(pid: int, key: str) -> str:
    """Return a line of /proc/PID/status."""
    found = re.search(rf"^{key}:\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_it_has_one_thread_and_is_not_dumped(installed: Installed, tmp_path: Path) -> None:
    """A fork of more threads would have the locks of all; and its crash is nobody's core (R19), by two marks."""
    with running_agent(installed, tmp_path, group=STRANGER) as agent:
        threads = status_of(agent.process.pid, "Threads")
        owner = os.stat(f"/proc/{agent.process.pid}/environ").st_gid
        limits = Path(f"/proc/{agent.process.pid}/limits").read_text()

    assert threads == "1"
    assert owner == 0, "the control is tests/cli/test_own_core.py::test_another_program_is_dumped"
    assert re.search(r"^Max core file size +1 +1 ", limits, re.MULTILINE)


def test_strangers_cost_no_place(installed: Installed, tmp_path: Path) -> None:
    """More of them than there are places, one after the other: each is let go, and no child stays."""
    with running_agent(installed, tmp_path) as agent:
        answers = {connect(agent) for _ in range(agent_limits.PLACES + 2)}
        agent.wait_until_idle()
        stopped = agent.stop()

    assert answers == {b""}
    assert stopped == 0


def test_who_waits_for_a_process_is_served_though_the_moment_has_passed(installed: Installed, tmp_path: Path) -> None:
    """A machine without a process to spare may be so busy that the time of the next try is over before the agent looks."""
    refusing = (
        "from securecore.sender import agent\nstart, refusals = agent.start_child, [1, 2]\n"
        "def refuse(*words):\n    if refusals:\n        raise BlockingIOError(refusals.pop(), 'no process')\n"
        "    return start(*words)\n"
        "agent.start_child, agent._RETRY_S = refuse, 0\n"
    )
    with running_agent(installed, tmp_path, refusing) as agent:
        assert connect(agent) == b""


def test_a_chore_comes_again_and_again(installed: Installed, tmp_path: Path, notes: Path) -> None:
    """Each time in a child of its own."""
    with running_agent(installed, tmp_path, planned(notes, "return 0", every_s=0.01), options=()):
        found = lines(notes, 3)

    assert {word for word, _ in found} == {"begun"}
    assert len({pid for _, pid in found}) == len(found)


def test_a_chore_that_fails_comes_again(installed: Installed, tmp_path: Path, notes: Path) -> None:
    """Whatever it raises, the agent goes on."""
    with running_agent(installed, tmp_path, planned(notes, "raise LookupError", every_s=0.01), options=()) as agent:
        lines(notes, 2)
        alive = agent.process.poll() is None

    assert alive


def test_a_chore_that_takes_too_long_is_killed(installed: Installed, tmp_path: Path, notes: Path) -> None:
    """Then the next one comes."""
    work = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    with running_agent(installed, tmp_path, planned(notes, work, every_s=0.01, most_s=0.1), options=()):
        found = lines(notes, 2)

    assert not Path(f"/proc/{found[0][1]}").exists()


def test_a_chore_that_hangs_is_in_nobodys_way(installed: Installed, tmp_path: Path, notes: Path) -> None:
    """Whoever connects meanwhile is served, and SIGTERM takes it along."""
    with running_agent(installed, tmp_path, planned(notes, "become(['/bin/sleep', '600'])"), options=()) as agent:
        (found,) = lines(notes, 1)
        answer = connect(agent)
        stopped = agent.stop()

    assert answer == b""
    assert stopped == 0
    assert not Path(f"/proc/{found[1]}").exists()


def test_a_chore_that_ends_with_the_agent_is_no_failure(installed: Installed, tmp_path: Path, notes: Path) -> None:
    """A restart in the middle of a long flush is nobody's to look at: there is no line about its end."""
    said = tmp_path / "said"
    telling = (
        "\nfrom securecore.sender import agent\n"
        f"agent.log = lambda event, **facts: print(event, file=open({str(said)!r}, 'a'), flush=True)\n"
    )
    beginning = planned(notes, "become(['/bin/sleep', '600'])") + telling
    with running_agent(installed, tmp_path, beginning, options=()) as agent:
        lines(notes, 1)
        stopped = agent.stop()

    assert (stopped, said.read_text().split()) == (0, ["agent-ready", "agent-stopped"])


def test_sighup_brings_a_chore_forward(installed: Installed, tmp_path: Path, notes: Path) -> None:
    """It would be due in an hour."""
    with running_agent(installed, tmp_path, planned(notes, "return 0"), options=()) as agent:
        lines(notes, 1)
        agent.wait_until_idle()
        agent.process.send_signal(signal.SIGHUP)
        found = lines(notes, 2)
        alive = agent.process.poll() is None

    assert len(found) == 2
    assert alive


def test_it_tells_systemd_once_crashes_may_come(installed: Installed, tmp_path: Path) -> None:
    """Then its socket is there, so the kernel is not handed over to an agent that cannot start; no child does so."""
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(place))
        systemd.settimeout(60)
        with running_agent(installed, tmp_path, f"import os; os.environ['NOTIFY_SOCKET'] = {str(place)!r}") as agent:
            told = systemd.recv(100)
            answer = connect(agent)
            agent.wait_until_idle()
            agent.stop()
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)

    assert (told, answer) == (b"READY=1", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_0_and_takes_its_socket_away(installed: Installed, tmp_path: Path, number: signal.Signals) -> None:
    """A person's Ctrl-C is the same as systemd's stop."""
    with running_agent(installed, tmp_path) as agent:
        agent.process.send_signal(number)
        code = agent.process.wait(60)

    assert code == 0
    assert not agent.socket.exists()


@pytest.fixture
def commands(installed: Installed, tmp_path: Path, notes: Path) -> Iterator[list[str]]:
    """The commands that the agent's own chores become, once each."""
    recording = (
        "import os\n"
        "from securecore.sender import agent, agent_limits\n"
        "agent_limits.FLUSH_FIRST_S = agent_limits.FLUSH_JITTER_S = 0\n"
        "agent_limits.RENEWAL_FIRST_S = agent_limits.RENEWAL_JITTER_S = 0\n"
        "def become(command):\n"
        f"    with open({str(notes)!r}, 'a') as notes:\n"
        "        notes.write(f\"{os.getpriority(os.PRIO_PROCESS, 0)} {' '.join(command)}\\n\")\n"
        "    os._exit(0)\n"
        "agent.become = become\n"
    )
    with running_agent(installed, tmp_path, recording, options=()):
        yield sorted(" ".join(words) for words in lines(notes, 2))


def test_its_own_chores_are_the_timers_commands(commands: list[str], installed: Installed) -> None:
    """`spool flush --when-due` and `renew`, for the settings' spool and identity, at low priority."""
    program = f"10 {sys.executable} -I -m securecore.cli.main"
    assert commands == [
        f"{program} renew --identity {installed.identity}",
        f"{program} spool flush --when-due --settings {installed.settings}",
    ]


def test_it_says_why_it_does_not_start(installed: Installed, tmp_path: Path) -> None:
    """One line, a hint, and a code of the table: where another one listens, and where the place is not safe."""
    command = [sys.executable, "-m", "securecore.cli.main", "agent", "--settings", str(installed.settings), *NO_CHORES, "--socket"]
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    with running_agent(installed, tmp_path) as agent:
        told = [
            subprocess.run([*command, str(place)], capture_output=True, text=True, check=False)
            for place in (agent.socket, loose / "a.sock", "relative.sock")
        ]

    assert [result.returncode for result in told] == [14, 3, 3]
    for result in told:
        assert result.stderr.startswith("securecore: ")
        assert "Traceback" not in result.stderr
    assert all(len(result.stderr.splitlines()) == 2 for result in told[:2])


def test_it_says_at_once_that_its_settings_cannot_be_read(installed: Installed, tmp_path: Path) -> None:
    """It serves all the same: settings that are mended count for the next crash."""
    installed.settings.rename(tmp_path / "aside")
    with running_agent(installed, tmp_path) as agent:
        assert connect(agent) == b""

    warning, hint = agent.output.read_text().splitlines()[:2]
    assert warning.startswith(f"securecore: warning: {installed.settings}: ")
    assert warning.endswith("no crash can be handled until that is mended")
    assert hint == "  hint: run `securecore setup sender` again"


def test_only_root_can_be_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Anybody else is told so, before anything is made."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert run(["agent"]) == 3
    assert "needs root" in capsys.readouterr().err
