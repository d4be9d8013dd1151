"""Spool mode "whole": every frame stands in the spool until the receipt is there, so nobody's loss before that costs anything."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.certs import jws
from securecore.dump import directory as files
from securecore.dump.compression import Compressor
from securecore.dump.manifest import parse_manifest
from securecore.dump.reader import open_container
from securecore.errors import Bug, StorageError
from securecore.merkle import EMPTY_ROOT
from securecore.names import Address, DumpId
from securecore.receiver.server import Receiver
from securecore.sender import transfer
from securecore.sender.flush import flush
from securecore.sender.parcel import Parcel
from securecore.sender.pump import Pump
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import SpoolEntry
from securecore.sender.transfer import Transfer
from securecore.store.layout import open_store
from securecore.wire.messages import Accept, Ack, Ready
from tests.support.certificates import Fleet
from tests.support.custody import CORE, FRAMES, kept
from tests.support.receivers import Hold, new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.scripted import STORE, Peer, Script, scripted_receiver

NOWHERE: Final = Address("127.0.0.1:9")


def stored(path: Path) -> dict[DumpId, tuple[str, bytes]]:
    """Return the outcome and the plaintext of each published dump."""
    found = {}
    with open_store(str(path)) as store:
        for host in store.host_names():
            for dump in store.dump_ids(host):
                with store.open_dump(host, dump) as files:
                    payload = jws.parse(files.read_manifest() or b"", limits.MAX_MANIFEST_BYTES).payload
                    plain = b"".join(open_container(files.open_core()).pieces())
                    found[dump] = (parse_manifest(payload).outcome, plain)
    return found


def test_a_delivered_dump_leaves_nothing_behind(fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path) -> None:
    """The receipt was checked: the copy is gone, and the receipt is kept."""
    outcome = send_bytes(CORE, papers_of(fleet.host), receiver.addresses, spool=spool, keeps_copy=True)

    assert outcome.receipt is not None
    assert (outcome.failure, outcome.spooled, outcome.copy_failure) == (None, False, None)
    assert os.listdir(tmp_path / "spool/dumps") == []
    assert len(list(spool.receipts())) == 1


def acknowledging_all_then(go: Callable[[Peer], None]) -> Script:
    """Return the script of a receiver that acknowledges every frame as it comes, and after the third does *go*."""

    def script(peer: Peer) -> None:
        peer.say(Ready(STORE, 1 << 24))
        peer.hear()
        peer.say(Accept(0, EMPTY_ROOT))
        for number in (1, 2, 3):
            peer.hear()
            peer.say(Ack(number))
        peer.before_end()
        go(peer)

    return script


@pytest.mark.parametrize("go", [Peer.reset, Peer.hear_end], ids=["amid the frames", "behind END"])
def test_a_receiver_that_loses_all_that_it_acknowledged_costs_nothing(
    go: Callable[[Peer], None], fleet: Fleet, spool: Spool, receiver: Receiver, tmp_path: Path
) -> None:
    """Another one, with another store, gets the whole dump from the copy: complete, without a placeholder."""
    dump, papers = new_dump_id(), papers_of(fleet.host)
    with scripted_receiver(fleet.receiver, acknowledging_all_then(go)) as scripted:
        outcome = send_bytes(CORE, papers, [scripted.address], spool=spool, dump=dump, keeps_copy=True)

    assert (outcome.receipt, outcome.spooled, outcome.spool_failure) == (None, True, None)
    assert kept(spool, dump) == (0, CORE)
    (flushed,) = flush(spool, receiver.addresses, papers)
    assert (flushed.failure, flushed.lost_frames, flushed.sent_frames) == (None, 0, FRAMES)
    assert stored(tmp_path / "store") == {dump: ("complete", CORE)}


def test_the_copy_is_there_while_the_wire_is_well(fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path) -> None:
    """A handler that is killed in the middle leaves all that it had read, from the first byte on."""
    dump, going = new_dump_id(), threading.Event()
    sending = threading.Thread(
        target=send_bytes,
        args=(CORE, papers_of(fleet.host), receiver.addresses),
        kwargs={"spool": spool, "dump": dump, "keeps_copy": True, "hold": Hold(2 * limits.PIECE_BYTES, going)},
    )
    sending.start()
    copy = tmp_path / "spool/dumps" / str(dump) / "core.zst"
    frames = [bytes(Compressor().frame(CORE[at : at + limits.PIECE_BYTES])) for at in (0, limits.PIECE_BYTES)]
    found = b""
    for _ in range(10_000):
        found = copy.read_bytes() if copy.exists() else b""
        if len(found) >= sum(map(len, frames)):
            break
        going.wait(0.002)
    going.set()
    sending.join()

    assert found == b"".join(frames)
    assert not copy.exists()


def test_without_a_receiver_the_copy_is_the_entry(fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path) -> None:
    """Nobody is there: as in the other mode, and no frame stands there twice."""
    dump, papers = new_dump_id(), papers_of(fleet.host)

    outcome = send_bytes(CORE, papers, [NOWHERE], spool=spool, dump=dump, keeps_copy=True)

    assert (outcome.spooled, outcome.spool_failure) == (True, None)
    assert kept(spool, dump) == (0, CORE)
    assert [flushed.failure for flushed in flush(spool, receiver.addresses, papers)] == [None]
    assert stored(tmp_path / "store") == {dump: ("complete", CORE)}


@pytest.mark.parametrize("frames_kept", [0, 1, 3])
def test_a_disk_that_refuses_the_copy_does_not_stop_the_wire(
    frames_kept: int, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dump is delivered and complete; what was copied makes room again, and the cause is told."""
    refuse_after(frames_kept, monkeypatch)

    outcome = send_bytes(CORE, papers_of(fleet.host), receiver.addresses, spool=spool, keeps_copy=True)

    assert outcome.receipt is not None
    assert (outcome.failure, outcome.spooled, outcome.spool_failure) == (None, False, None)
    assert isinstance(outcome.copy_failure, StorageError)
    assert os.listdir(tmp_path / "spool/dumps") == []
    assert [kind for kind, _ in stored(tmp_path / "store").values()] == ["complete"]


def refuse_after(frames: int, monkeypatch: pytest.MonkeyPatch, until: int = 1 << 30) -> None:
    """Let the spool's disk refuse frames from number *frames* to *until*, counted over the whole test."""
    taken = 0
    real = SpoolEntry.append

    def append(self: SpoolEntry, frame: bytes) -> None:
        nonlocal taken
        taken += 1
        if frames < taken <= until:
            raise StorageError("cannot write: no space left on device")
        real(self, frame)

    monkeypatch.setattr(SpoolEntry, "append", append)


def test_after_a_refused_copy_a_wire_that_fails_leaves_the_tail(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the other mode from then on: what was acknowledged is the receiver's, the rest is here."""
    refuse_after(1, monkeypatch, until=2)
    dump, going = new_dump_id(), threading.Event()

    def play(peer: Peer) -> None:
        peer.before_end = going.set
        acknowledging_all_then(Peer.reset)(peer)

    with scripted_receiver(fleet.receiver, play) as scripted:
        outcome = send_bytes(
            CORE, papers_of(fleet.host), [scripted.address], spool=spool, dump=dump, keeps_copy=True,
        )  # fmt: skip

    assert (outcome.spooled, outcome.spool_failure) == (True, None)
    assert isinstance(outcome.copy_failure, StorageError)
    first, tail = kept(spool, dump)
    assert 0 < first <= 3
    assert tail == CORE[first * limits.PIECE_BYTES :]


def test_when_wire_and_disk_fail_what_fits_is_kept_and_labelled(
    fleet: Fleet, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is there and the disk fills up: two frames are kept, nothing is called complete, and the error is the spool's."""
    dump, papers = new_dump_id(), papers_of(fleet.host)
    with monkeypatch.context() as full:
        refuse_after(2, full)
        outcome = send_bytes(CORE, papers, [NOWHERE], spool=spool, dump=dump, keeps_copy=True)

    assert outcome.receipt is None
    assert isinstance(outcome.spool_failure or outcome.copy_failure, StorageError)
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        results = list(flush(spool, receiver.addresses, papers))
    assert [flushed.failure for flushed in results] == [None]
    assert stored(tmp_path / "store") == {dump: ("cut", CORE[: 2 * limits.PIECE_BYTES])}


def test_a_copy_that_could_not_be_made_durable_is_never_called_complete(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first fsync(2) fails; one that is made again would not, for the kernel has dropped what it could not write."""
    dump, real, failed = new_dump_id(), files.sync, []

    def sync(fd: int) -> None:
        if not failed and os.readlink(f"/proc/self/fd/{fd}").endswith("core.zst"):
            failed.append(fd)
            raise StorageError("cannot sync: input/output error")
        real(fd)

    monkeypatch.setattr(files, "sync", sync)
    with scripted_receiver(fleet.receiver, acknowledging_all_then(Peer.hear_end)) as scripted:
        outcome = send_bytes(CORE, papers_of(fleet.host), [scripted.address], spool=spool, dump=dump, keeps_copy=True)

    assert len(failed) == 1
    assert (outcome.receipt, outcome.spooled) == (None, True)
    assert isinstance(outcome.spool_failure, StorageError)
    entry = spool.entry(dump)
    assert entry is not None
    assert entry.end() is None
    entry.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["_connect", "_pass_on"])
def test_an_error_that_nobody_foresaw_costs_no_frame_and_doubles_none(
    where: str, fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own code fails while there is a copy: the entry holds every frame once."""
    real, called = getattr(Transfer, where), []

    def fail(self: Transfer, *arguments: object) -> None:
        called.append(arguments)
        if len(called) == 1:
            if where == "_pass_on":
                real(self, *arguments)
            raise RuntimeError("upgraded in the middle of a crash")
        real(self, *arguments)

    monkeypatch.setattr(Transfer, where, fail)
    dump = new_dump_id()

    outcome = send_bytes(CORE, papers_of(fleet.host), receiver.addresses, spool=spool, dump=dump, keeps_copy=True)

    assert isinstance(outcome.failure, Bug)
    assert kept(spool, dump) == (0, CORE)


def test_a_copy_is_whole_before_the_end_is_said(
    fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that is killed while it waits for the receipt has stated how its source ended: the dump is not called cut."""
    seen = []

    def look(*arguments: object) -> None:
        (dump,) = spool.dump_ids()
        path = Path(f"/proc/self/fd/{spool.fd}").readlink() / "dumps" / str(dump) / "end.json"
        seen.append(path.read_text("ascii"))
        raise StorageError("enough is known")

    monkeypatch.setattr(transfer, "settle", look)
    send_bytes(CORE, papers_of(fleet.host), receiver.addresses, spool=spool, keeps_copy=True)

    assert '"outcome":"complete"' in seen[0]


def test_without_a_spool_there_is_no_copy(fleet: Fleet, receiver: Receiver) -> None:
    """The mode asks for what cannot be had, and the dump is delivered."""
    outcome = send_bytes(CORE, papers_of(fleet.host), receiver.addresses, keeps_copy=True)

    assert outcome.receipt is not None


def test_a_copy_costs_no_memory(fleet: Fleet, spool: Spool) -> None:
    """What was acknowledged is let go of in memory: the ring is the one of the other mode."""
    pump = Pump(Compressor)
    running = Transfer(Parcel(new_dump_id(), b"{}", 1), pump, [], papers_of(fleet.host), spool, keeps_copy=True)
    running._custody.begin_copy()
    frame = Compressor().frame(bytes(range(256)) * 4096)
    for number in range(100):
        running._custody.take(transfer.Frame(bytes(frame), bytes(32), limits.PIECE_BYTES))
        running._custody.acknowledge(number + 1)

    assert (len(running._custody.ring), running._custody.ring_bytes) == (0, 0)
    running._custody.settled()
