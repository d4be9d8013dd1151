"""The receipt log: one whole line for each receipt, whatever ends a writer, and found again whatever else stands there."""

import json
import threading
from pathlib import Path
from typing import Any, Final

import pytest

from securecore.sender import receipt_log
from securecore.sender.spool import Spool

KEPT: Final[dict[str, Any]] = {"dump": "a", "origin": "collector/securecore/web-1", "index": 7, "checked_at": "then"}


def test_a_receipt_is_the_same_for_the_same_entry(spool: Spool) -> None:
    """When it was checked makes no difference; another dump, log or place in it does."""
    spool.keep_receipt(KEPT)

    others = ({"dump": "b"}, {"origin": "collector/securecore/web-2"}, {"index": 8})
    assert receipt_log.holds(spool.fd, KEPT | {"checked_at": "now"})
    assert [receipt_log.holds(spool.fd, KEPT | other) for other in others] == [False] * 3


@pytest.mark.parametrize("line", [b"", b"a", b'"a"', b'["a"]', b"{}", b'{"dump": "a"}', b"[" * 20_000 + b"a", b"\xffa"])
def test_what_is_no_receipt_hides_none(line: bytes, spool: Spool, tmp_path: Path) -> None:
    """A line that means nothing is passed over, before and without the one that is looked for."""
    log = tmp_path / "spool/receipts.jsonl"
    log.write_bytes(line + b"\n")
    without = receipt_log.holds(spool.fd, KEPT)
    log.write_bytes(line + b"\n" + json.dumps(KEPT).encode() + b"\n")

    assert (without, receipt_log.holds(spool.fd, KEPT)) == (False, True)


def test_a_log_that_cannot_be_read_holds_nothing(spool: Spool, tmp_path: Path) -> None:
    """Nor does one that is not there, or is torn: whoever appends learns what is wrong with it."""
    log = tmp_path / "spool/receipts.jsonl"
    missing = receipt_log.holds(spool.fd, KEPT)
    log.write_bytes(json.dumps(KEPT).encode())
    torn = receipt_log.holds(spool.fd, KEPT)
    log.unlink()
    log.mkdir()

    assert (missing, torn, receipt_log.holds(spool.fd, KEPT)) == (False, False, False)


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


def test_a_log_that_is_moved_aside_stays_as_it_is_and_a_new_one_begins(spool: Spool, tmp_path: Path) -> None:
    """So it may be parted into files, at any moment: whoever has it open still appends a whole line to the old one."""
    spool.keep_receipt({"dump": "a"})
    path = tmp_path / "spool/receipts.jsonl"
    aside = path.rename(tmp_path / "spool/receipts.jsonl-20261127")
    spool.keep_receipt({"dump": "b"})

    assert (aside.read_bytes(), path.read_bytes()) == (b'{"dump":"a"}\n', b'{"dump":"b"}\n')


def test_receipts_of_handlers_that_end_at_once_are_all_kept(spool: Spool) -> None:
    """Also the very first ones, each of which finds no receipt log yet."""
    threads = [threading.Thread(target=spool.keep_receipt, args=({"dump": str(number)},)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(int(receipt["dump"]) for receipt in spool.receipts()) == list(range(16))
