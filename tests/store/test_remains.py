"""A disk that damages a frame of a dump that is coming in: what stands behind it is kept, for nobody else may have it any more."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from securecore import limits
from securecore.dump import directory
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.frames import zero_frame
from securecore.errors import BusyError, StorageError
from securecore.merkle import leaf_hash, root_of
from securecore.store import remains
from securecore.store.catalogue import open_catalogue
from securecore.store.layout import Store, create_store, open_store
from securecore.store.recovery import open_incoming
from securecore.store.remains import NoRoomForRemains
from securecore.store.rows import row_of
from securecore.store.usage import Room, Usage
from securecore.store.writer import IncomingDump
from tests.support.disk import Disk, refuse, run_until
from tests.support.dumps import REPORT, WEB, begin, core_bytes, dump_id, dump_path, frames_of
from tests.support.stores import flip

CORE = core_bytes(4, 0)
FRAMES = frames_of(CORE)
STORED = b"".join(frame for frame, _ in FRAMES)
ROOT = root_of(leaf_hash(frame) for frame, _ in FRAMES)
ID = dump_id(1)
SECOND = len(FRAMES[0][0])
"""Where the second frame begins."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with a dump of four frames that is coming in."""
    with create_store(str(tmp_path / "store")) as made:
        begin(made, ID, CORE).close()
        yield made


def core_of(store: Store) -> Path:
    """Return the dump's core."""
    return dump_path(store, ID, "incoming") / "core.zst"


def remains_of(store: Store) -> dict[str, bytes]:
    """Return what is kept beside the core, by name."""
    return {path.name: path.read_bytes() for path in sorted(core_of(store).parent.glob("core.damaged*"))}


def damage(store: Store, at: int = SECOND) -> bytes:
    """Flip a bit of the core and return what stands there and behind it."""
    flip(core_of(store), at)
    return core_of(store).read_bytes()[at:]


def resume(store: Store) -> tuple[int, int]:
    """Resume the dump; return how many frames are held, and how many bytes were found damaged."""
    dump = IncomingDump.resume(store, WEB, ID)
    try:
        return dump.frames, dump.damaged_bytes
    finally:
        dump.close()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit of a magic number": lambda stored: stored[:SECOND] + b"\x29" + stored[SECOND + 1 :],
    "a page of zeroes": lambda stored: stored[:SECOND] + bytes(20) + stored[SECOND + 20 :],
    "the last frame's beginning": lambda stored: stored[: -len(FRAMES[3][0])] + b"\xff" + stored[-len(FRAMES[3][0]) + 1 :],
    "its end, and a seek table": lambda stored: stored + b"\0" + seek_table([FrameEntry(len(f), plain) for f, plain in FRAMES]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_stands_behind_a_damaged_frame_is_kept(name: str, store: Store) -> None:
    """All bytes that a resumed core no longer has are beside it, as they lay there."""
    damaged = DAMAGE[name](STORED)
    core_of(store).write_bytes(damaged)
    held, damaged_bytes = resume(store)
    core = core_of(store).read_bytes()
    assert held >= 1
    assert core + remains_of(store)["core.damaged-1"] == damaged
    assert damaged_bytes == len(damaged) - len(core)


ZEROES = [b"", bytes(20), bytes(limits.MAX_FRAME_BYTES)]
"""What a file system puts where a power cut has lost the end of a file: also more of it than a frame may have."""
TABLE = seek_table([FrameEntry(len(frame), plain) for frame, plain in FRAMES])
((LONG, _),) = frames_of(Random(1).randbytes(1 << 20))


@pytest.mark.parametrize("zeroes", ZEROES, ids=len)
def test_the_beginning_of_a_frame_and_zeroes_are_no_damage(zeroes: bytes, store: Store) -> None:
    """A power cut leaves that behind a frame that was being written: the file's length was durable, the frame's end was not."""
    for cut in (1, 4, 5, 9, 10, 12, 1000, 300_000):
        core_of(store).write_bytes(STORED + LONG[:cut] + zeroes)
        assert resume(store) == (4, 0)
    assert remains_of(store) == {}


@pytest.mark.parametrize("zeroes", ZEROES, ids=len)
def test_a_part_of_a_seek_table_and_zeroes_are_no_damage(zeroes: bytes, store: Store) -> None:
    """A power cut leaves that behind the frames of a dump that was being finished, or given up."""
    for cut in (1, 4, 8, 9, 12, 20, len(TABLE) - 1, len(TABLE)):
        core_of(store).write_bytes(STORED + TABLE[:cut] + zeroes)
        assert resume(store) == (4, 0)
    assert remains_of(store) == {}


@pytest.mark.parametrize("zeroes", ZEROES, ids=len)
def test_a_whole_frame_whose_own_end_is_zeroes_is_kept(zeroes: bytes, store: Store) -> None:
    """Without them it would pass for the beginning of one: it stands behind a frame whose size the disk has made a short one."""
    endings = (frame for number in range(1 << 12) for frame, _ in frames_of(number.to_bytes(2, "big")))
    kept = next(frame for frame in endings if frame.endswith(b"\0")) + zeroes
    core_of(store).write_bytes(frames_of(b"short")[0][0] + kept)
    assert resume(store) == (1, len(kept))
    assert remains_of(store) == {"core.damaged-1": kept}


SHORT = next(frame for number in range(99) for frame, _ in frames_of(b"the end %d" % number) if 0 not in frame[-4:])
"""The last piece's frame, with a checksum without zeroes."""


def test_zeroes_that_complete_a_cut_frame_do_not_make_it_held(store: Store) -> None:
    """The walk looks at headers only: in place of the last block's end and the checksum, zeroes pass for these."""
    for cut in range(len(SHORT) - 3):
        for zeroes in (len(SHORT) - cut, len(SHORT) - cut + 1, 4096, limits.MAX_FRAME_BYTES):
            core_of(store).write_bytes(STORED + SHORT[:cut] + bytes(zeroes))
            dump = IncomingDump.resume(store, WEB, ID)
            assert (dump.frames, dump.damaged_bytes, dump.root) == (4, 0, ROOT), (cut, zeroes)
            assert (dump.stored_bytes, dump.plain_bytes) == (len(STORED), len(CORE))
            dump.append(SHORT, 9)
            dump.close()
            assert core_of(store).read_bytes() == STORED + SHORT
    assert remains_of(store) == {}


def ending_at_a_sector(behind: int, ending: Callable[[bytes], bool]) -> bytes:
    """Return a frame that ends so many bytes behind a sector's beginning where it follows the four, with such an end."""
    for number in range(1 << 16):
        length = (behind - len(STORED) - 2) % limits.SECTOR_BYTES + limits.SECTOR_BYTES
        for more in range(-20, 1):
            ((frame, _),) = frames_of(Random(number).randbytes(length + more))
            if (len(STORED) + len(frame) - behind) % limits.SECTOR_BYTES == 0 and ending(frame):
                return frame
    raise AssertionError


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_checksum_that_was_cut_at_a_sector_is_not_held(lost: int, store: Store) -> None:
    """Where a power cut's loss begins; one in 256 checksums ends in a zero by itself, so nothing tells of a cut elsewhere."""
    frame = ending_at_a_sector(lost, lambda frame: 0 not in frame[-lost:])
    core_of(store).write_bytes(STORED + frame[:-lost] + bytes(lost + 4096))
    assert resume(store) == (4, 0)
    assert core_of(store).read_bytes() == STORED
    assert remains_of(store) == {}


@pytest.mark.parametrize(("behind", "zeroes"), [(1, 0), (2, 0), (2, 99), (100, 0), (100, 99)])
def test_a_checksum_that_ends_in_a_zero_is_held(behind: int, zeroes: int, store: Store) -> None:
    """It may have been acknowledged: where no power cut was, whatever stands there, and where a cut would have taken more."""
    frame = ending_at_a_sector(behind, lambda frame: frame.endswith(b"\0") and frame[-2] != 0)
    core_of(store).write_bytes(STORED + frame + bytes(zeroes))
    assert resume(store) == (5, 0)
    assert core_of(store).read_bytes() == STORED + frame


@pytest.mark.parametrize("zeroes", [0, 1, 4096])
def test_zero_frames_are_held_whatever_follows(zeroes: int, store: Store) -> None:
    """All their bytes are fixed: one that zeroes have completed is the one that was sent."""
    for length in (1, 2, 5, 300, 1000):
        core_of(store).write_bytes(STORED + zero_frame(length) + bytes(zeroes))
        assert resume(store) == (5, 0)
        assert core_of(store).read_bytes() == STORED + zero_frame(length)


def test_a_sender_makes_no_remains_by_a_checksum_of_zeroes(store: Store) -> None:
    """It may send any frame; one that a power cut might have left is asked for again, as often as it is sent."""
    for _ in range(2):
        dump = IncomingDump.resume(store, WEB, ID)
        dump.append(SHORT[:-4] + bytes(4), 9)
        dump.sync()
        dump.close()
        assert resume(store) == (4, 0)
    assert remains_of(store) == {}


def test_zeroes_before_something_are_damage(store: Store) -> None:
    """Whatever it is: a power cut loses ends."""
    kept = FRAMES[1][0][:40] + bytes(limits.MAX_FRAME_BYTES) + b"x"
    core_of(store).write_bytes(STORED + kept + bytes(9))
    assert resume(store) == (4, len(kept) + 9)
    assert remains_of(store) == {"core.damaged-1": kept + bytes(9)}


def test_no_byte_is_lost_whichever_is_damaged(store: Store) -> None:
    """Of the second frame's headers: some changes hide all that follows, some make it a last frame, some pass for content."""
    ways = set()
    for at in range(SECOND, SECOND + 20):
        damaged = STORED[:at] + bytes([STORED[at] ^ 0x41]) + STORED[at + 1 :]
        core_of(store).write_bytes(damaged)
        held, damaged_bytes = resume(store)
        kept = remains_of(store)
        assert core_of(store).read_bytes() + b"".join(kept.values()) == damaged
        assert bool(kept) == bool(damaged_bytes)
        ways.add(held)
        for name in kept:
            (core_of(store).parent / name).unlink()
    assert {1, 4} <= ways


def test_a_dump_goes_on_where_it_was_cut(store: Store) -> None:
    """Whoever still has the frames may send them again; what was kept stays until the dump is deleted."""
    kept = damage(store)
    dump = open_incoming(store, WEB, ID, REPORT)
    assert (dump.frames, dump.torn(), dump.remains_bytes) == (1, b"", len(kept))
    for frame in FRAMES[1:]:
        dump.append(*frame)
    dump.sync()
    dump.close()
    assert core_of(store).read_bytes() == STORED
    assert resume(store) == (4, 0)
    assert remains_of(store) == {"core.damaged-1": kept}


def test_damage_that_comes_again_is_kept_beside(store: Store) -> None:
    """What was kept first is never replaced."""
    first = damage(store, SECOND + len(FRAMES[1][0]))
    resume(store)
    second = damage(store)
    resume(store)
    assert remains_of(store) == {"core.damaged-1": first, "core.damaged-2": second}


def test_the_time_of_the_last_frame_stays(store: Store) -> None:
    """Cutting is no frame: a sender that does not come back is not waited for any longer."""
    damage(store)
    os.utime(core_of(store), (1_700_000_000, 1_700_000_000))
    resume(store)
    assert core_of(store).stat().st_mtime == 1_700_000_000


def test_a_disk_without_room_for_it_keeps_the_core(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut off before it is kept; no part of a copy is left behind."""
    kept = damage(store)
    with monkeypatch.context() as patch:
        patch.setattr(directory, "write_all", refuse)
        for _ in range(2):
            with pytest.raises(StorageError, match="the disk is full"):
                resume(store)
    assert core_of(store).read_bytes()[SECOND:] == kept
    assert sorted(os.listdir(core_of(store).parent)) == ["core.zst", "report.json"]
    assert resume(store) == (1, len(kept))


def test_a_copy_that_would_go_below_the_floor_is_not_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for all of it must be there before a byte is written; the error says how much that is, and the core stays as it is."""
    kept = damage(store)
    store.least_free = lambda total_bytes: total_bytes // 10
    enough = 100 + len(kept)
    monkeypatch.setattr(remains, "room_of", lambda store: Room(enough - 1, 1000, 1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(directory, "create_file", refuse)
        with pytest.raises(NoRoomForRemains, match=r"is damaged, .* 100 B of it are to stay free") as error:
            resume(store)
    assert error.value.needed_bytes == len(kept)
    assert core_of(store).read_bytes()[SECOND:] == kept
    assert sorted(os.listdir(core_of(store).parent)) == ["core.zst", "report.json"]
    monkeypatch.setattr(remains, "room_of", lambda store: Room(enough, 1000, 1, 1))
    assert resume(store) == (1, len(kept))


def test_a_disk_that_others_fill_meanwhile_ends_the_copy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each piece what is left of it must fit above the floor; no part of the copy stays."""
    flip(core_of(store), SECOND)
    with core_of(store).open("ab") as core:
        core.write(b"x" * 3 * limits.MIB)
    before = core_of(store).read_bytes()
    looks = iter([4 * limits.MIB, 4 * limits.MIB, limits.MIB])
    monkeypatch.setattr(remains, "room_of", lambda store: Room(next(looks), 1000, 1, 1))
    with pytest.raises(NoRoomForRemains, match=r"takes 3\.0 MiB: .* has 2\.0 MiB left") as error:
        resume(store)
    assert error.value.needed_bytes == len(before) - SECOND, "all of it: that is what the next try takes"
    assert next(looks, None) is None
    assert core_of(store).read_bytes() == before
    assert sorted(os.listdir(core_of(store).parent)) == ["core.zst", "report.json"]


def test_what_is_kept_already_needs_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash came between the copy and the cut."""
    kept = damage(store)
    (core_of(store).parent / "core.damaged-1").write_bytes(kept)
    monkeypatch.setattr(remains, "room_of", lambda store: Room(0, 1000, 1, 1))
    assert resume(store) == (1, len(kept))
    assert remains_of(store) == {"core.damaged-1": kept}


def test_what_is_kept_counts_as_the_dumps_own(store: Store) -> None:
    """All of it, in what its host has, in what is listed of it, and in what its writer says; whoever counts, before or after."""
    later = damage(store, SECOND + len(FRAMES[1][0]))
    resume(store)
    first = damage(store)
    resume(store)
    held = len(FRAMES[0][0])
    assert Usage(store).of(WEB).stored_bytes == held + len(first) + len(later)
    assert Usage(store).held(WEB, ID).stored_bytes == held + len(first) + len(later)
    dump = IncomingDump.resume(store, WEB, ID)
    assert (dump.taken_bytes, dump.stored_bytes) == (held + len(first) + len(later), held)
    dump.close()
    with store.open_dump(WEB, ID) as files:
        assert row_of(files).stored_bytes == files.taken_bytes() == held + len(first) + len(later)
        assert files.core_bytes() == held
    (core_of(store).parent / "core.damaged-x").write_bytes(b"a stranger's")
    assert Usage(store).of(WEB).stored_bytes == held + len(first) + len(later)


def test_a_sender_that_comes_ends_the_copy(store: Store) -> None:
    """Between two pieces of it, as it ends the walk."""
    kept = damage(store)
    steps = iter(range(9))

    def come() -> None:
        if next(steps) == 1:
            raise BusyError("its sender is here")

    with pytest.raises(BusyError):
        IncomingDump.resume(store, WEB, ID, between=come)
    assert core_of(store).read_bytes()[SECOND:] == kept
    assert remains_of(store) == {}


@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power cut"])
def test_ended_before_every_call_nothing_is_lost(loses_power: bool, tmp_path: Path) -> None:
    """Core and remains together have every byte at any instant, and the next resume keeps it once."""
    fatal, is_through = 0, False
    while not is_through:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        with create_store(str(path)) as store:
            begin(store, ID, CORE).close()
            kept = damage(store)
            disk = Disk(path)
            is_through = run_until(fatal, disk, lambda store=store: resume(store)) is not None
        if loses_power:
            disk.restore(tmp_path / f"left-{fatal}")
        disk.close()
        with open_store(str(tmp_path / f"left-{fatal}" if loses_power else path)) as store:
            assert core_of(store).read_bytes()[SECOND:] == kept or remains_of(store) == {"core.damaged-1": kept}
            resume(store)
            assert core_of(store).read_bytes() == FRAMES[0][0]
            assert remains_of(store) == {"core.damaged-1": kept}
            assert [name for name in os.listdir(core_of(store).parent) if name.startswith(".")] == []
    assert fatal > 5


@pytest.mark.parametrize("beginning", [b"nonsense", b"\x28\xb5\x2f\xfd\xff" + bytes(20), FRAMES[1][0] + b"x"])
def test_a_sender_cannot_make_remains(beginning: bytes, store: Store) -> None:
    """What it sends of a frame that was cut is kept only where it may be the beginning of one."""
    dump = IncomingDump.resume(store, WEB, ID)
    dump.keep_torn(beginning)
    assert dump.torn() == b""
    dump.close()
    assert resume(store) == (4, 0)
    assert remains_of(store) == {}


def test_a_dump_of_which_nothing_but_remains_is_left_takes_what_they_take(store: Store) -> None:
    """Its first frame was damaged: its core is empty, and what it takes is the same for who lists, for vacuum and for the quota."""
    damage(store, 0)
    assert resume(store) == (0, len(STORED))
    with store.open_dump(WEB, ID) as files:
        row = row_of(files)
    assert (row.stored_bytes, row.has_core, row.state) == (len(STORED), False, "incomplete")
    with open_catalogue(store) as catalogue:
        catalogue.reconcile()
        assert [held.stored_bytes for held in catalogue.coming_in()] == [len(STORED)]
        assert [(listed.stored_bytes, listed.has_core) for listed in catalogue.rows()] == [(len(STORED), False)]
    assert Usage(store).of(WEB).stored_bytes == len(STORED)
