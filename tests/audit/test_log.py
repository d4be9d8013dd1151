"""One host's audit log: what is durable before a receipt is shown, and what opening makes of every half-finished state."""

import os
import threading
from pathlib import Path

import pytest

from securecore.audit.checkpoint import LogSigner, verify_checkpoint
from securecore.audit.entry import extracted_entry
from securecore.audit.log_files import scan_lines
from securecore.audit.proof import verify_receipt
from securecore.audit.standings import Standing
from securecore.errors import BrokenError, Bug, NotFoundError
from securecore.merkle import EMPTY_ROOT, leaf_hash, root_of
from tests.support.dumps import NOW, WEB, dump_id
from tests.support.entries import ENTRIES, deleted, incomplete, received, received_as
from tests.support.host_logs import ORIGIN, index_of, open_log, signed_size, write_log


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


def test_files_are_private(place: Path, signer: LogSigner) -> None:
    """A log's files are 0600 even when the umask takes nothing away."""
    old = os.umask(0)
    try:
        write_log(place, signer)
    finally:
        os.umask(old)
    assert {path.name: path.stat().st_mode & 0o7777 for path in place.iterdir()} == {"entries.jsonl": 0o600, "checkpoint": 0o600}


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
