"""A frame that was cut in its middle goes on from there: what came is kept, offered, joined, and believed only as a whole."""

import os
import random
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.merkle import leaf_hash
from securecore.names import DumpId
from securecore.wire.messages import HEADER_BYTES, Accept, Ack, Data, End, Receipt, Refusal, Rest, Zero, encode
from tests.support.certificates import Fleet
from tests.support.hands import Hand
from tests.support.receivers import new_dump_id, running_receiver
from tests.support.stages import Stage

PIECE: Final = random.Random(21).randbytes(limits.PIECE_BYTES)
FRAME: Final = Compressor().frame(PIECE)
OTHER: Final = Compressor().frame(random.Random(22).randbytes(limits.PIECE_BYTES))
CUTS: Final = [1, 4, 5, 9, 13, 1000, len(FRAME) // 2, len(FRAME) - 5, len(FRAME) - 1]
"""Bytes of the frame that have come: within its magic number, its header, its first block and its checksum."""


def cut(stage: Stage, dump: DumpId, said: bytes) -> None:
    """Open a dump, say some bytes and go; return once the receiver has noticed."""
    hand = stage.hand()
    hand.open(dump)
    hand.put(said)
    hand.close()
    stage.wait_until(lambda: stage.receiver.session_count == 0)


def offer(answer: Accept | Receipt) -> tuple[int, bytes]:
    """Return what an ACCEPT offers to keep."""
    assert isinstance(answer, Accept)
    return answer.torn_bytes, answer.torn_hash


def offer_of(beginning: bytes) -> tuple[int, bytes]:
    """Return what an ACCEPT says that keeps *beginning*."""
    return len(beginning), sha256(beginning).digest() if beginning else b""


def end(hand: Hand, dump: DumpId, piece: bytes = PIECE, frame: bytes = FRAME) -> None:
    """Say END for a dump of one frame, and assert that it gets its receipt."""
    hand.tree.append(leaf_hash(frame))
    hand.size = len(piece)
    hand.put(encode(End(hand.manifest(dump))))
    while isinstance(message := hand.answer(), Ack):
        pass
    assert isinstance(message, Receipt), message


def stored(stage: Stage, dump: DumpId) -> bytes:
    """Return the core of a dump as the store has it."""
    (core,) = (path for path in stage.store.rglob("core.zst") if path.parent.name == str(dump))
    return core.read_bytes()


@pytest.mark.parametrize("length", CUTS)
def test_a_frame_goes_on_where_it_was_cut(length: int, stage: Stage) -> None:
    """Its beginning is offered, only the rest is sent, and the dump is what it would have been."""
    dump = new_dump_id()
    cut(stage, dump, encode(Data(FRAME))[: HEADER_BYTES + length])
    hand = stage.hand()

    assert offer(hand.open(dump)) == offer_of(FRAME[:length])
    hand.put(encode(Rest(FRAME[length:])))
    end(hand, dump)
    assert stored(stage, dump).startswith(FRAME)


def test_a_rest_that_is_cut_goes_on_where_that_was_cut(stage: Stage) -> None:
    """However often: each connection brings the frame a little further."""
    dump, ends = new_dump_id(), [len(FRAME) * part // 10 for part in range(1, 10)]
    cut(stage, dump, encode(Data(FRAME))[: HEADER_BYTES + ends[0]])
    for begins, ends_at in pairwise(ends):
        cut(stage, dump, encode(Rest(FRAME[begins:]))[: HEADER_BYTES + ends_at - begins])
    hand = stage.hand()

    assert offer(hand.open(dump)) == offer_of(FRAME[: ends[-1]])
    hand.put(encode(Rest(FRAME[ends[-1] :])))
    end(hand, dump)


def test_a_connection_without_a_byte_of_the_frame_costs_nothing(stage: Stage) -> None:
    """What was kept is kept, when a connection ends before REST has begun, or within its header."""
    dump = new_dump_id()
    cut(stage, dump, encode(Data(FRAME))[:50_000])
    for said in (b"", encode(Rest(FRAME[50_000 - HEADER_BYTES :]))[:HEADER_BYTES]):
        cut(stage, dump, said)

    assert offer(stage.hand().open(dump)) == offer_of(FRAME[: 50_000 - HEADER_BYTES])


def test_what_a_connection_has_brought_is_kept_when_a_newer_one_takes_over(stage: Stage) -> None:
    """A sender comes back before the receiver has noticed that the old connection is dead."""
    dump, older, newer = new_dump_id(), stage.hand(), stage.hand()
    older.open(dump)
    older.put(encode(Data(FRAME))[:700_000])
    # How much of it was read by then is a matter of time; that it is the beginning of the frame is not.
    begun, digest = offer(newer.open(dump))

    assert 0 <= begun <= 700_000 - HEADER_BYTES
    assert digest == offer_of(FRAME[:begun])[1]
    newer.put(encode(Rest(FRAME[begun:]) if begun else Data(FRAME)))
    end(newer, dump)


@pytest.mark.parametrize("length", [5, 300_000])
def test_a_receiver_that_was_killed_while_it_wrote_offers_what_it_has_written(length: int, fleet: Fleet, tmp_path: Path) -> None:
    """A new process finds the beginning of a frame behind the whole ones, as kill -9 in the middle of a write leaves it."""
    dump, store = new_dump_id(), tmp_path / "store"
    with running_receiver(fleet.receiver, store) as running:
        hand = Hand(fleet.host, running.addresses)
        hand.open(dump)
        hand.send(PIECE)
        hand.close()
    (core,) = store.rglob("core.zst")
    with core.open("ab") as file:
        file.write(OTHER[:length])
    with running_receiver(fleet.receiver, store) as running:
        again = Hand(fleet.host, running.addresses)
        again.tree, again.size = hand.tree, hand.size
        answer = again.open(dump)
        assert isinstance(answer, Accept)
        assert (answer.held, answer.root) == (1, hand.tree.root())
        assert offer(answer) == offer_of(OTHER[:length])
        again.put(encode(Rest(OTHER[length:])))
        again.tree.append(leaf_hash(OTHER))
        again.size += limits.PIECE_BYTES
        assert isinstance(again.delivery.end(again.manifest(dump)), Receipt)
        again.close()
    (core,) = store.rglob("core.zst")
    assert core.read_bytes().startswith(FRAME + OTHER)


@pytest.mark.parametrize("said", [Data(FRAME), Data(OTHER), Zero(1)], ids=["whole", "another", "zero"])
def test_who_does_not_take_the_offer_sends_whole_frames(said: Data | Zero, stage: Stage) -> None:
    """An older sender, or one whose frame begins otherwise: what was kept is dropped."""
    dump = new_dump_id()
    cut(stage, dump, encode(Data(FRAME))[:50_000])
    hand = stage.hand()
    hand.open(dump)
    hand.put(encode(said))
    hand.close()
    stage.wait_until(lambda: stage.receiver.session_count == 0)

    answer = stage.hand().open(dump)
    assert isinstance(answer, Accept)
    assert (answer.held, *offer(answer)) == (1, 0, b"")


def test_a_dump_that_ends_drops_the_beginning_of_a_frame(stage: Stage) -> None:
    """Without a frame: the container is a seek table and nothing else."""
    dump = new_dump_id()
    cut(stage, dump, encode(Data(FRAME))[:50_000])
    hand = stage.hand()
    hand.open(dump)
    hand.delivery.end(hand.manifest(dump))

    assert stage.published() == [dump]
    assert len(stored(stage, dump)) == 17


def test_the_beginning_of_a_frame_is_never_held(stage: Stage) -> None:
    """One byte before its end it is not counted, acknowledged or hashed into a root."""
    dump = new_dump_id()
    cut(stage, dump, encode(Data(FRAME))[:-1])
    answer = stage.hand().open(dump)

    assert isinstance(answer, Accept)
    assert (answer.held, answer.root) == (0, sha256().digest())


def begun(stage: Stage, dump: DumpId) -> Hand:
    """Return a sender to whom the first half of FRAME has been offered."""
    cut(stage, dump, encode(Data(FRAME))[: HEADER_BYTES + len(FRAME) // 2])
    stage.forget_log()
    hand = stage.hand()
    assert offer(hand.open(dump))[0] == len(FRAME) // 2
    return hand


HALF: Final = FRAME[len(FRAME) // 2 :]
HOSTILE: Final[dict[str, tuple[bytes, Refusal, str]]] = {
    "twice": (encode(Rest(HALF)) * 2, Refusal.BAD_REQUEST, "no beginning of a frame was offered"),
    "behind a frame": (encode(Data(FRAME)) + encode(Rest(HALF)), Refusal.BAD_REQUEST, "no beginning of a frame was offered"),
    "behind zeroes": (encode(Zero(1)) + encode(Rest(HALF)), Refusal.BAD_REQUEST, "no beginning of a frame was offered"),
    "too long": (
        encode(Rest(bytes(limits.MAX_FRAME_BYTES - len(FRAME) // 2 + 1))), Refusal.BAD_REQUEST, "REST makes a frame of 1052737",
    ),
    "empty": (bytes([0, 0, 0, 0, 16]), Refusal.BAD_REQUEST, "REST is 0 bytes long"),
    "a byte too few": (encode(Rest(HALF[:-1])), Refusal.BAD_FRAME, "frame is cut off"),
    "a byte too many": (encode(Rest(HALF + b"\0")), Refusal.BAD_FRAME, "frame is followed by 1 more bytes"),
    "a whole frame": (encode(Rest(FRAME[: limits.MAX_FRAME_BYTES // 2 - 4096])), Refusal.BAD_FRAME, "frame"),
    "zeroes": (encode(Rest(bytes(len(HALF)))), Refusal.BAD_FRAME, "frame"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_rest_that_may_not_be_is_refused(name: str, stage: Stage) -> None:
    """By state and length before it is read, by the frame check when it is joined."""
    said, code, words = HOSTILE[name]
    hand = begun(stage, new_dump_id())
    hand.put(said)

    stage.refused(hand, code, words)


def test_a_rest_without_an_offer_is_refused(stage: Stage) -> None:
    """A new dump has no beginning of a frame."""
    hand = stage.hand()
    hand.open(new_dump_id())
    hand.put(encode(Rest(HALF)))

    stage.refused(hand, Refusal.BAD_REQUEST, "no beginning of a frame was offered")


def test_the_rest_of_another_frame_makes_no_dump_that_says_otherwise(stage: Stage) -> None:
    """Joined it may look like a frame; the manifest of what was meant does not fit what is stored."""
    dump = new_dump_id()
    hand = begun(stage, dump)
    hand.put(encode(Rest(FRAME[len(FRAME) // 2 : -8] + os.urandom(8))))
    hand.tree.append(leaf_hash(FRAME))
    hand.size = len(PIECE)
    hand.put(encode(End(hand.manifest(dump))))

    stage.refused(hand, Refusal.BAD_MANIFEST, "manifest states another root")


@pytest.mark.slow
def test_what_a_connection_that_went_dark_has_brought_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """No end is heard, the receiver's patience ends: that is a cut like any other."""
    monkeypatch.setattr(limits, "IDLE_DEADLINE_S", 0.2)
    monkeypatch.setattr(limits, "MIN_RATE_BYTES_PER_S", 1 << 30)
    dump, hand = new_dump_id(), stage.hand()
    hand.open(dump)
    hand.put(encode(Data(FRAME))[: HEADER_BYTES + 300_000])
    assert hand.answer() is None

    assert offer(stage.hand().open(dump)) == offer_of(FRAME[:300_000])
