"""A disk that refuses one call of a deletion: no dump stays out of sight, and none is gone of which the log does not say so."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore.audit.entry import deleted_entry
from securecore.audit.log import HostLogs
from securecore.errors import BusyError, SecurecoreError, StorageError
from securecore.receiver.commit import Committer
from securecore.receiver.deletion import Order, delete, find_tombstone
from securecore.receiver.mass_deletion import delete_all
from securecore.store import removal
from securecore.store.layout import Place, Store, create_store, open_store
from tests.support.disk import Disk, refuse
from tests.support.dumps import NOW, WEB, Keys, core_bytes, dump_id, logs_of, store_dump
from tests.support.old_dumps import Life
from tests.support.stores import files_of

CORE = core_bytes(1, 40)
IDS = [dump_id(1), dump_id(2), dump_id(3)]
ALICE = Order(1000, "alice", "older than 30d")
Deletion = Callable[[Store, HostLogs], object]


def delete_each(store: Store, logs: HostLogs) -> None:
    """Delete the dumps one by one, as far as it goes."""
    for identifier in IDS:
        delete(store, logs, WEB, identifier, ALICE, NOW)


def delete_at_once(store: Store, logs: HostLogs) -> None:
    """Delete the dumps as a batch."""
    delete_all(store, logs, WEB, IDS, ALICE, NOW)


def filled(path: Path, keys: Keys) -> dict[str, bytes]:
    """Make a store with the dumps; return their files."""
    with create_store(str(path)) as store:
        logs = logs_of(store, keys.log)
        for identifier in IDS:
            store_dump(store, logs, keys.host, identifier, CORE)
        logs.close()
    return files_of(path)


def check_settled(path: Path, before: dict[str, bytes], keys: Keys) -> int:
    """Check that each dump is whole or gone by the log; return how many are gone."""
    gone = 0
    with open_store(str(path)) as store:
        logs = logs_of(store, keys.log)
        assert store.deleting() == []
        for identifier in IDS:
            own = {name: data for name, data in files_of(path).items() if str(identifier) in name}
            if find_tombstone(logs, WEB, identifier) is None:
                assert own == {name: data for name, data in before.items() if str(identifier) in name}
            else:
                assert own == {}
                gone += 1
        logs.close()
    return gone


@pytest.mark.slow
@pytest.mark.parametrize("deletion", [delete_each, delete_at_once])
def test_a_call_that_the_disk_refuses_strands_no_dump(deletion: Deletion, tmp_path: Path, keys: Keys) -> None:
    """Whichever it is: with the caretaker's next look each dump stands where it stood, or is gone and has its tombstone."""
    before, number, numbers_gone, is_through = filled(tmp_path / "store", keys), 0, set[int](), False
    while not is_through:
        number += 1
        path = tmp_path / f"store-{number}"
        shutil.copytree(tmp_path / "store", path)
        disk, calls = Disk(path), 0

        def refuse_one(call: str, number: int = number) -> None:
            nonlocal calls
            calls += 1
            if calls == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        disk.before = refuse_one
        with open_store(str(path)) as store, pytest.MonkeyPatch.context() as patch:
            logs = logs_of(store, keys.log)
            disk.watch(patch)
            try:
                deletion(store, logs)
            except SecurecoreError:
                pass
            patch.undo()
            logs.close()
        disk.close()
        is_through = calls < number
        life = Life(path, keys)
        life.caretaker.look()
        life.end()
        numbers_gone.add(check_settled(path, before, keys))
    assert number > 20
    assert {0, len(IDS)} <= numbers_gone


def test_an_entry_without_its_checkpoint_deletes_nothing(tmp_path: Path, keys: Keys) -> None:
    """A disk without a free block may take an entry where the log's last block has room for it, and no new checkpoint."""
    before = filled(tmp_path / "store", keys)
    life = Life(tmp_path / "store", keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("securecore.audit.log.directory.replace_file", lambda name, fd, data: refuse(fd, data))
        with pytest.raises(StorageError, match=r"^the disk is full"):
            delete(life.store, life.logs, WEB, IDS[0], ALICE, NOW)
        failed = delete_all(life.store, life.logs, WEB, IDS[1:], ALICE, NOW)
        assert [failed[dump].message for dump in IDS[1:]] == ["the disk is full"] * 2
        assert life.store.deleting() == []
    life.end()
    assert check_settled(tmp_path / "store", before, keys) == 0


def test_of_a_dump_that_the_disk_keeps_out_of_sight_nobody_hears_that_it_stays(tmp_path: Path, keys: Keys) -> None:
    """Nor can it be put back: it is put back once the disk lets it, and then its operator, who had no answer, asks again."""
    before = filled(tmp_path / "store", keys)
    told = "is out of sight and not deleted yet: the disk is full; the receiver tries again by itself, and at its start"
    life = Life(tmp_path / "store", keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("securecore.audit.log.directory.replace_file", lambda name, fd, data: refuse(fd, data))
        patch.setattr(removal, "put_back", lambda store, host, dump: refuse(0, b""))
        with pytest.raises(StorageError, match=told):
            delete(life.store, life.logs, WEB, IDS[0], ALICE, NOW)
        failed = delete_all(life.store, life.logs, WEB, IDS[1:], ALICE, NOW)
        assert [told in str(failed[dump]) for dump in IDS[1:]] == [True, True]
        assert set(life.store.deleting()) == {(WEB, dump) for dump in IDS}
        life.caretaker.look()
    for _ in range(2):  # What has failed once is tried at every look, and what fails again less often.
        life.caretaker.look()
    life.end()
    assert check_settled(tmp_path / "store", before, keys) == 0


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EIO], ids=errno.errorcode.get)
def test_a_dump_that_cannot_be_locked_keeps_no_other(
    code: int, tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a batch: it stays and is said with why, and the others go."""
    filled(tmp_path / "store", keys)
    calls, real = iter(range(3)), fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if next(calls) == 1:
            raise OSError(code, os.strerror(code))
        real(fd, operation)

    with open_store(str(tmp_path / "store")) as store:
        logs = logs_of(store, keys.log)
        monkeypatch.setattr(removal.fcntl, "flock", flock)
        failed = delete_all(store, logs, WEB, IDS, ALICE, NOW)
        monkeypatch.undo()
        assert {identifier: type(error) for identifier, error in failed.items()} == {IDS[1]: StorageError}
        assert os.strerror(code).lower() in str(failed[IDS[1]])
        assert (store.deleting(), store.dump_ids(WEB)) == ([], [IDS[1]])
        logs.close()


@pytest.mark.parametrize("is_logged", [False, True], ids=["put back", "removed"])
def test_what_the_disk_kept_aside_is_settled_at_a_look(
    is_logged: bool, tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """No start is needed; and the log of a receiver says what became of it."""
    filled(tmp_path / "store", keys)
    life = Life(tmp_path / "store", keys)
    caplog.set_level("INFO")
    removal.set_aside(life.store, WEB, IDS[0])
    if is_logged:
        with life.logs.using(WEB) as log:
            log.append(deleted_entry(NOW, IDS[0], WEB, uid=0, user=None, reason=None))
    life.caretaker.look()
    assert life.store.deleting() == []
    assert life.store.find_place(WEB, IDS[0]) is (None if is_logged else Place.HOSTS)
    assert f"{'removed' if is_logged else 'restored'} host={WEB} dump={IDS[0]}" in caplog.text
    life.end()


def test_a_deletion_that_is_under_way_is_left_alone(tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever deletes has claimed the dump."""
    filled(tmp_path / "store", keys)
    life = Life(tmp_path / "store", keys)
    with life.presence.claim_idle(WEB, IDS[0], lambda: None):
        removal.set_aside(life.store, WEB, IDS[0])
        life.caretaker.look()
        assert life.store.deleting() == [(WEB, IDS[0])]
    assert caplog.text == ""
    life.end()


def test_what_a_deletion_put_back_meanwhile_is_none(tmp_path: Path, keys: Keys) -> None:
    """Between the listing and the look at it."""
    filled(tmp_path / "store", keys)
    life = Life(tmp_path / "store", keys)
    committer = Committer(life.store, life.logs, lambda: NOW)
    with pytest.raises(SecurecoreError) as caught:
        committer.settle_deletion(WEB, IDS[0])
    assert not isinstance(caught.value, BusyError)
    assert life.store.find_place(WEB, IDS[0]) is Place.HOSTS
    life.end()
