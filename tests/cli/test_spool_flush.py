"""``securecore spool flush``: a person's tries at once, a timer's waits, and two do not get in each other's way."""

import json
import time
from pathlib import Path
from typing import Final

import pytest

from securecore.cli.main import run
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender.schedule import Schedule, claim, read_schedule, write_schedule
from securecore.sender.spool import Spool
from tests.support.certificates import Fleet
from tests.support.custody import CORE
from tests.support.receivers import papers_of, send_bytes

NOWHERE: Final = Address("127.0.0.1:9")


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
