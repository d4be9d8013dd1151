"""``securecore spool list``: what waits, without standing in the way of whoever delivers it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from securecore.cli import spool as spool_command
from securecore.cli.main import run
from securecore.merkle import Frontier
from securecore.names import DumpId
from securecore.report import CrashReport, parse_report
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd, EntryStart, SpoolEntry
from tests.support.dumps import dump_id
from tests.support.tails import FRAMES

REPORT: Final = CrashReport(program="crasher", signal=11).encode()
Listing = Callable[[], list[dict[str, Any]]]


def begin(spool: Spool, dump: DumpId, report: bytes = REPORT) -> SpoolEntry:
    """Begin the entry of a dump, with one frame."""
    entry = spool.begin(EntryStart(dump, 1, None, Frontier()), report)
    entry.append(FRAMES[0])
    return entry


def wait_in(spool: Spool, dump: DumpId, report: bytes = REPORT) -> None:
    """Put a dump into the spool that nobody works on."""
    entry = begin(spool, dump, report)
    entry.finish(EntryEnd(1 << 20, None, "complete", 5))
    entry.close()


@pytest.fixture
def listing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Listing:
    """Lists the spool, and holds against it that no descriptor is left over."""

    def list_it() -> list[dict[str, Any]]:
        before = os.listdir("/proc/self/fd")
        assert run(["spool", "list", "--spool", str(tmp_path / "spool"), "--json"]) == 0
        assert len(os.listdir("/proc/self/fd")) == len(before)
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return rows

    return list_it


def test_what_waits_is_told(spool: Spool, listing: Listing) -> None:
    """Its program and signal, what it takes on the disk, and whether its source came to its end."""
    wait_in(spool, dump_id(1))
    begin(spool, dump_id(2)).close()

    rows = listing()

    told = {"program": "crasher", "signal": 11, "stored_bytes": len(FRAMES[0])}
    assert [(row["id"], row["state"]) for row in rows] == [
        (str(dump_id(1)), "waiting"), (str(dump_id(2)), "waiting, source cut"),
    ]  # fmt: skip
    assert all(row | told == row for row in rows)


def test_what_somebody_works_on_is_in_use(spool: Spool, listing: Listing) -> None:
    """A handler writes it, or a flush sends it."""
    entry = begin(spool, dump_id(1))

    (row,) = listing()
    entry.close()

    assert (row["state"], row["program"]) == ("in use", None)


@pytest.mark.parametrize("broken", ["report.json", "end.json", "entry.json"])
def test_a_broken_entry_is_told_and_let_go(broken: str, spool: Spool, listing: Listing, tmp_path: Path) -> None:
    """Whichever of its files is strange: it is named, and its lock is free again."""
    wait_in(spool, dump_id(1))
    (tmp_path / "spool/dumps" / str(dump_id(1)) / broken).write_bytes(b"?")

    first, second = listing(), listing()

    assert first[0]["state"].startswith("broken: ")
    assert first == second


def test_a_flush_meanwhile_finds_every_entry_free(spool: Spool, listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made of an entry, however large it is, while it is locked."""
    wait_in(spool, dump_id(1))
    found: list[bool] = []

    def look(report: bytes) -> CrashReport:
        entry = spool.entry(dump_id(1))
        found.append(entry is not None)
        if entry is not None:
            entry.close()
        return parse_report(report)

    monkeypatch.setattr(spool_command, "parse_report", look)
    listing()

    assert found == [True]


def test_the_frames_are_not_read(spool: Spool, listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of a hundred gibibytes looks at their length."""

    def refuse(self: SpoolEntry) -> None:
        raise AssertionError("a listing reads no frames")

    wait_in(spool, dump_id(1))
    monkeypatch.setattr(SpoolEntry, "reader", refuse)

    assert listing()[0]["stored_bytes"] == len(FRAMES[0])


def test_what_was_delivered_meanwhile_is_not_told(spool: Spool, listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody uses an entry that is gone."""
    monkeypatch.setattr(Spool, "dump_ids", lambda self: [dump_id(1)])

    assert listing() == []
