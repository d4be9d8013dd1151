"""A dump and the floor of the store's file system: what is sure not to fit is not begun, what may not leaves others room."""

import os

import pytest

from securecore import limits
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.receiver import admission
from securecore.receiver.policy import Floor
from securecore.receiver.refusals import NotAdmitted, refuse
from securecore.store.account import Amount
from securecore.store.usage import Room
from securecore.store.writer import IncomingDump
from securecore.wire.messages import Refusal
from tests.support.dumps import WEB, dump_id, frames_of
from tests.support.gates import GIB, MIB, Gate, grow, start

TIB = 1024 * GIB
FLOOR = 100 * GIB
NOISE, TEXT, ZEROES = os.urandom(MIB), os.urandom(MIB // 8) * 8, bytes(MIB)
FRAME_BYTES = len(frames_of(NOISE)[0][0])


class Disk:
    """A file system that has so much above its floor, less what dumps take."""

    def __init__(self, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        self.above_bytes = 40 * FRAME_BYTES
        self._gate = gate
        self._dumps: list[IncomingDump] = []
        gate.policy = gate.policy._replace(floor=Floor(free_bytes=FLOOR))
        monkeypatch.setattr(admission, "room_of", lambda store: self._room())

    def start(self, number: int, predicted_size: int | None) -> IncomingDump:
        """Have a dump begun there."""
        self._dumps.append(start(self._gate, number, predicted_size))
        return self._dumps[-1]

    def close(self) -> None:
        """Let go of its dumps."""
        for dump in self._dumps:
            dump.close()

    def _room(self) -> Room:
        taken = sum(dump.taken_bytes for dump in self._dumps)
        return Room(FLOOR + self.above_bytes - taken, 10 * FLOOR, 0, 0)


@pytest.fixture
def disk(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk with room for 40 frames of noise."""
    return Disk(gate, monkeypatch)


def count(gate: Gate, dump: IncomingDump, piece: bytes) -> int:
    """Have a dump grow until it may not, and return by how many pieces."""
    pieces = 0
    while grow(gate, dump, piece):
        pieces += 1
    return pieces


def test_what_would_not_fit_as_zeroes_is_not_begun(gate: Gate, disk: Disk) -> None:
    """It is sure not to; its host hears that it is the dump, and not how large the disk is."""
    most = disk.above_bytes // len(ZERO_PIECE_FRAME) * MIB
    assert gate.offer(1, most)
    with pytest.raises(NotAdmitted, match=r"this dump takes 40\.0 MiB at the least, .* has 40\.0 MiB above") as refused:
        gate.offer(1, most + MIB)
    code, words, retry_after_s = refuse(refused.value)[:3]
    assert (code, retry_after_s) == (Refusal.STORAGE, limits.FLOOR_RETRY_AFTER_S)
    assert not any(character.isdigit() for character in words)
    disk.close()


def test_what_would_not_fit_into_its_quota_as_zeroes_is_not_begun(gate: Gate) -> None:
    """Stored bytes are looked at by the size that is announced, as plaintext is."""
    gate.quota(stored_bytes=64 * MIB)
    gate.put(2, os.urandom(MIB))
    assert gate.offer(1, TIB)
    with pytest.raises(NotAdmitted, match=r"1\.0 MiB of its 64\.0 MiB here, and 720 MiB would come; only a deletion") as refused:
        gate.offer(1, 16 * TIB)
    assert (refused.value.code, refused.value.retry_after_s) == (Refusal.QUOTA, limits.QUOTA_RETRY_AFTER_S)


@pytest.mark.parametrize("size", [None, 10 * GIB, 5 * MIB], ids=["of unknown size", "larger than the room", "more than announced"])
def test_what_may_not_fit_takes_no_more_of_the_disk_than_it_leaves(size: int | None, gate: Gate, disk: Disk) -> None:
    """One dump does not bring everybody to the floor: it is stopped in its middle, and others go on."""
    large = disk.start(1, size)
    assert count(gate, large, NOISE) == 21
    with pytest.raises(NotAdmitted, match=r"has 21\.0 MiB here, and may need more than the 19\.0 MiB that") as refused:
        gate.admission.check_growth(large, Amount(FRAME_BYTES, MIB))
    code, words, retry_after_s = refuse(refused.value)[:3]
    assert (code, retry_after_s) == (Refusal.STORAGE, limits.FLOOR_RETRY_AFTER_S)
    assert not any(character.isdigit() for character in words)
    small = disk.start(2, 15 * MIB)
    assert [grow(gate, small, NOISE) for _ in range(15)] == [True] * 15
    disk.close()


@pytest.mark.parametrize(("pieces", "piece"), [(40, NOISE), (300, TEXT)], ids=["uncompressed", "as it compresses"])
def test_what_fits_takes_all_that_it_needs(pieces: int, piece: bytes, gate: Gate, disk: Disk) -> None:
    """As far as it has come it is likely to fit; it may take nearly all that is above the floor."""
    large = disk.start(1, pieces * MIB)
    assert [grow(gate, large, piece) for _ in range(pieces)] == [True] * pieces
    disk.close()


def test_what_begins_with_noise_and_goes_on_with_zeroes_gets_through(gate: Gate, disk: Disk) -> None:
    """By its first frames it would not fit: so it may take as much as it leaves before it is judged by them."""
    large = disk.start(1, 2 * GIB)
    assert [grow(gate, large, NOISE) for _ in range(16)] == [True] * 16
    assert [grow(gate, large, ZEROES) for _ in range(2032)] == [True] * 2032
    disk.close()


def test_several_that_may_not_fit_leave_room_all_the_same(gate: Gate, disk: Disk) -> None:
    """Whatever is left when the first has stopped, the second leaves half of."""
    assert [count(gate, disk.start(number, 10 * GIB), NOISE) for number in (1, 2, 3)] == [21, 10, 5]
    disk.close()


def test_what_was_stopped_is_not_walked_before_there_is_room(gate: Gate, disk: Disk) -> None:
    """Its host comes again and again; with room it goes on from there."""
    large = disk.start(1, 10 * GIB)
    assert count(gate, large, NOISE) == 21
    with pytest.raises(NotAdmitted, match=r"may need more than the 19\.0 MiB that are left"):
        gate.open(1, 10 * GIB)
    disk.above_bytes += 2 * FRAME_BYTES
    assert not gate.open(1, 10 * GIB)
    gate.admission.opened(large, 10 * GIB)
    assert count(gate, large, NOISE) == 1
    disk.close()


@pytest.mark.parametrize("quota", [None, GIB], ids=["without a quota", "with a quota"])
def test_what_has_brought_more_than_it_announced_is_not_walked_before_there_is_room(
    quota: int | None, gate: Gate, disk: Disk
) -> None:
    """By its own word it lacks nothing, and yet it has asked for more: it is no better than one of unknown size."""
    gate.quota(stored_bytes=quota)
    large = disk.start(1, 5 * MIB)
    assert count(gate, large, NOISE) == 21
    with pytest.raises(NotAdmitted, match=r"may need more than the 19\.0 MiB that are left"):
        gate.open(1, 5 * MIB)
    disk.above_bytes += 2 * FRAME_BYTES
    assert not gate.open(1, 5 * MIB)
    disk.close()


def test_what_may_lack_its_end_alone_is_let_in_at_the_floor(gate: Gate, disk: Disk) -> None:
    """Of a host without a quota a walk alone tells how much there is; what has asked for more then is not walked again."""
    whole = disk.start(1, 3 * MIB)
    assert [grow(gate, whole, NOISE) for _ in range(3)] == [True] * 3
    whole.sync()
    disk.above_bytes = 3 * FRAME_BYTES - 1
    assert not gate.open(1, 3 * MIB)
    gate.restart()
    gate.hold(1)
    assert not gate.open(1, 3 * MIB)
    gate.admission.opened(whole, 3 * MIB)
    assert not grow(gate, whole, NOISE)
    with pytest.raises(NotAdmitted, match="are to stay free"):
        gate.open(1, 3 * MIB)
    disk.close()


def test_what_has_no_frame_yet_is_let_in_at_the_floor_once(gate: Gate, disk: Disk) -> None:
    """Its sender was cut off before the first one: from the next try on it hears no before it sends anything."""
    begun = disk.start(1, 3 * MIB)
    begun.sync()
    disk.above_bytes = -1
    assert not gate.open(1, 3 * MIB)
    gate.admission.opened(begun, 3 * MIB)
    assert not grow(gate, begun, NOISE)
    with pytest.raises(NotAdmitted, match="are to stay free"):
        gate.open(1, 3 * MIB)
    disk.close()


def test_after_a_restart_what_was_stopped_is_walked_once(gate: Gate, disk: Disk) -> None:
    """Only then it is known how it compresses: one that would go on is not turned away."""
    large = disk.start(1, 10 * GIB)
    assert count(gate, large, NOISE) == 21
    large.sync()
    gate.restart()
    with gate.admission.receiving(WEB, dump_id(1)):
        assert not gate.open(1, 10 * GIB)
        gate.admission.opened(large, 10 * GIB)
        assert not grow(gate, large, NOISE)
        with pytest.raises(NotAdmitted, match="may need more than"):
            gate.open(1, 10 * GIB)
    disk.close()


def test_a_run_of_zeroes_does_not_go_below_the_floor(gate: Gate, disk: Disk) -> None:
    """One message may stand for all of a dump's pieces, and take as much as they do."""
    large = disk.start(1, None)
    pieces = disk.above_bytes // len(ZERO_PIECE_FRAME)
    gate.admission.check_growth(large, Amount(pieces * len(ZERO_PIECE_FRAME), pieces * MIB))
    with pytest.raises(NotAdmitted, match="are to stay free"):
        gate.admission.check_growth(large, Amount((pieces + 1) * len(ZERO_PIECE_FRAME), (pieces + 1) * MIB))
    disk.close()


def test_where_nothing_is_to_stay_free_a_dump_may_take_all(gate: Gate, disk: Disk) -> None:
    """Who lifts the floor wants no bound."""
    gate.policy = gate.policy._replace(floor=Floor(share=0.0))
    disk.above_bytes -= FLOOR
    large = disk.start(1, None)
    assert [grow(gate, large, NOISE) for _ in range(40)] == [True] * 40
    disk.close()
