"""``securecore spool list``: what waits, without standing in the way of whoever delivers it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from securecore.cli import spool as spool_command
from securecore.cli import terminal
from securecore.cli.main import run
from securecore.errors import ConfigError
from securecore.merkle import Frontier
from securecore.names import Address, DumpId
from securecore.report import CrashReport, parse_report
from securecore.sender import privileges, storms
from securecore.sender.admission import Admission, StormLimit
from securecore.sender.buckets import Untaken
from securecore.sender.settings import Settings
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd, EntryStart, SpoolEntry
from securecore.sender.spool_limits import SpoolLimits
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


def test_how_full_it_is_stands_below(spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against its quotas, where the settings have any: what is declined for them is lost, so a person should see it come."""
    settings = Settings((Address("a:1"),), "/etc/securecore/identity", str(tmp_path / "spool"), 990, 990)
    told = []
    for bounds in (SpoolLimits(), SpoolLimits(20 << 30, 200)):
        for dumps in (0, 1):
            (tmp_path / "settings").write_bytes(settings._replace(spool_limits=bounds).encode())
            if dumps and not spool.dump_ids():
                wait_in(spool, dump_id(1))
            assert run(["spool", "list", "--settings", str(tmp_path / "settings")]) == 0
            told.append(capsys.readouterr().out.splitlines()[-1].partition(";")[0])
        found = spool.entry(dump_id(1))
        assert found is not None
        spool.remove(found)

    taken = terminal.size(len(FRAMES[0]))
    assert told == [
        "the spool is empty",
        f"1 dump, {taken}",
        "0 of 200 dumps, 0 B of 20.0 GiB",
        f"1 of 200 dumps, {taken} of 20.0 GiB",
    ]


def test_a_program_is_told_how_full_it_is(spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it holds and may hold, what is free on its disk and to be left so; a person in a line, below the listing too."""
    disk = os.statvfs(tmp_path)
    floor = disk.f_blocks * disk.f_frsize // 2
    wait_in(spool, dump_id(1))
    settings = Settings((Address("a:1"),), "/etc/securecore/identity", str(tmp_path / "spool"), 990, 990)
    told = []
    for bounds in (SpoolLimits(20 << 30, 200, 0.5), SpoolLimits(floor_share=0.0)):
        (tmp_path / "settings").write_bytes(settings._replace(spool_limits=bounds).encode())
        for command in (["usage", "--json"], ["usage"], ["list"]):
            assert run(["spool", *command, "--settings", str(tmp_path / "settings")]) == 0
            told.append(capsys.readouterr().out.splitlines()[-1])
    bound, unbound = json.loads(told[0]), json.loads(told[3])

    held = {"dumps": 1, "taken_bytes": (taken := spool.usage().taken_bytes)}
    assert bound.pop("free_bytes") > 0
    assert bound == {**held, "max_dumps": 200, "max_bytes": 20 << 30, "floor_bytes": floor}
    assert unbound.pop("free_bytes") > 0
    assert unbound == {**held, "max_dumps": None, "max_bytes": None, "floor_bytes": 0}
    for line in told[1:3]:
        assert line.startswith(f"1 of 200 dumps, {terminal.size(taken)} of 20.0 GiB; ")
        assert line.endswith(f" free, {terminal.size(floor)} of it to stay so")
    assert told[4:] == [f"1 dump, {terminal.size(taken)}"] * 2


def test_what_was_not_taken_and_is_not_told_yet_stands_below(
    spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the limits that take nothing now, not all of them where there are many; by the settings' own where there are any."""
    listing = ["spool", "list", "--spool", str(tmp_path / "spool")]
    admission = Admission(program=StormLimit(1, 600))
    for number in range(7):
        storms.admit(spool.fd, admission, CrashReport(uid=33, executable_device=8, executable_inode=number))
        storms.admit(spool.fd, admission, CrashReport(uid=33, executable_device=8, executable_inode=number))
    storms.lose(spool.fd, Admission(), CrashReport(uid=34), Untaken(skipped_by_kernel=2, untaken_since=1_795_000_440))
    assert run(listing) == 0
    usual = capsys.readouterr().out.splitlines()
    settings = Settings((Address("a:1"),), "/etc/securecore/identity", str(tmp_path / "spool"), 990, 990, admission=admission)
    (tmp_path / "settings").write_bytes(settings.encode())
    assert run(["spool", "list", "--settings", str(tmp_path / "settings")]) == 0
    own = capsys.readouterr().out.splitlines()
    assert run([*listing, "--json"]) == 0

    counts = "7 suppressed, 1 lost, 2 skipped by the kernel since 2026-11-18 11:14:00 UTC"
    counted = f"storm limits: {counts} to be told by the next dumps"
    assert usual == ["the spool is empty", counted]
    named = ", ".join(f"program 8:{number}:33" for number in range(5))
    assert own == ["the spool is empty", f"{counted}; used up now: {named} and 2 more"]
    assert capsys.readouterr().out == "[]\n"


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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_who_may_not_look_is_not_told_to_make_a_spool(spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is there: a set-up mends nothing. Nor does it for a link in its place, which is not followed."""
    (tmp_path / "link").symlink_to(tmp_path / "spool")
    codes = [run(["spool", "list", "--spool", str(tmp_path / "link")])]
    with privileges.Acting(65533, 65533):
        codes.append(run(["spool", "list", "--spool", str(tmp_path / "spool")]))
    codes.append(run(["spool", "list", "--spool", str(tmp_path / "none")]))
    _, of_link, _, of_stranger, _, of_none = capsys.readouterr().err.splitlines()

    assert codes == [ConfigError.exit_code] * 3
    assert of_link == "  hint: name the directory itself, and no link to it"
    assert of_stranger == "  hint: root may look into it, and whose it is"
    assert of_none == "  hint: `securecore setup sender` makes it"
