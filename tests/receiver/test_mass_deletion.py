"""Deleting many dumps at once: ended before any call each is whole or gone, and what stands in the way of one keeps no other."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from securecore.audit.log import HostLogs
from securecore.dump.compression import Decompressor
from securecore.errors import BrokenError, BusyError, NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName
from securecore.receiver import control
from securecore.receiver.commit import Committer
from securecore.receiver.deletion import Order, delete, find_tombstone
from securecore.receiver.mass_deletion import delete_all
from securecore.receiver.server import Receiver
from securecore.store import removal
from securecore.store.layout import Place, Store, create_store, open_store
from securecore.store.rows import read_entry, read_received_at, row_of
from tests.support.certificates import Fleet, Hierarchy
from tests.support.disk import Disk, refuse, run_until
from tests.support.dumps import NOW, WEB, begin, core_bytes, dump_id, logs_of, make_log_signer, make_signer, store_dump
from tests.support.old_dumps import ID, Life, published
from tests.support.receivers import new_dump_id, papers_of, send_bytes, wait_until_idle
from tests.support.stores import WEB as WEB_NAME
from tests.support.stores import files_of

CORE = core_bytes(1, 40)
IDS = [dump_id(1), dump_id(2), dump_id(3)]
ALICE = Order(1000, "alice", "older than 30d")
HOST = HostName(WEB_NAME)


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    """Each end of a process has a store of its own."""
    return in_memory


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with create_store(str(tmp_path / "store")) as created:
        yield created


@pytest.fixture
def logs(store: Store, hierarchy: Hierarchy) -> Iterator[HostLogs]:
    """The store's logs, with the dumps in it that they speak of."""
    opened = logs_of(store, make_log_signer())
    signer = make_signer(hierarchy)
    for identifier in IDS:
        store_dump(store, opened, signer, identifier, CORE)
    yield opened
    opened.close()


def entries_of(store: Path) -> str:
    """Return the host's log as it stands."""
    return (store / "audit" / str(WEB) / "entries.jsonl").read_text("ascii")


@pytest.mark.slow
@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power cut"])
def test_ended_before_every_call_each_dump_is_whole_or_gone(loses_power: bool, hierarchy: Hierarchy, tmp_path: Path) -> None:
    """After the next start each stands where it stood, with all its files, or is gone and has its tombstone."""
    log_signer, signer = make_log_signer(), make_signer(hierarchy)
    fatal, outcomes = 0, set[str]()
    while "finished" not in outcomes:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        with create_store(str(path)) as store:
            logs = logs_of(store, log_signer)
            for identifier in IDS[:2]:
                store_dump(store, logs, signer, identifier, CORE)
            logs.close()
        before = files_of(path)
        disk = Disk(path)
        with open_store(str(path)) as store:
            logs = logs_of(store, log_signer)
            if run_until(fatal, disk, lambda store=store, logs=logs: delete_all(store, logs, WEB, IDS[:2], ALICE, NOW)) == {}:
                outcomes.add("finished")
            logs.close()
        if loses_power:
            path = tmp_path / f"left-{fatal}"
            disk.restore(path)
        disk.close()

        with open_store(str(path)) as store:
            logs = logs_of(store, log_signer)
            Committer(store, logs, lambda: NOW).roll_forward()
            assert store.deleting() == []
            for identifier in IDS[:2]:
                if f'"dump":"{identifier}","event":"deleted"' in entries_of(path):
                    assert store.find_place(WEB, identifier) is None
                    assert find_tombstone(logs, WEB, identifier) is not None
                    outcomes.add("gone")
                else:
                    own = {name: data for name, data in before.items() if str(identifier) in name}
                    assert {name: data for name, data in files_of(path).items() if str(identifier) in name} == own
                    outcomes.add("whole")
            logs.close()
    assert outcomes == {"whole", "gone", "finished"}
    assert fatal > 10


def test_a_batch_makes_as_many_fsyncs_as_one_dump(store: Store, logs: HostLogs, tmp_path: Path) -> None:
    """However many go, both directories, the log and its checkpoint are made durable once."""
    delete_all(store, logs, WEB, [dump_id(9)], ALICE, NOW)  # The first one makes directories.
    made = list[list[str]]()
    for batch in (IDS[:1], IDS[1:]):
        disk, calls = Disk(tmp_path / "store"), list[str]()
        disk.before = calls.append
        with pytest.MonkeyPatch.context() as patch:
            disk.watch(patch)
            assert delete_all(store, logs, WEB, batch, ALICE, NOW) == {}
        disk.close()
        made.append([call for call in calls if call.startswith(("fsync", "fdatasync"))])
    assert made[0] == made[1]
    assert len(made[0]) == 6, made


def test_what_is_written_or_gone_keeps_no_other(store: Store, logs: HostLogs, tmp_path: Path) -> None:
    """Each that stays is returned with why; one that is coming in is not found, though its sender is away."""
    removal.set_aside(store, WEB, IDS[2])
    removal.purge(store, WEB, IDS[2])
    begin(store, dump_id(4), CORE).close()
    with store.open_dump(WEB, IDS[0]) as files, removal.kept_from_writers(IDS[0], files.fd):
        failed = delete_all(store, logs, WEB, [*IDS, dump_id(4)], ALICE, NOW)
    assert {identifier: type(error) for identifier, error in failed.items()} == {
        IDS[0]: BusyError, IDS[2]: NotFoundError, dump_id(4): NotFoundError,
    }  # fmt: skip
    assert [store.find_place(WEB, identifier) for identifier in [*IDS, dump_id(4)]] == [Place.HOSTS, None, None, Place.INCOMING]
    assert [line for line in entries_of(tmp_path / "store").splitlines() if '"deleted"' in line and str(IDS[1]) not in line] == []


def test_dumps_stay_where_the_log_cannot_say_that_they_went(
    store: Store, logs: HostLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes no entry keeps all of the batch as it was."""
    before = files_of(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr("securecore.audit.log.directory.write_all", refuse)
        failed = delete_all(store, logs, WEB, IDS, ALICE, NOW)
    assert {str(error) for error in failed.values()} == {"the disk is full"}
    assert set(failed) == set(IDS)
    assert files_of(tmp_path / "store") == before


def test_beside_a_damaged_log_dumps_stay_in_sight(store: Store, logs: HostLogs, tmp_path: Path) -> None:
    """Nothing is moved when nobody can say of it that it went, nor that it did not."""
    logs.close()
    before = files_of(tmp_path / "store")
    (tmp_path / "store" / "audit" / str(WEB) / "entries.jsonl").write_bytes(b"")
    broken = logs_of(store, make_log_signer())
    failed = delete_all(store, broken, WEB, IDS, ALICE, NOW)
    broken.close()
    assert [type(failed[identifier]) for identifier in IDS] == [BrokenError] * 3
    assert files_of(tmp_path / "store") == before


def test_what_a_backup_brought_back_goes_by_the_entry_that_it_has(
    store: Store, logs: HostLogs, hierarchy: Hierarchy, tmp_path: Path
) -> None:
    """The log says already that it was deleted: no second entry, and no other dump of the batch stays for it."""
    place = tmp_path / "store" / "hosts" / str(WEB) / str(IDS[0])
    saved = {path.name: path.read_bytes() for path in place.iterdir()}
    delete(store, logs, WEB, IDS[0], ALICE, NOW)
    place.mkdir(mode=0o700)
    for name, data in saved.items():
        (place / name).write_bytes(data)
    assert delete_all(store, logs, WEB, IDS, ALICE, NOW) == {}
    assert files_of(tmp_path / "store") == {}
    assert entries_of(tmp_path / "store").count('"deleted"') == 3


def test_files_that_stay_are_said_and_go_at_the_next_start(
    store: Store, logs: HostLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dump is deleted by its entry; what the disk would not let go is removed by who starts next."""
    real = os.rmdir

    def rmdir(name: str, *, dir_fd: int) -> None:
        if name == str(IDS[1]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr("securecore.store.removal.os.rmdir", rmdir)
        failed = delete_all(store, logs, WEB, IDS, ALICE, NOW)
    assert list(failed) == [IDS[1]]
    assert store.deleting() == [(WEB, IDS[1])]
    Committer(store, logs, lambda: NOW).roll_forward()
    assert store.deleting() == []


def test_the_receiver_deletes_a_batch(receiver: Receiver, fleet: Fleet, tmp_path: Path) -> None:
    """What fails comes back with its class and words, and the log says who and why of all others."""
    dumps = [new_dump_id() for _ in range(3)]
    for dump in dumps[:2]:
        assert send_bytes(CORE, papers_of(fleet.host), receiver.addresses, dump=dump).receipt is not None
    wait_until_idle(receiver)  # A session has its dump for a moment longer than its sender waits.
    with open_store(str(tmp_path / "store")) as opened:
        failed = control.ask_for_deletions(opened, HOST, dumps, "store over 1GiB")
        assert failed is not None
        assert [(dump, type(error)) for dump, error in failed.items()] == [(dumps[2], NotFoundError)]
        assert opened.dump_ids(HOST) == []


def test_a_dump_that_was_received_since_it_was_chosen_stays(receiver: Receiver, fleet: Fleet, tmp_path: Path) -> None:
    """It was given up when it was chosen; its sender has come back, finished it, and let go of its own copy."""
    dumps = [new_dump_id() for _ in range(2)]
    for dump in dumps:
        assert send_bytes(CORE, papers_of(fleet.host), receiver.addresses, dump=dump).receipt is not None
    wait_until_idle(receiver)  # A session has its dump for a moment longer than its sender waits.
    with open_store(str(tmp_path / "store")) as opened:
        with opened.open_dump(HOST, dumps[1]) as files:
            said = row_of(files).received_at
        failed = control.ask_for_deletions(opened, HOST, dumps, "x", ["2026-11-01T00:00:00.000Z", said])
        assert failed is not None
        assert [(dump, type(error)) for dump, error in failed.items()] == [(dumps[0], NotFoundError)]
        assert opened.dump_ids(HOST) == [dumps[0]]
        with pytest.raises(SecurecoreError, match="received_at"):
            control.ask_for_deletions(opened, HOST, dumps, "x", ["one"])


def test_a_dump_without_its_receipt_is_known_by_the_log(life: Life) -> None:
    """What was chosen when it was given up is not what its sender has finished since, though its receipt no longer says so."""
    life.caretaker.look()
    with life.store.open_dump(WEB, ID) as files:
        said = row_of(files).received_at
    (Path(life.store.path) / "hosts" / str(WEB) / str(ID) / "receipt").write_bytes(b"")
    with life.store.open_dump(WEB, ID) as files:
        assert read_received_at(files, read_entry(files)) != said
    other = delete_all(life.store, life.logs, WEB, [ID], ALICE, NOW, {ID: "2026-11-01T00:00:00.000Z"})
    assert {dump: type(error) for dump, error in other.items()} == {ID: NotFoundError}
    assert life.store.find_place(WEB, ID) is Place.HOSTS
    assert delete_all(life.store, life.logs, WEB, [ID], ALICE, NOW, {ID: said}) == {}
    assert life.store.find_place(WEB, ID) is None
    life.end()


def test_no_frame_is_expanded_to_delete_a_dump(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of one that was given up, whose row needs its frames: they are a host's, and it is the receiver's process."""
    life.caretaker.look()
    with life.store.open_dump(WEB, ID) as files:
        said = row_of(files).received_at
    expanded: list[bytes] = []
    monkeypatch.setattr(Decompressor, "piece", lambda self, frame: expanded.append(bytes(frame)))
    assert delete_all(life.store, life.logs, WEB, [ID], ALICE, NOW, {ID: said}) == {}
    assert expanded == []
    assert life.store.find_place(WEB, ID) is None
    life.end()


def test_a_given_up_dump_was_received_when_its_last_frame_came(life: Life) -> None:
    """Whoever asks for that alone gets what its row says; of any other dump too."""
    with life.store.open_dump(WEB, ID) as files:
        assert read_received_at(files, read_entry(files)) == row_of(files).received_at
    life.caretaker.look()
    with life.store.open_dump(WEB, ID) as files:
        assert read_received_at(files, read_entry(files)) == row_of(files).received_at == published(life)[2]["last_at"]
    life.end()


def test_many_failures_come_back_whole(receiver: Receiver, tmp_path: Path) -> None:
    """An answer about a full batch is longer than any other."""
    dumps = [dump_id(number) for number in range(64)]
    with open_store(str(tmp_path / "store")) as opened:
        failed = control.ask_for_deletions(opened, HOST, dumps, "x" * 200, ["2026-11-01T00:00:00.000Z"] * 64)
        assert failed is not None
        assert set(failed) == set(dumps)


def test_without_a_receiver_nobody_answers(tmp_path: Path) -> None:
    """So that the command knows to do it itself."""
    with create_store(str(tmp_path / "store")) as opened:
        assert control.ask_for_deletions(opened, HOST, IDS, "x") is None


@pytest.mark.parametrize("dumps", [[], [DumpId.make(1, bytes(10))] * 65, ["../../etc"]], ids=["none", "too many", "no id"])
def test_a_batch_that_is_none_is_refused(dumps: list[Any], receiver: Receiver, tmp_path: Path) -> None:
    """Whoever speaks to the socket by themselves gets an error."""
    with open_store(str(tmp_path / "store")) as opened, pytest.raises(SecurecoreError, match="refused"):
        control.ask_for_deletions(opened, HOST, dumps, "x")
