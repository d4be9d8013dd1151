"""A dump whose beginning was lost: no command passes the zeroes in its place off as content."""

import json
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.cli import listing
from securecore.cli.main import run
from securecore.names import DumpId
from securecore.receiver.server import Receiver
from securecore.sender.consignment import derived_id
from securecore.sender.spool import Spool
from securecore.store.layout import open_store
from tests.support.certificates import Fleet
from tests.support.stores import Commands
from tests.support.tails import FIRST, FRAMES, LABELLED, PIECES, keep_tail, put

LOST: Final = "the first 3.0 MiB were lost"


class Flushing:
    """A spool with one tail, whose store has lost the beginning, and what `spool flush` says of it."""

    def __init__(self, dump: DumpId, spool: Path, receiver: Receiver, fleet: Fleet, capture: pytest.CaptureFixture[str]) -> None:
        self.dump = dump
        self._arguments = ["--spool", spool, "--to", receiver.addresses[0], "--identity", fleet.host]
        self._capture = capture

    def run(self, *more: str) -> str:
        """Run `spool flush`, which is to succeed, and return what it prints."""
        assert run(["spool", "flush", *map(str, self._arguments), *more]) == 0
        return self._capture.readouterr().out


@pytest.fixture
def flushing(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Flushing:
    """A tail in the spool, and an empty store."""
    with open_store(str(tmp_path / "store")) as store:
        dump = keep_tail(spool, store.store_id)
    return Flushing(dump, tmp_path / "spool", receiver, fleet, capsys)


@pytest.fixture
def commands(flushing: Flushing, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    """A store that has the dump with placeholders."""
    flushing.run()
    return Commands(tmp_path / "store", fleet, capsys)


def test_flush_says_what_was_lost(flushing: Flushing) -> None:
    """Whoever runs it learns that not all of the core arrived, and why."""
    out = flushing.run()

    assert "receipt verified (3 frames sent now)" in out
    assert f"{LOST}: the store that had them has them no more" in out
    assert len(FRAMES) - FIRST == 3


def test_flush_says_under_which_id(flushing: Flushing, fleet: Fleet, receiver: Receiver) -> None:
    """The receiver has something else under the first one."""
    put(receiver, fleet, flushing.dump, PIECES[:1])

    out = flushing.run()

    assert out.startswith(f"{flushing.dump.short}  stored by")
    assert f"as {derived_id(flushing.dump, FIRST).short}: what the receiver had of it before is not what was sent" in out


def test_flush_tells_programs_as_well(flushing: Flushing) -> None:
    """Frames, and the other id where there is one."""
    (document,) = json.loads(flushing.run("--json"))

    assert document == {
        "id": str(flushing.dump), "delivered": True, "sent_frames": 3, "lost_frames": FIRST, "delivered_as": None, "error": None,
    }  # fmt: skip


def test_list_calls_it_incomplete_and_says_what_is_missing(commands: Commands) -> None:
    """In words for people, in frames for programs."""
    assert f"incomplete (40 %, cut, {LOST})" in commands("list").out
    (row,) = commands("list", "--json").document
    assert (row["state"], row["outcome"], row["lost_frames"]) == ("incomplete", "cut", FIRST)


def test_show_says_what_is_missing(commands: Commands, flushing: Flushing) -> None:
    """Beside the size, which counts the placeholders."""
    out = commands("show", flushing.dump.short).out
    assert "5.0 MiB of 5.0 MiB in 6 frames" in out
    assert f"incomplete (cut, {LOST})" in out
    assert commands("show", flushing.dump.short, "--json").document["lost_frames"] == FIRST


def test_verify_finds_it_sound_and_says_what_is_missing(commands: Commands, flushing: Flushing) -> None:
    """What was signed holds: it was signed as cut."""
    one, everything = commands.verify(flushing.dump.short), commands.verify("--all")

    assert (one.code, everything.code) == (0, 0)
    assert "outcome cut, 3 frames at the beginning lost" in one.out
    assert f"incomplete (cut, {LOST})" in everything.out
    assert commands.verify("--all", "--json").document[0]["lost_frames"] == FIRST


def test_the_audit_log_says_what_is_missing(commands: Commands) -> None:
    """The receipt proves it as incomplete."""
    assert f"incomplete ({LOST}), crasher" in commands("audit", "log").out
    assert commands.audit().code == 0


def test_extract_needs_partial_and_says_what_are_zeroes(commands: Commands, flushing: Flushing, tmp_path: Path) -> None:
    """The rest stands at its offset; the placeholders take no room in the file."""
    refused = commands.extract(flushing.dump.short, tmp_path / "core")
    taken = commands.extract(flushing.dump.short, tmp_path / "core", "--partial")

    assert (refused.code, taken.code) == (7, 0)
    assert f"note: {LOST} before it came here, and are zeroes" in taken.err
    assert (tmp_path / "core").read_bytes() == LABELLED
    assert (tmp_path / "core").stat().st_blocks * 512 < len(LABELLED) - 2 * limits.PIECE_BYTES


@pytest.mark.parametrize(
    ("size", "lost_frames", "share"),
    [(90, 60, "30 %"), (100, 60, "40 %"), (100, 0, None), (90, 0, "90 %"), (0, 0, "0 %"), (59, 60, "0 %")],
)
def test_the_list_counts_no_placeholder_as_there(size: int, lost_frames: int, share: str | None) -> None:
    """Of a core of 100 MiB, as its header promises; where the last piece was lost too it is shorter than its frames."""
    assert listing.share_of(size * limits.PIECE_BYTES, 100 * limits.PIECE_BYTES, lost_frames) == share
