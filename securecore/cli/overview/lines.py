"""The entries of an audit report as CSV (RFC 4180): one line for each, made as the logs are read.

Written by itself and read by people in spreadsheets, so no cell of a host's or a person's words is a formula there.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from securecore import limits
from securecore.cli.overview.events import Event
from securecore.cli.overview.peer_text import cell

COLUMNS: Final = ("verified", *Event._fields)
"""``verified`` is ``yes`` for an entry under the checkpoint of a log that holds, else ``no``; then an Event's fields."""

_BATCH_BYTES: Final = 1 << 16


def csv_lines(events: Iterable[tuple[Event, bool]]) -> Iterator[bytes]:
    """Yield a head and one line for each entry, in pieces, as UTF-8; each event comes with whether it is verified."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for event, is_verified in events:
        writer.writerow(["yes" if is_verified else "no", *map(_cell, event)])
        if text.tell() >= _BATCH_BYTES:
            yield text.getvalue().encode("utf-8")
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode("utf-8")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    return cell(value, limits.MAX_WORDS) if isinstance(value, str) else str(value)
