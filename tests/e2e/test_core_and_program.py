"""A program crashes, and afterwards anybody can tell which build it was: from the kernel to `elf match`, on the real kernel."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from securecore.cli.main import run
from securecore.receiver.server import Receiver
from tests.support.certificates import Fleet
from tests.support.kernel import Host, crashing_into, needs_kernel, start_crash
from tests.support.programs import compile_program, needed

pytestmark = [needs_kernel, pytest.mark.root, pytest.mark.slow]

CRASHERS = Path(__file__).parents[2] / "scripts" / "crashers"


@pytest.fixture
def host(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> Host:
    """The first host of the fleet."""
    return Host(tmp_path / "web-1", fleet.hosts["web-1"], receiver.addresses)


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """Run a command with --json; return its exit code and document."""
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("has_build_id", [True, False])
def test_the_crashed_build_is_told_from_the_next_one(
    has_build_id: bool, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report names the build that ran, though its file was replaced while it ran; the build that replaced it is told apart."""
    needed("objcopy")
    builds, app = [], tmp_path / "app"
    for number in (1, 2):
        option = f"-Wl,--build-id=0x{number:016x}" if has_build_id else "-Wl,--build-id=none"
        builds.append(compile_program(CRASHERS / "large-heap.c", tmp_path / f"build-{number}", option))
        assert answer(capsys, "elf", "stamp", builds[-1], "--uuid", f"build {number}")[0] == 0
    shutil.copy(builds[0], app)

    with crashing_into(host.handler):
        # It fills its heap before it aborts; by then its file has long been replaced.
        crash = start_crash([str(app), "64"], tmp_path)
        builds[1].replace(app)
        assert crash.wait() == -signal.SIGABRT
        dump = host.wait_for_receipts(1)[0]["dump"]
    store = ("--store", tmp_path / "store")
    report = answer(capsys, "show", dump, *store)[1]["report"]
    yes, same = answer(capsys, "elf", "match", dump, builds[0], *store)
    no, other = answer(capsys, "elf", "match", dump, app, *store)

    assert (report["uuid"], report.get("build_id")) == ("build 1", f"{1:016x}" if has_build_id else None)
    assert report["metadata"] == "verified"
    assert (yes, same["match"], no, other["match"]) == (0, True, 9, False)
    assert ("build-id" in same["why"]) == has_build_id
    if has_build_id:
        assert same["core"]["core_build_id"] == same["core"]["report_build_id"] == f"{1:016x}"
