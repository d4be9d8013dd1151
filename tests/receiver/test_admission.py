"""What a receiver takes from a host, decided by values: lists, quotas, rates, the floor."""

import os

import pytest

from securecore import limits, units
from securecore.errors import SecurecoreError
from securecore.names import HostName
from securecore.receiver import admission
from securecore.receiver.policy import Floor, Quota
from securecore.receiver.refusals import NotAdmitted, refuse
from securecore.store import removal
from securecore.store.account import Amount
from securecore.store.usage import Room
from securecore.store.writer import IncomingDump
from securecore.wire.messages import Refusal
from tests.support.certificates import DOMAIN
from tests.support.dumps import REPORT, WEB, begin, dump_id, frames_of
from tests.support.gates import CORE, GIB, MIB, Gate

DB = HostName(f"db-2.{DOMAIN}")


LISTS = {
    "everybody": (("*",), (), True),
    "nobody": ((), (), False),
    "by its name": ((str(WEB),), (), True),
    "another": ((str(DB),), (), False),
    "by its domain": ((f"*.{DOMAIN}",), (), True),
    "by another domain": (("*.acme.example",), (), False),
    "by the end of its name": ((f"*.1.{DOMAIN}",), (), False),
    "denied by its name": (("*",), (str(WEB),), False),
    "denied by its domain": ((str(WEB),), (f"*.{DOMAIN}",), False),
    "another is denied": (("*",), (str(DB),), True),
    "all are denied": (("*",), ("*",), False),
}


@pytest.mark.parametrize("name", LISTS)
def test_who_may_send(name: str, gate: Gate) -> None:
    """Whoever a pattern of *allow* names, and none of *deny*; for good, so that no sender asks again and again."""
    allow, deny, may = LISTS[name]
    gate.policy = gate.policy._replace(allow=allow, deny=deny)
    if may:
        gate.admission.check_host(WEB)
        return
    with pytest.raises(NotAdmitted, match=r"not|may not") as refused:
        gate.admission.check_host(WEB)
    assert refuse(refused.value)[:3] == (Refusal.NOT_ALLOWED, refused.value.message, 0)


def test_a_host_that_is_denied_meanwhile_is_turned_away_at_its_next_dump(gate: Gate) -> None:
    """A connection may outlive a change of the policy."""
    gate.policy = gate.policy._replace(deny=(str(WEB),))
    with pytest.raises(NotAdmitted) as refused:
        gate.offer(1)
    assert refused.value.code is Refusal.NOT_ALLOWED


def test_so_many_dumps_are_received_at_once_and_no_more(gate: Gate) -> None:
    """Of one host, new or not; another one has its own number, and one that has ended makes room."""
    gate.quota(at_once=2)
    gate.put(4)
    gate.hold(1)
    gate.open(1)
    with gate.admission.receiving(WEB, dump_id(2)):
        gate.open(2)
        with pytest.raises(NotAdmitted, match="sends 2 dumps at once, as many as it may") as refused:
            gate.offer(3)
        # One that is here already is answered, and counts for nobody.
        gate.hold(4)
        assert not gate.open(4)
        gate.hold(1, DB)
        assert gate.admission.check_opening(DB, dump_id(1), None)
    gate.offer(3)
    assert refuse(refused.value)[::2] == (Refusal.BUSY, limits.BUSY_RETRY_AFTER_S)


def test_a_host_at_its_stored_bytes_may_begin_no_other(gate: Gate) -> None:
    """In words that say how much it has, and when to come again; after a deletion it may."""
    gate.put(1)
    size = gate.usage.of(WEB).stored_bytes
    gate.quota(stored_bytes=size + 1)
    assert gate.offer(2)
    gate.quota(stored_bytes=size)
    words = f"this host has {units.size(size)} of its {units.size(size)} here; vacuum or a higher quota makes room"
    with pytest.raises(NotAdmitted) as refused:
        gate.offer(2)
    assert refuse(refused.value)[:3] == (Refusal.QUOTA, words, limits.QUOTA_RETRY_AFTER_S)
    gate.restart()
    with pytest.raises(NotAdmitted):
        gate.offer(2)


def test_a_dump_whose_plaintext_would_not_fit_is_not_begun(gate: Gate) -> None:
    """By its prediction; what is not predicted needs a byte."""
    gate.put(1)
    gate.quota(plain_bytes=len(CORE) + 4 * MIB)
    assert gate.offer(2, 4 * MIB)
    with pytest.raises(NotAdmitted, match=r"has 3\.0 MiB of its 7\.0 MiB of plaintext here, and 4\.0 MiB would come"):
        gate.offer(2, 4 * MIB + 1)
    assert gate.offer(2)
    gate.quota(plain_bytes=len(CORE))
    with pytest.raises(NotAdmitted):
        gate.offer(2)


def test_what_others_have_announced_counts_before_it_is_here(gate: Gate) -> None:
    """Two dumps at once do not each take the room that one of them has; what has come of one is not counted twice."""
    gate.quota(plain_bytes=10 * MIB)
    gate.hold(1)
    gate.open(1, 6 * MIB)
    dump = IncomingDump.begin(gate.store, WEB, dump_id(1), REPORT)
    with pytest.raises(NotAdmitted, match=r"of plaintext here, and .* would come"):
        gate.offer(2, 10 * MIB + 1)
    gate.admission.opened(dump, 6 * MIB)
    for _ in range(2):
        with pytest.raises(NotAdmitted, match=r"of plaintext here, and an earlier dump of it that is coming in may need the rest"):
            gate.offer(2, 4 * MIB + 1)
        assert gate.offer(2, 4 * MIB)
        gate.admission.check_growth(dump, Amount(MIB, 3 * MIB))
    assert gate.usage.of(WEB).plain_bytes == 3 * MIB
    dump.close()


def test_a_host_has_so_many_dumps_and_no_more(gate: Gate) -> None:
    """Those that are coming in count, and those that are about to be begun."""
    gate.quota(dumps=3)
    gate.put(1)
    begin(gate.store, dump_id(2), CORE).close()
    gate.hold(3)
    gate.open(3)
    with pytest.raises(NotAdmitted, match="has 3 of its 3 dumps here"):
        gate.offer(4)


def test_a_host_with_all_its_dumps_is_told_what_makes_room_for_one_more(gate: Gate) -> None:
    """By number, as that is what it lacks: vacuum takes none that is coming in, or is about to be begun."""
    gate.quota(dumps=2)
    gate.put(1)
    gate.put(2)
    with pytest.raises(NotAdmitted, match=r"has 2 of its 2 dumps here; vacuum or a higher quota makes room$"):
        gate.offer(4)
    removal.set_aside(gate.store, WEB, dump_id(2))
    begin(gate.store, dump_id(2), CORE).close()
    with pytest.raises(NotAdmitted, match=r"; vacuum or a higher quota makes room, but for 1 dump that is still coming in$"):
        gate.offer(4)
    removal.set_aside(gate.store, WEB, dump_id(1))
    gate.hold(3)
    gate.open(3)
    words = "has 2 of its 2 dumps here; 2 dumps are still coming in, so only a deletion or a higher quota makes room$"
    with pytest.raises(NotAdmitted, match=words):
        gate.offer(4)


def test_a_host_begins_so_many_dumps_within_an_hour(gate: Gate) -> None:
    """It hears when the oldest of them will be an hour old; one that is about to be begun counts."""
    gate.quota(dumps_per_hour=2)
    gate.usage.of(WEB)
    gate.put(1)
    gate.now += 600
    gate.put(2)
    gate.now += 60
    with pytest.raises(NotAdmitted, match="has begun 2 dumps within the hour, and may begin 2") as refused:
        gate.offer(3)
    assert refuse(refused.value)[::2] == (Refusal.QUOTA, 3600 - 660)
    gate.now += 3600 - 660
    gate.hold(3)
    gate.open(3)
    with pytest.raises(NotAdmitted) as refused:
        gate.offer(4)
    assert refused.value.retry_after_s == 3600 - 3000


def test_a_dump_that_comes_again_and_again_is_begun_once_an_hour(gate: Gate) -> None:
    """A connection that is cut before the first frame leaves nothing of it; its host tries again, and others have their turn."""
    gate.quota(dumps_per_hour=2)
    for _ in range(4):
        gate.now += 60
        assert gate.offer(1)
        IncomingDump.begin(gate.store, WEB, dump_id(1), REPORT).close()
        removal.remove_incoming(gate.store, WEB, dump_id(1))
    assert gate.usage.of(WEB).begun_s == (180.0,)
    assert gate.offer(2)
    IncomingDump.begin(gate.store, WEB, dump_id(2), REPORT).close()
    with pytest.raises(NotAdmitted, match="has begun 2 dumps within the hour"):
        gate.offer(3)
    assert gate.offer(1)
    gate.now += 3600 - 180
    assert gate.offer(3)


def test_a_host_that_may_begin_none_comes_again_in_an_hour(gate: Gate) -> None:
    """A quota of 0 is one."""
    gate.quota(dumps_per_hour=0)
    with pytest.raises(NotAdmitted) as refused:
        gate.offer(1)
    assert refused.value.retry_after_s == 3600


def test_a_dump_that_was_begun_is_not_new(gate: Gate) -> None:
    """Counts and rates do not stop it, coming in or given up; whole ones need nothing at all."""
    begin(gate.store, dump_id(1), CORE).close()
    given_up = begin(gate.store, dump_id(2), CORE)
    given_up.give_up()
    given_up.put_receipt(b"receipt")
    given_up.publish()
    gate.put(3)
    finished = begin(gate.store, dump_id(4), CORE)
    finished.finish(b"manifest")
    finished.close()
    gate.quota(dumps=1, dumps_per_hour=1)
    assert [gate.offer(number) for number in (1, 2, 3, 4)] == [False] * 4
    gate.quota(stored_bytes=1, plain_bytes=1)
    gate.policy = gate.policy._replace(floor=Floor(free_bytes=1 << 62))
    assert [gate.offer(number) for number in (3, 4)] == [False] * 2


def test_the_rest_of_a_dump_needs_a_frame_of_room(gate: Gate) -> None:
    """It is turned away before it is walked, but for one that lacks nothing but its end."""
    dump = begin(gate.store, dump_id(1), CORE)
    gate.usage.of(WEB)
    gate.admission.opened(dump, None)
    dump.close()
    stored = dump.stored_bytes
    gate.quota(stored_bytes=stored + limits.MAX_FRAME_BYTES)
    assert not gate.offer(1)
    gate.quota(stored_bytes=stored + limits.MAX_FRAME_BYTES - 1)
    with pytest.raises(NotAdmitted):
        gate.offer(1, len(CORE) + 1)
    assert not gate.offer(1, len(CORE))
    gate.quota(plain_bytes=len(CORE) + 2 * MIB)
    assert not gate.offer(1, len(CORE) + 2 * MIB)
    with pytest.raises(NotAdmitted):
        gate.offer(1, len(CORE) + 2 * MIB + 1)


def test_a_dump_of_unknown_size_is_let_in_until_it_has_asked_for_more(gate: Gate) -> None:
    """It may lack its end alone, which takes no room; one that did not is not walked again before there is room for a frame."""
    dump = begin(gate.store, dump_id(1), CORE)
    gate.usage.of(WEB)
    gate.quota(stored_bytes=dump.stored_bytes + MIB // 2)
    room, gate.policy = gate.policy, gate.policy._replace(floor=Floor(free_bytes=1 << 62))
    assert not gate.offer(1)
    gate.policy = room
    gate.admission.opened(dump, None)
    with pytest.raises(NotAdmitted):
        gate.admission.check_growth(dump, Amount(MIB, MIB))
    with pytest.raises(NotAdmitted):
        gate.offer(1)
    gate.quota(stored_bytes=dump.stored_bytes + limits.MAX_FRAME_BYTES)
    assert not gate.offer(1)
    gate.admission.opened(dump, None)
    gate.quota(stored_bytes=dump.stored_bytes)
    assert not gate.offer(1)
    dump.close()


@pytest.mark.parametrize("bound", ["stored_bytes", "plain_bytes"])
def test_a_quota_is_not_exceeded_by_a_frame(bound: str, gate: Gate) -> None:
    """What would be too much is turned away before it is written, and then no longer counted."""
    dump = IncomingDump.begin(gate.store, WEB, dump_id(1), REPORT)
    frame, plain = frames_of(os.urandom(MIB))[0]
    one = Amount(len(frame), plain)
    gate.quota(**{bound: 2 * one[bound == "plain_bytes"]})
    for _ in range(2):
        gate.admission.check_growth(dump, one)
        dump.append(frame, plain)
    for _ in range(2):
        with pytest.raises(NotAdmitted):
            gate.admission.check_growth(dump, one)
    assert gate.usage.of(WEB)[:2] == (2 * len(frame), 2 * plain)
    dump.close()


def test_a_host_of_its_own_has_a_quota_of_its_own(gate: Gate) -> None:
    """In place of the one that all others have."""
    gate.quota(dumps=0)
    gate.policy = gate.policy._replace(host_quotas={str(WEB): Quota(dumps=1)})
    assert gate.offer(1)
    with gate.admission.receiving(DB, dump_id(1)), pytest.raises(NotAdmitted):
        gate.admission.check_opening(DB, dump_id(1), None)


ROOMS = {
    "above its share": (Room(100 * GIB, 1000 * GIB, 100, 1000), Floor(share=0.1), True),
    "below its share": (Room(100 * GIB - 1, 1000 * GIB, 100, 1000), Floor(share=0.1), False),
    "below what is free at least": (Room(2 * GIB - 1, 10 * GIB, 1, 1), Floor(share=0.1, free_bytes=2 * GIB), False),
    "no inodes left": (Room(GIB, GIB, 99, 1000), Floor(share=0.1), False),
    "inodes as they are needed": (Room(GIB, GIB, 0, 0), Floor(share=0.1), True),
    "no floor": (Room(0, GIB, 0, 1000), Floor(share=0.0), True),
}


@pytest.mark.parametrize("name", ROOMS)
def test_the_floor_of_the_file_system(name: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes and in inodes; a peer hears that the disk is full, and not how large it is."""
    room, floor, may = ROOMS[name]
    gate.policy = gate.policy._replace(floor=floor)
    monkeypatch.setattr(admission, "room_of", lambda store: room)
    if may:
        assert gate.offer(1)
        return
    with pytest.raises(NotAdmitted, match="the store's file system has") as refused:
        gate.offer(1)
    code, words, retry_after_s = refuse(refused.value)[:3]
    assert (code, retry_after_s) == (Refusal.STORAGE, limits.FLOOR_RETRY_AFTER_S)
    assert not any(character.isdigit() for character in words)


def test_the_floor_is_looked_at_with_each_frame(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others use the disk too."""
    gate.policy = gate.policy._replace(floor=Floor(share=0.5))
    rooms = iter([Room(6, 10, 0, 0), Room(4, 10, 0, 0)])
    monkeypatch.setattr(admission, "room_of", lambda store: next(rooms))
    dump = IncomingDump.begin(gate.store, WEB, dump_id(1), REPORT)
    gate.admission.check_growth(dump, Amount(1, 1))
    with pytest.raises(NotAdmitted, match="4 B left, and 5 B of it are to stay free"):
        gate.admission.check_growth(dump, Amount(1, 1))
    dump.close()


def test_every_refusal_is_an_error_of_ours() -> None:
    """Nothing that a policy says ends a session with a traceback."""
    assert issubclass(NotAdmitted, SecurecoreError)
