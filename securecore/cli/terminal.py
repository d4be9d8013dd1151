"""What people see: sizes, times, tables, colour only on a terminal, progress only on a terminal."""

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from types import TracebackType
from typing import Final

import click

from securecore import limits, units
from securecore.cli import output
from securecore.errors import StorageError

_SIGNALS: Final = (
    "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
)  # fmt: skip
"""By the generic numbering of signal(7); named here because the analyst's machine may number them otherwise."""

_LINES: Final = 1000
"""That are printed at once."""


def printable(text: str | None, width: int = 60) -> str:
    """Return peer-supplied text for a terminal: nothing that moves the cursor, at most *width* characters, ``-`` for none."""
    if text is None or text == "":
        return "-"
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= width else f"{clean[: width - 1]}…"


def size(number: int | None) -> str:
    """Return bytes for people, ``-`` where they are not known."""
    if number is None:
        return "-"
    return units.size(number)


def lost_beginning(frames: int) -> str:
    """Return in words that so many frames at a dump's beginning are placeholders for frames that were lost."""
    return f"the first {size(frames * limits.PIECE_BYTES)} were lost"


def tell_unlisted(problems: Sequence[StorageError]) -> None:
    """Say which hosts, or which of their dumps, could not be looked at."""
    for problem in problems:
        click.echo(f"note: dumps may be left out: {problem.message}", err=True)


def signal_name(number: int | None) -> str:
    """Return a signal's name, its number when it has none, ``-`` for none."""
    if number is None:
        return "-"
    return f"SIG{_SIGNALS[number]}" if 0 < number < len(_SIGNALS) else str(number)


def count(number: int, noun: str) -> str:
    """Return a number of things, in words that agree."""
    return units.count(number, noun)


def when(moment: datetime, now: datetime | None = None) -> str:
    """Return a moment for people, in UTC: today and yesterday by name."""
    utc = moment.astimezone(UTC)
    return f"{day(utc.date(), now)} {utc:%H:%M:%S}"


def day(utc: date, now: datetime | None = None) -> str:
    """Return a day of UTC for people: today and yesterday by name."""
    today = (now or datetime.now(UTC)).date()
    if utc == today:
        return "today"
    return "yest." if utc == today - timedelta(days=1) else str(utc)


def moment(seconds: float) -> datetime | None:
    """Return Unix seconds as an aware moment; None for what no calendar holds, as a peer may send."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def fullness(dumps: int, taken_bytes: int, most_dumps: int | None, most_bytes: int | None) -> str:
    """Return how full a spool is against its quotas, None where it has none: ``3 of 200 dumps, 1.2 GiB of 20.0 GiB``."""
    told = count(dumps, "dump") if most_dumps is None else f"{dumps} of {count(most_dumps, 'dump')}"
    return f"{told}, {size(taken_bytes)}" + (f" of {size(most_bytes)}" if most_bytes is not None else "")


def short_id(dump_id: str) -> str:
    """Return the last eight characters of an id."""
    return dump_id.replace("-", "")[-8:]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print an aligned table; columns are as wide as their widest cell, the last one ragged."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    line = "  ".join([*(f"%-{width}s" for width in widths[:-1]), "%s"])
    click.echo(click.style((line % tuple(header)).rstrip(), bold=True))
    lines((line % tuple(row)).rstrip() for row in rows)


def lines(texts: Iterable[str], *, between: str = "\n", end: str = "\n") -> int:
    """Print texts that may be many, *between* each two and *end* behind the last; return how many there were.

    So many at a time go out together: each look at the terminal, and each write, costs as much as several lines. Where an error
    ends *texts* there is no *end*: it would make a document of a part.
    """
    number, left, said = 0, iter(texts), output.current()
    while block := list(islice(left, _LINES)):
        said.is_in_part = True
        click.echo((between if number else "") + between.join(block), nl=False)
        number += len(block)
    if number:
        click.echo(end, nl=False)
    said.is_in_part = False
    return number


def good(text: str) -> str:
    """Return *text* in green where there is colour."""
    return click.style(text, fg="green")


def doubtful(text: str) -> str:
    """Return *text* in yellow where there is colour."""
    return click.style(text, fg="yellow")


def bad(text: str) -> str:
    """Return *text* in red where there is colour."""
    return click.style(text, fg="red", bold=True)


class Progress:
    """A line on a terminal that says how far long work has come; nothing at all when stderr is no terminal."""

    def __init__(self, what: str, total: int | None, noun: str | None = None) -> None:
        """*total* is in bytes, or in things of which *noun* is one."""
        self._what = what
        self._total = total
        self._told = size if noun is None else lambda number: count(number, noun)
        self._started = time.monotonic()
        self._shown = 0.0
        self._enabled = sys.stderr is not None and sys.stderr.isatty()  # None where it was closed when we were started

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._enabled:
            self._print("")

    def update(self, done: int, total: int | None = None) -> None:
        """Say that *done* bytes or things are done, of *total* where that is known only now; at most ten times a second."""
        self._total = total or self._total
        now = time.monotonic()
        if not self._enabled or now - self._shown < 0.1:
            return
        self._shown = now
        rate = done / max(now - self._started, 0.001)
        line = f"{self._what}  {self._told(done)}"
        if self._total:
            left = max(self._total - done, 0) / rate if rate else 0
            line += f" of {self._told(self._total)}  {100 * done // self._total} %  {self._told(int(rate))}/s  {left:.0f} s left"
        self._print(line)

    def _print(self, line: str) -> None:
        # This is no colour: without colours the line that stands there is erased too.
        click.echo(f"\r\033[K{line}", nl=False, err=True, color=True)
