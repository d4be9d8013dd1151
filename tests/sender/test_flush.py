"""Delivering what the spool holds: what is wrong with one dump keeps no other one back, and what holds for all is tried once."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from securecore import limits
from securecore.certs import jws
from securecore.dump.manifest import parse_manifest
from securecore.dump.reader import scan_frames
from securecore.errors import BusyError, RefusedError, SecurecoreError, StorageError, UnreachableError
from securecore.merkle import EMPTY_ROOT, Frontier
from securecore.names import Address, DumpId, StoreId
from securecore.receiver.server import Receiver
from securecore.sender import delivery
from securecore.sender.delivery import Delivery
from securecore.sender.flush import flush
from securecore.sender.patience import Patience
from securecore.sender.schedule import Schedule, read_schedule, write_schedule
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd, EntryStart, SpoolEntry
from securecore.store.layout import open_store
from securecore.wire.messages import Accept, Message, Open, Ready, Refusal, Refuse
from tests.support.certificates import Fleet
from tests.support.custody import CORE
from tests.support.kernel import wait_until
from tests.support.receivers import new_dump_id, papers_of, send_bytes
from tests.support.scripted import STORE, Peer, Script, forge_receipt, scripted_receiver

NOWHERE: Final = Address("127.0.0.1:9")
LOST: Final = StoreId.make(b"\x01" * 16)


def wait_in(spool: Spool, fleet: Fleet) -> DumpId:
    """Put a whole dump into the spool."""
    dump = new_dump_id()
    send_bytes(CORE, papers_of(fleet.host), [NOWHERE], spool=spool, dump=dump)
    return dump


def begin_elsewhere(spool: Spool, store: StoreId = LOST, frames: int = 2) -> DumpId:
    """Put the tail of a dump into the spool, whose first *frames* frames went to *store*: one that nobody here has."""
    before = Frontier.from_peaks(frames, [bytes(32)] * frames.bit_count())
    entry = spool.begin(EntryStart(new_dump_id(), 1, store, before), b"{}")
    entry.finish(EntryEnd(frames << 20, None, "complete", 5))
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


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_the_disk_has_changed_is_not_signed_as_complete(
    number: int, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """One bit of a frame, which leaves it a frame to look at: the dump is delivered as cut, for its handler knew another root."""
    dump = wait_in(spool, fleet)
    core = tmp_path / "spool/dumps" / str(dump) / "core.zst"
    data = bytearray(core.read_bytes())
    (*offsets, _) = [frame.offset for frame in scan_frames(os.open(core, os.O_RDONLY))]
    at = (*offsets, len(data) - 1)[number] + 40 if number < 2 else len(data) - 5
    data[at] ^= 1
    core.write_bytes(data)

    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))

    assert flushed.failure is None
    with open_store(str(tmp_path / "store")) as store:
        ((host, _),) = [(host, found) for host in store.host_names() for found in store.dump_ids(host)]
        with store.open_dump(host, dump) as held:
            payload = jws.parse(held.read_manifest() or b"", limits.MAX_MANIFEST_BYTES).payload
    assert parse_manifest(payload).outcome == "cut"


def test_a_large_dump_is_read_between_two_connections(
    fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver drops who says READY and then nothing for a minute: it is asked again when all is read."""
    monkeypatch.setattr(limits, "READ_MEANWHILE_BYTES", 0)
    seen: list[int] = []
    real = SpoolEntry.read

    def read(entry: SpoolEntry) -> Any:
        wait_until(lambda: receiver.session_count == 0 or None)
        seen.append(receiver.session_count)
        return real(entry)

    monkeypatch.setattr(SpoolEntry, "read", read)
    wait_in(spool, fleet)

    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))

    assert (flushed.failure, seen) == (None, [0])


def test_nothing_is_read_for_a_receiver_that_is_not_there(fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool may hold a hundred gigabytes, and a receiver may be away for a night."""
    wait_in(spool, fleet)
    monkeypatch.setattr(SpoolEntry, "read", lambda entry: pytest.fail("read"))

    (flushed,) = flush(spool, [NOWHERE], papers_of(fleet.host))

    assert isinstance(flushed.failure, UnreachableError)


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


def test_when_to_come_again_is_not_obeyed_by_a_person(fleet: Fleet, spool: Spool) -> None:
    """R24: a receiver that says "in a day" is asked by the next flush that somebody starts, and has the dump."""
    dump = wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, lambda peer: peer.say(Refuse(Refusal.BUSY, "later", 86400))) as scripted:
        (refused,) = flush(spool, [scripted.address], papers_of(fleet.host))
    with scripted_receiver(fleet.receiver, serving(fleet.receiver, new_dump_id(), None)) as scripted:
        (taken,) = flush(spool, [scripted.address], papers_of(fleet.host))

    assert (refused.dump, type(refused.failure)) == (dump, BusyError)
    assert (taken.dump, taken.failure) == (dump, None)


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


def silent_after_ready(peer: Peer) -> None:
    """Greet, and then say nothing until the sender has gone."""
    peer.say(Ready(STORE, 1 << 24))
    peer.stay()


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
    """It has cost one dump its deadline; the others go where somebody answers."""
    waiting = [wait_in(spool, fleet) for _ in range(3)]
    monkeypatch.setattr(limits, "RECEIPT_DEADLINE_S", 0.5)
    with scripted_receiver(fleet.receiver, silent_after_ready) as scripted:
        results = list(flush(spool, [scripted.address, *receiver.addresses], papers_of(fleet.host)))
        connections = scripted.connections

    assert [result.failure is None for result in results] == [False, True, True]
    assert connections == 1
    assert spool.dump_ids() == waiting[:1]


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


def test_a_flush_with_a_budget_ends_with_it(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """What it has not come to waits, untouched."""
    waiting = [wait_in(spool, fleet) for _ in range(2)]

    assert list(flush(spool, receiver.addresses, papers_of(fleet.host), budget_s=0)) == []
    assert spool.dump_ids() == waiting


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


def test_a_connection_has_no_more_than_is_left_of_the_budget(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of several receivers, however patient the settings are."""
    given: list[float] = []

    def record(address: Address, context: object, deadline_s: float, progress_s: float) -> NoReturn:
        given.append(deadline_s)
        raise UnreachableError("nobody")

    wait_in(spool, fleet)
    monkeypatch.setattr(delivery, "_connect_one", record)
    list(flush(spool, [NOWHERE, NOWHERE], papers_of(fleet.host), patience=Patience(600, 600, 600), budget_s=60))

    assert len(given) == 2
    assert max(given) <= 60


def test_a_dump_that_cannot_be_removed_has_one_receipt(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """However often it is asked for: what stands in the log already is not appended again."""
    dump, other = wait_in(spool, fleet), wait_in(spool, fleet)
    (tmp_path / "spool/dumps" / f".{dump}.new").mkdir()
    (tmp_path / "spool/dumps" / f".{dump}.new/in the way").touch()

    results = [flushed for _ in range(3) for flushed in flush(spool, receiver.addresses, papers_of(fleet.host))]

    assert [(result.dump, type(result.failure)) for result in results] == [
        (dump, StorageError), (other, type(None)), (dump, StorageError), (dump, StorageError),
    ]  # fmt: skip
    assert [receipt["dump"] for receipt in spool.receipts()] == [str(dump), str(other)]


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
    assert read_schedule(spool.fd) == Schedule()


def test_a_receiver_that_takes_everything_and_vouches_for_nothing_is_left_after_two(fleet: Fleet, spool: Spool) -> None:
    """Each such dump would cost the time for a receipt."""
    waiting = [wait_in(spool, fleet) for _ in range(3)]
    with scripted_receiver(fleet.receiver, taking_all_then(None)) as scripted:
        results = list(flush(spool, [scripted.address], papers_of(fleet.host)))

    assert [result.dump for result in results] == waiting[:2]
