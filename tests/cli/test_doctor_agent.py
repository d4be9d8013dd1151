"""``doctor`` of a sender with the agent, and of what renews a certificate: in order, and each thing that can be wrong."""

import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from securecore.cli.machine import systemd
from securecore.sender import agent_units, installation, renewal_units
from tests.support.checkups import NOWHERE, SETUP, Fault, Machine, needs_root, replace_in, tree, write
from tests.support.machines import awaken, setup

PIPE_PATTERN = installation.core_pattern(installation.HANDLER)
LISTENS = f"0000000000000000: 00000002 00000000 00010000 0001 01 4711 {installation.AGENT_SOCKET}\n"
RESTART = "systemctl restart securecore-agent"


def make_socket(path: Path) -> None:
    """Leave a socket at a path that may be longer than an address has room for."""
    path.parent.mkdir(mode=0o700, parents=True)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as made:
            made.bind(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)
    path.chmod(0o600)


@pytest.fixture
def agents(machine: Machine) -> Machine:
    """A machine on which the agent runs, as far as files and the kernel say."""
    awaken(machine.path, sockets=LISTENS)
    machine.set_up_sender(NOWHERE)
    machine.file("/proc/sys/kernel/core_pattern").write_text(f"{installation.agent_pattern()}\n")
    make_socket(machine.file(installation.AGENT_SOCKET))
    return machine


def test_a_sender_with_an_agent_that_is_in_order_is_ok(agents: Machine) -> None:
    """The agent is looked at in the flush timer's place, for it delivers what waits; not a byte is changed."""
    before = tree(agents.path)
    seen = agents.doctor("--offline")

    assert (seen.code, seen.not_ok()) == (0, set())
    assert list(seen.findings) == [
        "core_pattern", "core_pipe_limit", "next boot", "handler", "interpreter", "configuration", "settings", "clock", "identity",
        "spool", "spool's room", "receipts", "storm limits", "agent",
    ]  # fmt: skip
    assert seen.find("core_pattern", "ok")["words"] == "@@/run/securecore/coredump.sock"
    assert seen.find("agent", "ok")["words"] == f"listens at {agents.file(installation.AGENT_SOCKET)}"
    assert tree(agents.path) == before


def handler_again(machine: Machine) -> None:
    """Do what the agent's unit does when the agent has ended."""
    machine.file("/proc/sys/kernel/core_pattern").write_text(f"{PIPE_PATTERN}\n")


def nobody_listens(machine: Machine) -> None:
    """Have the socket be there, and nobody behind it."""
    machine.file("/proc/1/net/unix").write_text(f"Num Path\n{LISTENS.replace(' 00010000 ', ' 00000000 ')}")


def both(*faults: Fault) -> Fault:
    """Return a fault that is several."""
    return lambda machine: [fault(machine) for fault in faults]


def no_socket(machine: Machine) -> None:
    """Take the socket away."""
    machine.file(installation.AGENT_SOCKET).unlink()


FAULTS: dict[str, tuple[Fault, str, str, str, str]] = {
    "the handler has the crashes": (
        handler_again, "core_pattern", "warning", "starts the handler for each crash, and does not connect to the agent", RESTART,
    ),
    "another pattern": (write("/proc/sys/kernel/core_pattern", "core\n"), "core_pattern", "wrong", "'core': crashes do not", SETUP),
    "an edited service": (
        replace_in(agent_units.SERVICE, "UMask=0077", "UMask=0000"), "agent", "wrong", "is not what this installation", SETUP,
    ),
    "no socket unit": (lambda m: m.file(agent_units.SOCKET).unlink(), "agent", "wrong", "agent.socket is missing", SETUP),
    "not enabled": (
        lambda m: m.file(agent_units.SERVICE_LINK).unlink(), "agent", "warning", "securecore-agent.service is not enabled", SETUP,
    ),
    "an older kernel": (
        write("/proc/sys/kernel/core_modes", "file\npipe\n"), "agent", "wrong", "has no coredump socket", f"{SETUP} --kernel pipe",
    ),
    "no socket": (no_socket, "agent", "wrong", "coredump.sock is missing, and crashes are lost", RESTART),
    "nobody listens": (nobody_listens, "agent", "wrong", "nobody listens at ", RESTART),
    "something else": (
        both(no_socket, write(installation.AGENT_SOCKET, "")), "agent", "wrong", "is in the way: it is something else", "rm /",
    ),
    "a socket for all": (
        lambda m: m.file(installation.AGENT_SOCKET).chmod(0o666), "agent", "wrong", "open to others than root (mode 0666)",
        "chmod 0600 ",
    ),
    "a directory for all": (
        lambda m: m.file("/run/securecore").chmod(0o755), "agent", "wrong", "open to others than root (mode 0755)", "chmod 0700 ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_an_agent_is_found_with_its_remedy(name: str, agents: Machine) -> None:
    """One thing is broken; doctor names it, says how bad it is and what mends it, and calls nothing broken that is not."""
    breaking, check, level, words, remedy = FAULTS[name]
    breaking(agents)
    seen = agents.doctor("--offline")
    found = seen.find(check, level)

    assert words in found["words"]
    assert remedy in (found["remedy"] or "")
    assert seen.not_ok() == {check}


@pytest.mark.parametrize("fault", [no_socket, nobody_listens], ids=["no socket", "nobody listens"])
def test_a_socket_costs_no_core_while_the_handler_has_them(fault: Callable[[Machine], None], agents: Machine) -> None:
    """The same faults are warnings then: nothing is lost."""
    handler_again(agents)
    fault(agents)
    seen = agents.doctor("--offline")

    assert seen.code == 0
    assert "so the kernel goes on starting the handler" in seen.find("agent", "warning")["words"]


@pytest.mark.parametrize(
    ("is_handed_back", "is_flushed", "level", "words"),
    [
        (False, False, "wrong", "its socket is there, and no agent: crashed processes wait"),
        (True, False, "wrong", "does not run, nor does securecore-flush.timer: nothing delivers what waits in the spool"),
        (True, True, "warning", "does not run, and securecore-flush.timer delivers in its place"),
    ],
)
def test_an_agent_that_was_stopped_is_told_with_what_it_costs(
    is_handed_back: bool, is_flushed: bool, level: str, words: str, agents: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd keeps its socket: nobody waits there once the kernel starts the handler again, but who delivers the spool?"""
    running = {"securecore-agent.socket"} | ({"securecore-flush.timer"} if is_flushed else set())
    monkeypatch.setattr(systemd, "is_running", lambda root: True)
    monkeypatch.setattr(systemd, "is_active", lambda unit: unit in running)
    if is_handed_back:
        handler_again(agents)
    found = agents.doctor("--offline").find("agent", level)

    assert found["words"] == words
    assert RESTART in (found["remedy"] or "").replace("securecore-agent.socket ", "")


def test_a_line_that_anybody_can_forge_is_no_word_of_systemds(agents: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mounts of his own a user binds a socket at that path too, and the list of the kernel's tells no difference."""
    monkeypatch.setattr(systemd, "is_running", lambda root: True)
    monkeypatch.setattr(systemd, "is_active", lambda unit: unit == "securecore-agent.service")
    found = agents.doctor("--offline").find("agent", "wrong")

    assert "securecore-agent.socket is not active" in found["words"]
    assert "and crashes are lost" in found["words"]
    assert found["remedy"] == "systemctl restart securecore-agent.socket securecore-agent.service"


@needs_root
def test_a_socket_of_somebody_else_is_found(agents: Machine) -> None:
    """Who owns the directory can put his own socket there, and be handed every core of the machine."""
    os.chown(agents.file("/run/securecore"), 4711, 0)
    found = agents.doctor("--offline").find("agent", "wrong")

    assert "belongs to uid 4711" in found["words"]
    assert found["remedy"] == f"chown root:root {agents.file('/run/securecore')}"


def test_an_image_with_the_agent_is_in_order(machine: Machine) -> None:
    """It does not run; what cannot be known of its kernel is a warning."""
    machine.set_up_sender(NOWHERE)
    assert setup(machine.path, "sender", "--kernel", "agent") == 0
    machine.words()
    seen = machine.doctor("--offline")

    assert (seen.code, seen.not_ok()) == (0, {"agent"})
    assert "enabled; nobody knows which kernel will run" in seen.find("agent", "warning")["words"]
    assert seen.find("core_pattern", "ok")["words"] == PIPE_PATTERN


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda m: None, None),
        (lambda m: m.file(renewal_units.TIMER).unlink(), "securecore-renew.timer is missing"),
        (replace_in(renewal_units.SERVICE, "identity", "other"), "is not what this installation writes"),
        (lambda m: m.file(renewal_units.TIMER_LINK).unlink(), "is not enabled: the certificate will expire"),
    ],
    ids=["in order", "no timer", "an edited service", "not enabled"],
)
def test_what_renews_an_enrolled_host_is_looked_at(harm: Fault, words: str | None, machine: Machine) -> None:
    """And what is wrong with it `setup sender` mends."""
    machine.file("/etc/securecore/identity/enroller").write_text("enrol.example:4456\n")
    machine.set_up_sender(NOWHERE)
    harm(machine)
    seen = machine.doctor("--offline")
    found = seen.find("renewal", "ok" if words is None else "wrong")

    assert (words or "enabled") in found["words"]
    if words is not None:
        assert found["remedy"] == SETUP
        assert setup(machine.path, "sender") == 0
        machine.words()
        assert machine.doctor("--offline").find("renewal", "ok")


def test_an_enrolled_host_that_was_set_up_before_is_told(machine: Machine) -> None:
    """Enrolled after its set-up, which could not know: the next one installs the timer."""
    machine.set_up_sender(NOWHERE)
    machine.file("/etc/securecore/identity/enroller").write_text("enrol.example:4456\n")

    assert machine.doctor("--offline").find("renewal", "wrong")["remedy"] == SETUP


def test_the_agent_renews_an_enrolled_host(agents: Machine) -> None:
    """There is no timer, and none is missed."""
    agents.file("/etc/securecore/identity/enroller").write_text("enrol.example:4456\n")
    assert setup(agents.path, "sender") == 0
    agents.words()
    seen = agents.doctor("--offline")

    assert (seen.code, seen.not_ok()) == (0, set())
    assert seen.find("renewal", "ok")["words"] == "the agent looks every day whether it is due"
