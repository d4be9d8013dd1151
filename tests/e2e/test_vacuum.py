"""A vacuum of a store that hosts send to: what comes in is not touched, late duplicates are let go, and all can be proved."""

import os
import threading
from pathlib import Path

import pytest

from securecore import limits
from securecore.receiver.policy import Floor, Policy, Quota
from securecore.receiver.server import Receiver
from securecore.sender.flush import flush
from securecore.sender.parcel import Outcome
from securecore.sender.spool import Spool
from tests.support.certificates import Fleet
from tests.support.kernel import wait_until
from tests.support.receivers import Hold, new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.stores import WEB, Commands, stored_cores

LARGE = os.urandom(4 * limits.PIECE_BYTES)


@pytest.fixture
def commands(fleet: Fleet, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    """Commands on the running receiver's store."""
    return Commands(tmp_path / "store", fleet, capsys)


def test_a_late_duplicate_of_a_vacuumed_dump_is_let_go(fleet: Fleet, receiver: Receiver, spool: Spool, commands: Commands) -> None:
    """The host whose receipt was lost is shown the proof that its dump had been received, and empties its spool."""
    dump = new_dump_id()
    assert send_bytes(LARGE, papers_of(fleet.host), receiver.addresses, dump=dump).receipt is not None
    assert send_bytes(LARGE, papers_of(fleet.host), [], spool=spool, dump=dump).spooled
    assert commands("vacuum", "--keep-bytes", "1MiB").code == 0
    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))
    assert (flushed.failure, flushed.sent_frames, spool.dump_ids()) == (None, 0, [])
    assert flushed.receipt is not None
    assert str(flushed.receipt["gone"]).startswith("deleted on ")
    assert commands("list", "--json").document == []


def test_what_comes_in_during_a_vacuum_arrives(fleet: Fleet, receiver: Receiver, commands: Commands) -> None:
    """Of everything else nothing is left; the dump that was half here then is received whole, and all evidence holds."""
    for host in ("web-1", "db-2"):
        assert send_bytes(LARGE, papers_of(fleet.hosts[host]), receiver.addresses).receipt is not None
    coming, go_on, outcomes = new_dump_id(), threading.Event(), list[Outcome]()
    hold = Hold(2 * limits.PIECE_BYTES + 1, go_on)
    sender = threading.Thread(
        target=lambda: outcomes.append(
            send_bytes(LARGE, papers_of(fleet.host), receiver.addresses, dump=coming, hold=hold, hold_budget_s=60)
        )
    )
    sender.start()
    try:
        wait_until(lambda: True if commands.dump(coming, place="incoming").exists() else None)
        ran = commands("vacuum", "--keep-dumps", "0")
    finally:
        go_on.set()
        sender.join()
    assert (ran.code, ran.err) == (0, "")
    assert "deleted 2 dumps" in ran.out
    assert outcomes[0].receipt is not None
    assert stored_cores(commands.store) == {str(coming): LARGE}
    assert [row["id"] for row in commands("list", "--json").document] == [str(coming)]
    assert (commands.audit().code, commands.verify("--all").code) == (0, 0)


def test_a_store_that_a_receiver_left_is_vacuumed_and_taken_up_again(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a receiver the command signs; the one that starts next goes on with the same logs."""
    store = tmp_path / "store"
    others = Commands(store, fleet, capsys)
    with running_receiver(fleet.receiver, store) as first:
        for _ in range(3):
            assert send_bytes(b"core", papers_of(fleet.host), first.addresses).receipt is not None
    assert others("vacuum", "--host", "web-1", "--host-dumps", "1", "--identity", fleet.receiver).code == 0
    with running_receiver(fleet.receiver, store) as second:
        assert send_bytes(b"core", papers_of(fleet.host), second.addresses).receipt is not None
    assert [entry["event"] for entry in others.entries(WEB)] == [*["received"] * 3, *["deleted"] * 2, "received"]
    assert (others.audit().code, others.verify("--all").code) == (0, 0)


def test_a_host_at_its_quota_may_send_again_after_a_vacuum(
    fleet: Fleet, spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The receiver that runs refuses the third dump, deletes the first for the command, and takes the third from the spool."""
    commands, dumps = Commands(tmp_path / "store", fleet, capsys), [new_dump_id() for _ in range(3)]
    policy = Policy(quota=Quota(dumps=2), floor=Floor(share=0.0))
    with running_receiver(fleet.receiver, commands.store, policy=policy) as receiver:
        for dump in dumps[:2]:
            assert send_bytes(b"core", papers_of(fleet.host), receiver.addresses, dump=dump).receipt is not None
        assert send_bytes(b"core", papers_of(fleet.host), receiver.addresses, spool=spool, dump=dumps[2]).spooled
        assert commands("vacuum", "--host-dumps", "1").code == 0
        (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))
    assert (flushed.failure, spool.dump_ids()) == (None, [])
    assert {row["id"] for row in commands("list", "--json").document} == {str(dump) for dump in dumps[1:]}
