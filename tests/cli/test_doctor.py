"""``doctor``: what a person reads, the machine that really runs, and drift of its core_pattern."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from securecore.cli import core_pattern, main
from securecore.cli.machine import plan
from securecore.sender import installation
from tests.support.certificates import Fleet
from tests.support.checkups import NOWHERE, SETUP, Machine
from tests.support.kernel import Installed, needs_kernel
from tests.support.launchers import seeing
from tests.support.machines import SystemLog, receiver_running

RECEIVER = "/etc/securecore/receiver"
STORE = "/var/lib/securecore/store"
PATTERN = installation.core_pattern(installation.HANDLER)


def test_a_person_reads_it_from_top_to_bottom(machine: Machine) -> None:
    """Aligned, without colour where there is no terminal; a remedy under what is not ok; the count at the end."""
    machine.set_up_sender(NOWHERE)
    machine.file("/proc/sys/kernel/core_pattern").write_text("core\n")
    lines = machine.words("--offline").splitlines()

    assert lines[0] == "sender"
    assert lines[1] == "  wrong    core_pattern     is 'core': crashes do not come to securecore"
    assert lines[2] == "                            -> securecore setup sender"
    assert lines[-1].startswith("1 wrong, ")
    assert {line[28:29] for line in lines[1:-1]} & {" "} == set()
    assert "\x1b" not in "".join(lines)


def test_a_machine_that_is_neither_is_said_to_be_neither(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to look at is an error of its own, with the command that changes it."""
    assert main.run(["doctor", "--root", str(machine.path)]) == 4
    assert "neither as sender nor as receiver" in capsys.readouterr().err


def run_where(places: list[tuple[Path, Path]], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of ours where each first path stands in the second one's place."""
    command = [*seeing(places), sys.executable, "-m", "securecore.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.root
@needs_kernel
def test_drift_of_the_kernels_own_core_pattern_is_found(machine: Machine) -> None:
    """R26: the pattern that the kernel has at this moment, set up and then taken away, on the real /proc."""
    machine.set_up_sender(NOWHERE)
    proc, options = [(Path("/proc"), machine.file("/proc"))], ["--root", str(machine.path), "--offline", "--json"]
    with core_pattern.borrowed(PATTERN, patience_s=120):
        before = run_where(proc, "doctor", *options)
        core_pattern.CORE_PATTERN.write_text("core\n")
        after = run_where(proc, "doctor", *options)

    assert before.returncode == 0, before.stdout
    assert json.loads(before.stdout)["checks"][0]["words"] == PATTERN
    assert after.returncode == 3
    assert json.loads(after.stdout)["checks"][0] == {
        "role": "sender", "check": "core_pattern", "level": "wrong", "words": "is 'core': crashes do not come to securecore",
        "remedy": SETUP,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.root
@needs_kernel
def test_the_running_machine_is_looked_at_like_an_image(machine: Machine) -> None:
    """Without --root the same checks are made on /, with its own kernel, clock and services; here it is seen with other files."""
    machine.set_up_sender(NOWHERE)
    machine.set_up_receiver()
    with receiver_running(machine.file(RECEIVER), machine.file(STORE)):
        pass
    places = [(machine.file(path), Path(path)) for path in ("/etc", "/var/lib", "/usr/libexec")]
    result = run_where(places, "doctor", "--json")
    found = {(one["role"], one["check"]): one for one in json.loads(result.stdout)["checks"]}

    assert (result.returncode, result.stderr) == (3, "")
    assert found["sender", "core_pattern"]["level"] == "wrong"
    assert found["sender", "handler"]["words"] == installation.HANDLER
    assert found["sender", "settings"]["level"] == found["sender", "identity"]["level"] == found["sender", "spool"]["level"] == "ok"
    assert found["sender", "receiver"]["words"] == "127.0.0.1:9: connection refused"
    assert found["receiver", "receiver"] == {
        "role": "receiver", "check": "receiver", "level": "wrong", "words": "none runs on this store",
        "remedy": "systemctl enable --now securecore-receiver",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.root
@needs_kernel
@pytest.mark.parametrize(("pattern", "is_told"), [(PATTERN, False), ("|/tmp/evil %P\n<3>", True)])
def test_the_timers_flush_tells_of_drift(pattern: str, is_told: bool, machine: Machine, fleet: Fleet, tmp_path: Path) -> None:
    """R26: with nothing to deliver, and nobody asking, the system log has one line when the kernel starts somebody else."""
    machine.set_up_sender(NOWHERE)
    (tmp_path / "host").mkdir()
    installed = Installed(tmp_path / "host", fleet.host, [NOWHERE])
    (tmp_path / "pattern").write_text(f"{pattern}\n")
    with SystemLog(tmp_path / "dev") as log:
        places = [
            *log.places, (machine.file("/var/lib"), Path("/var/lib")),
            (tmp_path / "pattern", Path("/proc/sys/kernel/core_pattern")),
        ]  # fmt: skip
        flush = run_where(places, "spool", "flush", "--settings", str(installed.settings))
        lines = log.lines()

    assert (flush.returncode, flush.stdout) == (0, "nothing to deliver\n")
    assert [" pattern-drift " in line for line in lines] == [True] * is_told
    assert all(line.startswith("<28>securecore[") and line.isprintable() and "|/tmp/evil %P" in line for line in lines)


def test_a_damaged_record_of_set_up_keeps_nobody_from_flushing(machine: Machine) -> None:
    """Drift is told in passing: what cannot be read of the record is doctor's business."""
    from securecore.cli.machine.drift import find_drift
    from securecore.cli.machine.root import Root

    machine.set_up_sender(NOWHERE)
    machine.file("/proc/sys/kernel/core_pattern").write_text("core\n")
    with Root(machine.path) as root:
        found = find_drift(root)
        machine.file(plan.state_path("sender")).write_text("{")
        damaged = find_drift(root)

    assert found is not None
    assert (found.installed, found.found) == (PATTERN, "core")
    assert damaged is None
