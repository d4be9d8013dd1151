"""The spool: what is kept, what a killed handler leaves, who may look into it."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.dump import directory as files
from securecore.dump.compression import Compressor
from securecore.errors import BrokenError, ConfigError, StorageError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId
from securecore.sender.consignment import consign
from securecore.sender.spool import Spool, create_spool, open_spool
from securecore.sender.spool_entry import EntryEnd, EntryStart, parse_end
from tests.support.disk import Disk
from tests.support.dumps import dump_id
from tests.support.receivers import new_dump_id

REPORT = b'{"program":"crasher"}'
FRAMES = [Compressor().frame(bytes([number]) * limits.PIECE_BYTES) for number in range(1, 4)]
END = EntryEnd(3 * limits.PIECE_BYTES, None, "complete", 5)


def start_of_new() -> EntryStart:
    """Return the start of a dump of which no receiver has anything."""
    return EntryStart(new_dump_id(), 1, None, Frontier())


def test_an_entry_reads_back_what_was_kept(spool: Spool) -> None:
    """Frames, report, start and end come back as they went in."""
    start = start_of_new()
    entry = spool.begin(start, REPORT)
    for frame in FRAMES:
        entry.append(frame)
    entry.finish(END)
    entry.close()

    found = spool.entry(start.dump)

    assert found is not None
    assert found.report == REPORT
    assert found.end() == END
    assert [found.reader().frame(index) for index in range(3)] == FRAMES
    assert spool.dump_ids() == [start.dump]
    found.close()


def test_a_tail_knows_the_tree_before_it(spool: Spool) -> None:
    """An entry that begins with frame 2 gives the same roots as the whole dump, and none for what it cannot know."""
    whole = Frontier()
    before = Frontier()
    for frame in FRAMES[:2]:
        before.append(leaf_hash(frame))
    for frame in FRAMES:
        whole.append(leaf_hash(frame))
    start = EntryStart(new_dump_id(), 1, None, before)
    entry = spool.begin(start, REPORT)
    entry.append(FRAMES[2])
    entry.close()

    found = spool.entry(start.dump)

    assert found is not None
    assert [tree.root() if (tree := consign(found).as_begun.tree_at(size)) else None for size in range(5)] == [
        None,
        None,
        before.root(),
        whole.root(),
        None,
    ]
    found.close()


def test_a_beginning_that_the_disk_refuses_at_its_end_leaves_nothing(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry has its name when that cannot be made durable: it is taken back under that name."""
    start, real = start_of_new(), files.sync

    def sync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/dumps") and str(start.dump) in os.listdir(fd):
            raise StorageError("cannot sync: input/output error")
        real(fd)

    monkeypatch.setattr(files, "sync", sync)
    with pytest.raises(StorageError, match="input/output"):
        spool.begin(start, REPORT)

    assert os.listdir(tmp_path / "spool/dumps") == []


def test_an_end_of_an_earlier_version_is_read(spool: Spool) -> None:
    """It tells neither frames nor root."""
    start = start_of_new()
    entry = spool.begin(start, REPORT)
    entry.finish(END)
    assert entry.end() == END
    data = json.loads(END.encode())
    assert parse_end(start.dump, json.dumps({key: data[key] for key in data if key not in ("frames", "root")}).encode()) == END
    entry.close()


def test_a_locked_entry_is_left_to_whoever_has_it(spool: Spool) -> None:
    """A flush does not take what a handler still writes."""
    start = start_of_new()
    entry = spool.begin(start, REPORT)

    assert spool.entry(start.dump) is None
    entry.close()
    again = spool.entry(start.dump)
    assert again is not None
    assert again.end() is None
    again.close()


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_torn_last_frame_is_left_out(spool: Spool, tmp_path: Path, cut: int) -> None:
    """A handler that was killed in the middle of a write leaves whole frames, and they count."""
    start = start_of_new()
    entry = spool.begin(start, REPORT)
    for frame in FRAMES:
        entry.append(frame)
    entry.close()
    core = tmp_path / "spool/dumps" / str(start.dump) / "core.zst"
    os.truncate(core, core.stat().st_size - min(cut, len(FRAMES[2]) - 1))

    found = spool.entry(start.dump)

    assert found is not None
    assert len(found.reader().entries) == 2
    found.close()


def test_an_entry_that_lost_a_file_is_named_broken(spool: Spool, tmp_path: Path) -> None:
    """Without entry.json nobody knows which frames these are, and it is said."""
    start = start_of_new()
    spool.begin(start, REPORT).close()
    (tmp_path / "spool/dumps" / str(start.dump) / "entry.json").unlink()

    with pytest.raises(BrokenError, match="not whole"):
        spool.entry(start.dump)


def changed(path: Path, **fields: Any) -> bytes:
    """Return a file of an entry with fields replaced."""
    return json.dumps(json.loads(path.read_bytes()) | fields).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2},
        {"first_frame": 1.0, "peaks": ["00" * 32]},
        {"first_frame": True, "peaks": ["00" * 32]},
        {"first_frame": -1},
        {"first_frame": limits.MAX_FRAMES + 1, "peaks": ["00" * 32] * 2},
        {"first_frame": 1, "peaks": ["00" * 31]},
        {"peaks": [1]},
        {"peaks": None},
        {"started_at": float("inf")},
        {"started_at": "1"},
        {"started_at": -1},
        {"store": "00"},
        {"store": 1},
        {"dump": str(dump_id(1))},
    ],
    ids=str,
)
def test_a_malformed_start_is_broken_and_never_a_traceback(spool: Spool, tmp_path: Path, fields: dict[str, Any]) -> None:
    """Whatever stands in entry.json, the flush gets an error that it can report; another dump's is not taken for this one's."""
    start = start_of_new()
    spool.begin(start, REPORT).close()
    path = tmp_path / "spool/dumps" / str(start.dump) / "entry.json"
    path.write_bytes(changed(path, **fields))

    with pytest.raises(BrokenError, match="malformed"):
        spool.entry(start.dump)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b"x", b'{"size":"1"}', b'{"size":1,"predicted_size":null,"outcome":"?","ended_at":1}',
        b'{"size":-1,"predicted_size":null,"outcome":"cut","ended_at":1}',
        b'{"size":1,"predicted_size":"","outcome":"cut","ended_at":1}',
        b'{"size":1,"predicted_size":[],"outcome":"cut","ended_at":1}',
        b'{"size":1,"predicted_size":false,"outcome":"cut","ended_at":1}',
        b'{"size":9223372036854775808,"predicted_size":null,"outcome":"cut","ended_at":1}',
    ],
)  # fmt: skip
def test_a_malformed_end_is_broken_and_never_a_traceback(spool: Spool, tmp_path: Path, text: bytes) -> None:
    """Whatever stands in end.json, the flush gets an error that it can report."""
    start = start_of_new()
    spool.begin(start, REPORT).close()
    (tmp_path / "spool/dumps" / str(start.dump) / "end.json").write_bytes(text)
    entry = spool.entry(start.dump)
    assert entry is not None

    with pytest.raises(BrokenError):
        entry.end()
    entry.close()


@pytest.mark.parametrize("name", ["entry.json", "end.json"])
def test_a_file_of_an_entry_cut_at_every_offset_is_broken(name: str, spool: Spool, tmp_path: Path) -> None:
    """No beginning of it is taken for the whole, nor is the whole with more behind it."""
    start = start_of_new()
    entry = spool.begin(start, REPORT)
    entry.finish(END)
    entry.close()
    path = tmp_path / "spool/dumps" / str(start.dump) / name
    whole = path.read_bytes()
    for other in [*(whole[:cut] for cut in range(len(whole))), whole + b"x", whole + whole]:
        path.write_bytes(other)
        with pytest.raises(BrokenError):
            read_whole(spool, start.dump)
    path.write_bytes(whole)
    assert read_whole(spool, start.dump) == END


def read_whole(spool: Spool, dump: DumpId) -> EntryEnd | None:
    """Return how an entry ended, having read all that says what it is."""
    entry = spool.entry(dump)
    assert entry is not None
    try:
        return entry.end()
    finally:
        entry.close()


def test_removal_takes_leftovers_along(spool: Spool, tmp_path: Path) -> None:
    """A file that a crash left beside the entry does not keep it in the spool for ever."""
    start = start_of_new()
    spool.begin(start, REPORT).close()
    (tmp_path / "spool/dumps" / str(start.dump) / ".end.json.new").write_bytes(b"x")
    entry = spool.entry(start.dump)
    assert entry is not None

    spool.remove(entry)

    assert spool.dump_ids() == []


def test_two_dumps_of_one_id_are_refused(spool: Spool) -> None:
    """An entry is never written over."""
    start = start_of_new()
    entry = spool.begin(start, REPORT)
    with pytest.raises(StorageError, match="already"):
        spool.begin(start, REPORT)
    entry.close()


def test_everything_is_private_whatever_the_umask(tmp_path: Path) -> None:
    """Files 0600, directories 0700, also under umask 000."""
    mask = os.umask(0)
    try:
        create_spool(str(tmp_path / "spool"), bytes(16))
        spool = open_spool(str(tmp_path / "spool"))
        entry = spool.begin(start_of_new(), REPORT)
        entry.append(FRAMES[0])
        entry.finish(END)
        entry.close()
        spool.keep_receipt({"dump": "x"})
    finally:
        os.umask(mask)
    modes = {path: path.stat().st_mode & 0o777 for path in [tmp_path / "spool", *(tmp_path / "spool").rglob("*")]}

    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_a_spool_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    """Cores hold secrets: the directory's mode is checked when it is opened, not only when it is made."""
    create_spool(str(tmp_path / "spool"), bytes(16))
    (tmp_path / "spool").chmod(0o755)

    with pytest.raises(ConfigError, match="others may look"):
        open_spool(str(tmp_path / "spool"))


def test_a_spool_whose_format_is_not_whole_is_refused(spool: Spool, tmp_path: Path) -> None:
    """Cut at every offset, with a byte behind, or of a later version: it says too little to be written into."""
    path = tmp_path / "spool/FORMAT"
    whole = path.read_bytes()
    for other in [*(whole[:cut] for cut in range(len(whole))), whole + b"x", whole.replace(b" 1", b" 12")]:
        path.write_bytes(other)
        with pytest.raises(ConfigError, match="not a spool"):
            open_spool(str(tmp_path / "spool"))
    path.write_bytes(whole)
    open_spool(str(tmp_path / "spool")).close()


def test_receipts_are_appended_and_a_torn_last_line_is_left_out(spool: Spool, tmp_path: Path) -> None:
    """The receipt log is append-only; what a crash tore is not a receipt."""
    spool.keep_receipt({"dump": "a"})
    spool.keep_receipt({"dump": "b"})
    with (tmp_path / "spool/receipts.jsonl").open("ab") as log:
        log.write(b'{"dump":"c"')

    assert [receipt["dump"] for receipt in spool.receipts()] == ["a", "b"]


def test_a_receipt_behind_a_torn_line_is_kept(spool: Spool, tmp_path: Path) -> None:
    """Wherever a crash has torn the last line, however long it is: the next receipt does not become a part of it."""
    torn = b'{"dump":"' + b"b" * 200_000
    for cut in (1, 10, 65_536, len(torn)):
        (tmp_path / "spool/receipts.jsonl").write_bytes(b'{"dump":"a"}\n' + torn[:cut])
        spool.keep_receipt({"dump": "c"})

        assert [receipt["dump"] for receipt in spool.receipts()] == ["a", "c"]
    (tmp_path / "spool/receipts.jsonl").write_bytes(torn)
    spool.keep_receipt({"dump": "c"})
    assert [receipt["dump"] for receipt in spool.receipts()] == ["c"]


def test_receipts_cut_at_every_offset_are_the_whole_lines(spool: Spool, tmp_path: Path) -> None:
    """A line counts with its newline, and no other line is lost with a torn one."""
    for name in "abc":
        spool.keep_receipt({"dump": name})
    path = tmp_path / "spool/receipts.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert [receipt["dump"] for receipt in spool.receipts()] == list("abc")[: whole[:cut].count(b"\n")]


def test_a_receipt_behind_a_torn_line_is_whole(spool: Spool, tmp_path: Path) -> None:
    """What a crash tore, wherever, does not take the next receipt along; one that is torn does not come back either."""
    path = tmp_path / "spool/receipts.jsonl"
    for name in "ab":
        spool.keep_receipt({"dump": name, "receipt": "x" * 100_000})
    whole = path.read_bytes()
    for cut in (0, 1, len(whole) // 2 - 1, len(whole) // 2, len(whole) // 2 + 1, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:cut])
        spool.keep_receipt({"dump": "c"})
        assert [receipt["dump"] for receipt in spool.receipts()] == [*list("ab")[: whole[:cut].count(b"\n")], "c"]


def test_receipts_of_handlers_that_end_at_once_are_all_kept(spool: Spool) -> None:
    """Also the very first ones, each of which finds no receipt log yet."""
    threads = [threading.Thread(target=spool.keep_receipt, args=({"dump": str(number)},)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(int(receipt["dump"]) for receipt in spool.receipts()) == list(range(16))


def test_a_lister_beside_a_crash_never_costs_the_core(spool: Spool) -> None:
    """An entry appears whole and locked: whoever looks into the spool meanwhile cannot take its lock first."""
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for dump in spool.dump_ids():
                entry = spool.entry(dump)
                if entry is not None:
                    entry.close()

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(100):
            entry = spool.begin(start_of_new(), REPORT)
            entry.finish(END)
            entry.close()
            taken = None
            while taken is None:
                taken = spool.entry(entry.start.dump)
            spool.remove(taken)
    finally:
        stop.set()
        looker.join()

    assert spool.dump_ids() == []


def test_what_a_killed_handler_began_is_swept_when_it_is_old(spool: Spool, tmp_path: Path) -> None:
    """Nothing temporary stays for ever, and nothing young is taken from a handler that is still at it."""
    dumps = tmp_path / "spool/dumps"
    young, old = dumps / f".{new_dump_id()}.new", dumps / f".{new_dump_id()}.new"
    for directory in (young, old):
        directory.mkdir(mode=0o700)
        (directory / "report.json").write_bytes(REPORT)
    os.utime(old, (1, 1))

    spool.sweep(time.time())

    assert list(dumps.iterdir()) == [young]


def test_no_directory_of_somebody_else_becomes_a_spool(tmp_path: Path) -> None:
    """A slip such as --spool /tmp must not close a directory that is in use, nor give it away."""
    (tmp_path / "shared").mkdir(mode=0o755)
    (tmp_path / "shared" / "theirs").write_text("x")
    (tmp_path / "shared").chmod(0o1777)

    with pytest.raises(StorageError, match="'theirs' is there"):
        create_spool(str(tmp_path / "shared"), bytes(16), (1, 1))

    assert (tmp_path / "shared").stat().st_mode & 0o7777 == 0o1777
    assert (tmp_path / "shared").stat().st_uid == os.geteuid()
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["theirs"]


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


def test_an_entry_that_has_its_name_survives_whole(spool: Spool, watch: Watch) -> None:
    """A power cut leaves an entry with report, start and core, or none at all; and once it is begun, it is there."""
    start = start_of_new()
    disk, calls = watch()
    entry = spool.begin(start, REPORT)
    entry.close()
    name = f"dumps/{start.dump}"
    files = {f"{name}/{file}" for file in ("report.json", "entry.json", "core.zst")}

    assert calls[-2][0] == f"rename {name}"
    assert {old.replace(f".{start.dump}.new", str(start.dump)) for old in calls[-2][1] if str(start.dump) in old} == {name, *files}
    assert {path for path in disk.survivors() if str(start.dump) in path} == {name, *files}
    assert disk.survivors()[f"{name}/report.json"] == REPORT


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
