"""``securecore list``: the dumps in a store."""

from collections.abc import Iterable, Iterator
from datetime import date, datetime
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Final

import click

from securecore import limits
from securecore.cli import options, terminal
from securecore.cli.options import host_option, json_option, store_option
from securecore.cli.state import State
from securecore.errors import StorageError

if TYPE_CHECKING:
    from securecore.store.forms import Line

_PROGRAM_WIDTH: Final = 24
_DAY: Final = slice(0, len("2026-11-22"))
_CLOCK: Final = slice(len("2026-11-22T"), len("2026-11-22T09:00:00"))
"""Of a time as rows have it, RFC 3339 in UTC."""
_KEPT: Final = 4096
"""Programs, and states, that are in words already: more than most stores have."""

EPILOG = """\b
Examples:
  securecore list
  securecore list --since 1d --host web-1
  securecore list --json | jq -r '.[] | select(.signal == 11) | .id'
"""


@click.command("list", epilog=EPILOG)
@store_option
@host_option
@click.option("--since", type=options.moment, metavar="WHEN", help="Only newer ones: 15m, 6h, 1d, 2w ago, or a date.")
@json_option
def command(store_path: str, host_text: str | None, since: datetime | None, as_json: bool) -> None:
    """List the dumps in a store, newest first."""
    from securecore.store.catalogue import open_catalogue
    from securecore.store.forms import DOCUMENT, LINE
    from securecore.store.layout import open_store

    with open_store(store_path) as store:
        host = options.find_host(host_text, store)
        with open_catalogue(store) as catalogue:
            catalogue.reconcile(host)
            terminal.tell_unlisted(catalogue.problems)
            if as_json:
                _print_documents(catalogue.listed(DOCUMENT, host, since))
                return
            rows = _rows(catalogue.listed(LINE, host, since), store.path)
    if not rows:
        click.echo("no dumps" + (f" of {host}" if host else ""))
    else:
        terminal.table(("ID", "RECEIVED", "HOST", "PROGRAM", "SIGNAL", "SIZE", "STORED", "STATE"), rows)


def _rows(lines: "Iterable[Line]", path: str) -> list[tuple[str, ...]]:
    """Return the cells of *lines*; raises StorageError when the disk has made something else of a field than there can be."""
    try:
        return list(map(_Cells().of, lines))
    except (ValueError, TypeError, AttributeError) as error:
        raise StorageError(
            f"the catalogue says of a dump what cannot be: {error}", hint=f"remove {path}/catalogue.sqlite: it is made again"
        ) from error


def _print_documents(documents: Iterator[str]) -> None:
    """Print JSON objects as an array, one a line, while they are read."""
    first = next(documents, None)
    if first is None:
        click.echo("[]")
    else:
        terminal.lines(chain([f"[\n{first}"], documents), between=",\n", end="\n]\n")


def share_of(size: int | None, predicted: int | None, lost_frames: int) -> str | None:
    """Return how much of a core is there, None where that is all of it or not known; placeholders for what was lost do not count.

    *size* and *predicted* are bytes of plaintext.
    """
    if size is None or not predicted:
        return None
    there = max(size - lost_frames * limits.PIECE_BYTES, 0)
    return f"{100 * there // predicted} %" if there < predicted else None


class _Cells:
    """Makes lines of a table. What many dumps have in common is put into words once."""

    def __init__(self) -> None:
        self._day = cache(lambda text: terminal.day(date.fromisoformat(text)))
        self._program = lru_cache(_KEPT)(lambda name: terminal.printable(name, _PROGRAM_WIDTH))
        self._state = lru_cache(_KEPT)(_state)

    def of(self, line: "Line") -> tuple[str, ...]:
        """Return what is said of a dump."""
        at, dump_id, host, program, signal, size, predicted, stored, lost_frames, *standing = line
        return (
            terminal.short_id(dump_id),
            f"{self._day(at[_DAY])} {at[_CLOCK]}",
            host.split(".", 1)[0],
            self._program(program),
            terminal.signal_name(signal),
            terminal.size(size),
            terminal.size(stored),
            self._state(share_of(size, predicted, lost_frames), lost_frames, *standing),
        )


def _state(
    share: str | None,
    lost_frames: int,
    outcome: str | None,
    is_given_up: bool,
    is_sensitive: bool,
    is_published: bool,
    has_manifest: bool,
    core_fits: bool,
    has_core: bool,
    has_sound_report: bool,
    has_sound_receipt: bool,
) -> str:
    """Return how a dump stands, with *share*, how much of the core is there, and what else is to be known of it."""
    state = State(is_published, outcome, is_given_up, lost_frames, has_manifest, has_core, core_fits)
    beside = (
        (is_sensitive, "sensitive"), (not has_sound_report, "no sound report"), (not has_sound_receipt, "no sound receipt"),
    )  # fmt: skip
    return ", ".join([state.label(share=share), *(words for is_so, words in beside if is_so)])
