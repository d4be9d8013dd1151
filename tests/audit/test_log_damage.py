"""An audit log that was torn, changed, lost or planted, or whose disk fails: what is signed stays, and nothing false is signed."""

import os
import shutil
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.checkpoint import LogSigner, verify_checkpoint
from securecore.audit.proof import verify_receipt
from securecore.errors import BrokenError, StorageError
from securecore.merkle import leaf_hash, root_of
from tests.support.disk import Disk, Killed
from tests.support.dumps import make_log_signer
from tests.support.entries import ENTRIES
from tests.support.host_logs import ORIGIN, index_of, open_log, signed_size, write_log
from tests.support.lossy_disk import LossyFile


def test_entries_behind_the_checkpoint_are_kept_and_signed_next(place: Path, signer: LogSigner) -> None:
    """A whole entry that no checkpoint covers yet is found, and signed with the next append or when its receipt is wanted."""
    for ask in (True, False):
        shutil.rmtree(place)
        place.mkdir(mode=0o700)
        write_log(place, signer, ENTRIES[:2])
        with (place / "entries.jsonl").open("ab") as file:
            file.write(ENTRIES[3] + b"\n")
        log = open_log(place, signer)
        assert (log.size, index_of(log, 3), signed_size(place, signer)) == (3, 2, 2)
        if ask:
            assert verify_receipt(log.receipt_for(2), ORIGIN, signer.public_key).entry == ENTRIES[3]
            assert signed_size(place, signer) == 3
        else:
            found = verify_receipt(log.append(ENTRIES[2]), ORIGIN, signer.public_key)
            assert (found.leaf_index, signed_size(place, signer)) == (3, 4)
        log.close()


@pytest.mark.slow
def test_torn_at_every_offset(place: Path, signer: LogSigner) -> None:
    """Cut behind the checkpoint, at any offset, a log opens with the whole entries; cut before, it is refused and left alone."""
    write_log(place, signer, ENTRIES[:2])
    checkpoint = (place / "checkpoint").read_bytes()
    full = b"".join(entry + b"\n" for entry in ENTRIES)
    ends = [sum(len(entry) + 1 for entry in ENTRIES[:count]) for count in range(len(ENTRIES) + 1)]
    for length in range(len(full) + 1):
        (place / "entries.jsonl").write_bytes(full[:length])
        (place / "checkpoint").write_bytes(checkpoint)
        whole = max(count for count, end in enumerate(ends) if end <= length)
        if whole < 2:
            with pytest.raises(BrokenError, match="its checkpoint says 2"):
                open_log(place, signer)
            assert (place / "entries.jsonl").read_bytes() == full[:length]
            assert (place / "checkpoint").read_bytes() == checkpoint
        else:
            log = open_log(place, signer)
            assert log.size == whole
            log.close()
            assert (place / "entries.jsonl").read_bytes() == full[: ends[whole]]


@pytest.mark.parametrize(
    "tail",
    [b"\n", b"\x00" * 100 + b"\n", b"{}\n", b'{"event": "x","time":"y"}\n', b"x" * (limits.MAX_ENTRY_BYTES + 5) + b"\n", b"{\n{\n"],
)
def test_garbage_behind_the_checkpoint_is_cut(tail: bytes, place: Path, signer: LogSigner) -> None:
    """What is no entry behind the signed ones, as a power cut leaves it, is cut with everything that follows it."""
    write_log(place, signer, ENTRIES[:2])
    before = (place / "entries.jsonl").read_bytes()
    with (place / "entries.jsonl").open("ab") as file:
        file.write(tail + ENTRIES[3] + b"\n")
    log = open_log(place, signer)
    assert log.size == 2
    log.append(ENTRIES[3])
    log.close()
    assert (place / "entries.jsonl").read_bytes() == before + ENTRIES[3] + b"\n"


def test_a_flipped_bit_is_never_signed_again(place: Path, signer: LogSigner) -> None:
    """A bit flipped anywhere in the signed entries makes the log refuse to open; nothing is written."""
    write_log(place, signer)
    original = (place / "entries.jsonl").read_bytes()
    checkpoint = (place / "checkpoint").read_bytes()
    for at in range(0, len(original), 7):
        damaged = bytearray(original)
        damaged[at] ^= 1 << at % 8
        (place / "entries.jsonl").write_bytes(damaged)
        with pytest.raises(BrokenError):
            open_log(place, signer)
        assert (place / "entries.jsonl").read_bytes() == damaged
        assert (place / "checkpoint").read_bytes() == checkpoint


def test_lost_files_are_damage(place: Path, signer: LogSigner) -> None:
    """Entries without a checkpoint, or a checkpoint without its entries, are refused; one of nothing is a new log."""
    write_log(place, signer)
    (place / "checkpoint").rename(place / "kept")
    with pytest.raises(BrokenError, match="checkpoint is missing"):
        open_log(place, signer)
    (place / "entries.jsonl").unlink()
    (place / "kept").rename(place / "checkpoint")
    with pytest.raises(BrokenError, match=r"entries.jsonl is missing"):
        open_log(place, signer)
    (place / "checkpoint").unlink()
    open_log(place, signer).close()
    (place / "entries.jsonl").unlink()
    open_log(place, signer).close()


def test_an_earlier_checkpoint_is_caught_up(place: Path, signer: LogSigner) -> None:
    """A crash between entry and checkpoint leaves the older checkpoint: the entry is kept."""
    write_log(place, signer, ENTRIES[:1])
    older = (place / "checkpoint").read_bytes()
    write_log(place, signer, ENTRIES[1:2])
    (place / "checkpoint").write_bytes(older)
    log = open_log(place, signer)
    assert (log.size, index_of(log, 1)) == (2, 1)
    log.close()


def test_another_key_is_refused(place: Path, signer: LogSigner) -> None:
    """A log whose checkpoint another key signed is not gone on with."""
    write_log(place, signer)
    with pytest.raises(BrokenError, match="not signed by the log's key"):
        open_log(place, make_log_signer())


@pytest.mark.parametrize("name", ["entries.jsonl", "checkpoint"])
@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "hard link"])
@pytest.mark.parametrize("is_new", [True, False])
def test_planted_files_are_refused(name: str, kind: str, is_new: bool, place: Path, signer: LogSigner, tmp_path: Path) -> None:
    """A link, FIFO or directory in place of a log's file is refused, in a new log as in an old one; its target is untouched."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    if not is_new:
        write_log(place, signer)
        (place / name).unlink()
    if kind == "link":
        (place / name).symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(place / name)
    elif kind == "directory":
        (place / name).mkdir()
    else:
        os.link(target, place / name)
    with pytest.raises((StorageError, BrokenError)):
        open_log(place, signer)
    assert target.read_bytes() == b""


def test_after_a_disk_error_nothing_is_appended(place: Path, signer: LogSigner) -> None:
    """When the disk refuses a line, the log is closed for appending, and opening it again finds what was signed."""
    write_log(place, signer, ENTRIES[:2])
    log = open_log(place, signer)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._entries)
    os.close(full)
    with pytest.raises(StorageError, match="no space left"):
        log.append(ENTRIES[3])
    assert log.has_failed
    for use in (lambda: log.append(ENTRIES[2]), lambda: log.receipt_for(0)):
        with pytest.raises(StorageError, match="closed after an error"):
            use()
    log.close()
    assert open_log(place, signer).size == 2


@pytest.mark.parametrize("goes_on", ["appending", "asking for its receipt"])
def test_an_entry_that_the_disk_has_lost_is_written_again_before_it_is_signed(
    goes_on: str, place: Path, signer: LogSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sync that failed an entry is read back though the disk has not got it; when it is signed, the disk has it."""
    write_log(place, signer, ENTRIES[:2])
    disk, log = LossyFile(place / "entries.jsonl", monkeypatch), open_log(place, signer)
    disk.losses = 1
    with pytest.raises(StorageError, match="durable"):
        log.append(ENTRIES[2])
    log.close()
    log = open_log(place, signer)
    if goes_on == "appending":
        log.append(ENTRIES[3])
    else:
        log.receipt_for(log.size - 1)
    log.close()

    signed = bytes(disk.on_disk).splitlines()[: signed_size(place, signer)]
    assert signed[:3] == ENTRIES[:3]
    note = (place / "checkpoint").read_bytes()
    assert root_of(map(leaf_hash, signed)) == verify_checkpoint(note, ORIGIN, signer.public_key).root
    assert (place / "entries.jsonl").read_bytes() == bytes(disk.on_disk)


def test_a_checkpoint_that_cannot_be_written(place: Path, signer: LogSigner) -> None:
    """When only the checkpoint is refused, no receipt is given, and the entry is found once on opening again."""
    log = open_log(place, signer)
    (place / ".checkpoint.new").mkdir()
    with pytest.raises(StorageError):
        log.append(ENTRIES[0])
    log.close()
    (place / ".checkpoint.new").rmdir()
    log = open_log(place, signer)
    assert (log.size, index_of(log, 0), signed_size(place, signer)) == (1, 0, 0)
    assert verify_receipt(log.receipt_for(0), ORIGIN, signer.public_key).entry == ENTRIES[0]
    log.close()


def test_a_receipt_after_a_kill_is_no_more_than_a_power_cut_would_leave(place: Path, signer: LogSigner) -> None:
    """The checkpoint had its name, not durably, when the process was killed; it is durable when the next one gives the receipt."""
    write_log(place, signer, ENTRIES[:1])
    disk, calls = Disk(place), list[str]()

    def end_behind_the_rename(call: str) -> None:
        if calls and calls[-1] == "rename checkpoint":
            raise Killed
        calls.append(call)

    log = open_log(place, signer)
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        disk.before = end_behind_the_rename
        with pytest.raises(Killed):
            log.append(ENTRIES[1])
        disk.before = lambda call: None
        again = open_log(place, signer)
        receipt = verify_receipt(again.receipt_for(1), ORIGIN, signer.public_key)
        survivors = disk.survivors()
    log.close()
    again.close()
    disk.close()
    assert verify_checkpoint(survivors["checkpoint"] or b"", ORIGIN, signer.public_key).size == receipt.checkpoint.size == 2


def test_entries_that_change_under_an_open_log_give_no_receipt(place: Path, signer: LogSigner) -> None:
    """A receipt that would not verify is not handed out."""
    write_log(place, signer)
    log = open_log(place, signer)
    data = (place / "entries.jsonl").read_bytes()
    (place / "entries.jsonl").write_bytes(data.replace(b'"t"', b'"u"'))
    with pytest.raises(BrokenError, match="no longer those"):
        log.receipt_for(1)
    log.close()
