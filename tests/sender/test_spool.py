"""The spool: what is kept, what a killed handler leaves, who may look into it."""

import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.dump import directory as files
from securecore.errors import BrokenError, ConfigError, StorageError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId
from securecore.sender.consignment import consign
from securecore.sender.spool import Spool, create_spool, open_spool
from securecore.sender.spool_entry import EntryEnd, EntryStart, parse_end
from tests.support.dumps import dump_id
from tests.support.kernel import OWNER
from tests.support.receivers import new_dump_id
from tests.support.spools import END, FRAMES, REPORT, start_of_new


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


@pytest.mark.parametrize("where", ["write_all", "create_file", "open_directory"])
def test_memory_that_ends_while_an_entry_is_begun_does_not_bar_the_next_try(
    where: str, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a name nor a locked descriptor stays: the same dump is begun again once there is memory."""
    start, real = start_of_new(), getattr(files, where)
    opened = len(os.listdir("/proc/self/fd"))

    def fail(*arguments: Any, **options: Any) -> Any:
        if any(".new" in name for name in os.listdir(tmp_path / "spool/dumps")):
            raise MemoryError
        return real(*arguments, **options)

    with monkeypatch.context() as poor:
        poor.setattr(files, where, fail)
        with pytest.raises(MemoryError):
            spool.begin(start, REPORT)

    assert os.listdir(tmp_path / "spool/dumps") == []
    assert len(os.listdir("/proc/self/fd")) == opened
    spool.begin(start, REPORT).close()


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


def test_a_sweep_takes_no_lock_that_a_handler_is_about_to_take(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that is being begun has no lock for a moment: who took it then, for a look, would cost the core."""
    dumps, locked = tmp_path / "spool/dumps", []
    young, old = dumps / f".{new_dump_id()}.new", dumps / f".{new_dump_id()}.new"
    for directory in (young, old):
        directory.mkdir(mode=0o700)
    os.utime(old, (1, 1))
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        locked.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    spool.sweep(time.time())

    assert locked == [old]


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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("what", ["a second name", "a link", "another text"])
def test_no_file_that_is_put_in_the_place_of_a_spools_own_is_given_away(what: str, tmp_path: Path) -> None:
    """Whose spool it is can put root's /etc/shadow there: a set-up that is run again refuses that before it gives anything away."""
    create_spool(str(tmp_path / "spool"), bytes(16), OWNER)
    stated, precious = tmp_path / "spool/FORMAT", tmp_path / "precious"
    precious.write_bytes(stated.read_bytes())
    stated.unlink()
    if what == "a second name":
        os.link(precious, stated)
    elif what == "a link":
        stated.symlink_to(precious)
    else:
        stated.write_text("root:!:20000::::::\n")

    with pytest.raises((StorageError, ConfigError)):
        create_spool(str(tmp_path / "spool"), bytes(16), (OWNER[0] + 1, OWNER[1]))
    assert {path.stat().st_uid for path in (precious, stated)} == {0}
    assert stated.lstat().st_uid == 0
    assert [(tmp_path / name).stat().st_uid for name in ("spool", "spool/dumps")] == [OWNER[0]] * 2
