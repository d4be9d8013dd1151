"""Deleting a dump: ended before each of its system calls it is there whole or gone, and its sender hears what became of it."""

import os
import pwd
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.audit.log import HostLogs
from securecore.errors import BrokenError, BusyError, NotFoundError, SecurecoreError, StorageError
from securecore.names import Address, DumpId, HostName
from securecore.receiver import control
from securecore.receiver.commit import Committer
from securecore.receiver.deletion import Order, delete, find_tombstone
from securecore.receiver.mass_deletion import delete_all
from securecore.receiver.server import Receiver, open_receiver
from securecore.receiver.settings import ReceiverSettings
from securecore.report import CrashReport
from securecore.sender.flush import flush
from securecore.sender.spool import Spool
from securecore.store.layout import Place, Store, create_store, open_store
from tests.support.certificates import Fleet, Hierarchy
from tests.support.disk import Disk, refuse, run_until
from tests.support.dumps import (
    NOW,
    WEB,
    Keys,
    begin,
    core_bytes,
    dump_id,
    dump_path,
    logs_of,
    make_log_signer,
    make_signer,
    store_dump,
)
from tests.support.kernel import wait_until
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.stores import WEB as WEB_NAME
from tests.support.stores import Commands, files_of, fill_store

CORE = core_bytes(1, 40)
ID, OTHER = dump_id(1), dump_id(2)
REPORT = CrashReport(sender="test", program="crasher", signal=11, pid=4711).encode()
"""What send_bytes sends."""
ALICE = Order(1000, "alice", "customer data")


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    """Each end of a process has a store of its own."""
    return in_memory


def delete_one(store: Store, logs: HostLogs) -> bool:
    """Delete the dump, and say so."""
    delete(store, logs, WEB, ID, ALICE, NOW)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power cut"])
@pytest.mark.parametrize("place", [Place.HOSTS, Place.INCOMING])
def test_ended_before_every_call_a_dump_is_whole_or_gone(
    place: Place, loses_power: bool, hierarchy: Hierarchy, tmp_path: Path
) -> None:
    """After the next start the dump stands where it stood, with all its files, or is gone and has its tombstone."""
    log_signer, signer = make_log_signer(), make_signer(hierarchy)
    fatal, outcomes = 0, set[str]()
    while "finished" not in outcomes:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        with create_store(str(path)) as store:
            logs = logs_of(store, log_signer)
            if place is Place.HOSTS:
                store_dump(store, logs, signer, ID, CORE)
            else:
                begin(store, ID, CORE).close()
            logs.close()
        before = files_of(path)
        disk = Disk(path)
        with open_store(str(path)) as store:
            logs = logs_of(store, log_signer)
            if run_until(fatal, disk, lambda store=store, logs=logs: delete_one(store, logs)):
                outcomes.add("finished")
            logs.close()
        if loses_power:
            path = tmp_path / f"left-{fatal}"
            disk.restore(path)
        disk.close()

        with open_store(str(path)) as store:
            logs = logs_of(store, log_signer)
            is_unsigned = has_unsigned_entry(path)
            Committer(store, logs, lambda: NOW).roll_forward()
            assert store.deleting() == []
            log = path / "audit" / str(WEB) / "entries.jsonl"
            is_deleted = log.exists() and '"event":"deleted"' in log.read_text()
            if is_deleted:
                assert store.find_place(WEB, ID) is None
                tombstone = find_tombstone(logs, WEB, ID)
                assert (tombstone is not None) == (place is Place.HOSTS)
                outcomes.add("gone")
            else:
                assert files_of(path) == before
                outcomes.add("whole by an entry that was not signed" if is_unsigned else "whole")
            assert not (is_unsigned and is_deleted)
            logs.close()
    assert outcomes - {"whole by an entry that was not signed"} == {"whole", "gone", "finished"}
    assert loses_power or "whole by an entry that was not signed" in outcomes
    assert fatal > 10


def test_a_host_that_offers_a_deleted_dump_again_and_again_has_its_log_read_once(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each OPEN of it would read a log from end to end, which other sessions of the host wait for; the answer is remembered."""
    with create_store(str(tmp_path / "store")) as store:
        logs = logs_of(store, keys.log)
        store_dump(store, logs, keys.host, ID, CORE)
        delete_one(store, logs)
        committer = Committer(store, logs, lambda: NOW)
        first = committer.find_tombstone(WEB, ID)
        assert first is not None
        with monkeypatch.context() as patch:
            patch.setattr("securecore.audit.log.scan_lines", refuse_to_read)
            assert [committer.find_tombstone(WEB, ID) for _ in range(3)] == [first] * 3
        store_dump(store, logs, keys.host, ID, CORE)
        assert committer.find_tombstone(WEB, ID) is None
        delete(store, logs, WEB, ID, ALICE, NOW + timedelta(days=1))
        again = committer.find_tombstone(WEB, ID)
        assert again is not None
        assert again.words != first.words
        logs.close()


def test_few_answers_about_deleted_dumps_are_remembered(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with many of them fills no memory: what was asked for the longest ago is looked up once more."""
    monkeypatch.setattr(limits, "MAX_TOMBSTONES", 1)
    with create_store(str(tmp_path / "store")) as store:
        logs = logs_of(store, keys.log)
        for identifier in (ID, OTHER):
            store_dump(store, logs, keys.host, identifier, CORE)
        assert delete_all(store, logs, WEB, [ID, OTHER], ALICE, NOW) == {}
        committer = Committer(store, logs, lambda: NOW)
        found = {identifier: committer.find_tombstone(WEB, identifier) for identifier in (ID, OTHER)}
        with monkeypatch.context() as patch:
            patch.setattr("securecore.audit.log.scan_lines", refuse_to_read)
            assert committer.find_tombstone(WEB, OTHER) == found[OTHER]
            with pytest.raises(StorageError, match="read"):
                committer.find_tombstone(WEB, ID)
        assert committer.find_tombstone(WEB, ID) == found[ID]
        logs.close()


def refuse_to_read(fd: int) -> None:
    raise StorageError("cannot read an audit log")


@pytest.mark.parametrize("name", ["receipt", "manifest.jws", "stranger"])
def test_a_dump_with_a_directory_among_its_files_stays_in_sight(name: str, keys: Keys, tmp_path: Path) -> None:
    """It is not ours to remove. It is named before the log says that the dump is deleted, which else would stay, out of sight."""
    with create_store(str(tmp_path / "store")) as store:
        logs = logs_of(store, keys.log)
        for identifier in (ID, OTHER):
            store_dump(store, logs, keys.host, identifier, CORE)
        stranger = dump_path(store, ID) / name
        stranger.unlink(missing_ok=True)
        stranger.mkdir()
        with pytest.raises(StorageError, match=f"dump {ID} cannot be removed: '{name}' in it is a directory"):
            delete_one(store, logs)
        assert [type(error) for error in delete_all(store, logs, WEB, [ID, OTHER], ALICE, NOW).values()] == [StorageError]
        assert [store.find_place(WEB, identifier) for identifier in (ID, OTHER)] == [Place.HOSTS, None]
        assert find_tombstone(logs, WEB, ID) is None
        assert store.deleting() == []
        stranger.rmdir()
        assert delete_one(store, logs)
        assert store.find_place(WEB, ID) is None
        logs.close()


Survivors = dict[str, bytes | None]
LOG = f"audit/{WEB}/entries.jsonl"


def is_out_of_sight(before: Survivors) -> bool:
    """Whether the dump stands under deleting, whole, and nowhere else."""
    places = {name.partition("/")[0] for name in before if name.endswith(f"/{ID}")}
    return places == {"deleting"} and {"core.zst", "report.json"} <= {name.rpartition("/")[2] for name in before}


def is_logged(before: Survivors) -> bool:
    """Whether the entry is there, and covered by the checkpoint."""
    log, checkpoint = before[LOG] or b"", before[f"audit/{WEB}/checkpoint"] or b""
    return b'"event":"deleted"' in log and checkpoint.split(b"\n")[1] == b"2"


PROMISES: dict[str, tuple[str, Callable[[Survivors], bool]]] = {
    "a deleted entry is written": (f"write {LOG}", is_out_of_sight),
    "a file of a deleted dump is removed": (f"unlink deleting/{WEB}/{ID}/report.json", is_logged),
}
"""By the first column of the table in docs/store.md, behind the rows of others: the call, and what is durable before it."""


@pytest.mark.parametrize("promise", PROMISES)
def test_what_is_durable_when(promise: str, hierarchy: Hierarchy, tmp_path: Path) -> None:
    """A power cut just before the call leaves what docs/store.md promises."""
    call, holds = PROMISES[promise]
    steps: list[tuple[str, Survivors]] = []
    with create_store(str(tmp_path / "store")) as store, pytest.MonkeyPatch.context() as patch:
        logs = logs_of(store, make_log_signer())
        store_dump(store, logs, make_signer(hierarchy), ID, CORE)
        disk = Disk(tmp_path / "store")
        disk.before = lambda call: steps.append((call, disk.survivors()))
        disk.watch(patch)
        delete(store, logs, WEB, ID, ALICE, NOW)
        logs.close()
    disk.close()
    assert [holds(before) for made, before in steps if made == call] == [True]


def has_unsigned_entry(store: Path) -> bool:
    """Return whether the host's log has an entry that its checkpoint does not cover."""
    log, checkpoint = store / LOG, store / f"audit/{WEB}/checkpoint"
    return log.exists() and len(log.read_bytes().splitlines()) > int(checkpoint.read_bytes().split(b"\n")[1])


def test_a_dump_that_is_being_written_is_not_deleted(hierarchy: Hierarchy, tmp_path: Path) -> None:
    """Whoever writes has the dump; a deletion says so and leaves no trace in the log."""
    with create_store(str(tmp_path / "store")) as store:
        logs = logs_of(store, make_log_signer())
        writing = begin(store, ID, CORE)
        with pytest.raises(BusyError, match="is being written"):
            delete(store, logs, WEB, ID, ALICE, NOW)
        writing.close()
        assert store.find_place(WEB, ID) is Place.INCOMING
        assert not (tmp_path / "store" / "audit" / str(WEB)).exists()
        logs.close()


def test_a_dump_stays_where_the_log_cannot_say_that_it_went(
    hierarchy: Hierarchy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes no entry keeps the dump as it was."""
    with create_store(str(tmp_path / "store")) as store:
        logs = logs_of(store, make_log_signer())
        store_dump(store, logs, make_signer(hierarchy), ID, CORE)
        before = files_of(tmp_path / "store")
        with monkeypatch.context() as patch:
            patch.setattr("securecore.audit.log.directory.write_all", refuse)
            with pytest.raises(StorageError, match="full"):
                delete(store, logs, WEB, ID, ALICE, NOW)
        assert files_of(tmp_path / "store") == before
        logs.close()


def test_a_dump_stays_in_sight_where_the_log_is_damaged(hierarchy: Hierarchy, tmp_path: Path) -> None:
    """Nobody could say whether it was deleted, so it is not even moved."""
    path, log_signer = tmp_path / "store", make_log_signer()
    with create_store(str(path)) as store:
        logs = logs_of(store, log_signer)
        store_dump(store, logs, make_signer(hierarchy), ID, CORE)
        logs.close()
        (path / "audit" / str(WEB) / "checkpoint").write_bytes(b"nonsense")
        before, logs = files_of(path), logs_of(store, log_signer)
        with pytest.raises(BrokenError):
            delete(store, logs, WEB, ID, ALICE, NOW)
        logs.close()

    assert files_of(path) == before


def test_what_is_not_there_is_not_deleted(tmp_path: Path) -> None:
    """A dump that nobody knows is not found, and the log stays silent."""
    with create_store(str(tmp_path / "store")) as store:
        logs = logs_of(store, make_log_signer())
        with pytest.raises(NotFoundError):
            delete(store, logs, WEB, ID, ALICE, NOW)
        logs.close()


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
