"""What a core tells of itself, in what `send` reports and `show` prints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from securecore.cli.main import run
from securecore.report import CrashReport
from tests.support.certificates import Fleet
from tests.support.crash_cores import Crash
from tests.support.receivers import papers_of, running_receiver, send_bytes

Securecore = Callable[..., tuple[str, str]]

pytestmark = pytest.mark.slow


@pytest.fixture
def securecore(capsys: pytest.CaptureFixture[str]) -> Securecore:
    """Runs a command that must succeed; returns what it printed to stdout and stderr."""

    def call(*arguments: object) -> tuple[str, str]:
        assert run([str(argument) for argument in arguments]) == 0
        output = capsys.readouterr()
        return output.out, output.err

    return call


def send(securecore: Securecore, fleet: Fleet, store: Path, core: Path) -> str:
    """Send *core* to a receiver of *store*; return what was said on stderr."""
    with running_receiver(fleet.receiver, store) as receiver:
        return securecore("send", core, "--to", receiver.addresses[0], "--identity", fleet.host)[1]


def show(securecore: Securecore, store: Path, *options: str) -> Any:
    """Return the JSON of the only dump in *store*."""
    (row,) = json.loads(securecore("list", "--store", store, "--json")[0])
    return json.loads(securecore("show", row["id"], "--store", store, "--json", *options)[0])


@pytest.mark.real_crash
def test_a_real_core_is_reported_and_shown(
    crash: Callable[..., tuple[Path, int]], securecore: Securecore, fleet: Fleet, tmp_path: Path
) -> None:
    """The report of a core that a person sends says what crashed, and `show` says of what."""
    core, pid = crash("null-deref")

    assert send(securecore, fleet, tmp_path / "store", core) == ""

    shown = show(securecore, tmp_path / "store")
    assert (11, pid, "null-deref", 1) == tuple(shown["report"][key] for key in ("signal", "pid", "program", "threads"))
    assert (shown["analysis"]["reason"], shown["analysis"]["fault_address"]) == ("address not mapped", "0x10")
    text, _ = securecore("show", shown["id"], "--store", tmp_path / "store")
    assert "null-deref on web-1 crashed with SIGSEGV (address not mapped, 0x10)" in text
    assert shown["analysis"]["build_id"] in text


def test_without_analysis_only_the_report_is_shown(securecore: Securecore, fleet: Fleet, tmp_path: Path) -> None:
    """`--no-analysis` leaves the core alone."""
    core = tmp_path / "core"
    core.write_bytes(Crash().write())
    send(securecore, fleet, tmp_path / "store", core)

    shown = show(securecore, tmp_path / "store", "--no-analysis")

    assert (shown["analysis"], shown["report"]["signal"]) == (None, 11)
    text, _ = securecore("show", shown["id"], "--store", tmp_path / "store", "--no-analysis")
    assert "crashed with SIGSEGV at" in text


def test_what_is_no_core_is_sent_and_shown_all_the_same(securecore: Securecore, fleet: Fleet, tmp_path: Path) -> None:
    """A core that cannot be analysed costs a note at both ends, and nothing else."""
    core = tmp_path / "core"
    core.write_bytes(b"no core at all")

    note = send(securecore, fleet, tmp_path / "store", core)

    assert note.startswith("note: the core could not be analysed: not an ELF file")
    shown = show(securecore, tmp_path / "store")
    assert "not an ELF file" in shown["analysis"]["error"]
    text, _ = securecore("show", shown["id"], "--store", tmp_path / "store")
    assert "analysis    the core could not be analysed" in text


def test_a_core_that_contradicts_its_report_is_shown_as_such(securecore: Securecore, fleet: Fleet, tmp_path: Path) -> None:
    """The report's signal is in the title, without the reason of the other one that the core tells."""
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        send_bytes(Crash(signal=6, code=-6).write(), papers_of(fleet.host), receiver.addresses, report=CrashReport(signal=11))
    shown = show(securecore, tmp_path / "store")

    text, _ = securecore("show", shown["id"], "--store", tmp_path / "store")

    assert "nginx on web-1 crashed with SIGSEGV\n" in text
    assert "analysis    the core itself says SIGABRT\n" in text


def test_names_in_a_core_cannot_move_the_cursor(securecore: Securecore, fleet: Fleet, tmp_path: Path) -> None:
    """Control characters that a process put into its name and arguments reach no terminal."""
    core = tmp_path / "core"
    core.write_bytes(Crash(program=b"a\x1b[2Jb", command_line=b"x\ny\x07\xe2\x80\xae", executable=b"/tmp/\r\x9b0m").write())
    send(securecore, fleet, tmp_path / "store", core)
    shown = show(securecore, tmp_path / "store")

    text, _ = securecore("show", shown["id"], "--store", tmp_path / "store")

    assert "a?[2Jb on web-1" in text
    assert all(line.isprintable() for line in text.split("\n"))
