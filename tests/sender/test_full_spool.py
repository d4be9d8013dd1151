"""Real disks that take no more: what fits is kept and labelled, the rest is named, and a wire that is well goes on."""

import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.certs import jws
from securecore.dump.manifest import parse_manifest
from securecore.dump.reader import open_container
from securecore.errors import StorageError
from securecore.merkle import Frontier
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender import network
from securecore.sender.flush import flush
from securecore.sender.parcel import Outcome
from securecore.sender.room import NoRoomError, Room
from securecore.sender.spool import Spool, create_spool, open_spool
from securecore.sender.spool_entry import EntryStart
from securecore.sender.spool_limits import SpoolLimits
from securecore.store.layout import open_store
from tests.support.certificates import Fleet
from tests.support.local_files import noise, small_disk
from tests.support.receivers import Hold, new_dump_id, papers_of, send_bytes
from tests.support.sizes import size_of

NOWHERE: Final = Address("127.0.0.1:9")
CORE: Final = noise(6 * limits.PIECE_BYTES)
MODES: Final = pytest.mark.parametrize("keeps_copy", [False, True], ids=["tail", "whole"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB: less than the core takes."""
    with small_disk(tmp_path / "disk", "4m") as path:
        yield path


@pytest.fixture
def spool(disk: Path) -> Spool:
    """A spool on that disk."""
    create_spool(str(disk / "spool"), bytes(16))
    return open_spool(str(disk / "spool"))


def fill(disk: Path) -> Path:
    """Leave no byte on a disk, and return the file that takes them."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return filler


def entries(disk: Path) -> list[str]:
    """Return whatever stands among the spool's dumps, under any name."""
    return os.listdir(disk / "spool/dumps")


def stored(path: Path) -> list[tuple[str, bytes]]:
    """Return the outcome and the plaintext of each published dump."""
    found = []
    with open_store(str(path)) as store:
        for host in store.host_names():
            for dump in store.dump_ids(host):
                with store.open_dump(host, dump) as files:
                    payload = jws.parse(files.read_manifest() or b"", limits.MAX_MANIFEST_BYTES).payload
                    found.append((parse_manifest(payload).outcome, b"".join(open_container(files.open_core()).pieces())))
    return found


def line_of(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, object]]:
    """Return the line of the system's log."""
    lines: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(network, "log", lambda event, **facts: lines.append((event, facts)))
    network.conclude(new_dump_id(), outcome)
    (line,) = lines
    return line


@MODES
def test_a_disk_that_is_full_from_the_beginning_is_named(
    keeps_copy: bool, fleet: Fleet, disk: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither wire nor spool: the process is let go, nothing stays behind, and the log line has both reasons."""
    fill(disk)

    outcome = send_bytes(CORE, papers_of(fleet.host), [NOWHERE], spool=spool, keeps_copy=keeps_copy)

    assert isinstance(outcome.spool_failure, StorageError)
    assert (outcome.receipt, outcome.spooled, entries(disk)) == (None, False, [])
    event, facts = line_of(outcome, monkeypatch)
    assert event == "failed"
    assert "no space left on device" in str(facts["spool"])
    assert "127.0.0.1:9" in str(facts["error"])


@MODES
def test_what_fits_is_kept_and_later_delivered_as_cut(
    keeps_copy: bool, fleet: Fleet, receiver: Receiver, disk: Path, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up in the middle. The flush needs no room on it, and makes some."""
    outcome = send_bytes(CORE, papers_of(fleet.host), [NOWHERE], spool=spool, keeps_copy=keeps_copy)
    event, facts = line_of(outcome, monkeypatch)
    fill(disk)
    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))

    assert (event, "no space left on device" in str(facts["spool"])) == ("failed", True)
    assert flushed.failure is None
    ((kind, plain),) = stored(tmp_path / "store")
    assert kind == "cut"
    assert len(plain) >= 2 * limits.PIECE_BYTES
    assert CORE.startswith(plain)
    assert entries(disk) == []


@MODES
def test_a_disk_that_fills_up_before_the_end_is_stated_leaves_a_cut_dump(
    keeps_copy: bool, fleet: Fleet, receiver: Receiver, disk: Path, spool: Spool, tmp_path: Path
) -> None:
    """All frames fit, the statement that these are all does not: the dump has all its bytes, and is not called complete."""
    core, going = CORE[: 2 * limits.PIECE_BYTES], threading.Event()
    outcomes: list[Outcome] = []

    def send() -> None:
        outcomes.append(
            send_bytes(
                core, papers_of(fleet.host), [NOWHERE], spool=spool, keeps_copy=keeps_copy, hold=Hold(len(core), going)
            )
        )

    sending = threading.Thread(target=send)
    sending.start()
    wait_for_bytes(disk, 2 * limits.PIECE_BYTES)
    fill(disk)
    going.set()
    sending.join()

    assert isinstance(outcomes[0].spool_failure, StorageError)
    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))
    assert flushed.failure is None
    assert stored(tmp_path / "store") == [("cut", core)]
    assert entries(disk) == []


def wait_for_bytes(disk: Path, size: int) -> None:
    """Wait until an entry's core is as long."""
    deadline = time.monotonic() + 20
    while not any(size_of(path) >= size for path in (disk / "spool/dumps").glob("*/core.zst")):
        assert time.monotonic() < deadline
        time.sleep(0.002)


@MODES
def test_a_full_disk_is_nothing_to_a_wire_that_is_well(
    keeps_copy: bool, fleet: Fleet, receiver: Receiver, disk: Path, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is full from the beginning or fills up under the copy: delivered, complete, and the log says what was not kept."""
    outcome = send_bytes(CORE, papers_of(fleet.host), receiver.addresses, spool=spool, keeps_copy=keeps_copy)
    fill(disk)
    again = send_bytes(CORE, papers_of(fleet.host), receiver.addresses, spool=spool, keeps_copy=keeps_copy)

    assert stored(tmp_path / "store") == [("complete", CORE)] * 2
    assert (outcome.copy_failure is not None, again.copy_failure is not None) == (keeps_copy, keeps_copy)
    assert entries(disk) == []
    event, facts = line_of(again, monkeypatch)
    assert (event, "not_copied" in facts) == ("delivered", keeps_copy)
    assert "no space left on device" in str(facts["receipt_not_kept"])


def test_a_receipt_that_does_not_fit_spoils_no_other_one(disk: Path, spool: Spool) -> None:
    """The disk takes a part of its line, and it is taken back: when there is room again, the next one stands whole."""
    spool.keep_receipt({"dump": "a"})
    filler = fill(disk)
    with pytest.raises(StorageError):
        spool.keep_receipt({"dump": "b", "receipt": "x" * 100_000})
    filler.unlink()
    spool.keep_receipt({"dump": "c"})

    assert [receipt["dump"] for receipt in spool.receipts()] == ["a", "c"]


@MODES
def test_who_has_nowhere_to_put_the_rest_waits_for_a_slow_wire(
    keeps_copy: bool, fleet: Fleet, receiver: Receiver, disk: Path, spool: Spool, tmp_path: Path
) -> None:
    """The time for which a process may be held is used up, and the disk is full: a core that takes long is better than none."""
    filler = fill(disk)
    papers = papers_of(fleet.host)

    outcome = send_bytes(CORE, papers, receiver.addresses, spool=spool, keeps_copy=keeps_copy, hold_budget_s=0.0)
    filler.unlink()
    # More than what is read before a frame is taken, so that the source is still open when it is asked for how long to wait.
    other = send_bytes(bytes(20 << 20), papers, receiver.addresses, spool=spool, keeps_copy=keeps_copy, hold_budget_s=0.0)

    assert (outcome.failure, outcome.spool_failure) == (None, None)
    assert stored(tmp_path / "store") == [("complete", CORE)]
    assert (other.receipt, other.spooled, other.spool_failure) == (None, True, None)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Let a disk take nothing while the block runs, as after an error that its file system has met."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@MODES
def test_a_read_only_disk_is_named_and_stops_no_wire(
    keeps_copy: bool, fleet: Fleet, receiver: Receiver, disk: Path, spool: Spool, tmp_path: Path
) -> None:
    """With a receiver the dump is delivered; without one it is lost, and the reason is the disk."""
    with read_only(disk):
        lost = send_bytes(CORE, papers_of(fleet.host), [NOWHERE], spool=spool, keeps_copy=keeps_copy)
        delivered = send_bytes(CORE, papers_of(fleet.host), receiver.addresses, spool=spool, keeps_copy=keeps_copy)

    assert lost.spool_failure is not None
    assert "read-only file system" in lost.spool_failure.message
    assert delivered.receipt is not None
    assert "read-only file system" in delivered.receipt["not_kept"]
    assert stored(tmp_path / "store") == [("complete", CORE)]


@MODES
@pytest.mark.parametrize("files", [0, 1, 2, 3, 4])
def test_a_disk_without_room_for_another_file_leaves_nothing_behind(
    keeps_copy: bool, files: int, fleet: Fleet, receiver: Receiver, tmp_path: Path
) -> None:
    """It refuses the directory, the core, or one of the statements: there is no half entry, or one that is delivered as cut."""
    core = CORE[: limits.PIECE_BYTES]
    with small_disk(tmp_path / "disk", f"8m,nr_inodes={5 + files}") as disk:
        create_spool(str(disk / "spool"), bytes(16))
        spool = open_spool(str(disk / "spool"))
        assert os.statvfs(disk).f_ffree <= files + 1
        outcome = send_bytes(core, papers_of(fleet.host), [NOWHERE], spool=spool, keeps_copy=keeps_copy)
        results = list(flush(spool, receiver.addresses, papers_of(fleet.host)))

        assert outcome.spool_failure is not None
        assert entries(disk) == []
        spool.close()

    assert [flushed.failure for flushed in results] == [None] * outcome.spooled
    assert stored(tmp_path / "store") == [("cut", core)] * outcome.spooled


@contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """Let this process open so many descriptors more while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir("/proc/self/fd"))) + left + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    taken: list[int] = []
    try:
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


@MODES
@pytest.mark.parametrize("left", range(2, 9))
def test_without_descriptors_a_core_is_kept_whole_or_its_loss_is_named(
    keeps_copy: bool, left: int, fleet: Fleet, receiver: Receiver, tmp_path: Path
) -> None:
    """The pipe takes two; with each further one more can be done. Never a traceback, a half entry, or a false label."""
    create_spool(str(tmp_path / "spool"), bytes(16))
    spool, papers, core = open_spool(str(tmp_path / "spool")), papers_of(fleet.host), CORE[: limits.PIECE_BYTES]
    with few_descriptors(left):
        outcome = send_bytes(core, papers, [NOWHERE], spool=spool, keeps_copy=keeps_copy)

    assert outcome.receipt is None
    assert len(os.listdir(tmp_path / "spool/dumps")) == outcome.spooled
    if outcome.spool_failure is not None:
        assert "too many open files" in outcome.spool_failure.message
    results = list(flush(spool, receiver.addresses, papers))
    assert [flushed.failure for flushed in results] == [None] * outcome.spooled
    label = "complete" if outcome.spool_failure is None else "cut"
    assert stored(tmp_path / "store") == [(label, core)] * outcome.spooled


@pytest.mark.parametrize("left", [1, 0])
def test_without_descriptors_a_quota_cuts_no_core_that_there_is_room_for(left: int, tmp_path: Path) -> None:
    """To look at the other dumps takes two: without them nobody can say that there is no room, and the disk has it."""
    create_spool(str(tmp_path / "spool"), bytes(16))
    spool = open_spool(str(tmp_path / "spool"), SpoolLimits(max_bytes=100 * limits.MIB))
    entry = spool.begin(EntryStart(new_dump_id(), 1, None, Frontier()), b"{}")
    with few_descriptors(left):
        for at in range(0, len(CORE), limits.PIECE_BYTES):
            entry.append(CORE[at : at + limits.PIECE_BYTES])

    assert entry.stored_bytes == len(CORE)
    entry.close()


def test_without_descriptors_a_quota_that_is_used_up_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed handler may have kept cannot be looked for: the dump is refused for want of room all the same."""

    def give_back(room: Room, dumps: int) -> bool:
        raise StorageError("cannot list a directory: too many open files")

    create_spool(str(tmp_path / "spool"), bytes(16))
    spool = open_spool(str(tmp_path / "spool"), SpoolLimits(max_bytes=limits.MIB))
    entry = spool.begin(EntryStart(new_dump_id(), 1, None, Frontier()), b"{}")
    monkeypatch.setattr(Room, "give_back", give_back)
    with pytest.raises(NoRoomError):
        entry.append(CORE[: 2 * limits.PIECE_BYTES])

    entry.close()
