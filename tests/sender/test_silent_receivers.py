"""Receivers that say nothing, to a flush: what their silence costs, and that no dump waits behind it for ever."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import UnreachableError
from securecore.merkle import EMPTY_ROOT
from securecore.names import DumpId
from securecore.receiver.server import Receiver
from securecore.sender.delivery import Delivery
from securecore.sender.flush import flush
from securecore.sender.schedule import Schedule, read_schedule
from securecore.sender.spool import Spool
from securecore.wire.messages import Accept, Message, Open, Ready
from tests.support.certificates import Fleet
from tests.support.receivers import papers_of
from tests.support.scripted import STORE, Peer, Script, forge_receipt, scripted_receiver
from tests.support.waiting import begin_elsewhere, silent_after_ready, wait_in


def silent_about(identity: Path, unwanted: Sequence[DumpId]) -> Script:
    """Return the script of a receiver that takes every dump but those *unwanted*, of which it says nothing."""

    def script(peer: Peer) -> None:
        peer.say(Ready(STORE, 1 << 24))
        opened = peer.hear()
        assert isinstance(opened, Open)
        if opened.dump in unwanted:
            peer.stay()
        peer.say(Accept(0, EMPTY_ROOT))
        peer.say(forge_receipt(identity, peer.hear_end()))

    return script


@pytest.mark.slow
def test_a_receiver_that_greets_and_hangs_costs_two_deadlines(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one for each dump that waits: after the second in a row the rest is left for the next time."""
    waiting = [wait_in(spool, fleet) for _ in range(4)]
    monkeypatch.setattr(limits, "RECEIPT_DEADLINE_S", 0.3)
    with scripted_receiver(fleet.receiver, silent_after_ready) as scripted:
        results = list(flush(spool, [scripted.address], papers_of(fleet.host)))

    assert [(result.dump, type(result.failure)) for result in results] == [(dump, UnreachableError) for dump in waiting[:2]]
    assert spool.dump_ids() == waiting


@pytest.mark.slow
def test_dumps_that_meet_silence_keep_no_newer_one_back_for_ever(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next flush begins behind those with which the last one gave up, and comes back to them at its end."""
    waiting = [wait_in(spool, fleet) for _ in range(4)]
    monkeypatch.setattr(limits, "RECEIPT_DEADLINE_S", 0.5)
    with scripted_receiver(fleet.receiver, silent_about(fleet.receiver, waiting[:2])) as scripted:
        first, second = ([flushed.dump for flushed in flush(spool, [scripted.address], papers_of(fleet.host))] for _ in range(2))

    assert (first, second) == (waiting[:2], [*waiting[2:], *waiting[:2]])
    assert spool.dump_ids() == waiting[:2]


@pytest.mark.slow
def test_a_silence_that_costs_the_whole_budget_keeps_no_newer_dump_back(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler's short flush comes to what is behind, the next time."""
    waiting = [wait_in(spool, fleet) for _ in range(2)]
    with scripted_receiver(fleet.receiver, silent_about(fleet.receiver, waiting[:1])) as scripted:
        (silent,) = flush(spool, [scripted.address], papers_of(fleet.host), budget_s=2)
        monkeypatch.setattr(limits, "RECEIPT_DEADLINE_S", 0.5)
        delivered, again = flush(spool, [scripted.address], papers_of(fleet.host))

    assert [result.dump for result in (silent, delivered, again)] == [waiting[0], waiting[1], waiting[0]]
    assert read_schedule(spool.fd) == Schedule()


@pytest.mark.slow
def test_after_a_silent_receiver_the_next_one_is_tried_first(
    fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has cost one deadline; all dumps go where somebody answers, that one too."""
    waiting = [wait_in(spool, fleet) for _ in range(3)]
    monkeypatch.setattr(limits, "RECEIPT_DEADLINE_S", 0.5)
    with scripted_receiver(fleet.receiver, silent_after_ready) as scripted:
        results = list(flush(spool, [scripted.address, *receiver.addresses], papers_of(fleet.host)))
        connections = scripted.connections

    assert [(result.dump, result.failure) for result in results] == [(dump, None) for dump in waiting]
    assert connections == 1


def test_one_silence_between_deliveries_stops_nothing(fleet: Fleet, spool: Spool) -> None:
    """Only two in a row mean that the receiver, and not a dump, is the cause."""
    waiting = [wait_in(spool, fleet) for _ in range(5)]
    unwanted = {waiting[0], waiting[2]}

    def script(peer: Peer) -> None:
        peer.say(Ready(STORE, 1 << 24))
        opened = peer.hear()
        assert isinstance(opened, Open)
        if opened.dump not in unwanted:
            peer.say(Accept(0, EMPTY_ROOT))
            peer.say(forge_receipt(fleet.receiver, peer.hear_end()))

    with scripted_receiver(fleet.receiver, script) as scripted:
        results = list(flush(spool, [scripted.address], papers_of(fleet.host)))

    assert [result.failure is None for result in results] == [False, True, False, True, True]


def test_who_resumes_gives_the_receiver_time_to_read_what_it_holds(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In proportion to the frames that were acknowledged: 100 GB are not read again in the time for a receipt."""
    asked: list[float | None] = []

    def record(self: Delivery, message: Open, on_ack: object, most_s: float, answer_s: float) -> Message:
        asked.append(answer_s)
        raise UnreachableError("enough is known")

    begin_elsewhere(spool, STORE)
    begin_elsewhere(spool, STORE, frames=100_000)
    monkeypatch.setattr(Delivery, "open", record)
    with scripted_receiver(fleet.receiver, silent_after_ready) as scripted:
        list(flush(spool, [scripted.address], papers_of(fleet.host)))

    small, large = (seconds for seconds in asked if seconds is not None)
    assert limits.RECEIPT_DEADLINE_S <= small < limits.RECEIPT_DEADLINE_S + 1
    assert large >= limits.RECEIPT_DEADLINE_S + 100_000 * limits.PIECE_BYTES / limits.SLOW_DISK_BYTES_PER_S


def test_an_address_where_nobody_answers_is_dialled_once(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """Not for each dump that waits, those that belong to another store among them; the others go where somebody answers."""
    begin_elsewhere(spool)
    waiting = [wait_in(spool, fleet) for _ in range(2)]
    begin_elsewhere(spool)
    with scripted_receiver(fleet.receiver, lambda peer: None) as scripted:
        results = list(flush(spool, [scripted.address, *receiver.addresses], papers_of(fleet.host)))
        connections = scripted.connections

    assert [type(result.failure).__name__ for result in results] == ["OtherStoreError", "NoneType", "NoneType", "OtherStoreError"]
    assert [result.dump for result in results[1:3]] == waiting
    assert connections == 1


def test_an_address_where_nobody_answered_has_its_turn_again(
    fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long flush does not take a store for missed that it has not looked for in a while."""
    begin_elsewhere(spool)
    begin_elsewhere(spool)
    monkeypatch.setattr(limits, "ADDRESS_REST_S", 0.0)
    with scripted_receiver(fleet.receiver, lambda peer: None) as scripted:
        list(flush(spool, [scripted.address, *receiver.addresses], papers_of(fleet.host)))
        connections = scripted.connections

    assert connections == 2
