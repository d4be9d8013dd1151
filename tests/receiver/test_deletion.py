"""Deleting a dump: ended before each of its system calls it is there whole or gone, and its sender hears what became of it."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.log import HostLogs
from securecore.errors import BrokenError, BusyError, NotFoundError, StorageError
from securecore.receiver.commit import Committer
from securecore.receiver.deletion import Order, delete, find_tombstone
from securecore.receiver.mass_deletion import delete_all
from securecore.report import CrashReport
from securecore.store.layout import Place, Store, create_store, open_store
from tests.support.certificates import Hierarchy
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
from tests.support.stores import files_of

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
