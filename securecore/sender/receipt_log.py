"""A spool's receipts.jsonl: one line for each receipt that was returned and checked, only ever appended to."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from securecore.dump import directory as files
from securecore.errors import StorageError

NAME: Final = "receipts.jsonl"
_ENTRY: Final = ("dump", "origin", "index")
"""The fields that name an entry of a receiver's audit log, and the dump that it is of."""


def append(spool: int, line: bytes) -> None:
    """Add a line, given without its newline, to the log in the directory *spool*, durably; a disk that refuses leaves it whole."""
    fd = files.open_lines(NAME, spool)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        files.append_line(fd, line)
    finally:
        os.close(fd)


def lines(spool: int) -> Iterator[bytes]:
    """Yield the log's whole lines; what a crash has left of a last one is not one. Not checked: what they say."""
    fd = files.open_file(NAME, spool)
    if fd is None:
        return
    with os.fdopen(fd, "rb") as log:
        for line in log:
            if line.endswith(b"\n"):
                yield line


def holds(spool: int, receipt: Mapping[str, Any]) -> bool:
    """Return whether the log has a receipt of the same dump for the same audit entry; reads all of it.

    A log that cannot be read holds nothing: whoever appends to it then learns why.
    """
    wanted = [receipt.get(name) for name in _ENTRY]
    name = str(receipt.get("dump")).encode()
    try:
        return any(name in line and _entry_of(line) == wanted for line in lines(spool))
    except (OSError, StorageError):
        return False


def _entry_of(line: bytes) -> list[Any] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return [fields.get(name) for name in _ENTRY] if isinstance(fields, dict) else None
