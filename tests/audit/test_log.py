"""One host's audit log: what is durable before a receipt is shown, and what opening makes of every half-finished state."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.checkpoint import LogSigner, origin_of, verify_checkpoint
from securecore.audit.entry import extracted_entry
from securecore.audit.log import HostLog
from securecore.audit.log_files import scan_lines
from securecore.audit.proof import verify_receipt
from securecore.audit.standings import Standing
from securecore.errors import BrokenError, Bug, NotFoundError, StorageError
from securecore.merkle import EMPTY_ROOT, leaf_hash, root_of
from tests.support.disk import Disk, Killed
from tests.support.dumps import LOG_NAME, NOW, WEB, dump_id, make_log_signer, opened
from tests.support.entries import ENTRIES, deleted, incomplete, received, received_as
from tests.support.lossy_disk import LossyFile

ORIGIN = origin_of(LOG_NAME, WEB)


def index_of(log: HostLog, number: int) -> int | None:
    standing = log.standing(dump_id(number))
    return standing.index if standing is not None else None


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty log directory."""
    (tmp_path / "log").mkdir(mode=0o700)
    return tmp_path / "log"


def open_log(place: Path, signer: LogSigner) -> HostLog:
    with opened(place) as fd:
        return HostLog.open(fd, ORIGIN, signer)


def write_log(place: Path, signer: LogSigner, entries: list[bytes] = ENTRIES) -> list[bytes]:
    """Append *entries* one by one and return their receipts."""
    log = open_log(place, signer)
    receipts = [log.append(entry) for entry in entries]
    log.close()
    return receipts


def signed_size(place: Path, signer: LogSigner) -> int:
    return verify_checkpoint((place / "checkpoint").read_bytes(), ORIGIN, signer.public_key).size


def test_a_new_log_is_signed_before_its_first_entry(place: Path, signer: LogSigner) -> None:
    """A new log has an empty file of entries and the checkpoint of the empty tree."""
    open_log(place, signer).close()
    checkpoint = verify_checkpoint((place / "checkpoint").read_bytes(), ORIGIN, signer.public_key)
    assert (checkpoint.size, checkpoint.root) == (0, EMPTY_ROOT)
    assert (place / "entries.jsonl").read_bytes() == b""


def test_receipts_of_appended_entries(place: Path, signer: LogSigner) -> None:
    """Each append gives a receipt for its entry under a checkpoint of that size, and the files say the same."""
    receipts = write_log(place, signer)
    for index, receipt in enumerate(receipts):
        found = verify_receipt(receipt, ORIGIN, signer.public_key)
        assert (found.entry, found.leaf_index, found.checkpoint.size) == (ENTRIES[index], index, index + 1)
        assert found.checkpoint.root == root_of(map(leaf_hash, ENTRIES[: index + 1]))
    assert (place / "entries.jsonl").read_bytes() == b"".join(entry + b"\n" for entry in ENTRIES)
    assert signed_size(place, signer) == len(ENTRIES)


def test_several_entries_share_their_writes(place: Path, signer: LogSigner, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many entries an append has, it makes the entries file, the checkpoint and the directory durable once each."""
    log = open_log(place, signer)
    calls: list[str] = []
    fsync, fdatasync = os.fsync, os.fdatasync

    def watched_fsync(fd: int) -> None:
        calls.append("fsync")
        fsync(fd)

    def watched_fdatasync(fd: int) -> None:
        calls.append("fdatasync")
        fdatasync(fd)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "fdatasync", watched_fdatasync)
    for receipt, entry in zip(log.append_all(ENTRIES), ENTRIES, strict=True):
        assert verify_receipt(receipt, ORIGIN, signer.public_key).entry == entry
    log.close()
    assert calls == ["fdatasync", "fsync", "fsync"]
    assert signed_size(place, signer) == len(ENTRIES)


def test_an_opened_log_goes_on(place: Path, signer: LogSigner) -> None:
    """Entries appended after opening again stand in the same tree."""
    write_log(place, signer, ENTRIES[:2])
    receipts = write_log(place, signer, ENTRIES[2:])
    assert verify_receipt(receipts[-1], ORIGIN, signer.public_key).checkpoint.root == root_of(map(leaf_hash, ENTRIES))


def test_received_dumps_are_found(place: Path, signer: LogSigner) -> None:
    """A dump that was received is found at its index, before and after opening again; an extraction is no receipt."""
    log = open_log(place, signer)
    log.append_all(ENTRIES)
    for each in (log, open_log(place, signer)):
        assert [index_of(each, number) for number in range(5)] == [0, 1, None, 3, None]
        each.close()


def test_where_a_dump_stands_is_what_its_newest_entry_says(place: Path, signer: LogSigner) -> None:
    """Given up, given up with more, received, deleted, received again: each time the newest counts, also after opening again."""
    first, second = b"\x01" * 32, b"\x02" * 32
    steps = [
        (incomplete(7, first), "incomplete", first),
        (incomplete(7, second), "incomplete", second),
        (received_as(7, first), "received", first),
        (received_as(7, second), "received", second),
        (deleted(7), "deleted", b""),
        (received_as(7, first), "received", first),
    ]
    for index, (entry, event, digest) in enumerate(steps):
        log = open_log(place, signer)
        log.append_all([extracted_entry(NOW, dump_id(7), WEB, uid=0, user=None), entry])
        found = log.standing(dump_id(7))
        log.close()
        again = open_log(place, signer)
        assert found == again.standing(dump_id(7)) == Standing(event, 2 * index + 1, digest)
        assert again.standing(dump_id(8)) is None
        again.close()


@pytest.mark.parametrize(
    "entries",
    [
        [incomplete(7, bytes(32)), incomplete(7, bytes(32))],
        [incomplete(7, bytes(32)), received_as(7, bytes(32)), received_as(7, bytes(32))],
    ],
)
def test_what_cannot_follow_is_not_written(entries: list[bytes], place: Path, signer: LogSigner) -> None:
    """Whether in one append or in several: an event written down twice is a bug."""
    log = open_log(place, signer)
    with pytest.raises(Bug, match="already says"):
        log.append_all(entries)
    assert log.size == 0
    log.append_all(entries[:-1])
    with pytest.raises(Bug, match="already says"):
        log.append(entries[-1])
    log.close()
    assert (place / "entries.jsonl").read_bytes() == b"".join(entry + b"\n" for entry in entries[:-1])


def test_receipt_for_an_old_entry(place: Path, signer: LogSigner) -> None:
    """Any entry's receipt can be had again, under the present checkpoint."""
    write_log(place, signer)
    log = open_log(place, signer)
    for index, entry in enumerate(ENTRIES):
        found = verify_receipt(log.receipt_for(index), ORIGIN, signer.public_key)
        assert (found.entry, found.leaf_index, found.checkpoint.size) == (entry, index, len(ENTRIES))
    for index in (-1, len(ENTRIES)):
        with pytest.raises(NotFoundError):
            log.receipt_for(index)
    log.close()


def test_a_dump_is_received_once(place: Path, signer: LogSigner) -> None:
    """A second entry for a dump that was received with the same manifest is a bug, and nothing is written."""
    log = open_log(place, signer)
    log.append(ENTRIES[0])
    for entries in ([ENTRIES[0]], [ENTRIES[1], ENTRIES[1]]):
        with pytest.raises(Bug, match="already says"):
            log.append_all(entries)
    with pytest.raises(BrokenError):
        log.append(b'{"event":"x","time":"y"}\n')
    assert log.size == 1
    log.close()
    assert (place / "entries.jsonl").read_bytes() == ENTRIES[0] + b"\n"


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


def test_files_are_private(place: Path, signer: LogSigner) -> None:
    """A log's files are 0600 even when the umask takes nothing away."""
    old = os.umask(0)
    try:
        write_log(place, signer)
    finally:
        os.umask(old)
    assert {path.name: path.stat().st_mode & 0o7777 for path in place.iterdir()} == {"entries.jsonl": 0o600, "checkpoint": 0o600}


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


def test_threads_append_in_some_order(place: Path, signer: LogSigner) -> None:
    """Entries that several threads append at once all get receipts, at indexes of their own."""
    log = open_log(place, signer)
    indexes: list[int] = []

    def work(first: int) -> None:
        for number in range(first, first + 5):
            indexes.append(verify_receipt(log.append(received(number)), ORIGIN, signer.public_key).leaf_index)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(100, 120, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(indexes) == list(range(20))
    open_log(place, signer).close()


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_lines_across_reads(size: int, tmp_path: Path) -> None:
    """Lines are whole wherever the reads end, and a last one without a newline is told as such."""
    lines = [b"x" * (index % 300) for index in range(size // 150)]
    (tmp_path / "lines").write_bytes(b"".join(line + b"\n" for line in lines) + b"rest")
    fd = os.open(tmp_path / "lines", os.O_RDONLY)
    found = list(scan_lines(fd))
    os.close(fd)
    assert [line.data for line in found] == [*lines, b"rest"]
    assert [line.is_whole for line in found] == [True] * len(lines) + [False]
    assert found[-1].offset == sum(len(line) + 1 for line in lines)
