"""A spool's receipts.jsonl: one line for each receipt that was returned and checked, only ever appended to."""

import fcntl
import os
from collections.abc import Iterator, Mapping

from securecore import plain_json
from securecore.declarations import IO, Any, Final
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


def open_log(spool: int) -> IO[bytes] | None:
    """Return the log in the directory *spool* for reading; None where no receipt was kept yet. Raises StorageError."""
    fd = files.open_file(NAME, spool)
    return None if fd is None else os.fdopen(fd, "rb")


def length(spool: int) -> int:
    """Return how many bytes the log in the directory *spool* has; raises StorageError when no line could be appended to it."""
    fd = files.open_file(NAME, spool, append=True)
    if fd is None:
        return 0
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def lines(spool: int) -> Iterator[bytes]:
    """Yield the log's whole lines; what a crash has left of a last one is not one. Not checked: what they say."""
    found = open_log(spool)
    if found is None:
        return
    with found as log:
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
        fields = plain_json.parse(line)
    except (ValueError, RecursionError):
        return None
    return [fields.get(name) for name in _ENTRY] if isinstance(fields, dict) else None
