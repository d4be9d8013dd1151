"""A spool's receipts.jsonl: one line for each receipt that was returned and checked, only ever appended to."""

import fcntl
import os
from collections.abc import Iterator
from typing import Final

from securecore.dump import directory as files

NAME: Final = "receipts.jsonl"


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
