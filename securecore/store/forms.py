"""The forms in which the catalogue hands out what it lists: a row, the few fields of a line, the text of a JSON object.

Each is made of the columns that it needs, in the database where that is faster: at 100,000 dumps each microsecond for one makes a
tenth of a second for whoever waits.
"""

import json
import sqlite3
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from securecore.names import HostName
from securecore.store.rows import DumpRow

Key = tuple[str, str, str]
"""When a dump was received, its id and its host: no other dump has the same, and lists are sorted by it, backwards."""

_KEY_FIELDS: Final = 3

_Shown = TypeVar("_Shown")

_FLAGS: Final = frozenset(name for name, kind in DumpRow.__annotations__.items() if kind is bool)
"""The database has integers for these."""


class Form(Generic[_Shown]):
    """What is yielded of each dump, and how it is made."""

    def __init__(self, columns: str, of_columns: Callable[[tuple[Any, ...]], _Shown], of_row: Callable[[DumpRow], _Shown]) -> None:
        """*columns* are SQL over the table of dumps; both functions make the same of the same dump.

        *of_columns* is given the dump's key and then these.
        """
        self._columns = columns
        self.of_columns = of_columns
        self.of_row = of_row

    def query(self, host: str | None, earliest: str, behind: Key | None) -> tuple[str, list[str]]:
        """Return SQL and its arguments for the published dumps, newest first, each as its key and then the form's columns.

        Those of one host where *host* is given, not older than *earliest*, and only those that come after *behind*.
        """
        conditions, arguments = ["received_at >= ?"], [earliest]
        if host is not None:
            conditions.append("host = ?")
            arguments.append(host)
        if behind is not None:
            conditions.append("(received_at, id, host) < (?, ?, ?)")
            arguments += behind
        where, order = " AND ".join(conditions), "received_at DESC, id DESC, host DESC"
        query = f"SELECT received_at, id, host, {self._columns} FROM dumps WHERE {where} ORDER BY {order}"  # noqa: S608  # constants
        return query, arguments


class Reading(Generic[_Shown]):
    """A list that is being read, all of it as it was when that was begun."""

    def __init__(self, form: Form[_Shown], host: HostName | None, earliest: str) -> None:
        self._form = form
        self._host = str(host) if host is not None else None
        self._earliest = earliest
        self._cursor: sqlite3.Cursor | None = None
        self.behind: Key | None = None
        """Of the last one that was handed out."""

    def go_on(self, connection: sqlite3.Connection, most: int) -> list[Any]:
        """Return the next ones, none at the end; with another connection than before, those of that one."""
        if self._cursor is None or self._cursor.connection is not connection:
            self._cursor = connection.execute(*self._form.query(self._host, self._earliest, self.behind))
        return self._cursor.fetchmany(most)


def key_of(row: DumpRow) -> Key:
    """Return where a row stands in a list."""
    return row.received_at, row.id, row.host


class Line(NamedTuple):
    """What one line of a list is made of; fields as DumpRow has them, the key first."""

    received_at: str
    id: str
    host: str
    program: str | None
    signal: int | None
    size_bytes: int | None
    predicted_bytes: int | None
    stored_bytes: int
    lost_frames: int
    outcome: str | None
    is_given_up: bool
    sensitive: bool
    published: bool
    has_manifest: bool
    core_fits: bool
    has_core: bool
    has_sound_report: bool
    has_sound_receipt: bool


def row_from(columns: tuple[Any, ...]) -> DumpRow:
    """Return the row that stands in the table of dumps as *columns*."""
    return DumpRow._make(bool(value) if name in _FLAGS else value for name, value in zip(DumpRow._fields, columns, strict=True))


def _line_of(row: DumpRow) -> Line:
    given = row._asdict() | {"is_given_up": row.given_up_at is not None}
    return Line._make(given[name] for name in Line._fields)


def _document_from(columns: tuple[Any, ...]) -> str:
    text: str = columns[_KEY_FIELDS]
    # SQLite writes other characters as they are; what a peer has chosen is not to reach a terminal so.
    return text if text.isascii() else json.dumps(json.loads(text), separators=(",", ":"))


def _document_of(row: DumpRow) -> str:
    return json.dumps(row._asdict(), separators=(",", ":"))


def _member(name: str) -> str:
    # Not iif: SQLite has it since 3.32 (sqlite.org/changes.html), RHEL 8 is at 3.26.
    return f"'{name}', json(CASE WHEN {name} THEN 'true' ELSE 'false' END)" if name in _FLAGS else f"'{name}', {name}"


def _line_column(name: str) -> str:
    return "given_up_at IS NOT NULL" if name == "is_given_up" else name


COLUMNS: Final = ", ".join(DumpRow._fields)
ROW: Final = Form(COLUMNS, lambda columns: row_from(columns[_KEY_FIELDS:]), lambda row: row)
LINE: Final = Form(", ".join(map(_line_column, Line._fields[_KEY_FIELDS:])), Line._make, _line_of)
"""Flags stay the integers that the database has: nobody asks more of them than whether they are so."""
DOCUMENT: Final = Form(f"json_object({', '.join(map(_member, DumpRow._fields))})", _document_from, _document_of)
"""One JSON object (RFC 8259) in ASCII, on one line, with the fields of a row in their order."""
