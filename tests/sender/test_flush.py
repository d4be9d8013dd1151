"""Delivering what the spool holds: what is wrong with one dump keeps no other one back, and what holds for all is tried once."""

import os
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from securecore import limits
from securecore.certs import jws
from securecore.dump.manifest import parse_manifest
from securecore.dump.reader import scan_frames
from securecore.errors import BusyError, RefusedError, SecurecoreError, StorageError, UnreachableError
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender import delivery
from securecore.sender.flush import flush
from securecore.sender.patience import Patience
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import SpoolEntry
from securecore.store.layout import open_store
from securecore.wire.messages import Message, Refusal, Refuse
from tests.support.certificates import Fleet
from tests.support.kernel import wait_until
from tests.support.receivers import new_dump_id, papers_of
from tests.support.scripted import scripted_receiver
from tests.support.waiting import LOST, NOWHERE, begin_elsewhere, serving, wait_in


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


def test_a_flush_with_a_budget_ends_with_it(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """What it has not come to waits, untouched."""
    waiting = [wait_in(spool, fleet) for _ in range(2)]

    assert list(flush(spool, receiver.addresses, papers_of(fleet.host), budget_s=0)) == []
    assert spool.dump_ids() == waiting


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
