"""A whole dump that waits may go to any receiver: one that greets and then says no, or nothing, keeps it from no other one."""

from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.errors import BusyError, StorageError, UnreachableError
from securecore.merkle import EMPTY_ROOT
from securecore.receiver.server import Receiver
from securecore.sender.flush import flush
from securecore.sender.schedule import Schedule, read_schedule
from securecore.sender.spool import Spool
from securecore.wire.messages import Accept, Ready, Refusal, Refuse
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.receivers import papers_of
from tests.support.scripted import STORE, Peer, Script, scripted_receiver
from tests.support.waiting import NOWHERE, begin_elsewhere, silent_after_ready, wait_in

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that does not wait for an answer for long."""
    monkeypatch.setattr(limits, "RECEIPT_DEADLINE_S", 0.5)


def refuse_opened(peer: Peer) -> None:
    """Greet, and take no dump."""
    peer.reach(State.OPENING)
    peer.say(Refuse(Refusal.BUSY, "the quota is used up", 3600))


def refuse_ended(peer: Peer) -> None:
    """Take all of a dump, and refuse to store it."""
    peer.say(Ready(STORE, 1 << 24))
    peer.hear()
    peer.say(Accept(0, EMPTY_ROOT))
    peer.hear_end()
    peer.say(Refuse(Refusal.STORAGE, "full"))


def break_the_rules(peer: Peer) -> None:
    """Greet, and answer with a second greeting."""
    peer.reach(State.OPENING)
    peer.say(Ready(STORE, 1 << 24))


FIRST: Final[dict[str, Script]] = {
    "says nothing": silent_after_ready,
    "refuses the dump": refuse_opened,
    "refuses at the end": refuse_ended,
    "breaks the rules": break_the_rules,
}


@pytest.mark.parametrize("name", FIRST)
def test_the_next_receiver_has_what_the_first_does_not_take(name: str, fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """In one flush: another one would begin with the first receiver again, and so would all that follow."""
    dump = wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, FIRST[name]) as scripted:
        (flushed,) = flush(spool, [scripted.address, *receiver.addresses], papers_of(fleet.host))

    assert (flushed.dump, flushed.failure) == (dump, None)
    assert spool.dump_ids() == []
    assert read_schedule(spool.fd) == Schedule()


def test_what_nobody_takes_has_the_words_of_the_first_who_spoke(fleet: Fleet, spool: Spool) -> None:
    """The second one is not there: that says less than a refusal, and keeps no other dump from the first."""
    waiting = [wait_in(spool, fleet) for _ in range(2)]
    with scripted_receiver(fleet.receiver, refuse_opened) as scripted:
        results = list(flush(spool, [scripted.address, NOWHERE], papers_of(fleet.host)))
        connections = scripted.connections

    assert [(result.dump, type(result.failure)) for result in results] == [(dump, BusyError) for dump in waiting]
    assert connections == 2
    assert read_schedule(spool.fd).asked_until > 0


def test_a_store_whose_receiver_is_busy_is_not_missed(fleet: Fleet, spool: Spool) -> None:
    """It is not asked again for dumps that are not its own; for the rest of one of its own it is."""
    before, own, after = wait_in(spool, fleet), begin_elsewhere(spool), wait_in(spool, fleet)
    busy = Refuse(Refusal.BUSY, "too many", 60)
    with (
        scripted_receiver(fleet.receiver, refuse_opened) as first,
        scripted_receiver(fleet.receiver, lambda peer: peer.say(busy)) as second,
    ):
        results = list(flush(spool, [first.address, second.address], papers_of(fleet.host)))
        connections = first.connections, second.connections

    assert {result.dump for result in results} == {before, own, after}
    assert connections == (3, 2)
    assert read_schedule(spool.fd).missed == ()


def test_two_silent_receivers_cost_two_deadlines(fleet: Fleet, spool: Spool) -> None:
    """Be it for one dump: each silence counts."""
    waiting = [wait_in(spool, fleet) for _ in range(3)]
    with (
        scripted_receiver(fleet.receiver, silent_after_ready) as one,
        scripted_receiver(fleet.receiver, silent_after_ready) as other,
    ):
        results = list(flush(spool, [one.address, other.address], papers_of(fleet.host)))
        connections = one.connections, other.connections

    assert [(result.dump, type(result.failure)) for result in results] == [(waiting[0], UnreachableError)]
    assert connections == (1, 1)
    assert read_schedule(spool.fd).left_off_at == waiting[0]


def test_the_rest_of_a_dump_goes_to_no_other_store(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """Its beginning is where it was begun: that its receiver refuses it for now makes nobody miss that store."""
    dump = begin_elsewhere(spool, STORE)
    with scripted_receiver(fleet.receiver, refuse_opened) as scripted:
        (flushed,) = flush(spool, [scripted.address, *receiver.addresses], papers_of(fleet.host))

    assert (flushed.dump, type(flushed.failure)) == (dump, BusyError)
    assert read_schedule(spool.fd).missed == ()


def test_what_was_delivered_and_cannot_be_removed_goes_nowhere_else(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """The disk here is at fault, and no receiver."""
    dump = wait_in(spool, fleet)
    (tmp_path / "spool/dumps" / f".{dump}.new").mkdir()
    (tmp_path / "spool/dumps" / f".{dump}.new/in the way").touch()
    with scripted_receiver(fleet.receiver, refuse_opened) as scripted:
        (flushed,) = flush(spool, [*receiver.addresses, scripted.address], papers_of(fleet.host))
        connections = scripted.connections

    assert type(flushed.failure) is StorageError
    assert connections == 0
