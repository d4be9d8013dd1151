"""The entries of a host's audit log one after the other, as a report lists them: the form of each field is checked, and no more."""

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit.entry import DELETED, EXTRACTED, INCOMPLETE, RECEIVED, REFUSED, VERIFIED, Value, find_time, parse_entry
from securecore.audit.log_files import ENTRIES, scan_lines
from securecore.cli.event_words import find_words
from securecore.dump import directory
from securecore.errors import BrokenError, NotFoundError, StorageError
from securecore.names import HostName
from securecore.store.layout import Store

UNREADABLE: Final = "unreadable"
"""In the place of an event: a line that is no entry."""

_NUMBER_END: Final = 1 << 63
"""Above any size or count, as manifests bound them; an entry holds any number."""
_PLACE: Final = {"version", "event", "time", "dump", "host"}
_KNOWN: Final = {RECEIVED, INCOMPLETE, EXTRACTED, DELETED, REFUSED, VERIFIED}
"""Events whose fields have columns of their own; of others we have words, or their fields are told as they stand."""


class Event(NamedTuple):
    """One entry; None for what it does not say, or not in its form."""

    entry: int
    """Its index in the host's log."""
    time: datetime | None
    """By the receiver's clock, in UTC."""
    host: str
    """Whose log it stands in, by its place; what the entry itself says of that does not count."""
    event: str
    dump: str | None = None
    state: str | None = None
    """``complete`` or ``incomplete``, of what was received or given up."""
    size_bytes: int | None = None
    """Plaintext."""
    stored_bytes: int | None = None
    program: str | None = None
    """The host's word."""
    signal: int | None = None
    uid: int | None = None
    user: str | None = None
    code: int | None = None
    """Of REFUSE."""
    others: int | None = None
    """How many refusals more this entry stands for."""
    result: str | None = None
    """``ok`` or ``broken``, of what somebody verified."""
    reason: str | None = None
    """Why it was refused or deleted, or what was found broken."""
    detail: str | None = None
    """Of an event that has no columns of its own: what it says."""


def scan_events(store: Store, host: HostName) -> Iterator[Event]:
    """Yield the entries of a host's log, oldest first, in bounded memory; none for a host without one.

    A last line that is not whole is left out, for an append may be under way, and what a disk does not give is left out too: what
    is wrong with a log, its verification says.
    """
    try:
        entries = _open_entries(store, host)
    except (NotFoundError, StorageError):
        return
    if entries is None:
        return
    try:
        for index, line in enumerate(scan_lines(entries)):
            if line.is_whole:
                yield read_event(index, host, line.data)
    except StorageError:
        return
    finally:
        os.close(entries)


def find_events(store: Store, host: HostName, wanted: set[int]) -> list[Event]:
    """Return the entries with these indices, newest first; the log is read once more for that."""
    found = [event for event in scan_events(store, host) if event.entry in wanted] if wanted else []
    return found[::-1]


def read_event(index: int, host: HostName, line: bytes) -> Event:
    """Return what a line of a log says, or that it is no entry; raises nothing whatever the line is."""
    try:
        fields = parse_entry(line)
    except BrokenError as error:
        return Event(index, None, str(host), UNREADABLE, reason=error.message)
    event = str(fields["event"])[: limits.MAX_WORDS]
    is_complete = event == RECEIVED and fields.get("state") == "complete"
    return Event(
        entry=index,
        time=find_time(fields),
        host=str(host),
        event=event,
        dump=_text(fields, "dump"),
        state="complete" if is_complete else "incomplete" if event in (RECEIVED, INCOMPLETE) else None,
        size_bytes=_number(fields, "size"),
        stored_bytes=_number(fields, "stored_bytes"),
        program=_text(fields, "program"),
        signal=_number(fields, "signal"),
        uid=_number(fields, "uid"),
        user=_text(fields, "user"),
        code=_number(fields, "code"),
        others=_number(fields, "others"),
        result=("ok" if fields.get("result") == "ok" else "broken") if event == VERIFIED else None,
        reason=_text(fields, "problem" if event == VERIFIED else "reason"),
        detail=None if event in _KNOWN else find_words(fields) or _detail(fields),
    )


def _open_entries(store: Store, host: HostName) -> int | None:
    audit = store.audit_directory(host, create=False)
    try:
        return directory.open_file(ENTRIES, audit)
    finally:
        os.close(audit)


def _number(fields: Mapping[str, Value], name: str) -> int | None:
    value = fields.get(name)
    return value if isinstance(value, int) and 0 <= value < _NUMBER_END else None


def _text(fields: Mapping[str, Value], name: str) -> str | None:
    value = fields.get(name)
    return None if value is None else str(value)[: limits.MAX_WORDS]


def _detail(fields: Mapping[str, Value]) -> str:
    told = (f"{name} {value}" for name, value in fields.items() if name not in _PLACE and value is not None)
    return ", ".join(told)[: limits.MAX_WORDS]
