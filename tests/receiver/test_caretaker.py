"""A running receiver and senders that do not come back, or do: what the caretaker's thread does beside the sessions."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from securecore import limits
from securecore.names import Address, DumpId, HostName
from securecore.receiver.server import Receiver, open_receiver
from securecore.receiver.settings import ReceiverSettings
from securecore.sender.flush import flush
from securecore.sender.spool import Spool
from securecore.store import removal
from securecore.store.layout import open_store
from tests.support.certificates import DOMAIN, Fleet
from tests.support.proxies import Cut, cutting
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.stores import Commands, fill_store, make_old, published

CORE = random.Random(3).randbytes(20 * limits.MIB)


@pytest.fixture
def commands(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    """Commands on the store of the test."""
    return Commands(tmp_path / "store", fleet, capsys)


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once *condition* holds; fails when it does not within half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@contextmanager
def cut_off(fleet: Fleet, store: Path, spool: Spool) -> Iterator[tuple[DumpId, Receiver]]:
    """Yield a dump of which a part has come to a running receiver, the rest being in the spool, and that receiver."""
    dump = new_dump_id()
    with running_receiver(fleet.receiver, store) as receiver:
        with cutting(receiver.addresses[0], Cut(12_000_000, True)) as proxy:
            assert send_bytes(CORE, papers_of(fleet.host), [proxy.address], spool=spool, dump=dump).spooled
        yield dump, receiver


@pytest.mark.slow
def test_a_sender_that_never_comes_back(fleet: Fleet, spool: Spool, tmp_path: Path, commands: Commands) -> None:
    """The next receiver gives its dump up at once when it is old; what was acknowledged is there, listed as incomplete, audited."""
    with cut_off(fleet, tmp_path / "store", spool) as (dump, _):
        pass
    make_old(tmp_path / "store", dump)
    with running_receiver(fleet.receiver, tmp_path / "store"):
        wait_for(commands.dump(dump).exists)
    (core,) = published(tmp_path / "store")
    assert CORE.startswith(core)
    assert len(core) >= 8 * limits.MIB
    assert [entry["event"] for entry in commands.entries()] == ["incomplete"]
    (row,) = commands("list", "--json").document
    assert (row["id"], row["state"]) == (str(dump), "incomplete")


@pytest.mark.slow
def test_a_sender_that_comes_back_after_all(fleet: Fleet, spool: Spool, tmp_path: Path, commands: Commands) -> None:
    """Its spool goes on behind the last frame that is held, and the dump becomes a complete one."""
    with cut_off(fleet, tmp_path / "store", spool) as (dump, _):
        pass
    make_old(tmp_path / "store", dump)
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        wait_for(commands.dump(dump).exists)
        results = list(flush(spool, receiver.addresses, papers_of(fleet.host)))
    assert [result.failure for result in results] == [None]
    assert spool.dump_ids() == []
    assert published(tmp_path / "store") == [CORE]
    assert [entry["event"] for entry in commands.entries()] == ["incomplete", "received"]
    assert commands.verify("--all").code == 0
    assert commands.audit().code == 0


@pytest.mark.slow
def test_a_dump_grows_old_while_the_receiver_runs(fleet: Fleet, spool: Spool, tmp_path: Path, commands: Commands) -> None:
    """The time counts from the last frame on, and needs no start."""
    with cut_off(fleet, tmp_path / "store", spool) as (dump, _):
        pass
    settings = ReceiverSettings((Address("127.0.0.1:0"),), tmp_path / "store", fleet.receiver, timedelta(seconds=1))
    receiver = open_receiver(settings)
    thread = threading.Thread(target=receiver.serve)
    thread.start()
    wait_for(commands.dump(dump).exists)
    receiver.stop()
    thread.join()


@pytest.mark.slow
def test_young_dumps_are_left_to_their_senders(fleet: Fleet, spool: Spool, tmp_path: Path, commands: Commands) -> None:
    """Without the option it is a week."""
    with cut_off(fleet, tmp_path / "store", spool) as (dump, _):
        pass
    make_old(tmp_path / "store", dump, by=timedelta(days=6, hours=23))
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        receiver._caretaker.look()
        assert commands.dump(dump, place="incoming").exists()
        assert [result.failure for result in flush(spool, receiver.addresses, papers_of(fleet.host))] == [None]
    assert [entry["event"] for entry in commands.entries()] == ["received"]


def test_the_thread_ends_with_the_receiver(fleet: Fleet, tmp_path: Path) -> None:
    """Stopping does not wait for the next look, an hour away."""
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        wait_for(lambda: receiver._caretaker._thread.is_alive())
    assert receiver._caretaker.has_ended(0)


def test_a_deletion_has_those_finished_that_were_interrupted(fleet: Fleet, tmp_path: Path, commands: Commands) -> None:
    """It may have made the room that they lacked: what a full disk has kept out of sight does not wait for the hourly look."""
    dumps = fill_store(fleet, tmp_path / "store", [("web-1", b"core")] * 4)
    with running_receiver(fleet.receiver, tmp_path / "store"), open_store(str(tmp_path / "store")) as store:
        # The first one may be found by the look at the start, which is over then; the second one by nobody else.
        for interrupted, deleted in (dumps[:2], dumps[2:]):
            removal.set_aside(store, HostName(f"web-1.{DOMAIN}"), interrupted)
            assert commands("delete", deleted).code == 0
            wait_for(commands.dump(interrupted).exists)
