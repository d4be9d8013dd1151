"""A spool's receipts.jsonl: one line for each receipt that was returned and checked, only ever appended to."""

import fcntl
import os
from collections.abc import Iterator
from typing import Final

from securecore import limits
from securecore.dump import directory as files

NAME: Final = "receipts.jsonl"

_SCAN_BYTES: Final = 64 * limits.KIB


def append(spool: int, line: bytes) -> None:
    """Add a line, given without its newline, to the log in the directory *spool*, durably; raises StorageError."""
    fd = files.open_file(NAME, spool, append=True)
    if fd is None:
        fd = files.create_file(NAME, spool)
        files.sync(spool)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        _cut_torn_line(fd)
        files.write_all(fd, line + b"\n")
        files.sync(fd)
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


def _cut_torn_line(fd: int) -> None:
    """Cut off what a crash or a full disk has left of a last line: the next one would be lost with it."""
    try:
        size = whole = os.fstat(fd).st_size
        while whole > 0:
            begin = max(0, whole - _SCAN_BYTES)
            newline = os.pread(fd, whole - begin, begin).rfind(b"\n")
            if newline >= 0:
                whole = begin + newline + 1
                break
            whole = begin
        if whole < size:
            os.ftruncate(fd, whole)
    except OSError as error:
        raise files.disk_refused(error, "cannot mend the receipt log") from error
