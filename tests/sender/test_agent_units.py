"""The agent's units, and those of the renewal: systemd understands them, and what they run can live with what they forbid."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from securecore.errors import ConfigError
from securecore.sender import agent_units, installation, renewal_units, stateless

IDENTITY = "/etc/securecore/identity"
SPOOL = "/var/lib/securecore/spool"


def service() -> str:
    """Return the agent's service."""
    return agent_units.agent_service("/bin/true", SPOOL, IDENTITY).decode()


def values(unit: str, key: str) -> list[str]:
    """Return what a unit says for a key, in its order."""
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{key}=")]


@pytest.mark.slow
def test_units_are_what_systemd_understands(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong with any of them, those of the timers that they name included."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    units = {
        agent_units.SERVICE: service().encode(), agent_units.SOCKET: agent_units.agent_socket(),
        renewal_units.SERVICE: renewal_units.renew_service("/bin/true", IDENTITY), renewal_units.TIMER: renewal_units.renew_timer(),
        installation.SERVICE: installation.flush_service("/bin/true"), installation.TIMER: installation.flush_timer(),
    }  # fmt: skip
    files = [tmp_path / Path(path).name for path in units]
    for file, content in zip(files, units.values(), strict=True):
        file.write_bytes(content)
    answer = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, check=False, text=True)
    said = [line for line in answer.stderr.splitlines() if "securecore" in line]
    # Of systemd 254; an earlier one says that it passes it over.
    assert [line for line in said if "'RestartMode' in section" not in line] == []


def test_only_root_gets_to_the_socket_and_its_backlog_is_bounded() -> None:
    """The kernel connects as root; each crash that waits has its process."""
    unit = agent_units.agent_socket().decode()

    assert values(unit, "ListenStream") == [installation.AGENT_SOCKET]
    assert (values(unit, "SocketMode"), values(unit, "DirectoryMode")) == (["0600"], ["0700"])
    assert values(unit, "Backlog") == ["16"]


def test_the_kernel_goes_by_the_agent_only_while_it_runs() -> None:
    """With all rights it is told so when the agent is ready, and the other thing before it stops and whenever it has ended."""
    start = [f"+/bin/true -I -m securecore.cli.machine.handover {way}" for way in ("agent", "pipe")]

    assert values(service(), "Type") == ["notify"]
    assert values(service(), "ExecStartPost") == start[:1]
    assert values(service(), "ExecStop") == values(service(), "ExecStopPost") == start[1:]


def test_an_agent_that_has_ended_is_started_again_before_anything_takes_its_place() -> None:
    """The timers that conflict with it come once it is given up: between two starts they would have systemd give it up at once."""
    assert values(service(), "Conflicts") == values(service(), "OnFailure")
    assert (values(service(), "Restart"), values(service(), "RestartMode")) == (["always"], ["direct"])


def test_one_child_that_is_killed_costs_no_other_its_dump() -> None:
    """That the OOM killer ends a child does not stop the service, nor does the agent's own end have its children killed."""
    assert values(service(), "OOMPolicy") == ["continue"]
    assert values(service(), "KillMode") == ["process"]


def test_the_agent_reports_the_hosts_name_as_it_is_at_the_crash() -> None:
    """ProtectHostname= would keep the name of the agent's start; without CAP_SYS_ADMIN it cannot change it anyhow."""
    assert values(service(), "ProtectHostname") == []
    assert "CAP_SYS_ADMIN" not in values(service(), "CapabilityBoundingSet")[0].split(" ")


@pytest.mark.parametrize(
    "unit",
    [service().encode(), installation.flush_service("/bin/true"), renewal_units.renew_service("/bin/true", IDENTITY)],
    ids=["agent", "flush", "renew"],
)
def test_a_call_that_is_forbidden_fails_and_kills_nobody(unit: bytes) -> None:
    """What a later C library tries first, it has another way for; a signal would cost the core that is being taken."""
    assert values(unit.decode(), "SystemCallErrorNumber") == ["EPERM"]


def test_an_agent_may_write_nowhere_but_to_spool_and_identity() -> None:
    """A path that would say more in a unit is refused."""
    assert values(service(), "ProtectSystem") == ["strict"]
    assert values(service(), "ReadWritePaths") == [f"/run/securecore -{SPOOL} -{IDENTITY}"]
    for paths in ((f"{SPOOL} /", IDENTITY), (SPOOL, "/a\nUser=x"), (SPOOL, "/a%n")):
        with pytest.raises(ConfigError, match="systemd unit"):
            agent_units.agent_service("/bin/true", *paths)
    with pytest.raises(ConfigError, match="systemd unit"):
        renewal_units.renew_service("/bin/true", "/a b")


def test_an_agent_can_note_that_it_has_said_a_line() -> None:
    """Without a spool that is what keeps a storm from filling the log. Of all of /run its unit lets it write beside its socket."""
    writable = values(service(), "ReadWritePaths")[0].split(" ")

    assert os.path.dirname(stateless.STAMPS[0]) in writable


def test_a_renewal_is_spread_over_the_day_and_made_up_for() -> None:
    """A fleet does not come at once, and a machine that was off in the night looks when it is on."""
    timer = renewal_units.renew_timer().decode()

    assert values(timer, "OnCalendar") == ["daily"]
    assert values(timer, "RandomizedDelaySec") == ["12h"]
    assert values(timer, "Persistent") == ["yes"]


@pytest.mark.slow
def test_what_the_renewal_runs_is_a_command_of_ours() -> None:
    """With the identity that it is given, here one that is missing."""
    command = values(renewal_units.renew_service(sys.executable, "/nowhere").decode(), "ExecStart")[0].split(" ")
    answer = subprocess.run(command, capture_output=True, check=False, text=True)

    assert (answer.returncode, answer.stderr.startswith("securecore: /nowhere")) == (4, True)
