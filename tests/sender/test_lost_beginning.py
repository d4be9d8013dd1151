"""A store that no longer has what it acknowledged: the rest is delivered all the same, and says what is missing.

Real flushes to a real receiver, whose store was put back from an older backup, as it looks from the sender's side.
"""

import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore import limits
from securecore.certs import jws
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.dump.manifest import Manifest, parse_manifest
from securecore.dump.reader import open_container
from securecore.errors import UnreachableError
from securecore.merkle import Frontier, leaf_hash, root_of
from securecore.names import DumpId, StoreId
from securecore.receiver.server import Receiver
from securecore.sender.consignment import consign, derived_id
from securecore.sender.delivery import OtherStoreError
from securecore.sender.flush import Flushed, flush
from securecore.sender.schedule import Missed, Schedule, read_schedule, write_schedule
from securecore.sender.spool import Spool
from securecore.store.layout import open_store
from securecore.wire.messages import Refusal, Refuse
from tests.support.certificates import Fleet
from tests.support.dumps import dump_id
from tests.support.proxies import Cut, cutting
from tests.support.receivers import papers_of, wait_until_idle
from tests.support.scripted import scripted_receiver
from tests.support.tails import CORE, FIRST, FRAMES, LABELLED, PIECES, keep_tail, put


class Stored(NamedTuple):
    """A published dump."""

    manifest: Manifest
    plain: bytes


def stored(path: Path, dump: DumpId) -> Stored:
    """Return what the store has published under an id, its manifest held against its frames."""
    with open_store(str(path)) as store:
        (host,) = store.host_names()
        with store.open_dump(host, dump) as files:
            manifest = parse_manifest(jws.parse(files.read_manifest() or b"", limits.MAX_MANIFEST_BYTES).payload)
            reader = open_container(files.open_core())
            frames = [reader.frame(index) for index in range(len(reader.entries))]
            assert (manifest.frames, manifest.root) == (len(frames), root_of(map(leaf_hash, frames)))
            assert manifest.size == reader.size
            return Stored(manifest, b"".join(reader.pieces()))


def deliver(spool: Spool, receiver: Receiver, fleet: Fleet) -> Flushed:
    """Flush the one dump of the spool."""
    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))
    return flushed


@pytest.fixture
def store(receiver: Receiver, tmp_path: Path) -> StoreId:
    """The receiver's store."""
    with open_store(str(tmp_path / "store")) as opened:
        return opened.store_id


def test_a_store_that_lost_all_gets_placeholders_and_the_rest(
    store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """The dump keeps its id, each byte of the rest its offset, and the manifest says how much is no content."""
    dump = keep_tail(spool, store)

    flushed = deliver(spool, receiver, fleet)

    assert (flushed.failure, flushed.lost_frames, flushed.delivered_as) == (None, FIRST, None)
    assert flushed.sent_frames == len(FRAMES) - FIRST
    manifest, plain = stored(tmp_path / "store", dump)
    assert (manifest.outcome, manifest.lost_frames, manifest.predicted_size) == ("cut", FIRST, len(CORE))
    assert plain == LABELLED
    assert spool.dump_ids() == []


HELD: Final[dict[str, list[bytes]]] = {
    "fewer frames than were acknowledged": PIECES[:1],
    "as many, but others": [b"x" * limits.PIECE_BYTES] * FIRST,
    "more, but others": [b"x" * limits.PIECE_BYTES] * (FIRST + 1),
    "more frames than there are": [*PIECES[:5], b"y" * limits.PIECE_BYTES, b"z"],
}
"""What the store may have under the dump's id that is no beginning of what the sender has."""


@pytest.mark.parametrize("name", HELD)
def test_what_nobody_can_vouch_for_is_left_alone(
    name: str, store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """The rest travels as a dump of its own, and the receipt log says which dump it stands for."""
    dump = keep_tail(spool, store)
    put(receiver, fleet, dump, HELD[name])

    flushed = deliver(spool, receiver, fleet)

    other = derived_id(dump, FIRST)
    assert (flushed.failure, flushed.lost_frames, flushed.delivered_as) == (None, FIRST, other)
    manifest, plain = stored(tmp_path / "store", other)
    assert (manifest.outcome, manifest.lost_frames) == ("cut", FIRST)
    assert plain == LABELLED
    (facts,) = spool.receipts()
    assert (facts["dump"], facts["instead_of"]) == (str(other), str(dump))
    assert spool.dump_ids() == []
    with open_store(str(tmp_path / "store")) as opened:
        (host,) = opened.host_names()
        assert opened.dump_ids(host) == [other]
        assert (tmp_path / "store/incoming" / str(host) / str(dump)).is_dir()


def test_a_whole_dump_beside_other_frames_stays_complete(
    store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """Nothing of it was ever acknowledged, so nothing is lost: under its other id it is what it was."""
    dump = keep_tail(spool, store, first=0)
    put(receiver, fleet, dump, [b"x" * limits.PIECE_BYTES])

    flushed = deliver(spool, receiver, fleet)

    assert (flushed.failure, flushed.lost_frames, flushed.delivered_as) == (None, 0, derived_id(dump, 0))
    manifest, plain = stored(tmp_path / "store", derived_id(dump, 0))
    assert (manifest.outcome, manifest.lost_frames) == ("complete", 0)
    assert plain == CORE


def test_a_store_that_kept_its_word_gets_the_rest_and_no_label(
    store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """What is labelled above is only what was lost."""
    dump = keep_tail(spool, store)
    put(receiver, fleet, dump, PIECES[:FIRST])

    flushed = deliver(spool, receiver, fleet)

    assert (flushed.failure, flushed.lost_frames, flushed.delivered_as) == (None, 0, None)
    assert stored(tmp_path / "store", dump).manifest.outcome == "complete"
    assert stored(tmp_path / "store", dump).plain == CORE


ZEROES: Final = [bytes(limits.PIECE_BYTES)] * FIRST


@pytest.mark.parametrize("held", [ZEROES[:1], ZEROES, [*ZEROES, *PIECES[FIRST:5]]], ids=len)
def test_a_delivery_with_placeholders_that_was_cut_goes_on(
    held: list[bytes], store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """The next flush finds its own placeholders at the receiver, and sends what is not there yet."""
    dump = keep_tail(spool, store)
    put(receiver, fleet, dump, held)

    flushed = deliver(spool, receiver, fleet)

    assert (flushed.failure, flushed.lost_frames, flushed.delivered_as) == (None, FIRST, None)
    assert flushed.sent_frames == len(FRAMES) - max(FIRST, len(held))
    assert stored(tmp_path / "store", dump).plain == LABELLED


def test_a_delivery_apart_that_was_cut_goes_on(
    store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """Its id is derived, not drawn: the next flush comes back to the same dump."""
    dump = keep_tail(spool, store)
    put(receiver, fleet, dump, PIECES[:1])
    put(receiver, fleet, derived_id(dump, FIRST), [*ZEROES, PIECES[FIRST]])

    flushed = deliver(spool, receiver, fleet)

    assert (flushed.failure, flushed.sent_frames) == (None, len(FRAMES) - FIRST - 1)
    assert stored(tmp_path / "store", derived_id(dump, FIRST)).plain == LABELLED


@pytest.mark.parametrize("held", [[], PIECES[:1]], ids=["with its id", "apart"])
@pytest.mark.parametrize("has_end", [True, False], ids=["whole", "of a killed handler"])
def test_a_lost_receipt_is_asked_for_again(
    held: list[bytes], has_end: bool, store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """The sender dies before it has kept the receipt: the next flush sends no frame, and gets it."""
    dump = keep_tail(spool, store)
    if held:
        put(receiver, fleet, dump, held)
    if not has_end:
        (tmp_path / "spool/dumps" / str(dump) / "end.json").unlink()
    first = deliver(spool, receiver, fleet)
    assert first.failure is None
    keep_tail(spool, store, dump=dump)
    if not has_end:
        (tmp_path / "spool/dumps" / str(dump) / "end.json").unlink()

    again = deliver(spool, receiver, fleet)

    assert (again.failure, again.sent_frames) == (None, 0)
    assert (again.lost_frames, again.delivered_as) == ((FIRST if has_end or held else 0), first.delivered_as)
    assert spool.dump_ids() == []


def test_a_wire_that_is_cut_among_the_placeholders_loses_nothing(
    store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """The entry stays until the receipt is there, however often it takes."""
    dump = keep_tail(spool, store)
    failures = []
    for after_bytes in (6_000, limits.PIECE_BYTES, limits.PIECE_BYTES // 2):
        with cutting(receiver.addresses[0], Cut(after_bytes, from_sender=True)) as proxy:
            failures += [flushed.failure for flushed in flush(spool, [proxy.address], papers_of(fleet.host))]
        wait_until_idle(receiver)

    assert [type(failure) for failure in failures] == [UnreachableError] * 3
    assert spool.dump_ids() == [dump]
    assert deliver(spool, receiver, fleet).failure is None
    assert stored(tmp_path / "store", dump).plain == LABELLED


def test_when_all_was_acknowledged_and_all_is_lost_the_crash_is_still_known(
    store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """Not a frame is left here: the report is, and the dump says that there was a core, and that none of it is there."""
    dump = keep_tail(spool, store, first=len(FRAMES))

    flushed = deliver(spool, receiver, fleet)

    assert (flushed.failure, flushed.lost_frames) == (None, len(FRAMES))
    manifest, plain = stored(tmp_path / "store", dump)
    assert (manifest.outcome, manifest.lost_frames) == ("cut", len(FRAMES))
    assert not any(plain)


def test_a_dump_of_which_only_the_receipt_is_missing_ends_as_it_was(
    store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """Every frame was acknowledged, the short last one too: the tail is empty, and the dump is complete."""
    dump = keep_tail(spool, store, first=len(FRAMES))
    put(receiver, fleet, dump, PIECES)

    assert deliver(spool, receiver, fleet).failure is None
    assert stored(tmp_path / "store", dump).manifest.outcome == "complete"
    assert stored(tmp_path / "store", dump).plain == CORE


ELSEWHERE: Final = StoreId.make(b"\x07" * 16)


class Clock:
    """A host's clock that a test sets forward."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        """Return Unix seconds."""
        return self.now


def test_a_store_that_is_missed_for_long_counts_as_lost(
    store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """It may come back, so its dump waits for it; but not for ever."""
    dump, clock, papers = keep_tail(spool, ELSEWHERE), Clock(), papers_of(fleet.host)
    kept = []
    looks, rest_s = divmod(limits.STORE_LOST_AFTER_S - 1, limits.STORE_LOOK_MAX_S)
    for passed_s in (0, rest_s, *[limits.STORE_LOOK_MAX_S] * looks):
        clock.now += passed_s
        kept += [flushed.failure.message for flushed in flush(spool, receiver.addresses, papers, clock) if flushed.failure]

    clock.now += 2
    (flushed,) = flush(spool, receiver.addresses, papers, clock)

    assert len(kept) == 2 + looks
    assert all(f"another store than the one that holds the beginning, {ELSEWHERE}" in words for words in kept)
    assert (flushed.failure, flushed.lost_frames, flushed.delivered_as) == (None, FIRST, None)
    assert stored(tmp_path / "store", dump).plain == LABELLED


def test_a_store_is_missed_from_when_it_was_first_not_there(store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """The age of a dump says nothing: a host that was off for a month has missed the store for a moment when it comes back."""
    keep_tail(spool, ELSEWHERE)
    clock = Clock()
    clock.now += 30 * 24 * 3600

    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host), clock)

    assert flushed.failure is not None


def test_a_store_is_not_missed_while_nobody_looks(store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """A host that is switched off between two looks, or whose clock jumps by years, has looked for it twice."""
    keep_tail(spool, ELSEWHERE)
    clock = Clock()
    kept = []
    for passed_s in (0, 30 * 24 * 3600, 20 * 365 * 24 * 3600, -5 * 365 * 24 * 3600, 60):
        clock.now += passed_s
        kept += [flushed.failure is not None for flushed in flush(spool, receiver.addresses, papers_of(fleet.host), clock)]

    assert kept == [True] * 5


def test_a_store_that_was_met_again_is_missed_anew(store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """Absences do not add up."""
    clock, papers = Clock(), papers_of(fleet.host)
    dump = keep_tail(spool, store)
    put(receiver, fleet, dump, PIECES[:FIRST])
    keep_tail(spool, store)
    write_schedule(spool.fd, Schedule(missed=((store, Missed(limits.STORE_LOST_AFTER_S, int(clock.now))),)))

    list(flush(spool, receiver.addresses, papers, clock))

    assert read_schedule(spool.fd).missed == ()


def test_a_store_that_was_given_up_is_missed_anew(store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """It came back, has the beginning of another dump, and is away for a moment: that it was away before says nothing."""
    clock, papers = Clock(), papers_of(fleet.host)
    write_schedule(spool.fd, Schedule(missed=((ELSEWHERE, Missed(limits.STORE_LOST_AFTER_S, int(clock.now))),)))
    keep_tail(spool, ELSEWHERE)

    (given_up,) = flush(spool, receiver.addresses, papers, clock)
    keep_tail(spool, ELSEWHERE)
    (waits,) = flush(spool, receiver.addresses, papers, clock)

    assert (given_up.failure, given_up.lost_frames) == (None, FIRST)
    assert isinstance(waits.failure, OtherStoreError)
    assert read_schedule(spool.fd).missed == ((ELSEWHERE, Missed(0, int(clock.now))),)


def test_a_store_is_missed_still_when_its_dump_was_passed_over(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """Another process had it: nobody knows then which store it seeks."""
    clock, papers = Clock(), papers_of(fleet.host)
    missed = ((ELSEWHERE, Missed(5990, int(clock.now))),)
    write_schedule(spool.fd, Schedule(missed=missed))
    locked = spool.entry(keep_tail(spool, ELSEWHERE))
    assert locked is not None

    assert list(flush(spool, receiver.addresses, papers, clock)) == []
    locked.close()

    assert read_schedule(spool.fd).missed == missed


def test_a_receiver_that_says_no_is_not_missed(store: StoreId, fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """It may well have the beginning: however often it refuses, nothing goes elsewhere, and it says when to come again."""
    clock, papers = Clock(), papers_of(fleet.host)
    write_schedule(spool.fd, Schedule(missed=((ELSEWHERE, Missed(limits.STORE_LOST_AFTER_S, int(clock.now))),)))
    keep_tail(spool, ELSEWHERE)
    with scripted_receiver(fleet.receiver, lambda peer: peer.say(Refuse(Refusal.BUSY, "too many", 60))) as busy:
        (flushed,) = flush(spool, [busy.address, *receiver.addresses], papers, clock)

    assert isinstance(flushed.failure, OtherStoreError)
    assert (flushed.failure.is_missed, flushed.failure.retry_after_s) == (False, 60)


@pytest.mark.parametrize("first", [0, 1, FIRST, len(FRAMES)])
def test_each_way_tells_its_own_tree(first: int, store: StoreId, spool: Spool) -> None:
    """Over any number of frames: the root of those frames, or that it cannot tell."""
    dump = keep_tail(spool, store, first=first)
    entry = spool.entry(dump)
    assert entry is not None
    ways = consign(entry)

    def roots(tree_at: Callable[[int], Frontier | None]) -> list[bytes | None]:
        return [tree.root() if (tree := tree_at(frames)) else None for frames in range(-1, len(FRAMES) + 2)]

    placed = [ZERO_PIECE_FRAME] * first + FRAMES[first:]
    apart = [None, *(root_of(map(leaf_hash, placed[:frames])) for frames in range(len(FRAMES) + 1)), None]
    begun = [None, *(root_of(map(leaf_hash, FRAMES[:frames])) for frames in range(len(FRAMES) + 1)), None]
    assert roots(ways.as_begun.tree_at) == [root if at > first else None for at, root in enumerate(begun)]
    assert roots(ways.apart.tree_at) == apart
    assert (ways.with_placeholders is None) == (first == 0)
    entry.close()


def test_a_derived_id_is_the_documented_one() -> None:
    """A later flush, and another implementation, come to the same id; it is a version 7 UUID of the same moment."""
    dump = dump_id(5)
    digest = sha256(b"securecore/instead\x00" + bytes(dump) + b"\0\0\0\0\0\0\0\3").digest()

    raw = bytearray(bytes(dump)[:6] + digest[:10])
    raw[6], raw[8] = 0x70 | raw[6] & 0x0F, 0x80 | raw[8] & 0x3F
    assert bytes(derived_id(dump, 3)) == bytes(raw)
    assert derived_id(dump, 3).time_ms == dump.time_ms
    assert len({derived_id(dump, first) for first in range(100)} | {derived_id(dump_id(6), 3)}) == 101
