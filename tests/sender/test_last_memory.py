"""Memory that ends at one step of a transfer, or an error that comes twice: what is here is kept and labelled, and nobody waits."""

import os
import random
from pathlib import Path
from typing import Any, Final

import pytest

from securecore import limits, merkle
from securecore.certs import jws
from securecore.dump.manifest import parse_manifest
from securecore.dump.reader import open_container
from securecore.errors import Bug, StorageError, UnreachableError
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender.allowance import Allowance
from securecore.sender.alone import keep_alone
from securecore.sender.custody import Custody
from securecore.sender.delivery import Delivery
from securecore.sender.flush import flush
from securecore.sender.parcel import Parcel
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import SpoolEntry
from securecore.sender.transfer import Transfer
from securecore.store.layout import open_store
from tests.support.certificates import Fleet
from tests.support.receivers import new_dump_id, papers_of, send_bytes

NOWHERE: Final = Address("127.0.0.1:9")
CORE: Final = random.Random(14).randbytes(7 * limits.PIECE_BYTES // 2)
FRAMES: Final = 4
OUT: Final = MemoryError()
GONE: Final = UnreachableError("the receiver is gone")
MODES: Final = pytest.mark.parametrize("keeps_copy", [False, True], ids=["tail", "whole"])


def fail_at(calls: range, kind: type, name: str, patch: pytest.MonkeyPatch, error: BaseException = OUT) -> None:
    """Let the calls of a method with these numbers raise."""
    real, made = getattr(kind, name), []

    def act(self: Any, *arguments: Any, **options: Any) -> Any:
        made.append(len(made))
        if made[-1] in calls:
            raise error
        return real(self, *arguments, **options)

    patch.setattr(kind, name, act)


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


@pytest.mark.parametrize("number", range(FRAMES))
def test_a_copy_that_finds_no_memory_is_given_up_and_the_wire_goes_on(
    number: int, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame was there already: the receiver has all of it, and nothing waits that says another size than it has."""
    fail_at(range(number, number + 1), SpoolEntry, "append", monkeypatch)
    outcome = send_bytes(CORE, papers_of(fleet.host), receiver.addresses, spool=spool, keeps_copy=True)

    assert isinstance(outcome.copy_failure, StorageError)
    assert outcome.copy_failure.message == "out of memory"
    assert stored(tmp_path / "store") == [("complete", CORE)]
    assert os.listdir(tmp_path / "spool/dumps") == []


def test_a_copy_whose_removal_finds_no_memory_does_not_take_the_receipt_back(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dump is delivered; the copy is offered by the next flush, and removed then."""
    papers = papers_of(fleet.host)
    with monkeypatch.context() as poor:
        fail_at(range(1), Spool, "remove", poor)
        outcome = send_bytes(CORE, papers, receiver.addresses, spool=spool, keeps_copy=True)
    flushed = list(flush(spool, receiver.addresses, papers))

    assert outcome.receipt is not None
    assert (outcome.failure, outcome.spooled) == (None, False)
    assert isinstance(outcome.copy_failure, StorageError)
    assert [(one.failure, one.sent_frames) for one in flushed] == [(None, 0)]
    assert stored(tmp_path / "store") == [("complete", CORE)]


@MODES
@pytest.mark.parametrize("number", range(FRAMES))
def test_a_tree_that_finds_no_memory_knows_nothing_of_the_frame(
    keeps_copy: bool, number: int, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does anything else: what waits in the spool is what came before, and is delivered."""
    papers = papers_of(fleet.host)
    with monkeypatch.context() as poor:
        fail_at(range(number, number + 1), merkle.Frontier, "append", poor)
        outcome = send_bytes(CORE, papers, [NOWHERE], spool=spool, keeps_copy=keeps_copy)
    (flushed,) = flush(spool, receiver.addresses, papers)

    assert (outcome.frames, outcome.source_failure, flushed.failure) == (number, "out of memory", None)
    assert stored(tmp_path / "store") == [("cut", CORE[: number * limits.PIECE_BYTES])]


def test_a_tree_without_memory_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the hashes of a leaf is not made, the root is the one from before, and the leaf can be added again."""
    leaves = [bytes([number]) * 32 for number in range(8)]
    for fatal in range(3):
        tree, whole = merkle.Frontier(), merkle.Frontier()
        tree.extend(leaves[:7])
        whole.extend(leaves)
        before, real, calls = tree.root(), merkle.node_hash, []

        def node_hash(left: bytes, right: bytes, fatal: int = fatal, calls: list[int] = calls, real: Any = real) -> bytes:
            calls.append(1)
            if len(calls) == fatal + 1:
                raise MemoryError
            hashed: bytes = real(left, right)
            return hashed

        with monkeypatch.context() as poor:
            poor.setattr(merkle, "node_hash", node_hash)
            with pytest.raises(MemoryError):
                tree.append(leaves[7])
        assert (tree.size, tree.root()) == (7, before)
        tree.append(leaves[7])
        assert tree.root() == whole.root()


@MODES
@pytest.mark.parametrize("has_wire", [True, False])
@pytest.mark.parametrize("number", range(FRAMES))
def test_a_ring_that_finds_no_memory_on_its_way_to_the_spool_is_not_lost(
    keeps_copy: bool, has_wire: bool, number: int, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One write finds none, the next one does: every frame that had been made is there, also where the wire failed at the end."""
    papers = papers_of(fleet.host)
    with monkeypatch.context() as poor:
        fail_at(range(number, number + 1), SpoolEntry, "append", poor)
        if has_wire:
            fail_at(range(1), Delivery, "end", poor, GONE)
        outcome = send_bytes(CORE, papers, receiver.addresses if has_wire else [NOWHERE], spool=spool, keeps_copy=keeps_copy)
    (flushed,) = flush(spool, receiver.addresses, papers)

    assert (outcome.spooled, outcome.spool_failure, flushed.failure) == (True, None, None)
    ((kind, plain),) = stored(tmp_path / "store")
    assert CORE.startswith(plain)
    assert len(plain) == outcome.size if has_wire else len(plain) >= min(len(CORE), (number + 1) * limits.PIECE_BYTES)
    assert kind == ("complete" if outcome.source_failure is None else "cut")


@MODES
def test_a_ring_that_finds_no_memory_at_all_is_told(
    keeps_copy: bool, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What got into the spool by then is delivered as cut, and the log does not say that all of it is there."""
    papers = papers_of(fleet.host)
    with monkeypatch.context() as poor:
        fail_at(range(2, 100), SpoolEntry, "append", poor)
        outcome = send_bytes(CORE, papers, [NOWHERE], spool=spool, keeps_copy=keeps_copy)
    (flushed,) = flush(spool, receiver.addresses, papers)

    assert isinstance(outcome.spool_failure, StorageError)
    assert (outcome.spooled, outcome.spool_failure.message, flushed.failure) == (True, "out of memory", None)
    assert stored(tmp_path / "store") == [("cut", CORE[: 2 * limits.PIECE_BYTES])]


def test_a_frame_that_went_out_by_half_ends_the_wire(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can follow it there: what is here is in the spool, with that frame, and is delivered."""
    papers = papers_of(fleet.host)
    with monkeypatch.context() as poor:
        fail_at(range(2, 3), Delivery, "send_frame", poor)
        outcome = send_bytes(CORE, papers, receiver.addresses, spool=spool)
    (flushed,) = flush(spool, receiver.addresses, papers)

    assert (outcome.spooled, outcome.frames, flushed.failure) == (True, 3, None)
    assert stored(tmp_path / "store") == [("cut", CORE[: 3 * limits.PIECE_BYTES])]


@MODES
def test_a_spool_that_finds_no_memory_to_begin_is_asked_again(
    keeps_copy: bool, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver has a part, and its store is still known: the tail goes on there."""
    papers = papers_of(fleet.host)
    with monkeypatch.context() as poor:
        fail_at(range(1), Delivery, "end", poor, GONE)
        if not keeps_copy:
            fail_at(range(1), Spool, "begin", poor)
        else:
            fail_at(range(1), Custody, "fall_back", poor)
        outcome = send_bytes(CORE, papers, receiver.addresses, spool=spool, keeps_copy=keeps_copy)
    (flushed,) = flush(spool, receiver.addresses, papers)

    assert (outcome.spooled, outcome.spool_failure, flushed.failure) == (True, None, None)
    assert stored(tmp_path / "store") == [("complete", CORE)]


@MODES
@pytest.mark.parametrize("has_wire", [True, False])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Spool, "begin"), (Custody, "begin_copy"), (Custody, "fall_back"), (Allowance, "least_bytes"), (Transfer, "_open_at"),
        (Delivery, "open"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_memory_that_ends_before_the_first_frame_costs_none(
    kind: type, name: str, times: int, has_wire: bool, keeps_copy: bool, fleet: Fleet, receiver: Receiver, spool: Spool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """There is none that could be lost: all of the core goes to the receiver, or to the spool once that finds memory."""
    papers = papers_of(fleet.host)
    with monkeypatch.context() as poor:
        fail_at(range(times), kind, name, poor)
        outcome = send_bytes(CORE, papers, receiver.addresses if has_wire else [NOWHERE], spool=spool, keeps_copy=keeps_copy)
    flushed = list(flush(spool, receiver.addresses, papers))

    assert (outcome.source_failure, outcome.spool_failure, outcome.size) == (None, None, len(CORE))
    assert outcome.spooled or outcome.receipt is not None
    assert [one.failure for one in flushed] == [None] * outcome.spooled
    assert stored(tmp_path / "store") == [("complete", CORE)]


def test_a_copy_that_finds_no_memory_to_begin_is_left_out(
    fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver is well: it has the dump, and the log says that there was no copy."""
    fail_at(range(1), Custody, "begin_copy", monkeypatch)
    outcome = send_bytes(CORE, papers_of(fleet.host), receiver.addresses, spool=spool, keeps_copy=True)

    assert (outcome.failure, outcome.spooled) == (None, False)
    assert isinstance(outcome.copy_failure, StorageError)
    assert outcome.copy_failure.message == "out of memory"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@MODES
@pytest.mark.parametrize("error", [RuntimeError("upgraded in the middle of a crash"), OUT], ids=str)
def test_an_error_that_comes_again_and_again_holds_nobody(
    error: BaseException, keeps_copy: bool, fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be done for the core, but its process is let go, who called hears of it, and the entry is nobody's any more."""
    fail_at(range(2, 1000), Transfer, "_pass_on", monkeypatch, error)
    fail_at(range(1000), Transfer, "_conclude", monkeypatch, error)
    core, papers = os.urandom(40 * limits.PIECE_BYTES), papers_of(fleet.host)
    with pytest.raises(Bug, match="died"):
        send_bytes(core, papers, receiver.addresses, spool=spool, keeps_copy=keeps_copy)

    for dump in spool.dump_ids():
        entry = spool.entry(dump)
        assert entry is not None
        entry.close()


def test_an_unforeseen_error_without_a_thread_leaves_an_entry_that_nobody_holds(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there by then can be delivered at once, by the same process too."""
    reading, writing = os.pipe()
    os.write(writing, b"core")
    os.close(writing)
    parcel = Parcel(new_dump_id(), b"{}", 1)
    with monkeypatch.context() as poor:
        fail_at(range(1), Custody, "finish", poor, RuntimeError("nobody foresaw it"))
        with pytest.raises(RuntimeError):
            keep_alone(reading, parcel, spool, b"", lambda: None, GONE)
    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))

    assert flushed.failure is None
    assert stored(tmp_path / "store") == [("cut", b"core")]
