"""The files of an audit log, in a directory of their own: their names, and the lines of its entries."""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from securecore import limits
from securecore.dump import directory

ENTRIES: Final = "entries.jsonl"
CHECKPOINT: Final = "checkpoint"

_READ_BYTES: Final = 1 << 20


class Line(NamedTuple):
    """A line of an entries file; *is_whole* is false for what stands behind the last newline, and for one that is too long."""

    offset: int
    data: bytes
    """Without its newline."""
    is_whole: bool


def scan_lines(fd: int) -> Iterator[Line]:
    """Yield the lines of an entries file, from its beginning, in bounded memory.

    Ends behind a line that is not whole. Raises StorageError when the file cannot be read.
    """
    offset, rest = 0, b""
    while True:
        try:
            chunk = os.pread(fd, _READ_BYTES, offset + len(rest))
        except OSError as error:
            raise directory.disk_refused(error, "cannot read an audit log") from error
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for data in lines:
            is_whole = len(data) <= limits.MAX_ENTRY_BYTES
            yield Line(offset, data, is_whole)
            if not is_whole:
                return
            offset += len(data) + 1
        if len(rest) > limits.MAX_ENTRY_BYTES:
            break
    if rest:
        yield Line(offset, rest, is_whole=False)
