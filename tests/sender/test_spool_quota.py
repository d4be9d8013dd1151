"""A spool at its quota, or at the floor of its disk: what is refused, what is cut, and what was kept is what others may take."""

import os
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Final, NoReturn

import pytest

from securecore import limits
from securecore.errors import StorageError
from securecore.names import Address
from securecore.sender import network, room
from securecore.sender.room import INODES, NoRoomError
from securecore.sender.spool import open_spool
from securecore.sender.spool_entry import EntryEnd
from securecore.sender.spool_limits import SpoolLimits
from securecore.sender.turn import take_turn
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.file_systems import fill
from tests.support.kernel import wait_until
from tests.support.local_files import noise, small_disk
from tests.support.receivers import Hold, new_dump_id, papers_of, send_bytes
from tests.support.scripted import Peer, forge_receipt, scripted_receiver
from tests.support.spools import all_at_once, ends_in, free_bytes, make_spool, names, start_of_new

MIB: Final = limits.MIB
NOWHERE: Final = Address("127.0.0.1:9")
AT_ONCE: Final = 4
HOLD_S: Final = 2.5
"""For how long a process may be held: a connection has no longer, on a busy machine too."""
EVERY_S: Final = 0.4
"""Between two acknowledgements of a slow receiver, which come ten times: longer than a process may be held."""
LARGE: Final = write_core([Segment(noise(20 * MIB))])
"""Its headers say how long it is."""
HUGE: Final = write_core([Segment(noise(20 * MIB), filesz=1 << 40)])
"""One that would take 45 MiB even if there were nothing but zeroes in it."""
SPARSE: Final = write_core([Segment(b"one page" * 512 + bytes(200 * MIB))])
"""One that takes some KiB, as of a program that has touched one page of a large mapping."""
END: Final = EntryEnd(0, None, "complete", 5)


@pytest.mark.parametrize(
    "bounds",
    [SpoolLimits(max_bytes=5 * MIB // 2, floor_share=0.0), SpoolLimits(max_dumps=2, floor_share=0.0)],
    ids=["bytes", "dumps"],
)
def test_of_many_that_begin_at_once_the_quota_takes_as_many_as_fit(bounds: SpoolLimits, tmp_path: Path) -> None:
    """Bytes and dumps alike: neither one too many, nor one too few because all of them saw each other."""
    refused: list[type[StorageError]] = []

    def begin() -> None:
        try:
            open_spool(str(tmp_path / "spool"), bounds).begin(start_of_new(), b"{}", MIB).append(bytes(MIB))
        except StorageError as error:
            refused.append(type(error))

    make_spool(tmp_path)
    all_at_once([begin] * 6)

    assert refused == [NoRoomError] * 4
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (SpoolLimits(max_bytes=MIB), "the spool has 0.0 MiB of its 1.0 MiB, and 2.0 MiB would come"),
        (SpoolLimits(max_dumps=0), "the spool has 0 dumps of its 0"),
        (SpoolLimits(floor_share=0.5), "inodes left, as few as are to stay free"),
        (SpoolLimits(floor_bytes=23 * MIB), "MiB left, 23.0 MiB are to stay free, and 2.0 MiB would come"),
    ],
)
def test_what_has_no_room_is_refused_before_a_file_is_made(bounds: SpoolLimits, words: str, tmp_path: Path) -> None:
    """In words that say how full it is; nothing is left behind."""
    with small_disk(tmp_path / "disk", "24m,nr_inodes=40") as disk:
        spool = make_spool(disk, bounds)
        if "inodes" in words:
            for number in range(20):
                (disk / str(number)).touch()
        with pytest.raises(NoRoomError) as caught:
            spool.begin(start_of_new(), b"{}", 2 * MIB)
        left = names(disk)
        spool.close()

    assert words in caught.value.message
    assert "spool flush" in (caught.value.hint or "")
    assert left == []


@pytest.mark.parametrize("has_room", [True, False])
def test_the_inodes_that_an_entry_takes_are_not_those_that_stay_free(has_room: bool, tmp_path: Path) -> None:
    """An entry is five files and directories: one that would take the floor's is not begun."""
    with small_disk(tmp_path / "disk", "24m,nr_inodes=100") as disk:
        spool = make_spool(disk, SpoolLimits(floor_share=0.5))
        number, least = 0, 50 + INODES - (0 if has_room else 1)
        while os.statvfs(disk).f_favail > least:
            (disk / str(number)).touch()
            number += 1
        with nullcontext() if has_room else pytest.raises(NoRoomError):
            spool.begin(start_of_new(), b"{}", 2 * MIB)
        left = os.statvfs(disk).f_favail
        spool.close()

    assert left >= 50


MODES: Final = pytest.mark.parametrize("keeps_copy", [False, True], ids=["tail", "whole"])


@MODES
def test_a_dump_that_would_not_fit_from_the_start_is_declined(
    keeps_copy: bool, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in it: not a byte of it is kept, the process is let go, and the log says why."""
    spool = make_spool(tmp_path, SpoolLimits(max_bytes=3 * MIB // 2, floor_share=0.0))
    outcome = send_bytes(HUGE, papers_of(fleet.host), [NOWHERE], spool=spool, keeps_copy=keeps_copy)

    assert isinstance(outcome.spool_failure, NoRoomError)
    assert (outcome.receipt, outcome.spooled, names(tmp_path)) == (None, False, [])
    lines: list[tuple[str, str]] = []
    monkeypatch.setattr(network, "log", lambda event, **facts: lines.append((event, facts["spool"])))
    assert network.conclude(new_dump_id(), outcome) == StorageError.exit_code
    ((event, why),) = lines
    assert (event, "of its 1.5 MiB, and" in why) == ("failed", True)


@MODES
def test_a_sparse_core_is_kept_where_there_is_room_for_what_it_takes(keeps_copy: bool, fleet: Fleet, tmp_path: Path) -> None:
    """How large it is says nothing of that: it was refused where there was no room for a tenth of it."""
    spool = make_spool(tmp_path, SpoolLimits(max_bytes=3 * MIB // 2, floor_share=0.0))
    outcome = send_bytes(SPARSE, papers_of(fleet.host), [NOWHERE], spool=spool, keeps_copy=keeps_copy)

    assert (outcome.spooled, outcome.spool_failure, outcome.size) == (True, None, len(SPARSE))


@MODES
@pytest.mark.parametrize("core", [LARGE, LARGE[:1000] + bytes(8) + noise(20 * MIB)], ids=["foretold", "unknown"])
def test_a_dump_that_outgrows_the_quota_is_cut(keeps_copy: bool, core: bytes, fleet: Fleet, tmp_path: Path) -> None:
    """It might have fitted, so it was begun: what fits is kept, up to the quota and not beyond, and labelled."""
    quota = 6 * MIB
    spool = make_spool(tmp_path, SpoolLimits(max_bytes=quota, floor_share=0.0))
    outcome = send_bytes(core, papers_of(fleet.host), [NOWHERE], spool=spool, keeps_copy=keeps_copy)
    (dump,) = spool.dump_ids()
    entry = spool.entry(dump)
    assert entry is not None
    end = entry.end()

    assert isinstance(outcome.spool_failure, NoRoomError)
    assert outcome.spooled
    assert end is not None
    assert end.outcome == "cut"
    assert quota - 3 * MIB // 2 < entry.core_bytes() <= quota
    entry.close()


@pytest.mark.parametrize("bounds", [SpoolLimits(max_bytes=40 * MIB, floor_share=0.0), SpoolLimits(floor_bytes=24 * MIB)])
def test_dumps_that_grow_at_once_are_not_cut_for_what_the_others_do_not_need(bounds: SpoolLimits, tmp_path: Path) -> None:
    """Together they fit. What is kept ahead is kept only where there is room for as many more as there are handlers."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        spool = make_spool(disk, bounds)
        entries = [spool.begin(start_of_new(), b"{}", limits.MAX_FRAME_BYTES) for _ in range(12)]
        for _ in range(3):
            for entry in entries:
                entry.append(bytes(MIB))
        for entry in entries:
            entry.finish(END)
            entry.close()
        usage = spool.usage()
        spool.close()

    assert usage == (12, 36 * MIB)


@MODES
def test_what_was_kept_for_a_slow_wire_shrinks_as_the_rest_turns_out_smaller(
    keeps_copy: bool, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first nobody knows how the rest will compress, and room for all of it is kept. Others need not wait for the dump's end.

    The process pauses behind three quarters of its core until another dump has the room for a half of it.
    """
    monkeypatch.setattr(limits, "RING_BYTES", 64)
    core, going = write_core([Segment(b"the quick brown fox " * (32 * MIB // 10))]), threading.Event()
    given_up = threading.Event()
    spool = make_spool(tmp_path, SpoolLimits(floor_share=0.0, max_bytes=72 * MIB))

    def slow(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        try:
            peer.stay()
        finally:
            given_up.set()

    def begin_another() -> None:
        try:
            given_up.wait(20)
            wait_until(lambda: spool.usage().taken_bytes < 36 * MIB or None, 20)
            spool.begin(start_of_new(), b"{}", 32 * MIB).close()
        finally:
            going.set()

    other = threading.Thread(target=begin_another)
    other.start()
    with scripted_receiver(fleet.receiver, slow) as scripted:
        outcome = send_bytes(
            core, papers_of(fleet.host), [scripted.address], spool=spool, hold=Hold(48 * MIB, going), hold_budget_s=0.1,
            keeps_copy=keeps_copy,
        )  # fmt: skip
    other.join()

    assert (outcome.spooled, outcome.spool_failure, outcome.size) == (True, None, len(core))
    assert sorted(ends_in(spool), key=str) == [None, "complete"]


def test_room_that_is_given_up_in_part_is_what_others_may_take(disk: Path) -> None:
    """The rest stays kept, on the disk too, and the end gives that back."""
    spool, before = make_spool(disk), free_bytes(disk)
    entry = spool.begin(start_of_new(), b"{}", 22 * MIB)
    entry.append(bytes(MIB))
    entry.keep_less(3 * MIB)
    kept = before - free_bytes(disk)
    with pytest.raises(StorageError, match="no space left"):
        spool.begin(start_of_new(), b"{}", 21 * MIB)
    spool.begin(start_of_new(), b"{}", 18 * MIB).close()
    for _ in range(3):
        entry.append(bytes(MIB))
    entry.finish(END)

    assert 4 * MIB <= kept < 5 * MIB
    assert entry.core_bytes() == 4 * MIB
    entry.close()


@pytest.mark.parametrize("error", [MemoryError(), StorageError("no space left")], ids=["memory", "disk"])
def test_room_that_cannot_be_kept_again_is_asked_for_as_the_dump_grows(
    error: Exception, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's file may have taken the blocks meanwhile: nothing is lost by that while there are others."""
    entry = make_spool(disk, SpoolLimits(floor_bytes=MIB)).begin(start_of_new(), b"{}", 20 * MIB)

    def refuse(fd: int, size: int) -> NoReturn:
        raise error

    with monkeypatch.context() as full, suppress(MemoryError):
        full.setattr(room, "allocate", refuse)
        entry.keep_less(3 * MIB)
    for _ in range(3):
        entry.append(bytes(MIB))
    entry.finish(END)

    assert entry.core_bytes() == 3 * MIB
    entry.close()


def test_a_turn_that_somebody_keeps_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near a bound a dump takes one for each frame: a handler that was stopped would hold a process for as many seconds."""
    waits: list[tuple[float, bool]] = []

    def take(fd: int, patience_s: float) -> bool:
        is_ours = take_turn(fd, min(patience_s, 0.01))
        waits.append((patience_s, is_ours))
        return is_ours

    monkeypatch.setattr(room, "take_turn", take)
    spool = make_spool(tmp_path, SpoolLimits(floor_share=0.0, max_bytes=20 * MIB))
    with (tmp_path / "spool/FORMAT").open() as stopped:
        assert take_turn(stopped.fileno(), 0.0)
        entry = spool.begin(start_of_new(), b"{}")
        for _ in range(3):
            entry.append(bytes(MIB))
    for _ in range(2):
        entry.append(bytes(MIB))
    entry.close()

    patience_s = limits.ROOM_LOCK_S
    assert waits == [(patience_s, False), *[(0.0, False)] * 3, (0.0, True), (patience_s, True)]


def test_a_floor_stops_a_dump_that_grows(fleet: Fleet, disk: Path) -> None:
    """The disk is never filled up: so much stays free for everybody else."""
    spool = make_spool(disk, SpoolLimits(floor_bytes=8 * MIB))
    outcome = send_bytes(LARGE, papers_of(fleet.host), [NOWHERE], spool=spool)

    assert isinstance(outcome.spool_failure, NoRoomError)
    assert outcome.spooled
    assert 8 * MIB <= free_bytes(disk) < 10 * MIB


def test_a_spool_without_room_costs_a_wire_that_is_well_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """At its quota it takes neither copy nor tail, and the dump is delivered."""
    spool = make_spool(tmp_path, SpoolLimits(max_dumps=0))

    def script(peer: Peer) -> None:
        peer.reach(State.ENDING)
        peer.say(forge_receipt(fleet.receiver, peer.manifest))

    for keeps_copy in (False, True):
        with scripted_receiver(fleet.receiver, script) as scripted:
            outcome = send_bytes(b"core", papers_of(fleet.host), [scripted.address], spool=spool, keeps_copy=keeps_copy)
        assert outcome.receipt is not None
        assert (outcome.copy_failure is not None) == keeps_copy


def test_when_a_full_disk_cannot_keep_room_the_reason_is_the_disk(disk: Path) -> None:
    """Without a bound of the spool's own, the words are the disk's."""
    spool = make_spool(disk)
    fill(disk, 300)
    with pytest.raises(StorageError, match="cannot keep 2097152 bytes free for a core: no space left on device"):
        spool.begin(start_of_new(), b"{}", 2 * MIB)

    assert names(disk) == []
