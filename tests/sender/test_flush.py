"""Delivering what the spool holds: what is wrong with one dump keeps no other one back, and what holds for all is tried once."""

from pathlib import Path
from typing import Final

import pytest

from securecore.errors import BusyError, RefusedError, SecurecoreError, UnreachableError
from securecore.merkle import EMPTY_ROOT, Frontier, leaf_hash
from securecore.names import Address, DumpId, StoreId
from securecore.receiver.server import Receiver
from securecore.sender.flush import flush
from securecore.sender.spool import EntryEnd, EntryStart, Spool
from securecore.wire.messages import Accept, Message, Open, Ready, Refusal, Refuse
from tests.support.certificates import Fleet
from tests.support.custody import CORE
from tests.support.receivers import new_dump_id, papers_of, send_bytes
from tests.support.scripted import STORE, Peer, Script, forge_receipt, scripted_receiver

NOWHERE: Final = Address("127.0.0.1:9")
LOST: Final = StoreId.make(b"\x01" * 16)


def wait_in(spool: Spool, fleet: Fleet) -> DumpId:
    """Put a whole dump into the spool."""
    dump = new_dump_id()
    send_bytes(CORE, papers_of(fleet.host), [NOWHERE], spool=spool, dump=dump)
    return dump


def begin_elsewhere(spool: Spool, store: StoreId = LOST) -> DumpId:
    """Put the tail of a dump into the spool, whose first two frames went to *store*: one that nobody here has."""
    before = Frontier()
    before.extend(leaf_hash(frame) for frame in (b"one", b"two"))
    entry = spool.begin(EntryStart(new_dump_id(), 1, store, before), b"{}")
    entry.finish(EntryEnd(2 << 20, None, "complete", 5))
    entry.close()
    return entry.start.dump


def test_a_dump_whose_store_is_gone_keeps_no_other_one_back(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """The receiver that has the beginning of the oldest is there no more: those behind it are delivered."""
    elsewhere, whole = begin_elsewhere(spool), wait_in(spool, fleet)

    first, second = flush(spool, receiver.addresses, papers_of(fleet.host))

    assert (first.dump, second.dump) == (elsewhere, whole)
    assert isinstance(first.failure, BusyError)
    assert f"has another store than the one that holds the beginning, {LOST}" in first.failure.message
    assert second.failure is None
    assert spool.dump_ids() == [elsewhere]


def test_a_dead_receiver_beside_another_store_keeps_no_other_dump_back(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """In whichever order they stand: one of them would take another dump, so it is offered."""
    begin_elsewhere(spool)
    wait_in(spool, fleet)

    results = list(flush(spool, [*receiver.addresses, NOWHERE], papers_of(fleet.host)))

    assert [result.failure is None for result in results] == [False, True]


def serving(identity: Path, unwanted: DumpId, answer: Message | None) -> Script:
    """Return the script of an honest receiver that gives *answer* to the OPEN of *unwanted*, or goes."""

    def script(peer: Peer) -> None:
        peer.say(Ready(STORE, 1 << 24))
        opened = peer.hear()
        assert isinstance(opened, Open)
        if opened.dump != unwanted:
            peer.say(Accept(0, EMPTY_ROOT))
            peer.say(forge_receipt(identity, peer.hear_end()))
        elif answer is not None:
            peer.say(answer)

    return script


ABOUT_ONE: Final[dict[str, tuple[Message | None, type[SecurecoreError]]]] = {
    "its beginning is damaged there": (Refuse(Refusal.STORAGE, "the partial dump is damaged"), BusyError),
    "a reason of a later version": (Refuse(300, "not this one now"), BusyError),
    "refused for good": (Refuse(Refusal.BAD_REQUEST, "no"), RefusedError),
    "the connection ends": (None, UnreachableError),
}
"""What a receiver answers to the OPEN of one dump, and what that is."""


@pytest.mark.parametrize("name", ABOUT_ONE)
def test_what_is_said_of_one_dump_keeps_no_other_one_back(name: str, fleet: Fleet, spool: Spool) -> None:
    """After OPEN a receiver speaks of that dump: it stays in the spool, and the next is delivered."""
    answer, kind = ABOUT_ONE[name]
    unwanted, wanted = wait_in(spool, fleet), wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, serving(fleet.receiver, unwanted, answer)) as scripted:
        first, second = flush(spool, [scripted.address], papers_of(fleet.host))

    assert (first.dump, type(first.failure)) == (unwanted, kind)
    assert (second.dump, second.failure) == (wanted, None)
    assert spool.dump_ids() == [unwanted]


BEFORE_READY: Final[dict[str, tuple[Message, type[SecurecoreError]]]] = {
    "busy": (Refuse(Refusal.BUSY, "too many"), BusyError),
    "shutting down": (Refuse(Refusal.SHUTTING_DOWN, "good bye"), BusyError),
    "revoked": (Refuse(Refusal.REVOKED, "no"), RefusedError),
}


@pytest.mark.parametrize("name", BEFORE_READY)
def test_what_holds_for_every_dump_is_asked_once(name: str, fleet: Fleet, spool: Spool) -> None:
    """Before OPEN a receiver knows of no dump: what it says is not asked again for each one that waits."""
    refuse, kind = BEFORE_READY[name]
    oldest, newest = wait_in(spool, fleet), wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, lambda peer: peer.say(refuse)) as scripted:
        results = list(flush(spool, [scripted.address], papers_of(fleet.host)))
        connections = scripted.connections

    assert [(result.dump, type(result.failure)) for result in results] == [(oldest, kind)]
    assert connections == 1
    assert spool.dump_ids() == [oldest, newest]


def test_when_to_come_again_is_obeyed_by_nobody(fleet: Fleet, spool: Spool) -> None:
    """R24: a receiver that says "in a day" is asked by the next flush, and has the dump."""
    dump = wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, lambda peer: peer.say(Refuse(Refusal.BUSY, "later", 86400))) as scripted:
        (refused,) = flush(spool, [scripted.address], papers_of(fleet.host))
    with scripted_receiver(fleet.receiver, serving(fleet.receiver, new_dump_id(), None)) as scripted:
        (taken,) = flush(spool, [scripted.address], papers_of(fleet.host))

    assert (refused.dump, type(refused.failure)) == (dump, BusyError)
    assert (taken.dump, taken.failure) == (dump, None)
