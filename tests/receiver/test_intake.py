"""A damaged dump that the disk has no room for: its sender is refused, the floor stays, and the dump is not read in vain."""

import logging
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from securecore import limits
from securecore.certs.profiles import HOST
from securecore.errors import BusyError, StorageError
from securecore.receiver.arrivals import Arrivals
from securecore.receiver.intake import Intake
from securecore.receiver.policy import Floor, Policy
from securecore.receiver.refusals import NotAdmitted, refuse
from securecore.store.growing_core import GrowingCore
from securecore.store.layout import open_store
from securecore.store.reading import DumpFiles
from securecore.store.usage import room_of
from securecore.store.writer import IncomingDump
from securecore.wire.messages import Refusal
from tests.support.certificates import Fleet, make_hierarchy, mint
from tests.support.dumps import NOW, REPORT, WEB, dump_id, dump_path, frames_of
from tests.support.file_systems import grow
from tests.support.hands import Hand
from tests.support.local_files import small_disk
from tests.support.old_dumps import FRAMES, ID, INCOMING, Life
from tests.support.receivers import new_dump_id, running_receiver, wait_until_idle
from tests.support.stores import flip, put_back

FIRST = len(FRAMES[0][0])
CERTIFICATE = mint(HOST, issuer=make_hierarchy().hosts, dns=[str(WEB)]).der


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[GrowingCore]:
    """The cores that are read from end to end, as they are."""
    walked: list[GrowingCore] = []
    walk = GrowingCore.walk

    def note(core: GrowingCore, between: Callable[[], None]) -> int:
        walked.append(core)
        return walk(core, between)

    monkeypatch.setattr(GrowingCore, "walk", note)
    return walked


@pytest.fixture
def full(life: Life) -> Life:
    """A receiver with a damaged dump, whose disk is at its floor."""
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.append(*FRAMES[1])
    dump.sync()
    dump.close()
    flip(life.path / INCOMING / "core.zst", FIRST)
    life.store.least_free = lambda total_bytes: total_bytes
    return life


def intake_of(life: Life) -> Intake:
    """An intake of that receiver."""
    return Intake(life.store, life.abandonment, Arrivals(life.logs, lambda: NOW))


def offer(intake: Intake) -> int:
    """Open the dump, and return how many frames are held."""
    with closing(intake.open(WEB, ID, REPORT, CERTIFICATE, lambda: None)) as dump:
        return dump.frames


def test_a_refusal_for_want_of_room_is_remembered(full: Life, walks: list[GrowingCore]) -> None:
    """However often its sender comes, the dump is read once; and again when there is room."""
    intake = intake_of(full)
    for _ in range(5):
        with pytest.raises(NotAdmitted, match=r"is damaged, .* are to stay free") as refused:
            offer(intake)
        said = refuse(refused.value)
        assert (said.code, said.retry_after_s) == (Refusal.STORAGE, limits.FLOOR_RETRY_AFTER_S)
        assert "no room" in said.words
    assert len(walks) == 1
    full.store.least_free = lambda total_bytes: 0
    assert offer(intake) == 1
    assert len(walks) == 2
    full.end()


def test_a_refusal_is_heard_where_the_core_cannot_be_looked_at_again(full: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one more look meets is none of the sender's business: it hears why, and when to come again."""

    def refuse_to_look(files: DumpFiles) -> int:
        raise StorageError("input/output error")

    monkeypatch.setattr(DumpFiles, "mark", refuse_to_look)
    with pytest.raises(NotAdmitted, match=r"is damaged, .* are to stay free"):
        offer(intake_of(full))
    full.end()


@pytest.mark.parametrize("is_mended", ["given up", "resumed"])
def test_a_refusal_does_not_outlive_the_damage(is_mended: str, full: Life) -> None:
    """Somebody else has kept what was damaged since: the dump needs no room, and its sender is not refused for it."""
    intake = intake_of(full)
    with pytest.raises(NotAdmitted):
        offer(intake)
    full.store.least_free = lambda total_bytes: 0
    if is_mended == "given up":
        full.caretaker.look()
        assert not (full.path / INCOMING).exists()
    else:
        IncomingDump.resume(full.store, WEB, ID).close()
    full.store.least_free = lambda total_bytes: total_bytes
    assert offer(intake) == 1
    full.end()


def test_a_core_that_was_put_back_with_its_time_is_not_refused_for_the_damage(full: Life, walks: list[GrowingCore]) -> None:
    """As a backup does it (rsync -a): neither length nor time tells it from the one that the disk has damaged."""
    core = full.path / INCOMING / "core.zst"
    damaged, before = core.read_bytes(), core.stat()
    intake = intake_of(full)
    for _ in range(2):
        with pytest.raises(NotAdmitted):
            offer(intake)
    assert len(walks) == 1
    put_back(core, damaged[:FIRST] + FRAMES[1][0])
    assert (core.stat().st_size, core.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert offer(intake) == 2
    full.end()


def test_only_so_many_are_remembered(full: Life, walks: list[GrowingCore], monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that damages more of them costs reading, not memory."""
    monkeypatch.setattr(limits, "MAX_LACKING", 1)
    intake = intake_of(full)
    other = dump_id(2)
    with closing(IncomingDump.begin(full.store, WEB, other, REPORT)) as dump:
        dump.append(*FRAMES[0])
        dump.append(*FRAMES[1])
        dump.sync()
    flip(dump_path(full.store, other, "incoming") / "core.zst", FIRST)
    for each in (ID, ID, other, ID):
        with pytest.raises(NotAdmitted):
            intake.open(WEB, each, REPORT, CERTIFICATE, lambda: None)
    assert len(walks) == 3
    full.end()


def test_who_is_interrupted_reads_no_further(life: Life) -> None:
    """Neither of a dump that is coming in nor of one that was given up; nothing is changed by that."""
    intake = intake_of(life)

    def end() -> None:
        raise BusyError("a newer session wants it")

    for place in (INCOMING, f"hosts/{WEB}/{ID}"):
        with pytest.raises(BusyError):
            intake.open(WEB, ID, REPORT, CERTIFICATE, end)
        assert (life.path / place).exists()
        life.caretaker.look()
    assert offer(intake) == 1
    life.end()


def test_the_caretaker_says_it_and_leaves_the_dump(full: Life, caplog: pytest.LogCaptureFixture) -> None:
    """The dump is given up once there is room."""
    before = (full.path / INCOMING / "core.zst").read_bytes()
    full.caretaker.look()
    assert f"cannot give up host={WEB} dump={ID} error=" in caplog.text
    assert (full.path / INCOMING / "core.zst").read_bytes() == before
    full.store.least_free = lambda total_bytes: 0
    full.caretaker.look()
    assert (full.path / f"hosts/{WEB}/{ID}/core.damaged-1").read_bytes() == before[FIRST:]
    full.end()


@pytest.mark.slow
def test_no_disk_is_filled_by_what_is_damaged(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, walks: list[GrowingCore]
) -> None:
    """A part that is larger than what is free, on a disk of its own: the floor stays, others send, and with room it goes on."""
    caplog.set_level(logging.INFO)
    piece = os.urandom(limits.PIECE_BYTES)
    dump = new_dump_id()
    host = fleet.host
    with small_disk(tmp_path / "disk", "16m") as disk:
        store = disk / "store"
        with running_receiver(fleet.receiver, store) as receiver, closing(Hand(host, receiver.addresses)) as hand:
            hand.open(dump)
            for _ in range(9):
                hand.send(piece)
            hand.wait_until_acknowledged()
        wait_until_idle(receiver)
        (core,) = (store / "incoming").glob(f"*/{dump}/core.zst")
        flip(core, len(frames_of(piece)[0][0]))
        size = core.stat().st_size
        walks.clear()
        policy = Policy(floor=Floor(free_bytes=limits.MIB))
        with running_receiver(fleet.receiver, store, policy=policy) as receiver:
            for _ in range(3):
                with closing(Hand(host, receiver.addresses)) as hand, pytest.raises(BusyError, match="no room"):
                    hand.open(dump)
            with open_store(str(store)) as opened:
                assert room_of(opened).free_bytes > 2 * limits.MIB
            assert core.stat().st_size == size
            assert len(walks) == 1
            with closing(Hand(host, receiver.addresses)) as hand:
                assert hand.open(new_dump_id()).held == 0
            grow(disk, "32m")
            with closing(Hand(host, receiver.addresses)) as hand:
                assert hand.open(dump).held == 1
        assert (core.parent / "core.damaged-1").stat().st_size + core.stat().st_size == size
