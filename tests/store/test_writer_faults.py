"""A dump's writer where files are planted, and on disks that refuse, fill up or lose what they took."""

import os
import subprocess
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import Bug, StorageError
from securecore.merkle import leaf_hash, root_of
from securecore.store.layout import Store, create_store
from securecore.store.writer import IncomingDump
from tests.support.dumps import REPORT, WEB, begin, core_bytes, dump_id, dump_path, frames_of
from tests.support.lossy_disk import LossyFile

CORE = core_bytes()
FRAMES = frames_of(CORE)
STORED = b"".join(frame for frame, _ in FRAMES)


def files_of(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


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
