"""``securecore spool flush``: a person's tries at once, a timer's waits, and two do not get in each other's way."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.cli.main import run
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.dump.manifest import COMPLETE
from securecore.merkle import Frontier
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.report import CrashReport
from securecore.sender.schedule import Schedule, claim, read_schedule, write_schedule
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd, EntryStart
from tests.support.certificates import Fleet
from tests.support.custody import CORE
from tests.support.launchers import limited
from tests.support.receivers import new_dump_id, papers_of, send_bytes

NOWHERE: Final = Address("127.0.0.1:9")


_KILLED: Final = """
import os, signal, sys
from securecore import limits
from securecore.merkle import Frontier
from securecore.names import DumpId
from securecore.sender.spool import open_spool
from securecore.sender.spool_entry import EntryStart
entry = open_spool(sys.argv[1]).begin(EntryStart(DumpId.parse(sys.argv[2]), 1, None, Frontier()), b"{}", 8 * limits.MIB)
os.kill(os.getpid(), signal.SIGKILL)
"""
"""A handler that is killed once it has kept room for its core."""


class Flushing:
    """A spool with one dump, and a receiver that is there."""

    def __init__(self, spool: Spool, arguments: list[object], capture: pytest.CaptureFixture[str]) -> None:
        self.spool = spool
        self._arguments = arguments
        self._capture = capture

    def run(self, *more: str) -> tuple[int, str, str]:
        """Run `spool flush` and return its exit code, what it prints, and what it complains of."""
        code = run(["spool", "flush", *map(str, self._arguments), *more])
        output = self._capture.readouterr()
        return code, output.out, output.err


@pytest.fixture
def flushing(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Flushing:
    """A dump that waits for a receiver that is there."""
    send_bytes(CORE, papers_of(fleet.host), [NOWHERE], spool=spool)
    return Flushing(spool, ["--spool", tmp_path / "spool", "--to", receiver.addresses[0], "--identity", fleet.host], capsys)


def test_a_timers_flush_waits_until_it_is_due(flushing: Flushing) -> None:
    """It says nothing, for it comes every two minutes; the dump stays."""
    write_schedule(flushing.spool.fd, Schedule(3, int(time.time()) + 600))

    assert flushing.run("--when-due") == (0, "", "")
    assert len(flushing.spool.dump_ids()) == 1


def test_a_timers_flush_gives_back_what_killed_handlers_have_kept_before_it_is_due(flushing: Flushing, tmp_path: Path) -> None:
    """A receiver may ask for a day's patience: so long nobody else's core must want for room that nobody uses."""
    write_schedule(flushing.spool.fd, Schedule(3, int(time.time()) + 600))
    start = EntryStart(new_dump_id(), 1, None, Frontier())
    core = tmp_path / "spool/dumps" / str(start.dump) / "core.zst"
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "spool"), str(start.dump)], check=False, timeout=60)
    assert core.stat().st_blocks * 512 >= 8 * limits.MIB

    assert flushing.run("--when-due") == (0, "", "")
    assert core.stat().st_blocks == 0
    assert len(flushing.spool.dump_ids()) == 2


def test_a_timers_flush_delivers_what_is_due(flushing: Flushing) -> None:
    """The time has come."""
    write_schedule(flushing.spool.fd, Schedule(3, int(time.time()) - 1))

    code, out, err = flushing.run("--when-due")

    assert (code, err) == (0, "")
    assert "receipt verified" in out
    assert flushing.spool.dump_ids() == []
    assert read_schedule(flushing.spool.fd) == Schedule()
    assert flushing.run("--when-due") == (0, "", "")


def test_a_persons_flush_does_not_wait(flushing: Flushing) -> None:
    """Whoever has mended the network wants to see it now."""
    write_schedule(flushing.spool.fd, Schedule(3, int(time.time()) + 600))

    code, out, _ = flushing.run()

    assert (code, flushing.spool.dump_ids()) == (0, [])
    assert "receipt verified" in out


def test_a_second_flush_leaves_the_spool_to_the_first(flushing: Flushing) -> None:
    """It says so and is no failure: what was asked for is being done."""
    with claim(flushing.spool.fd):
        assert flushing.run() == (0, "another flush is at work on this spool\n", "")
        assert json.loads(flushing.run("--json")[1]) == []
    assert len(flushing.spool.dump_ids()) == 1


@pytest.mark.slow
def test_a_flush_needs_an_eighth_of_the_memory_that_its_unit_has(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """Also for a dump of 20 GiB, all of whose frames it knows at once; the kernel ends one that takes more than all of it."""
    entry = spool.begin(EntryStart(new_dump_id(), 1, None, Frontier()), CrashReport(sender="test", program="x", signal=11).encode())
    for _ in range(frames := 20 * 1024):
        entry.append(ZERO_PIECE_FRAME)
    entry.finish(EntryEnd(frames * limits.PIECE_BYTES, frames * limits.PIECE_BYTES, COMPLETE, 1))
    entry.close()
    most = limits.FLUSH_MEMORY_BYTES // 8
    command = [sys.executable, "-I", "-m", "securecore.cli.main", "spool", "flush", "--spool", tmp_path / "spool"]
    answer = subprocess.run(
        [*limited([(resource.RLIMIT_DATA, most)]), *command, "--to", str(receiver.addresses[0]), "--identity", fleet.host],
        capture_output=True,
        check=False,
        text=True,
    )

    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"({frames} frames sent now)" in answer.stdout
