"""A dump on its way into the store: what is durable when, and what a crash at any point leaves."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore import limits
from securecore.dump import directory
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.frames import ZERO_PIECE_FRAME, zero_frame
from securecore.dump.reader import open_container
from securecore.errors import BrokenError, Bug, BusyError, NotFoundError, PeerError, StorageError
from securecore.merkle import EMPTY_ROOT, leaf_hash, root_of
from securecore.store.layout import Place, Store, create_store, open_store
from securecore.store.recovery import open_incoming
from securecore.store.writer import AlreadyStored, IncomingDump
from tests.support.disk import Disk, run_until
from tests.support.dumps import REPORT, WEB, begin, core_bytes, dump_id, dump_path, frames_of
from tests.support.lossy_disk import LossyFile

CORE = core_bytes()
FRAMES = frames_of(CORE)
STORED = b"".join(frame for frame, _ in FRAMES)
TABLE = seek_table([FrameEntry(len(frame), plain) for frame, plain in FRAMES])
ROOT = root_of(leaf_hash(frame) for frame, _ in FRAMES)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store."""
    with create_store(str(tmp_path / "store")) as made:
        yield made


def files_of(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_a_whole_commit(store: Store) -> None:
    """Frames, seek table, manifest, receipt and report stand in the published directory, and nowhere else."""
    incoming = begin(store, dump_id(1), CORE)
    assert (incoming.frames, incoming.root, incoming.stored_bytes, incoming.plain_bytes) == (3, ROOT, len(STORED), len(CORE))
    assert (incoming.frontier.size, incoming.frontier.root()) == (3, ROOT)
    assert incoming.container_bytes == len(STORED + TABLE)
    incoming.finish(b"manifest")
    incoming.put_receipt(b"receipt")
    incoming.publish()
    assert files_of(dump_path(store, dump_id(1))) == {
        "core.zst": STORED + TABLE,
        "report.json": REPORT,
        "manifest.jws": b"manifest",
        "receipt": b"receipt",
    }
    assert store.incoming() == []
    with store.open_dump(WEB, dump_id(1)) as files:
        fd = files.open_core()
        assert b"".join(open_container(fd).pieces()) == CORE
        os.close(fd)


def test_an_empty_core_is_a_dump(store: Store) -> None:
    """A dump without frames is a seek table alone."""
    incoming = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    assert (incoming.frames, incoming.root, incoming.plain_bytes) == (0, EMPTY_ROOT, 0)
    incoming.finish(b"manifest")
    assert dump_path(store, dump_id(1), "incoming").joinpath("core.zst").read_bytes() == seek_table([])
    incoming.close()


def test_nothing_has_its_name_before_the_first_sync(store: Store) -> None:
    """Before the first sync the report stands under its aside name: nobody has been promised anything."""
    incoming = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    incoming.append(*FRAMES[0])
    path = dump_path(store, dump_id(1), "incoming")
    assert set(files_of(path)) == {directory.aside_name("report.json"), "core.zst"}
    incoming.sync()
    assert files_of(path) == {"report.json": REPORT, "core.zst": FRAMES[0][0]}
    incoming.close()


def test_resume_without_a_report_finds_nothing(store: Store) -> None:
    """A dump that was never synced is not resumed."""
    IncomingDump.begin(store, WEB, dump_id(1), REPORT).close()
    with pytest.raises(NotFoundError, match="nothing that was acknowledged"):
        IncomingDump.resume(store, WEB, dump_id(1), REPORT)


def test_resume_of_nothing(store: Store) -> None:
    """A dump that is nowhere is not resumed."""
    with pytest.raises(NotFoundError, match="no dump"):
        IncomingDump.resume(store, WEB, dump_id(1), REPORT)


@pytest.mark.slow
def test_resume_after_truncation_at_every_offset(store: Store) -> None:
    """Wherever the core was cut, resume holds exactly the whole frames before that and has what may be a beginning of the next.

    The rest can be appended again. What cannot be the beginning of a frame (here: a seek table) is cut off.
    """
    begin(store, dump_id(1), CORE).close()
    core = dump_path(store, dump_id(1), "incoming") / "core.zst"
    ends = [sum(len(frame) for frame, _ in FRAMES[:count]) for count in range(len(FRAMES) + 1)]
    for length in range(len(STORED + TABLE) + 1):
        core.write_bytes((STORED + TABLE)[:length])
        incoming = IncomingDump.resume(store, WEB, dump_id(1), REPORT)
        held = max(count for count, end in enumerate(ends) if end <= length)
        assert (incoming.frames, incoming.stored_bytes, incoming.has_manifest) == (held, ends[held], False), length
        assert incoming.root == root_of(leaf_hash(frame) for frame, _ in FRAMES[:held])
        torn = STORED[ends[held] : length]
        assert incoming.torn() == torn
        assert core.stat().st_size == ends[held] + len(torn)
        for frame in FRAMES[held:]:
            incoming.append(*frame)
        assert incoming.root == ROOT
        incoming.close()
        assert core.read_bytes() == STORED


@pytest.mark.parametrize("bit", range(0, len(STORED) * 8, 37))
def test_a_flipped_bit_never_widens_what_resume_holds(bit: int, store: Store) -> None:
    """After a flipped bit resume holds no more frames than before, and another root unless it cut them off."""
    begin(store, dump_id(1), CORE).close()
    damaged = bytearray(STORED)
    damaged[bit // 8] ^= 1 << bit % 8
    (dump_path(store, dump_id(1), "incoming") / "core.zst").write_bytes(damaged)
    incoming = IncomingDump.resume(store, WEB, dump_id(1), REPORT)
    assert incoming.frames <= len(FRAMES)
    assert incoming.root != ROOT
    incoming.close()


def test_what_resume_holds_is_durable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process wrote and never synced survives a power cut once resume says that it is held."""
    name = f"incoming/{WEB}/{dump_id(1)}"
    disk = Disk(Path(store.path))
    disk.watch(monkeypatch)
    incoming = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    incoming.sync()
    for frame in FRAMES:
        incoming.append(*frame)
    incoming.close()
    assert disk.survivors()[f"{name}/core.zst"] == b""
    IncomingDump.resume(store, WEB, dump_id(1)).close()
    assert disk.survivors()[f"{name}/core.zst"] == STORED
    (Path(store.path) / name / "core.zst").write_bytes(STORED + TABLE)
    (Path(store.path) / name / "manifest.jws").write_bytes(b"manifest")
    again = IncomingDump.resume(store, WEB, dump_id(1))
    assert again.has_manifest
    assert {f"{name}/manifest.jws"} <= set(disk.survivors())
    again.close()
    disk.close()


def test_a_dump_survives_a_power_cut_whenever_the_process_before_was_killed(tmp_path: Path) -> None:
    """Names that a killed process gave, and had no time to make durable, are durable before the next one vouches for a frame."""
    is_done, fatal = False, 0
    while not is_done:
        fatal += 1
        path = tmp_path / str(fatal)
        create_store(str(path)).close()
        disk = Disk(path)

        def take(path: Path = path) -> bool:
            with open_store(str(path)) as store:
                dump = open_incoming(store, WEB, dump_id(1), REPORT)
                try:
                    for frame in FRAMES[dump.frames :]:
                        dump.append(*frame)
                    dump.sync()
                finally:
                    dump.close()  # Its lock, as the system does for a process.
            return True

        is_done = run_until(fatal, disk, take) is not None
        run_until(None, disk, take)
        survivors = disk.survivors()
        assert survivors.get(f"incoming/{WEB}/{dump_id(1)}/core.zst") == STORED, f"killed before call {fatal}"
        assert survivors[f"incoming/{WEB}/{dump_id(1)}/report.json"] == REPORT
        disk.close()


def test_resume_with_another_report_is_refused(store: Store) -> None:
    """The report of a dump is the one that it began with; what is stored stays."""
    begin(store, dump_id(1), CORE).close()
    with pytest.raises(PeerError, match="another report"):
        IncomingDump.resume(store, WEB, dump_id(1), b"{}")
    IncomingDump.resume(store, WEB, dump_id(1)).close()


def test_resume_with_a_manifest(store: Store) -> None:
    """A dump whose manifest is durable is resumed whole, so that the rest of the commit can be done again."""
    incoming = begin(store, dump_id(1), CORE)
    incoming.finish(b"manifest")
    incoming.close()
    again = IncomingDump.resume(store, WEB, dump_id(1))
    assert (again.has_manifest, again.has_receipt, again.frames, again.root) == (True, False, 3, ROOT)
    assert (again.read_manifest(), again.read_report()) == (b"manifest", REPORT)
    with pytest.raises(Bug):
        again.append(*FRAMES[0])
    again.put_receipt(b"receipt")
    again.close()
    once_more = IncomingDump.resume(store, WEB, dump_id(1))
    assert (once_more.has_receipt, once_more.read_receipt()) == (True, b"receipt")
    once_more.publish()
    assert store.find_place(WEB, dump_id(1)) is Place.HOSTS


@pytest.mark.parametrize("damage", [STORED, STORED + TABLE[:-1], STORED + TABLE + b"\x00", STORED[:-1] + TABLE, b""])
def test_a_damaged_core_with_a_manifest_is_kept_and_refused(damage: bytes, store: Store) -> None:
    """When the manifest is durable the core must be whole; if it is not, nothing is cut off and nothing goes on."""
    incoming = begin(store, dump_id(1), CORE)
    incoming.finish(b"manifest")
    incoming.close()
    core = dump_path(store, dump_id(1), "incoming") / "core.zst"
    core.write_bytes(damage)
    with pytest.raises(BrokenError, match="damaged though its manifest was durable"):
        IncomingDump.resume(store, WEB, dump_id(1))
    assert core.read_bytes() == damage


def test_a_published_dump_is_told_with_its_receipt(store: Store) -> None:
    """Beginning or resuming a dump that is published gives the stored receipt."""
    incoming = begin(store, dump_id(1), CORE)
    incoming.finish(b"manifest")
    incoming.put_receipt(b"receipt")
    incoming.publish()
    for attempt in (IncomingDump.begin, IncomingDump.resume):
        with pytest.raises(AlreadyStored) as raised:
            attempt(store, WEB, dump_id(1), REPORT)
        assert raised.value.receipt == b"receipt"
    (dump_path(store, dump_id(1)) / "receipt").unlink()
    with pytest.raises(BrokenError, match="without its receipt"):
        IncomingDump.begin(store, WEB, dump_id(1), REPORT)


def test_beginning_twice_is_refused(store: Store) -> None:
    """A dump that is coming in is not begun again over what is there."""
    begin(store, dump_id(1), CORE).close()
    with pytest.raises(StorageError, match="file exists"):
        IncomingDump.begin(store, WEB, dump_id(1), REPORT)


def test_one_writer_at_a_time(store: Store) -> None:
    """While a session holds a dump no other one gets it; closing lets go of it."""
    incoming = begin(store, dump_id(1), CORE)
    with pytest.raises(BusyError, match="another session"):
        IncomingDump.resume(store, WEB, dump_id(1))
    incoming.close()
    IncomingDump.resume(store, WEB, dump_id(1)).close()


def test_frames_that_cannot_follow(store: Store) -> None:
    """After a short piece, and out of bounds, no frame is taken, and the dump stays usable."""
    incoming = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    for frame, plain in ((b"", 1), (b"x" * (limits.MAX_FRAME_BYTES + 1), 1), (b"x", 0), (b"x", limits.PIECE_BYTES + 1)):
        with pytest.raises(PeerError, match="out of bounds"):
            incoming.append(frame, plain)
    incoming.append(memoryview(zero_frame(5)), 5)
    with pytest.raises(PeerError, match="short piece"):
        incoming.append(ZERO_PIECE_FRAME, limits.PIECE_BYTES)
    assert (incoming.frames, incoming.plain_bytes, incoming.root) == (1, 5, root_of([leaf_hash(zero_frame(5))]))
    incoming.finish(b"manifest")
    incoming.close()


def test_order_of_a_commit(store: Store) -> None:
    """Receipt before manifest, publishing before the receipt, a second receipt, and use after closing are bugs."""
    incoming = begin(store, dump_id(1), CORE)
    with pytest.raises(Bug):
        incoming.put_receipt(b"receipt")
    with pytest.raises(Bug):
        incoming.publish()
    incoming.finish(b"manifest")
    incoming.put_receipt(b"receipt")
    with pytest.raises(Bug):
        incoming.put_receipt(b"other")
    incoming.publish()
    for use in (incoming.sync, incoming.publish, incoming.read_manifest):
        with pytest.raises(Bug):
            use()
    incoming.close()


def test_publishing_never_replaces(store: Store) -> None:
    """When something stands in the published place, the incoming dump stays where it is and the other is untouched."""
    for number, plant in enumerate(("file", "link", "directory")):
        incoming = begin(store, dump_id(number), CORE)
        incoming.finish(b"manifest")
        incoming.put_receipt(b"receipt")
        place = dump_path(store, dump_id(number))
        place.parent.mkdir(exist_ok=True, mode=0o700)
        if plant == "file":
            place.write_bytes(b"kept")
        elif plant == "link":
            place.symlink_to(store.path)
        else:
            place.mkdir()
            (place / "kept").touch()
        with pytest.raises(StorageError, match=r"cannot move dump .* to hosts"):
            incoming.publish()
        incoming.close()
        assert os.path.lexists(place)
        assert not (place / "core.zst").exists()
        assert dump_path(store, dump_id(number), "incoming").is_dir()


def test_discard_removes_everything(store: Store) -> None:
    """A discarded dump leaves nothing, and may begin again."""
    begin(store, dump_id(1), CORE).discard()
    assert store.incoming() == []
    begin(store, dump_id(1), CORE).close()


@pytest.mark.parametrize("name", ["core.zst", "report.json", "manifest.jws", "receipt", ".manifest.jws.new"])
@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_planted_files_are_refused(name: str, kind: str, store: Store, tmp_path: Path) -> None:
    """A link, FIFO or directory in place of any of a dump's files stops resume or the commit; what it leads to is untouched."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    begin(store, dump_id(1), CORE).close()
    path = dump_path(store, dump_id(1), "incoming") / name
    if path.exists():
        path.unlink()
    if kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    if name.startswith(".") and kind != "directory":
        incoming = IncomingDump.resume(store, WEB, dump_id(1), REPORT)
        incoming.finish(b"manifest")
        incoming.close()
        assert files_of(path.parent)["manifest.jws"] == b"manifest"
    else:
        with pytest.raises(StorageError):
            IncomingDump.resume(store, WEB, dump_id(1), REPORT)
    assert target.read_bytes() == b"precious"


def test_a_second_name_of_the_core_is_refused(store: Store, tmp_path: Path) -> None:
    """A core that is hard-linked elsewhere is not written."""
    begin(store, dump_id(1), CORE).close()
    os.link(dump_path(store, dump_id(1), "incoming") / "core.zst", tmp_path / "other")
    with pytest.raises(StorageError, match="one name"):
        IncomingDump.resume(store, WEB, dump_id(1), REPORT)
    assert (tmp_path / "other").read_bytes() == STORED


def test_a_planted_host_directory_is_refused(store: Store, tmp_path: Path) -> None:
    """A link in place of a host's directory is not entered."""
    (tmp_path / "elsewhere").mkdir()
    (Path(store.path) / "incoming" / str(WEB)).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="not a directory"):
        IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_after_a_disk_error_nothing_goes_on(store: Store) -> None:
    """Once the disk has refused, every use but close is a bug, and resume finds what was synced."""
    incoming = begin(store, dump_id(1), core_bytes(1, 0))
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, incoming._core.fd)
    os.close(full)
    with pytest.raises(StorageError, match="no space left"):
        incoming.append(*FRAMES[1])
    for use in (incoming.sync, lambda: incoming.append(*FRAMES[1]), lambda: incoming.finish(b"manifest")):
        with pytest.raises(Bug):
            use()
    incoming.close()
    again = IncomingDump.resume(store, WEB, dump_id(1), REPORT)
    assert again.frames == 1
    again.close()


@pytest.mark.parametrize("ending", ["more frames", "its end", "giving up"])
def test_frames_that_the_disk_has_lost_are_not_held(ending: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a sync that failed its frames are read back though the disk has not got them: a resume does not count them."""
    frames = frames_of(core_bytes(3))
    dump = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    dump.append(*frames[0])
    dump.sync()
    disk = LossyFile(dump_path(store, dump_id(1), "incoming") / "core.zst", monkeypatch)
    dump.append(*frames[1])
    disk.losses = 1
    with pytest.raises(StorageError, match="durable"):
        {"more frames": dump.sync, "its end": lambda: dump.finish(b"manifest"), "giving up": dump.give_up}[ending]()
    dump.close()

    resumed = resume(store)
    assert (resumed.frames, resumed.root) == (1, root_of([leaf_hash(frames[0][0])]))
    for frame in frames[1:]:
        resumed.append(*frame)
    resumed.sync()
    assert bytes(disk.on_disk) == b"".join(frame for frame, _ in frames)
    resumed.close()


def test_frames_of_a_killed_process_that_the_disk_loses_at_a_resume_are_not_held(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync of a resume fails, and says so: the next resume holds what the disk has, and all that was acknowledged."""
    frames = frames_of(core_bytes(3))
    dump = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    dump.append(*frames[0])
    dump.sync()
    disk = LossyFile(dump_path(store, dump_id(1), "incoming") / "core.zst", monkeypatch)
    dump.append(*frames[1])
    dump.close()
    disk.losses = 1
    with pytest.raises(StorageError, match="durable"):
        resume(store)

    resumed = resume(store)
    assert resumed.frames == 1
    assert bytes(disk.on_disk[: resumed.stored_bytes]) == frames[0][0]
    resumed.close()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_file_system(tmp_path: Path) -> None:
    """On a real full disk every frame that was synced is there afterwards, and with space again the dump goes on."""
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", str(small)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode(errors='replace').strip()}")
    try:
        frames = frames_of(os.urandom(4 * limits.PIECE_BYTES))
        with create_store(str(small / "store")) as store:
            incoming = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
            synced = 2
            for frame in frames[:synced]:
                incoming.append(*frame)
                incoming.sync()
            with pytest.raises(StorageError, match="no space left") as raised:
                incoming.append(*frames[synced])
            assert raised.value.hint == "free space on that file system"
            incoming.close()
            subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
            again = IncomingDump.resume(store, WEB, dump_id(1), REPORT)
            assert again.frames == synced
            for frame in frames[synced:]:
                again.append(*frame)
            again.finish(b"manifest")
            assert again.root == root_of(leaf_hash(frame) for frame, _ in frames)
            again.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def resume(store: Store) -> IncomingDump:
    """Return the dump that was begun, as a new session finds it."""
    return IncomingDump.resume(store, WEB, dump_id(1), REPORT)


def test_the_beginning_of_a_frame_survives_a_session(store: Store) -> None:
    """It stands behind the frames and is no frame: not counted, not hashed, read back as it was."""
    incoming = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    incoming.append(*FRAMES[0])
    incoming.keep_torn(FRAMES[1][0][:20])
    assert incoming.torn() == FRAMES[1][0][:20]
    incoming.sync()
    incoming.close()
    again = resume(store)
    assert (again.frames, again.root, again.stored_bytes) == (1, leaf_hash(FRAMES[0][0]), len(FRAMES[0][0]))
    assert again.torn() == FRAMES[1][0][:20]
    again.close()


def test_a_later_beginning_takes_the_place_of_an_earlier_one(store: Store) -> None:
    """Whichever is longer: nothing of the earlier one is left behind it."""
    for later in (FRAMES[1][0][:30], FRAMES[1][0][:10]):
        incoming = begin(store, dump_id(1), b"") if not store.incoming() else resume(store)
        incoming.keep_torn(FRAMES[1][0][:20])
        incoming.keep_torn(later)
        assert incoming.torn() == later
        incoming.close()
        assert (dump_path(store, dump_id(1), "incoming") / "core.zst").read_bytes() == later


@pytest.mark.parametrize("way", ["frame", "zero", "end"])
def test_what_follows_drops_the_beginning(way: str, store: Store) -> None:
    """A whole frame, zeroes or the end of the dump stand where it stood."""
    incoming = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    incoming.keep_torn(FRAMES[1][0][:20])
    incoming.sync()
    incoming.close()
    again = resume(store)
    if way == "frame":
        again.append(*FRAMES[1])
    elif way == "zero":
        again.append_zero_pieces(1)
    else:
        again.finish(b"manifest")
    expected = {"frame": FRAMES[1][0], "zero": ZERO_PIECE_FRAME, "end": seek_table([])}[way]
    assert again.torn() == b""
    assert (dump_path(store, dump_id(1), "incoming") / "core.zst").read_bytes() == expected
    again.close()


NO_BEGINNING = {
    "zeroes": b"\0" * 50,
    "its seek table": seek_table([FrameEntry(len(FRAMES[0][0]), limits.PIECE_BYTES)]),
    "the beginning of it": seek_table([FrameEntry(len(FRAMES[0][0]), limits.PIECE_BYTES)])[:11],
}


@pytest.mark.parametrize("name", NO_BEGINNING)
def test_what_a_crash_leaves_and_is_no_beginning_of_a_frame_is_cut_off(name: str, store: Store) -> None:
    """A power cut leaves zeroes, a receiver that was killed a seek table: neither offered to the sender, nor kept."""
    begin(store, dump_id(1), CORE[: limits.PIECE_BYTES]).close()
    core = dump_path(store, dump_id(1), "incoming") / "core.zst"
    with core.open("ab") as file:
        file.write(NO_BEGINNING[name])
    incoming = resume(store)
    assert (incoming.frames, incoming.torn(), incoming.damaged_bytes) == (1, b"", 0)
    assert core.read_bytes() == FRAMES[0][0]
    assert sorted(os.listdir(core.parent)) == ["core.zst", "report.json"]
    incoming.close()


def test_behind_a_short_piece_nothing_is_the_beginning_of_a_frame(store: Store) -> None:
    """No frame may follow the last one of a dump."""
    begin(store, dump_id(1), CORE).close()
    core = dump_path(store, dump_id(1), "incoming") / "core.zst"
    with core.open("ab") as file:
        file.write(FRAMES[1][0][:20])
    incoming = resume(store)
    assert (incoming.frames, incoming.torn()) == (3, b"")
    assert core.read_bytes() == STORED
    incoming.close()
