"""The spool, when power is lost or its process is killed: what was ended is whole, and what was not is swept or named broken."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from securecore.errors import BrokenError, StorageError
from securecore.sender.spool import Spool, create_spool, open_spool
from tests.support.disk import Disk
from tests.support.receivers import new_dump_id
from tests.support.spools import END, FRAMES, REPORT, start_of_new

Watch = Callable[[], tuple[Disk, list[tuple[str, dict[str, bytes | None]]]]]


@pytest.fixture
def watch(spool: Spool, tmp_path: Path) -> Iterator[Watch]:
    """Begins to watch the spool: gives the disk, and every call from then on with what a power cut just before it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(tmp_path / "spool")

        def begin() -> tuple[Disk, list[tuple[str, dict[str, bytes | None]]]]:
            calls: list[tuple[str, dict[str, bytes | None]]] = []
            disk.before = lambda call: calls.append((call, disk.survivors()))
            disk.watch(patch)
            return disk, calls

        yield begin
    disk.close()


def test_a_crashed_process_waits_for_no_sync(spool: Spool, watch: Watch) -> None:
    """To begin an entry and to keep frames asks the disk for nothing that it may take long for, behind others who write."""
    _, calls = watch()
    entry = spool.begin(start_of_new(), REPORT)
    for frame in FRAMES:
        entry.append(frame)
    assert [call for call, _ in calls if call.startswith(("fsync", "fdatasync"))] == []
    entry.finish(END)
    entry.close()

    assert len([call for call, _ in calls if call.startswith(("fsync", "fdatasync"))]) == 7


def test_an_entry_that_was_ended_survives_whole(spool: Spool, watch: Watch) -> None:
    """Whatever a power cut leaves until then, from the end on report, start, frames and end are there."""
    start = start_of_new()
    disk, _ = watch()
    entry = spool.begin(start, REPORT)
    entry.append(FRAMES[0])
    entry.finish(END)
    entry.close()
    name = f"dumps/{start.dump}"
    files = {f"{name}/{file}" for file in ("report.json", "entry.json", "core.zst", "end.json")}

    survivors = disk.survivors()
    assert {path for path in survivors if str(start.dump) in path} == {name, *files}
    assert (survivors[f"{name}/report.json"], survivors[f"{name}/entry.json"]) == (REPORT, start.encode())


@pytest.mark.parametrize("left", [{}, {"core.zst": b"", "report.json": b"", "entry.json": b""}, {"report.json": REPORT}], ids=len)
def test_what_a_power_cut_leaves_of_a_beginning_is_swept(left: dict[str, bytes], spool: Spool, tmp_path: Path) -> None:
    """The name was written to the disk and its files were not: there is nothing of the dump, and nobody is told of it for ever."""
    place = tmp_path / "spool/dumps" / str(new_dump_id())
    place.mkdir(0o700)
    for name, data in left.items():
        (place / name).write_bytes(data)
    spool.sweep(time.time())

    assert not place.exists()


@pytest.mark.parametrize("lost", ["entry.json", "report.json"])
def test_what_has_frames_or_is_whole_is_never_swept(lost: str, spool: Spool, tmp_path: Path) -> None:
    """A dump without a frame is one that can be delivered; frames without a start can be read by a person, and are told of."""
    empty, torn = start_of_new(), start_of_new()
    spool.begin(empty, REPORT).close()
    entry = spool.begin(torn, REPORT)
    entry.append(FRAMES[0])
    entry.close()
    (tmp_path / "spool/dumps" / str(torn.dump) / lost).write_bytes(b"")
    spool.sweep(time.time() + 7200)

    assert set(spool.dump_ids()) == {empty.dump, torn.dump}
    with pytest.raises(BrokenError, match="not whole"):
        spool.entry(torn.dump)


def test_a_beginning_that_is_under_way_is_not_swept(spool: Spool) -> None:
    """Its handler has it, whatever it holds yet."""
    start = start_of_new()
    entry = spool.begin(start, REPORT)
    spool.sweep(time.time() + 7200)

    assert spool.dump_ids() == [start.dump]
    entry.close()


def test_an_end_is_stated_when_its_frames_are_durable(spool: Spool, watch: Watch) -> None:
    """Before end.json has its name the frames survive a power cut, and after finish both do."""
    start = start_of_new()
    disk, calls = watch()
    entry = spool.begin(start, REPORT)
    for frame in FRAMES:
        entry.append(frame)
    entry.finish(END)
    entry.close()
    name = f"dumps/{start.dump}"
    (before,) = [left for call, left in calls if call == f"link {name}/end.json"]

    assert before[f"{name}/core.zst"] == b"".join(FRAMES)
    assert disk.survivors()[f"{name}/core.zst"] == b"".join(FRAMES)
    assert disk.survivors()[f"{name}/end.json"]


def test_a_kept_receipt_survives(spool: Spool, watch: Watch, tmp_path: Path) -> None:
    """When keep_receipt returns, a power cut takes neither the first receipt nor a later one."""
    disk, _ = watch()
    for number, dump in enumerate(("a", "b"), start=1):
        spool.keep_receipt({"dump": dump})
        kept = disk.survivors().get("receipts.jsonl")
        assert kept == (tmp_path / "spool/receipts.jsonl").read_bytes()
        assert kept.count(b"\n") == number


def test_a_removed_entry_is_gone_from_its_start_on(spool: Spool, watch: Watch, tmp_path: Path) -> None:
    """Wherever removal is ended, the entry is there whole, or it is none any more and a later flush sweeps what is left of it."""
    start = start_of_new()
    entry = spool.begin(start, REPORT)
    entry.finish(END)
    files = {".", "core.zst", "end.json", "entry.json", "report.json"}
    disk, calls = watch()

    spool.remove(entry)

    assert calls[-1][0] == "fsync dumps"
    for _, left in calls:
        paths = [path.removeprefix(f"dumps/{start.dump}") for path in left if path.startswith(f"dumps/{start.dump}")]
        found = {path.lstrip("/") or "." for path in paths}
        assert found in (files, set())
    assert [path for path in disk.survivors() if str(start.dump) in path] == []


class Killed(BaseException):
    """The process ends here; no handler of errors sees it."""


def ends_before(fatal: int, root: Path, act: Callable[[], None]) -> bool:
    """Act on what is under *root*, and be killed before the call with that number; return whether it did not come to that."""
    disk, left = Disk(root), iter(range(fatal))

    def count(call: str) -> None:
        if next(left, None) is None:
            raise Killed

    disk.before = count
    try:
        with pytest.MonkeyPatch.context() as patch:
            disk.watch(patch)
            act()
        return True
    except Killed:
        return False
    finally:
        disk.close()


def test_a_removal_that_was_killed_leaves_no_entry(spool: Spool, tmp_path: Path) -> None:
    """Killed before any of its calls: the entry is still whole, or the spool is empty once what is left has been swept."""
    fatal, is_done = 0, False
    while not is_done:
        start = start_of_new()
        entry = spool.begin(start, REPORT)
        entry.finish(END)
        is_done = ends_before(fatal, tmp_path / "spool", lambda entry=entry: spool.remove(entry))
        entry.close()
        fatal += 1
        found = spool.entry(start.dump) if start.dump in spool.dump_ids() else None
        if found is not None:
            assert found.end() == END
            spool.remove(found)
        spool.sweep(time.time() + 7200)
        assert list((tmp_path / "spool/dumps").iterdir()) == []
    assert fatal > 5


def test_a_spool_that_was_half_made_is_finished(tmp_path: Path) -> None:
    """Killed before any of its calls, create_spool is called again and makes a spool that takes entries."""
    fatal, is_done = 0, False
    while not is_done:
        path = tmp_path / f"spool-{fatal}"
        path.mkdir(mode=0o700)
        is_done = ends_before(fatal, path, lambda path=path: create_spool(str(path), bytes(16)))
        fatal += 1
        create_spool(str(path), bytes(16))
        spool = open_spool(str(path))
        spool.begin(start_of_new(), REPORT).close()
        assert len(spool.dump_ids()) == 1
        spool.close()
    assert fatal > 5


def test_two_that_make_one_spool_both_have_it(tmp_path: Path) -> None:
    """Two sends to a spool that is not there yet, at the same moment: neither is refused."""
    for number in range(20):
        path, together, failures = str(tmp_path / f"spool-{number}"), threading.Barrier(2), []

        def make(path: str = path, together: threading.Barrier = together, failures: list[Exception] = failures) -> None:
            together.wait()
            try:
                create_spool(path, os.urandom(16))
            except StorageError as error:
                failures.append(error)

        threads = [threading.Thread(target=make) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        open_spool(path).close()
