"""The receipt log as a flush searches it: for one entry of a receiver's audit log, whatever else stands there."""

import json
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
