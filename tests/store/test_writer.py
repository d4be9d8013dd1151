"""A dump on its way into the store: what is durable when, and what a crash at any point leaves."""

import os
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

CORE = core_bytes()
FRAMES = frames_of(CORE)
STORED = b"".join(frame for frame, _ in FRAMES)
TABLE = seek_table([FrameEntry(len(frame), plain) for frame, plain in FRAMES])
ROOT = root_of(leaf_hash(frame) for frame, _ in FRAMES)


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
