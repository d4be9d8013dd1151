"""The deadlines of the settings are those that the handler and a flush wait by, and without any they are the usual ones."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from securecore.cli.main import run
from securecore.names import Address
from securecore.report import CrashReport
from securecore.sender import attempt, delivery, network, transfer
from securecore.sender.buckets import Untaken
from securecore.sender.head import Head
from securecore.sender.parcel import Outcome
from securecore.sender.patience import Patience, usual_patience
from securecore.sender.settings import Settings, load_settings
from securecore.sender.spool import Spool
from securecore.sender.tally import Taken, Tally
from tests.support.certificates import Fleet
from tests.support.receivers import new_dump_id, papers_of, send_bytes

FAR = Patience(20, 30.5, 0.5)
NOWHERE = Address("127.0.0.1:9")


def write_settings(path: Path, fleet: Fleet, spool: Path, deadlines: Patience | None) -> str:
    """Write a handler's settings."""
    path.write_bytes(Settings((NOWHERE,), str(fleet.host), str(spool), 1, 1, deadlines=deadlines).encode())
    return str(path)


@pytest.fixture
def core() -> Iterator[int]:
    """A source that has ended; who is handed it closes it."""
    reading, writing = os.pipe()
    os.close(writing)
    yield reading
    os.close(reading)


@pytest.mark.parametrize("deadlines", [FAR, None], ids=["set", "usual"])
def test_a_handler_waits_by_its_settings(
    deadlines: Patience | None, fleet: Fleet, spool: Spool, core: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three: the budget for a held process among them."""
    asked: dict[str, Any] = {}

    def carry(*arguments: object, **options: Any) -> Outcome:
        asked.update(options)
        return Outcome({}, None, False, None, 0, 0, 0, None)

    monkeypatch.setattr(transfer, "carry", carry)
    monkeypatch.setattr(network.privileges, "drop", lambda uid, gid: None)
    settings = load_settings(write_settings(tmp_path / "handler.json", fleet, tmp_path / "spool", deadlines))

    report = CrashReport(program="crasher")
    taken = Taken(Tally(spool.fd, report), Head(), Untaken())

    assert network.send(core, settings, new_dump_id(), lambda: report, taken) == 0
    expected = deadlines or usual_patience()
    assert (asked["hold_budget_s"], asked["patience"]) == (expected.hold_s, expected)


@pytest.mark.parametrize("deadlines", [FAR, None], ids=["set", "usual"])
def test_a_flush_waits_by_the_same_settings(
    deadlines: Patience | None, fleet: Fleet, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`securecore spool flush`, as the timer calls it."""
    asked: list[Patience | None] = []

    def connect(*arguments: Any, patience: Patience | None, **options: Any) -> delivery.Delivery:
        asked.append(patience)
        return delivery.connect(*arguments, patience=patience, **options)

    send_bytes(b"core", papers_of(fleet.host), [NOWHERE], spool=spool)
    monkeypatch.setattr(attempt, "connect", connect)
    settings = write_settings(tmp_path / "handler.json", fleet, tmp_path / "spool", deadlines)

    assert run(["spool", "flush", "--settings", settings]) != 0
    assert asked == [deadlines]
