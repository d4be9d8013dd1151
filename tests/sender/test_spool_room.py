"""Room in the spool: it is kept before it is needed, nobody else takes it meanwhile, and what is not used is given back."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.errors import BusyError, StorageError
from securecore.names import Address
from securecore.report import CrashReport
from securecore.sender import room
from securecore.sender.allocation import allocate
from securecore.sender.parcel import Outcome, Parcel
from securecore.sender.room import NoRoomError
from securecore.sender.spool_entry import EntryEnd
from securecore.sender.spool_limits import UNBOUND, SpoolLimits
from securecore.sender.transfer import carry
from securecore.wire.messages import Ack
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.file_systems import breakable_disk
from tests.support.local_files import noise, small_disk
from tests.support.receivers import new_dump_id, papers_of
from tests.support.scripted import Peer, forge_receipt, scripted_receiver
from tests.support.spools import ends_in, free_bytes, make_spool, names, start_of_new

MIB: Final = limits.MIB
NOWHERE: Final = Address("127.0.0.1:9")
AT_ONCE: Final = 4
HOLD_S: Final = 2.5
"""For how long a process may be held: a connection has no longer, on a busy machine too."""
EVERY_S: Final = 0.4
"""Between two acknowledgements of a slow receiver, which come ten times: longer than a process may be held."""
LARGE: Final = write_core([Segment(noise(20 * MIB))])
"""Its headers say how long it is."""
END: Final = EntryEnd(0, None, "complete", 5)


@pytest.mark.slow
def test_of_many_at_once_only_those_give_up_their_wire_whom_the_disk_has_room_for(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of all of them is over, and the disk takes one: that one goes to the spool, the others keep on sending; none is cut.

    Their processes pause before the most of it is written, so that what one will need cannot be seen by what it has taken.
    """
    monkeypatch.setattr(limits, "RING_BYTES", 64 * limits.KIB)
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", 60.0)
    core, going = write_core([Segment(noise(64 * MIB))]), threading.Event()
    streaming, decided = threading.Barrier(2 * AT_ONCE), threading.Barrier(AT_ONCE + 1)

    def slow(peer: Peer) -> None:
        try:
            peer.reach(State.STREAMING)
            streaming.wait(60)
            for number in range(1, 11):
                peer.drip([Ack(number)], EVERY_S)
                peer.hear()
        finally:
            # Its sender has gone by now, or will stay.
            decided.wait(60)
        going.wait(60)
        for number in range(11, len(core) // MIB + 2):
            peer.say(Ack(number))
            peer.hear()
        peer.say(forge_receipt(fleet.receiver, peer.manifest))

    def send(address: Address) -> None:
        reading, writing = os.pipe()
        thread = threading.Thread(target=feed, args=(writing, core, streaming, going))
        thread.start()
        parcel = Parcel(new_dump_id(), CrashReport(sender="test").encode(), 1)
        outcomes.append(carry(reading, parcel, [address], papers_of(fleet.host), spool, hold_budget_s=HOLD_S))
        thread.join()

    outcomes: list[Outcome] = []
    with small_disk(tmp_path / "disk", "112m") as disk, ExitStack() as stack:
        spool = make_spool(disk)
        addresses = [stack.enter_context(scripted_receiver(fleet.receiver, slow)).address for _ in range(AT_ONCE)]
        threads = [threading.Thread(target=send, args=(address,)) for address in addresses]
        for thread in threads:
            thread.start()
        decided.wait(60)
        begun = len(spool.dump_ids())
        going.set()
        for thread in threads:
            thread.join()
        ends = ends_in(spool)
        spool.close()

    assert [outcome.spool_failure for outcome in outcomes] == [None] * AT_ONCE
    # Once the first one is in the spool and the others have sent the most of theirs, there may be room for a second rest.
    assert begun == 1
    assert {type(outcome.failure) for outcome in outcomes if outcome.spooled} == {BusyError}
    assert len([outcome for outcome in outcomes if outcome.receipt is not None]) + len(ends) == AT_ONCE
    assert set(ends) == {"complete"}


def feed(pipe: int, core: bytes, streaming: threading.Barrier, going: threading.Event) -> None:
    """Write a core in three parts: too little to be held with, so much that a handler has waited and decided, and the rest."""
    with os.fdopen(pipe, "wb", buffering=0) as file:
        file.write(core[: 3 * MIB])
        streaming.wait(60)
        file.write(core[3 * MIB : 24 * MIB])
        going.wait(60)
        file.write(core[24 * MIB :])


@contextmanager
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory."""
    with small_disk(tmp_path / "tmpfs", "32m") as path:
        yield path


@contextmanager
def ext4(tmp_path: Path) -> Iterator[Path]:
    """The usual one."""
    with breakable_disk(tmp_path / "ext4") as broken:
        yield broken.path


@contextmanager
def overlay(tmp_path: Path) -> Iterator[Path]:
    """What a container has, over a tmpfs."""
    with small_disk(tmp_path / "below", "32m") as below:
        for name in ("lower", "upper", "work"):
            (below / name).mkdir()
        (tmp_path / "overlay").mkdir()
        options = ",".join(f"{name}dir={below / name}" for name in ("lower", "upper", "work"))
        command = ["mount", "-t", "overlay", "overlay", "-o", options, str(tmp_path / "overlay")]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("cannot mount an overlay")
        try:
            yield tmp_path / "overlay"
        finally:
            subprocess.run(["umount", "-l", str(tmp_path / "overlay")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("mount", [tmpfs, ext4, overlay])
def test_what_is_kept_is_taken_from_the_disk_but_read_by_nobody_and_given_back(
    mount: Callable[[Path], "contextmanager[Path]"], tmp_path: Path
) -> None:
    """On each file system: others have so much less, the core is as long as its frames, and the end frees the rest."""
    with mount(tmp_path) as place:
        spool, before = make_spool(place), free_bytes(place)
        entry = spool.begin(start_of_new(), b"{}", 8 * MIB)
        entry.append(bytes(MIB))
        kept = before - free_bytes(place)
        with pytest.raises(StorageError, match="no space left"):
            spool.begin(start_of_new(), b"{}", 60 * MIB)
        length, beside = entry.core_bytes(), before - free_bytes(place)
        entry.finish(END)
        after = before - free_bytes(place)
        entry.close()

        assert 8 * MIB <= kept < 9 * MIB
        assert kept - MIB < beside < kept + MIB // 2
        assert length == MIB
        assert MIB <= after < 2 * MIB
        assert len(names(place)) == 1


def kill_a_writer(place: Path, size: int) -> None:
    """Leave an entry as a handler does that is killed: begun, with room for *size* bytes, and nothing in it."""
    program = (
        "import os, signal, sys, time\n"
        "from securecore.merkle import Frontier\n"
        "from securecore.names import DumpId\n"
        "from securecore.sender.spool import open_spool\n"
        "from securecore.sender.spool_entry import EntryStart\n"
        "start = EntryStart(DumpId.make(time.time_ns() // 1_000_000, os.urandom(10)), 1, None, Frontier())\n"
        "open_spool(sys.argv[1]).begin(start, b'{}', int(sys.argv[2]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(place / "spool"), str(size)], check=False)


@pytest.mark.slow
def test_a_flush_frees_what_was_kept_for_a_handler_that_was_killed(disk: Path) -> None:
    """It begins with that, whether any dump can be delivered or not."""
    spool, before = make_spool(disk), free_bytes(disk)
    kill_a_writer(disk, 8 * MIB)
    kept = before - free_bytes(disk)
    spool.sweep(0)

    assert kept >= 8 * MIB
    assert before - free_bytes(disk) < MIB
    assert len(spool.dump_ids()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [UNBOUND, SpoolLimits(floor_share=0.0, max_bytes=20 * MIB), SpoolLimits(floor_bytes=MIB)])
def test_who_needs_room_takes_what_a_killed_handler_has_left(bounds: SpoolLimits, disk: Path) -> None:
    """No flush has to come first: the next crash may be sooner. What a living one keeps is left alone."""
    spool = make_spool(disk, bounds)
    kill_a_writer(disk, 18 * MIB)
    spool.begin(start_of_new(), b"{}", 16 * MIB)

    with pytest.raises(StorageError):
        spool.begin(start_of_new(), b"{}", 16 * MIB)
    assert len(names(disk)) == 2


def test_a_disk_that_keeps_nothing_is_asked_what_it_has(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is as certain as a look can be: what is free now is enough, or nothing is begun."""
    monkeypatch.setattr(room, "allocate", lambda fd, size: False)
    spool = make_spool(disk)
    spool.begin(start_of_new(), b"{}", 16 * MIB).close()
    with pytest.raises(NoRoomError, match="MiB left, and 32"):
        spool.begin(start_of_new(), b"{}", 32 * MIB)

    assert len(names(disk)) == 1


def test_a_file_system_that_cannot_keep_blocks_says_so(tmp_path: Path) -> None:
    """A ramfs, which has no fallocate(2)."""
    (tmp_path / "ramfs").mkdir()
    if subprocess.run(["mount", "-t", "ramfs", "ramfs", str(tmp_path / "ramfs")], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a ramfs")
    try:
        with (tmp_path / "ramfs/file").open("wb") as file:
            assert not allocate(file.fileno(), MIB)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "ramfs")], check=True)
