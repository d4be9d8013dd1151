"""Several dumps of one host that would use its quota up: the first goes before the others, as far as it can get through."""

import os

import pytest

from securecore import limits
from securecore.receiver.policy import Floor
from securecore.receiver.refusals import NotAdmitted, refuse
from securecore.store.account import Amount
from securecore.store.writer import IncomingDump
from securecore.wire.messages import Refusal
from tests.support.dumps import REPORT, WEB, dump_id
from tests.support.gates import GIB, MIB, Gate, begin_one, grow, start


@pytest.mark.slow
@pytest.mark.parametrize("is_predicted", [True, False])
def test_of_several_that_would_use_the_quota_up_the_first_gets_through(is_predicted: bool, gate: Gate) -> None:
    """Whoever of them is faster: the later ones stop where the first may need the rest, and go on after it."""
    noise, pieces = os.urandom(MIB), 4
    size = pieces * MIB if is_predicted else None
    # Of unknown size it may be sure of a quarter, and so must fit into that.
    gate.quota(stored_bytes=(6 if is_predicted else 4 * pieces) * limits.MAX_FRAME_BYTES)
    dumps = [start(gate, number, size) for number in (3, 1, 2)]
    first, *later = dumps
    while any([grow(gate, dump, noise) for dump in later]):
        pass
    assert [grow(gate, first, noise) for _ in range(pieces)] == [True] * pieces
    gate.restart()
    with pytest.raises(NotAdmitted):
        gate.offer(2, 16 * MIB)
    for dump in dumps:
        dump.close()


def test_who_leaves_the_rest_to_an_earlier_dump_is_told_when_to_come_again(gate: Gate) -> None:
    """In a minute, and not in an hour as where a person has to make room."""
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    dump = start(gate, 1, 8 * MIB)
    with pytest.raises(NotAdmitted, match="an earlier dump of it that is coming in may need the rest") as refused:
        gate.offer(2)
    assert refuse(refused.value)[::2] == (Refusal.QUOTA, limits.TURN_RETRY_AFTER_S)
    dump.close()


def test_a_new_dump_takes_nobodys_place(gate: Gate) -> None:
    """Its id may be older, as after a flush: it is begun where there is room for what was announced before it."""
    gate.quota(plain_bytes=10 * MIB)
    dump = start(gate, 2, 6 * MIB)
    with pytest.raises(NotAdmitted):
        gate.offer(1, 5 * MIB)
    older = start(gate, 1, 4 * MIB)
    gate.admission.check_growth(dump, Amount(MIB, 6 * MIB))
    gate.admission.check_growth(older, Amount(MIB, 4 * MIB))
    dump.close()
    older.close()


def test_an_older_dump_that_comes_later_stops_none_in_mid_stream(gate: Gate) -> None:
    """A flush brings what crashed before: what its host sends just now goes on all the same, and has its place."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    live = start(gate, 2, 6 * MIB)
    flushed = start(gate, 1, 8 * MIB)
    assert [grow(gate, flushed, noise) for _ in range(3)] == [True, True, False]
    assert [grow(gate, live, noise) for _ in range(6)] == [True] * 6
    live.close()
    flushed.close()


def test_what_is_larger_than_its_quota_keeps_no_more_than_a_share(gate: Gate) -> None:
    """Nobody knows how well it compresses before it comes; it may be opened, and then nothing of it come for long."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    large, other = start(gate, 1, 100 * GIB), start(gate, 2, 8 * MIB)
    assert [grow(gate, other, noise) for _ in range(7)] == [True] * 6 + [False]
    large.close()
    other.close()


def test_what_compresses_well_keeps_what_the_rest_of_it_needs(gate: Gate) -> None:
    """By what has come of it: a thousandth of a core of zeroes, and not a quarter of the quota."""
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    large, other = start(gate, 1, 1 * GIB), start(gate, 2, 8 * MIB)
    gate.admission.check_growth(large, Amount(1024, MIB))
    assert [grow(gate, other, os.urandom(MIB)) for _ in range(7)] == [True] * 7
    large.close()
    other.close()


@pytest.mark.parametrize("why", ["the floor", "too many at once"])
def test_who_is_turned_away_and_comes_again_keeps_its_turn(why: str, gate: Gate) -> None:
    """Nothing gets through for hours, but its host has not lost it."""
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    with gate.admission.receiving(WEB, dump_id(1)):
        gate.open(1, 8 * MIB)
        dump = IncomingDump.begin(gate.store, WEB, dump_id(1), REPORT)
        gate.admission.opened(dump, 8 * MIB)
        dump.close()
    room = gate.policy
    for _ in range(4):
        gate.now += limits.TURN_LASTS_S - 1
        if why == "the floor":
            gate.policy = gate.policy._replace(floor=Floor(free_bytes=1 << 62))
        else:
            gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES, at_once=0)
        with pytest.raises(NotAdmitted):
            gate.offer(1, 8 * MIB)
        gate.policy = room
    with pytest.raises(NotAdmitted, match="an earlier dump of it"):
        gate.offer(2)
    assert not gate.offer(1, 8 * MIB)


def test_what_cannot_be_opened_goes_before_nobody_until_it_can(gate: Gate) -> None:
    """However often it is offered: a bad sector, or no room for what is damaged, may wait for a person for days."""
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    with gate.admission.receiving(WEB, dump_id(1)):
        first = begin_one(gate, 1, 8 * MIB)
    for _ in range(3):
        gate.now += 3600
        with gate.admission.receiving(WEB, dump_id(1)):
            gate.open(1, 8 * MIB)
            gate.admission.not_opened(WEB, dump_id(1))
            assert gate.offer(2)
        assert gate.offer(2)
    with gate.admission.receiving(WEB, dump_id(1)):
        gate.open(1, 8 * MIB)
        gate.admission.opened(first, 8 * MIB)
    with pytest.raises(NotAdmitted, match="an earlier dump of it"):
        gate.offer(2)
    first.close()


def test_what_cannot_be_opened_goes_before_nobody_after_another_count(gate: Gate) -> None:
    """A host is counted again where nobody knows any more what it has."""
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    start(gate, 1, 8 * MIB).close()
    gate.admission.not_opened(WEB, dump_id(1))
    gate.usage._account(WEB).is_counted = False
    assert gate.offer(2)


def test_what_its_host_has_lost_holds_the_others_up_for_so_long(gate: Gate) -> None:
    """A part whose sender does not come again leaves the rest to the next one."""
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    start(gate, 1, 8 * MIB).close()
    gate.now += limits.TURN_LASTS_S
    with pytest.raises(NotAdmitted):
        gate.offer(2)
    gate.now += 1
    assert gate.offer(2)


def test_a_restart_does_not_let_the_younger_ones_before(gate: Gate) -> None:
    """What is on the disk says which dump is the oldest; until it is announced again a share is kept for it."""
    noise = os.urandom(MIB)
    dump = start(gate, 1, None)
    assert grow(gate, dump, noise)
    dump.sync()
    dump.close()
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    gate.restart()
    other = start(gate, 2, 16 * MIB)
    # Two frames are a quarter, and one of them is here.
    assert [grow(gate, other, noise) for _ in range(7)] == [True] * 6 + [False]
    other.close()


def test_what_is_still_coming_in_is_named_where_vacuum_would_help(gate: Gate) -> None:
    """It is the part of it that vacuum leaves."""
    gate.put(3, os.urandom(MIB))
    dump = start(gate, 1, None)
    assert grow(gate, dump, os.urandom(MIB))
    gate.quota(stored_bytes=2 * MIB)
    with pytest.raises(NotAdmitted, match=r"; vacuum or a higher quota makes room, but for 1\.0 MiB that is still coming in"):
        gate.offer(2)
    dump.close()


def test_what_can_never_fit_holds_nobody_up(gate: Gate) -> None:
    """Others of its host took what it needs while it was away: they go on, however often it comes, and make room by their end."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    first = start(gate, 1, 6 * MIB)
    assert grow(gate, first, noise)
    gate.now += limits.TURN_LASTS_S + 1
    other = start(gate, 2, 7 * MIB)
    assert [grow(gate, other, noise) for _ in range(5)] == [True] * 5
    gate.usage.touched(WEB, dump_id(1))
    assert [grow(gate, other, noise) for _ in range(2)] == [True] * 2
    with pytest.raises(NotAdmitted, match=r"; .* is still coming in, so only a deletion or a higher quota makes room$"):
        gate.admission.check_growth(first, Amount(limits.MAX_FRAME_BYTES, MIB))
    first.close()
    other.close()


def test_what_fits_as_it_compresses_is_not_taken_for_what_can_never_fit(gate: Gate) -> None:
    """Beside another's parts it would not, uncompressed: it goes first all the same, and the two do not wait for each other."""
    gate.quota(stored_bytes=20 * limits.MAX_FRAME_BYTES)
    first = start(gate, 1, 18 * MIB)
    text = os.urandom(MIB // 8) * 8
    assert [grow(gate, first, text) for _ in range(4)] == [True] * 4
    gate.now += limits.TURN_LASTS_S + 1
    other, noise = start(gate, 2, 60 * MIB), os.urandom(MIB)
    assert [grow(gate, other, noise) for _ in range(12)] == [True] * 12
    gate.usage.touched(WEB, dump_id(1))
    assert not grow(gate, other, noise)
    assert [grow(gate, first, text) for _ in range(14)] == [True] * 14
    first.close()
    other.close()


def test_what_is_larger_than_its_quota_keeps_its_share_though_it_compresses_badly_at_first(gate: Gate) -> None:
    """A core begins with what compresses otherwise than the rest: noise, then zeroes. By its first frames it could never fit."""
    noise, zeroes = os.urandom(MIB), bytes(MIB)
    gate.quota(stored_bytes=20 * limits.MAX_FRAME_BYTES)
    first = start(gate, 1, 60 * MIB)
    assert [grow(gate, first, noise) for _ in range(2)] == [True] * 2
    other = start(gate, 2, 60 * MIB)
    assert [grow(gate, other, noise) for _ in range(16)] == [True] * 15 + [False]
    assert [grow(gate, first, noise) for _ in range(3)] == [True] * 3
    assert [grow(gate, first, zeroes) for _ in range(55)] == [True] * 55
    first.close()
    other.close()


@pytest.mark.parametrize("size", [None, 60 * MIB], ids=["of unknown size", "larger than the quota"])
def test_a_first_dump_whose_share_is_not_free_holds_up_none_that_is_sure_to_fit(size: int | None, gate: Gate) -> None:
    """Others took it while it was away. Nobody knows whether it fits; who is sure to is finished, and vacuum can take that."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=20 * limits.MAX_FRAME_BYTES)
    first = start(gate, 1, size)
    assert grow(gate, first, noise)
    gate.now += limits.TURN_LASTS_S + 1
    other = start(gate, 2, 18 * MIB)
    assert [grow(gate, other, noise) for _ in range(16)] == [True] * 16
    gate.usage.touched(WEB, dump_id(1))
    assert grow(gate, other, noise)
    # From now on the first leaves it what it lacks.
    assert [grow(gate, first, noise) for _ in range(2)] == [True, False]
    assert [grow(gate, other, noise) for _ in range(2)] == [True, False]
    first.close()
    other.close()


def test_a_first_dump_whose_share_is_not_free_lets_in_what_is_sure_to_fit(gate: Gate) -> None:
    """The same when the other comes again: the first is there too, and of unknown size."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=20 * limits.MAX_FRAME_BYTES)
    first = start(gate, 1, None)
    assert grow(gate, first, noise)
    gate.now += limits.TURN_LASTS_S + 1
    with gate.admission.receiving(WEB, dump_id(2)):
        other = begin_one(gate, 2, 18 * MIB)
        assert [grow(gate, other, noise) for _ in range(16)] == [True] * 16
    gate.usage.touched(WEB, dump_id(1))
    with pytest.raises(NotAdmitted, match="an earlier dump of it"):
        gate.offer(2, 20 * MIB)
    assert not gate.offer(2, 18 * MIB)
    first.close()
    other.close()


@pytest.mark.parametrize("size", [None, 60 * MIB, 17 * MIB], ids=["unknown", "larger than the quota", "more than announced"])
def test_what_may_not_fit_waits_for_a_first_dump_whose_share_is_not_free(size: int | None, gate: Gate) -> None:
    """None of the two is known to fit, and the first has come first: it may need no more than what is left."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=20 * limits.MAX_FRAME_BYTES)
    first = start(gate, 1, None)
    assert grow(gate, first, noise)
    gate.now += limits.TURN_LASTS_S + 1
    other = start(gate, 2, size)
    assert [grow(gate, other, noise) for _ in range(17)] == [True] * 17
    gate.usage.touched(WEB, dump_id(1))
    assert not grow(gate, other, noise)
    assert [grow(gate, first, noise) for _ in range(2)] == [True] * 2
    first.close()
    other.close()


def test_what_has_more_plaintext_than_its_host_may_have_holds_nobody_up(gate: Gate) -> None:
    """The quota was lowered while it was coming in; it is told that no vacuum helps, where vacuum helps another one."""
    gate.put(3)
    gate.quota(plain_bytes=20 * MIB)
    large = start(gate, 1, 16 * MIB)
    gate.admission.check_growth(large, Amount(MIB, 2 * MIB))
    gate.quota(plain_bytes=10 * MIB)
    with pytest.raises(NotAdmitted, match=r"would come; .* is still coming in, so only a deletion or a higher quota makes room"):
        gate.open(1, 16 * MIB)
    assert gate.offer(2, 4 * MIB)
    with pytest.raises(NotAdmitted, match="would come; vacuum or a higher quota makes room, but for"):
        gate.offer(2, 6 * MIB)
    with pytest.raises(NotAdmitted, match=r"would come; .* so only a deletion or a higher quota makes room"):
        gate.offer(2, 11 * MIB)
    large.close()


def test_what_fits_alone_and_not_together_waits(gate: Gate) -> None:
    """One is sure of its room until its end; what comes beside it must fit into what that leaves."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    with gate.admission.receiving(WEB, dump_id(1)):
        first = begin_one(gate, 1, 8 * MIB)
    second = start(gate, 2, 4 * MIB)
    assert grow(gate, second, noise)
    with pytest.raises(NotAdmitted, match="an earlier dump of it"):
        gate.offer(3, 5 * MIB)
    third = start(gate, 3, 4 * MIB)
    assert [grow(gate, third, noise) for _ in range(4)] == [True] * 4
    assert [grow(gate, second, noise) for _ in range(3)] == [True] * 3
    for dump in (first, second, third):
        dump.close()


def test_the_first_that_comes_again_waits_for_nothing_that_others_have_announced(gate: Gate) -> None:
    """It may use all that is left; whoever else comes again leaves room for that, and for what its others will bring."""
    gate.quota(plain_bytes=30 * MIB)
    dumps = [start(gate, number, size * MIB) for number, size in ((1, 6), (2, 5), (3, 4))]
    for dump in dumps:
        gate.admission.check_growth(dump, Amount(MIB, MIB))
    # Three are here, and five, four and three are still to come.
    gate.quota(plain_bytes=8 * MIB)
    assert not gate.open(1, 6 * MIB)
    gate.quota(plain_bytes=15 * MIB)
    assert not gate.open(2, 5 * MIB)
    gate.quota(plain_bytes=14 * MIB)
    with pytest.raises(NotAdmitted, match="an earlier dump of it"):
        gate.open(2, 5 * MIB)
    for dump in dumps:
        dump.close()


def test_what_is_sure_of_its_room_keeps_it_once_when_it_becomes_the_first(gate: Gate) -> None:
    """The one before it has not come for two hours, and keeps nothing any more."""
    noise = os.urandom(MIB)
    gate.quota(stored_bytes=8 * limits.MAX_FRAME_BYTES)
    with gate.admission.receiving(WEB, dump_id(1)):
        lost = begin_one(gate, 1, 8 * MIB)
    sure = start(gate, 2, 5 * MIB)
    gate.now += limits.TURN_LASTS_S + 1
    assert grow(gate, sure, noise)
    assert gate.offer(3, 3 * MIB)
    third = start(gate, 3, 16 * MIB)
    assert [grow(gate, third, noise) for _ in range(4)] == [True] * 3 + [False]
    for dump in (lost, sure, third):
        dump.close()


def test_a_dump_that_vacuum_makes_no_room_for_keeps_no_other_out(gate: Gate) -> None:
    """It lacks room for its plaintext, and comes again each hour; meanwhile others go, and each time it is there it goes first."""
    gate.quota(plain_bytes=20 * MIB)
    gate.put(3, os.urandom(8 * MIB))
    with gate.admission.receiving(WEB, dump_id(1)):
        first = begin_one(gate, 1, 12 * MIB)
        gate.admission.check_growth(first, Amount(MIB, 2 * MIB))
    gate.put(4, os.urandom(2 * MIB))
    for _ in range(3):
        gate.now += 3600
        with pytest.raises(NotAdmitted, match="would come; vacuum or a higher quota makes room"):
            gate.offer(1, 12 * MIB)
        with gate.admission.receiving(WEB, dump_id(1)), pytest.raises(NotAdmitted, match="an earlier dump of it"):
            gate.offer(2, 4 * MIB)
        assert gate.offer(2, 4 * MIB)
    first.close()
