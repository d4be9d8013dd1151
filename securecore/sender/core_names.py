"""The names of local cores and their reports: made of what a crash says, and read again."""

import re
import time
from collections.abc import Iterator
from itertools import count

from securecore.declarations import Final, NamedTuple
from securecore.dump import directory as files
from securecore.dump.packing import FORMATS

_NAME: Final = re.compile(
    r"(?P<stem>\d{8}T\d{6}Z-[A-Za-z0-9_][A-Za-z0-9._-]{0,63}-\d{1,20}(?:-\d{1,9})?)(?P<cut>\.truncated)?\.(?P<ending>zst|gz|zlib|json)",
    re.ASCII,
)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]", re.ASCII)
_PROGRAM_MAX: Final = 64
_LAST_SECOND: Final = 253402300799
"""The end of the year 9999: a clock beyond it, or arguments that somebody made up, must not cost the core."""


def stem_of_crash(crashed_at: int, program: str | None, pid: int) -> str:
    """Return how the names of a crash begin: the time in UTC, the program made harmless (R12), the pid."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(min(crashed_at, _LAST_SECOND)))
    safe = _UNSAFE.sub("_", program or "")[:_PROGRAM_MAX]
    harmless = safe.lstrip(".-")
    safe = "_" * (len(safe) - len(harmless)) + harmless
    return f"{moment}-{safe or 'unknown'}-{pid}"


class CoreFile(NamedTuple):
    """What a name of local mode says; ``ending`` is a format or json."""

    stem: str
    ending: str
    is_aside: bool


def find_meaning(name: str) -> CoreFile | None:
    """Return what a name in the directory says, None for one that is not ours."""
    is_aside = files.is_aside(name)
    match = _NAME.fullmatch(name[1:-4] if is_aside else name)
    return None if match is None else CoreFile(match["stem"], match["ending"], is_aside)


def core_name(stem: str, kind: str, *, is_whole: bool) -> str:
    """Return the name of a core."""
    return f"{stem}.{kind}" if is_whole else f"{stem}.truncated.{kind}"


def names_of(stem: str) -> Iterator[str]:
    """Yield every name that a dump may have under a stem."""
    for name in (f"{stem}.json", *(core_name(stem, kind, is_whole=True) for kind in FORMATS)):
        yield name
        yield files.aside_name(name)
    yield from (core_name(stem, kind, is_whole=False) for kind in FORMATS)


def numbered(base: str) -> Iterator[str]:
    """Yield *base*, then *base* with the numbers from 2 on."""
    yield base
    for number in count(2):
        yield f"{base}-{number}"
