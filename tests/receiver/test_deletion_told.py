"""``delete`` and the sender of what it deletes: who may not be deleted meanwhile, and what a host that comes back hears."""

import os
import pwd
import threading
from pathlib import Path
from typing import Any

import pytest

from securecore.errors import BusyError, SecurecoreError, StorageError
from securecore.names import Address, DumpId, HostName
from securecore.receiver import control
from securecore.receiver.deletion import delete
from securecore.receiver.server import Receiver, open_receiver
from securecore.receiver.settings import ReceiverSettings
from securecore.report import CrashReport
from securecore.sender.flush import flush
from securecore.sender.spool import Spool
from securecore.store.layout import Place, open_store
from tests.support.certificates import Fleet
from tests.support.dumps import begin, core_bytes
from tests.support.kernel import wait_until
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.stores import WEB as WEB_NAME
from tests.support.stores import Commands, fill_store

CORE = core_bytes(1, 40)
REPORT = CrashReport(sender="test", program="crasher", signal=11, pid=4711).encode()
"""What send_bytes sends."""


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    """Each end of a process has a store of its own."""
    return in_memory


@pytest.fixture
def commands(fleet: Fleet, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    """Commands on the running receiver's store."""
    return Commands(tmp_path / "store", fleet, capsys)


@pytest.fixture
def spooled(fleet: Fleet, receiver: Receiver, spool: Spool) -> DumpId:
    """A dump that the receiver has, and the spool too: its receipt never came back."""
    dump = new_dump_id()
    send_bytes(CORE, papers_of(fleet.host), receiver.addresses, dump=dump)
    nowhere = send_bytes(CORE, papers_of(fleet.host), [], spool=spool, dump=dump)
    assert nowhere.spooled
    return dump


def test_a_late_duplicate_hears_that_it_is_gone_and_is_let_go(
    fleet: Fleet, receiver: Receiver, spool: Spool, spooled: DumpId, commands: Commands
) -> None:
    """The sender checks the proof that its dump was received, keeps it with the words, and empties its spool."""
    assert commands("delete", spooled, "--reason", "customer data").code == 0
    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))
    assert flushed.failure is None
    assert flushed.receipt is not None
    assert str(flushed.receipt["gone"]).startswith("deleted on ")
    assert "customer data" not in str(flushed.receipt["gone"]), "why is no host's business"
    assert (spool.dump_ids(), flushed.sent_frames) == ([], 0)
    assert [line["dump"] for line in spool.receipts()] == [str(spooled)]


def is_free(path: Path) -> bool:
    """Return whether no receiver has the store any more."""
    with open_store(str(path)) as store:
        try:
            store.lock().close()
        except StorageError:
            return False
    return True


def test_a_tombstone_outlives_the_receiver(
    fleet: Fleet, receiver: Receiver, spool: Spool, spooled: DumpId, commands: Commands, tmp_path: Path
) -> None:
    """It is made of the log alone, so that a new receiver on the store knows it too."""
    assert commands("delete", spooled).code == 0
    receiver.stop()
    wait_until(lambda: True if is_free(tmp_path / "store") else None)
    with running_receiver(fleet.receiver, tmp_path / "store") as another:
        (flushed,) = flush(spool, another.addresses, papers_of(fleet.host))
    assert flushed.receipt is not None
    assert "gone" in flushed.receipt


def test_a_part_that_was_deleted_is_welcome_again(fleet: Fleet, receiver: Receiver, spool: Spool, commands: Commands) -> None:
    """Of a dump that never arrived whole there is no proof that could release its sender: it is taken, and received."""
    dump = new_dump_id()
    send_bytes(CORE, papers_of(fleet.host), [], spool=spool, dump=dump)
    with open_store(str(commands.store)) as store:
        begin(store, dump, CORE[: 1 << 20], report=REPORT, host=HostName(WEB_NAME)).close()
    assert commands("delete", dump).code == 0
    (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))
    assert flushed.failure is None
    assert flushed.receipt is not None
    assert "gone" not in flushed.receipt
    assert [entry["event"] for entry in commands.entries()] == ["deleted", "received"]


def test_the_log_says_who_and_why_and_still_verifies(receiver: Receiver, fleet: Fleet, commands: Commands) -> None:
    """By the kernel's word for the uid; a dump that is gone by its log is missed by nobody, one beside it stays."""
    gone, other = new_dump_id(), new_dump_id()
    for dump in (gone, other):
        assert send_bytes(CORE, papers_of(fleet.host), receiver.addresses, dump=dump).receipt is not None
    assert commands.audit().code == 0
    ran = commands("delete", gone, "--reason", "customer data")
    assert (ran.code, ran.out) == (0, f"{gone.short}  deleted; the audit log of {WEB_NAME} says so\n")
    entry, user = commands.entries()[-1], pwd.getpwuid(os.getuid())
    assert (entry["event"], entry["dump"], entry["reason"]) == ("deleted", str(gone), "customer data")
    assert (entry["uid"], entry["user"]) == (user.pw_uid, user.pw_name)
    assert not commands.dump(gone).exists()
    assert commands.dump(other).exists()
    assert (commands.audit().code, commands.verify("--all").code) == (0, 0)
    assert [row["id"] for row in commands("list", "--json").document] == [str(other)]
    assert f"by {user.pw_name}: customer data" in commands("audit", "log").out


def test_where_no_receiver_runs_the_command_signs_for_itself(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the receiver's identity; without one nothing is deleted, and the hint says why."""
    (dump,) = fill_store(fleet, tmp_path / "store", [("web-1", CORE)])
    commands = Commands(tmp_path / "store", fleet, capsys)
    ran = commands("delete", dump, "--identity", tmp_path / "none")
    assert ran.code != 0
    assert "who deletes is audited" in ran.err
    assert commands.dump(dump).exists()
    assert commands("delete", dump, "--identity", fleet.receiver, "--json").document == {
        "id": str(dump), "host": WEB_NAME, "deleted": True,
    }  # fmt: skip
    assert not commands.dump(dump).exists()
    assert commands.audit().code == 0


def test_a_dump_that_a_session_has_is_not_deleted(receiver: Receiver, spooled: DumpId, commands: Commands) -> None:
    """Also before it has opened a file of it: the claim alone keeps the dump, and another one keeps its sender off meanwhile.

    Who asks is told what to do, as where no receiver runs.
    """
    with receiver._service.presence.claim(HostName(WEB_NAME), spooled, lambda: None):
        ran = commands("delete", spooled)
    assert (ran.code, "a session has this dump" in ran.err) == (BusyError.exit_code, True)
    assert "hint: wait until its sender has finished, or has gone" in ran.err
    assert commands.dump(spooled).exists()


def test_a_sender_waits_while_its_dump_is_deleted(
    receiver: Receiver, spooled: DumpId, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion has claimed the dump, as a session would."""
    claims: list[object] = []

    def look_and_delete(*arguments: Any) -> None:
        claims.extend(receiver._service.presence._claims)
        delete(*arguments)

    monkeypatch.setattr(control, "delete", look_and_delete)
    assert commands("delete", spooled).code == 0
    assert claims == [(HostName(WEB_NAME), spooled)]


@pytest.mark.slow
def test_a_receiver_that_is_stopped_finishes_a_deletion(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for before the signal came is done and answered before the logs and the store are closed."""
    (dump,) = fill_store(fleet, tmp_path / "store", [("web-1", CORE)])
    commands = Commands(tmp_path / "store", fleet, capsys)
    receiver = open_receiver(ReceiverSettings((Address("127.0.0.1:0"),), tmp_path / "store", fleet.receiver))
    serving = threading.Thread(target=receiver.serve)
    serving.start()

    def stop_and_delete(*arguments: Any) -> None:
        receiver.stop()
        serving.join(0.5)  # Longer than it takes where nobody waits.
        delete(*arguments)

    monkeypatch.setattr(control, "delete", stop_and_delete)
    ran = commands("delete", dump)
    serving.join()
    assert (ran.code, ran.err) == (0, "")
    assert not commands.dump(dump).exists()
    assert not (tmp_path / "store" / control.SOCKET).exists()


@pytest.mark.parametrize("reason", [7, ["x"], "x" * 401])
def test_a_reason_that_is_none_is_refused(reason: object, receiver: Receiver, fleet: Fleet, tmp_path: Path) -> None:
    """Whoever speaks to the socket by themselves gets an error, and nothing is deleted."""
    dump = new_dump_id()
    assert send_bytes(CORE, papers_of(fleet.host), receiver.addresses, dump=dump).receipt is not None
    with open_store(str(tmp_path / "store")) as store:
        with pytest.raises(SecurecoreError, match="reason"):
            control.ask_for_deletion(store, HostName(WEB_NAME), dump, reason)  # type: ignore[arg-type]
        assert store.find_place(HostName(WEB_NAME), dump) is Place.HOSTS
