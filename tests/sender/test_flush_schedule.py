"""What a flush leaves for the next one: when to come again, after failures and after what a receiver has asked for."""

import socket
import threading
import time
from typing import Any, Final

import pytest

from securecore import limits
from securecore.errors import BusyError, UnreachableError
from securecore.merkle import EMPTY_ROOT
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender.attempt import OutOfTimeError
from securecore.sender.flush import flush
from securecore.sender.schedule import Schedule, read_schedule, write_schedule
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import SpoolEntry
from securecore.wire.messages import Accept, Message, Ready, Refusal, Refuse
from tests.support.certificates import Fleet
from tests.support.hands import PATIENCE_S
from tests.support.receivers import papers_of
from tests.support.scripted import STORE, Peer, Script, scripted_receiver
from tests.support.waiting import NOWHERE, begin_elsewhere, silent_after_ready, wait_in

BUDGET_S: Final = 0.5
"""Time for a flush that is used up at once."""


def test_failures_put_the_next_time_off_and_success_brings_it_back(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """Nobody is there twice, then somebody is."""
    wait_in(spool, fleet)
    papers, now = papers_of(fleet.host), time.time()
    list(flush(spool, [NOWHERE], papers, lambda: now))
    once = read_schedule(spool.fd)
    list(flush(spool, [NOWHERE], papers, lambda: now + 3600))
    twice = read_schedule(spool.fd)
    list(flush(spool, receiver.addresses, papers, lambda: now + 3600))

    assert (once.failures, twice.failures) == (1, 2)
    assert now - 1 <= once.not_before <= now + limits.BACK_OFF_S
    assert now + 3599 <= twice.not_before <= now + 3600 + 2 * limits.BACK_OFF_S
    assert read_schedule(spool.fd) == Schedule()


def test_what_a_receiver_asks_for_is_kept(fleet: Fleet, spool: Spool) -> None:
    """It is busy and says for how long: the timer comes no sooner."""
    wait_in(spool, fleet)
    now = 1_795_338_860.0
    with scripted_receiver(fleet.receiver, lambda peer: peer.say(Refuse(Refusal.BUSY, "later", 7200))) as scripted:
        list(flush(spool, [scripted.address], papers_of(fleet.host), lambda: now))

    assert now + 7199 <= read_schedule(spool.fd).not_before <= now + 7200 + limits.BACK_OFF_S


def test_a_host_that_is_refused_for_good_backs_off_too(fleet: Fleet, spool: Spool) -> None:
    """A revoked host does not knock every two minutes for ever."""
    wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, lambda peer: peer.say(Refuse(Refusal.REVOKED, "no"))) as scripted:
        list(flush(spool, [scripted.address], papers_of(fleet.host)))

    assert read_schedule(spool.fd).failures == 1


def test_a_person_who_tries_again_makes_no_timer_wait_longer(fleet: Fleet, spool: Spool) -> None:
    """What fails before it was due changes nothing."""
    wait_in(spool, fleet)
    now = 1_795_338_860.0
    put_off = Schedule(5, int(now) + 900)
    write_schedule(spool.fd, put_off)

    list(flush(spool, [NOWHERE], papers_of(fleet.host), lambda: now))

    assert read_schedule(spool.fd) == put_off


def test_what_a_receiver_asks_for_counts_before_it_was_due_too(fleet: Fleet, spool: Spool) -> None:
    """The back-off stays as it was; but the receiver has asked for patience, and has it from the timer."""
    wait_in(spool, fleet)
    now = 1_795_338_860.0
    write_schedule(spool.fd, Schedule(5, int(now) + 900))
    with scripted_receiver(fleet.receiver, lambda peer: peer.say(Refuse(Refusal.BUSY, "later", 7200))) as scripted:
        list(flush(spool, [scripted.address], papers_of(fleet.host), lambda: now))

    schedule = read_schedule(spool.fd)
    assert (schedule.failures, schedule.not_before) == (5, int(now) + 900)
    assert [schedule.is_due(now + later) for later in (0, 7199, 7200)] == [False, False, True]


def taking_all_then(say: Message | None) -> Script:
    """Return the script of a receiver that takes every frame, acknowledges none, and then says *say* in answer to END, or goes."""

    def script(peer: Peer) -> None:
        peer.say(Ready(STORE, 1 << 24))
        peer.hear()
        peer.say(Accept(0, EMPTY_ROOT))
        peer.hear_end()
        if say is not None:
            peer.say(say)

    return script


def test_frames_that_nobody_vouched_for_are_not_sent_every_two_minutes(fleet: Fleet, spool: Spool) -> None:
    """A receiver whose disk is full takes frames and then says no: that is no progress, however many were sent."""
    wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, taking_all_then(Refuse(Refusal.STORAGE, "full"))) as scripted:
        (refused,) = flush(spool, [scripted.address], papers_of(fleet.host))

    assert (type(refused.failure), refused.sent_frames) == (BusyError, 4)
    assert read_schedule(spool.fd).failures == 1


def test_a_wire_that_is_cut_behind_a_frame_makes_nobody_wait(fleet: Fleet, spool: Spool) -> None:
    """The receiver keeps what came: a link that is cut every minute gets a dump through, bit by bit."""
    wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, taking_all_then(None)) as scripted:
        (cut,) = flush(spool, [scripted.address], papers_of(fleet.host))

    assert (type(cut.failure), cut.sent_frames) == (UnreachableError, 4)
    schedule = read_schedule(spool.fd)
    assert (schedule.failures, schedule.is_due(time.time())) == (0, True)


def test_a_receiver_that_keeps_nothing_of_what_it_takes_is_given_frames_once(fleet: Fleet, spool: Spool) -> None:
    """Three dumps, two tries in a flush. At the fourth one it holds no more than at the first: from then on no frames count."""
    for _ in range(3):
        wait_in(spool, fleet)
    papers, failures = papers_of(fleet.host), []
    with scripted_receiver(fleet.receiver, taking_all_then(None)) as scripted:
        for _ in range(5):
            list(flush(spool, [scripted.address], papers, clock=lambda: time.time() + 3600 * len(failures)))
            failures.append(read_schedule(spool.fd).failures)

    assert failures == [0, 0, 1, 2, 3]


def test_who_has_kept_nothing_is_hoped_for_again_once_somebody_vouches(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """A dump that is delivered wipes it out."""
    wait_in(spool, fleet)
    papers = papers_of(fleet.host)
    with scripted_receiver(fleet.receiver, taking_all_then(None)) as scripted:
        for _ in range(2):
            list(flush(spool, [scripted.address], papers))
    vain = read_schedule(spool.fd)
    list(flush(spool, receiver.addresses, papers))

    assert vain.hope is not None
    assert vain.hope.is_vain
    assert read_schedule(spool.fd) == Schedule()


def test_a_receiver_that_takes_everything_and_vouches_for_nothing_is_left_after_two(fleet: Fleet, spool: Spool) -> None:
    """Each such dump would cost the time for a receipt."""
    waiting = [wait_in(spool, fleet) for _ in range(3)]
    with scripted_receiver(fleet.receiver, taking_all_then(None)) as scripted:
        results = list(flush(spool, [scripted.address], papers_of(fleet.host)))

    assert [result.dump for result in results] == waiting[:2]


def test_a_budget_that_ran_out_makes_no_timer_wait(
    fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler's flush has a minute; that it was over before a dump was read says nothing against the receiver."""
    dump, real = wait_in(spool, fleet), SpoolEntry.read
    ended = threading.Event()

    def read(entry: SpoolEntry) -> Any:
        ended.wait(BUDGET_S)
        return real(entry)

    monkeypatch.setattr(limits, "READ_MEANWHILE_BYTES", 0)
    monkeypatch.setattr(SpoolEntry, "read", read)
    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host), budget_s=BUDGET_S)

    assert (flushed.dump, type(flushed.failure)) == (dump, OutOfTimeError)
    assert read_schedule(spool.fd) == Schedule(left_off_at=dump)


@pytest.mark.slow
def test_an_answer_that_the_budget_was_too_short_for_makes_no_timer_wait(fleet: Fleet, spool: Spool) -> None:
    """It might have come a moment later. The next flush begins with other dumps, in case it does not."""
    dump = wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, silent_after_ready) as scripted:
        (flushed,) = flush(spool, [scripted.address], papers_of(fleet.host), budget_s=BUDGET_S)

    assert (flushed.dump, type(flushed.failure)) == (dump, OutOfTimeError)
    assert read_schedule(spool.fd) == Schedule(left_off_at=dump)


@pytest.mark.slow
def test_a_budget_that_ran_out_before_a_store_was_sought_misses_none(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """Of two receivers the first has another store; what is left for the second is not enough to call its store missed."""
    begin_elsewhere(spool)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receivers = [*receiver.addresses, Address(f"127.0.0.1:{listener.getsockname()[1]}")]
        (flushed,) = flush(spool, receivers, papers_of(fleet.host), budget_s=BUDGET_S)

    assert type(flushed.failure) is OutOfTimeError
    assert read_schedule(spool.fd).missed == ()


def test_what_failed_before_the_budget_ran_out_counts(fleet: Fleet, spool: Spool) -> None:
    """A receiver that says no says so however little time is left."""
    wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, lambda peer: peer.say(Refuse(Refusal.BUSY, "later", 7200))) as scripted:
        (refused,) = flush(spool, [scripted.address], papers_of(fleet.host), budget_s=PATIENCE_S)

    assert type(refused.failure) is BusyError
    assert read_schedule(spool.fd).failures == 1
