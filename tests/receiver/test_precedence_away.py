"""What goes first while an earlier one is away: it keeps out nothing that is sure to fit, and gets through when it is back."""

import os
import random
from contextlib import nullcontext

import pytest

from securecore import limits
from securecore.receiver.refusals import NotAdmitted
from securecore.store.writer import IncomingDump
from tests.support.dumps import WEB, dump_id
from tests.support.gates import MIB, Gate, begin_one, grow, start


def test_a_dump_that_is_away_holds_up_none_that_is_sure_to_fit(gate: Gate) -> None:
    """Its sender may be gone for hours, its claim as large as the quota: what fits, though nothing compresses, is not kept out."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    with gate.admission.receiving(WEB, dump_id(1)):
        first = begin_one(gate, 1, 8 * MIB)
        with pytest.raises(NotAdmitted, match="an earlier dump of it"):
            gate.offer(2, 3 * MIB)
    other = start(gate, 2, 3 * MIB)
    assert [grow(gate, other, noise) for _ in range(3)] == [True] * 3
    first.close()
    other.close()


@pytest.mark.parametrize("size", [8 * MIB + 1, None], ids=["too large", "of unknown size"])
def test_what_may_not_fit_waits_for_a_dump_that_is_away(size: int | None, gate: Gate) -> None:
    """It would take what the first needs and then not get through itself."""
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    with gate.admission.receiving(WEB, dump_id(1)):
        first = begin_one(gate, 1, 8 * MIB)
    with pytest.raises(NotAdmitted, match="an earlier dump of it"):
        gate.offer(2, size)
    first.close()


@pytest.mark.parametrize("is_new", [True, False], ids=["begun", "goes on"])
def test_one_of_unknown_size_is_left_a_share_beside_a_dump_that_is_away(is_new: bool, gate: Gate) -> None:
    """It is here, and nobody knows what it needs: what comes must fit beside that."""
    gate.quota(stored_bytes=16 * limits.MAX_FRAME_BYTES)
    with gate.admission.receiving(WEB, dump_id(1)):
        first = begin_one(gate, 1, None)
    unknown = start(gate, 2, None)
    if not is_new:
        unknown.sync()
        gate.restart()
        gate.hold(2)
        gate.open(2)
        gate.admission.opened(unknown, None)
    gate.usage.announced(WEB, dump_id(1), 16 * MIB)
    with pytest.raises(NotAdmitted, match="an earlier dump of it"):
        gate.offer(3, 13 * MIB)
    assert gate.offer(3, 12 * MIB)
    first.close()
    unknown.close()


def test_what_was_let_in_beside_a_dump_that_is_away_gets_through_when_that_is_back(gate: Gate) -> None:
    """The first leaves it its rest, so that none of the two stays half done, and comes again in a minute."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    with gate.admission.receiving(WEB, dump_id(1)):
        first = begin_one(gate, 1, 8 * MIB)
    with gate.admission.receiving(WEB, dump_id(2)):
        other = begin_one(gate, 2, 4 * MIB)
        assert grow(gate, other, noise)
        gate.hold(1)
        assert not gate.open(1, 8 * MIB)
        gate.admission.opened(first, 8 * MIB)
        assert [grow(gate, first, noise) for _ in range(5)] == [True] * 4 + [False]
        with pytest.raises(NotAdmitted, match="may need the rest"):
            gate.open(1, 8 * MIB)
        assert [grow(gate, other, noise) for _ in range(3)] == [True] * 3
    other.discard()
    assert not gate.open(1, 8 * MIB)
    assert [grow(gate, first, noise) for _ in range(4)] == [True] * 4
    first.close()


@pytest.mark.parametrize("seed", range(6))
def test_whoever_is_let_in_beside_a_dump_that_is_away_gets_through(seed: int, gate: Gate) -> None:
    """Many of known size, in any order, however they compress, while the first comes and goes: none is stopped in mid-stream."""
    chance, noise, text = random.Random(seed), os.urandom(MIB), os.urandom(MIB // 8) * 8
    bound = 24 * limits.MAX_FRAME_BYTES
    gate.quota(stored_bytes=bound)
    with gate.admission.receiving(WEB, dump_id(1)):
        first = begin_one(gate, 1, 24 * MIB)
    missing: dict[IncomingDump, int] = {}
    turned_away = 0
    for number in range(2, 20):
        pieces = chance.randrange(1, 9)
        try:
            missing[start(gate, number, pieces * MIB)] = pieces
        except NotAdmitted:
            turned_away += 1
        with gate.admission.receiving(WEB, dump_id(1)) if chance.random() < 0.5 else nullcontext():
            for dump in chance.sample(list(missing), chance.randrange(len(missing) + 1)):
                assert missing[dump] == 0 or grow(gate, dump, chance.choice([noise, text]))
                missing[dump] = max(0, missing[dump] - 1)
    for dump, pieces in missing.items():
        assert [grow(gate, dump, noise) for _ in range(pieces)] == [True] * pieces
    assert missing
    assert turned_away
    assert gate.usage.of(WEB).stored_bytes <= bound
    for dump in (first, *missing):
        dump.close()
