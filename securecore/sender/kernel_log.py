"""Crashes that the kernel skipped before it handed them to anybody, as its log tells: /dev/kmsg, read without ever waiting.

Over core_pipe_limit, and where nobody takes its connection to a coredump socket, the kernel skips a dump and says so, but each at
most ten times in five seconds; how often it kept silent it says before the next such line (``N callbacks suppressed``,
lib/ratelimit.c). So what is found here is a lower bound until then, and nothing where the log has been overwritten or may not be
read. Each record has a number that grows while the machine runs (Documentation/ABI/testing/dev-kmsg), which is how nothing is
counted twice.
"""

import os
import sys
import time

from securecore import limits
from securecore.declarations import Callable, Final, Iterable, Iterator, NamedTuple
from securecore.sender.privileges import can_others_import

KMSG: Final = "/dev/kmsg"
_RECORD_BYTES: Final = 8192
"""PRINTK_MESSAGE_MAX and its prefix: CONSOLE_EXT_LOG_MAX of kernel/printk/printk.c; read(2) gives one record or fails."""
_PRIORITY_DIGITS: Final = 9
_NUMBER_DIGITS: Final = 18
_ABOUT: Final = (b"coredump", b"core_pipe_limit")
"""One of them stands in each line that counts here."""
# Compiled where a line may count: a crashed process waits for the modules of patterns and for these (3 ms), and few logs have one.
_SKIPPED: Final = (
    rb"(?:coredump: [0-9]+\(.*\): |Pid [0-9]+\(.*\) )over core_pipe_limit\b.*"
    rb"|coredump: [0-9]+\(.*\): Coredump socket (?:[^ ]+ receive queue full|connection [^ ]+ failed -[0-9]+)"
)
"""fs/coredump.c: the first form since Linux 6.12, the second one before. The name between the brackets is the process's choice. The
socket's are there since 6.16: its backlog is full, or nobody listens."""
_SILENT: Final = rb"(?:coredump_pipe|coredump_sock_connect|vfs_coredump|do_coredump): ([0-9]{1,9}) callbacks suppressed"
"""The function that has the line, by version."""


class Skips(NamedTuple):
    """What the log holds."""

    newest: int
    """The number of its last record."""
    found: tuple[tuple[int, int], ...]
    """The number of a record, and the crashes that it stands for; the numbers grow."""


def open_kernel_log() -> int | None:
    """Return a descriptor of the kernel's log; None where it may not be read. Who may is decided here: the reading asks no more."""
    try:
        log = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    if "re" not in sys.modules and not can_others_import([os.path.dirname(os.__file__)]):
        import re  # noqa: F401  # who reads the log may not be root any more, and could not load this then
    return log


def read_skips(log: int, last: int = -1, clock: Callable[[], float] = time.monotonic) -> Skips | None:
    """Return what the log behind a descriptor says of skipped crashes; None when it says nothing at all.

    It is read from its beginning: the kernel lets nobody seek to a record by its number (devkmsg_llseek of kernel/printk/printk.c).
    Those up to *last* were read before, and are passed over. Of a log beyond MAX_KERNEL_LOG_BYTES, or that takes longer than
    KERNEL_LOG_S, the rest is left.
    """
    return count_skips(_records(log, clock), last)


def count_skips(records: Iterable[bytes], last: int = -1) -> Skips | None:
    """Return what *records* say of skipped crashes; None when none of them is the kernel's record.

    Records up to number *last* are looked at only where they may be about a core: what the kernel held back then may count now.
    """
    found = []
    newest, silent = -1, 0
    for record in records:
        if (number := _passed_over(record, last)) is not None:
            newest = number
            continue
        if (parts := _parts(record)) is None:
            continue
        priority, newest, text = parts
        # Facility 0 is the kernel's own; nobody who writes into the log can claim it.
        if priority >> 3 != 0 or not any(word in text for word in _ABOUT):
            continue
        import re  # only where something may be found: most logs have no such line

        if words := re.fullmatch(_SILENT, text):
            silent = int(words[1])
        elif re.fullmatch(_SKIPPED, text):
            found.append((newest, 1 + silent))
            silent = 0
        elif text.startswith(b"coredump: "):
            # Another complaint of the same function: the silence was about that one.
            silent = 0
    return Skips(newest, tuple(found)) if newest >= 0 else None


def _parts(record: bytes) -> tuple[int, int, bytes] | None:
    """Return a record's priority, number and text, without the lines that may follow; None when it is none of the kernel's form."""
    head, semicolon, text = record.partition(b";")
    fields = head.split(b",", 2)
    if not semicolon or b"\n" in head or len(fields) < 3 or not (fields[0].isdigit() and fields[1].isdigit()):
        return None
    if len(fields[0]) > _PRIORITY_DIGITS or len(fields[1]) > _NUMBER_DIGITS:
        return None
    return int(fields[0]), int(fields[1]), text.partition(b"\n")[0]


def _passed_over(record: bytes, last: int) -> int | None:
    """Return the number of a record up to *last* that is about nothing here, without the cost of a look at all of it."""
    parts = record.split(b",", 2)
    if len(parts) < 3 or not parts[0].isdigit() or not parts[1].isdigit() or len(parts[1]) > 18 or int(parts[1]) > last:
        return None
    return None if b"core" in record else int(parts[1])


def _records(log: int, clock: Callable[[], float]) -> Iterator[bytes]:
    ends_at, left = clock() + limits.KERNEL_LOG_S, limits.MAX_KERNEL_LOG_BYTES
    while left > 0 and clock() < ends_at:
        try:
            record = os.read(log, _RECORD_BYTES)
        except BrokenPipeError:
            continue  # What was to come next has been overwritten: the log goes on behind it.
        except OSError:
            return
        if not record:
            return
        left -= len(record)
        yield record
