"""What is told of a dump that is not in the store any more: the host's audit log says when it was deleted, by whom and why.

What the log says is shown as it stands; `audit verify` verifies it. But a deletion is told only once the checkpoint covers it:
before that no file is removed, so that it explains nothing, and whoever can write the store may have written it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

from securecore.audit.entry import DELETED, Value, find_statement, find_time, parse_entry
from securecore.audit.log_files import ENTRIES, scan_lines
from securecore.cli import holdings, terminal
from securecore.dump import directory
from securecore.errors import BrokenError, NotFoundError, StorageError
from securecore.names import DumpId, HostName, NameRefused
from securecore.store.layout import Place, Store
from securecore.store.lookup import Candidates, find_candidates, is_match
from securecore.store.reading import DumpFiles

_SHOWN: Final = 3
_DUMP: Final = re.compile(rb'"dump":"([0-9a-f-]{36})"')
"""Quotes within text are escaped, so these bytes in an entry are a field and nothing else."""


class Absence(NamedTuple):
    """What a host's log said last of a dump that is not in the store."""

    host: HostName
    dump: DumpId
    fields: Mapping[str, Value]
    """Empty when the log says nothing of it, and its deletion has begun: it was still coming in."""
    is_leaving: bool
    """Whether its deletion has begun and is not finished."""

    @property
    def is_deleted(self) -> bool:
        """Whether the log says that it was deleted; what is left of its files may not be removed yet."""
        return self.fields.get("event") == DELETED

    @property
    def is_lost(self) -> bool:
        """Whether nothing explains that it is not there: that is damage."""
        return not self.is_deleted and not self.is_leaving

    def words(self) -> str:
        """Return it for a person."""
        moment = find_time(self.fields)
        when = f" {moment:%Y-%m-%d %H:%M:%S} UTC" if moment is not None else ""
        if self.is_lost:
            return f"{self.dump.short} of {self.host} is not in the store, and its audit log says {self.fields['event']}{when}"
        if not self.is_deleted:
            return f"{self.dump.short} of {self.host} is being deleted"
        by = terminal.printable(str(self.fields.get("user") or self.fields.get("uid")), 32)
        reason = self.fields.get("reason")
        why = f": {terminal.printable(str(reason), 200)}" if reason is not None else ", no reason given"
        return f"{self.dump.short} of {self.host} was deleted{when} by {by}{why}"

    def hint(self) -> str:
        """Return what to do about it."""
        if self.is_lost:
            return "`securecore verify --all` names all that is missing"
        return f"`securecore audit log {self.dump.short}` has its history"


Lost = type[BrokenError] | type[NotFoundError]
"""What is raised of one dump that a log knows, that nobody deleted, and that is not in the store."""


def find_dump(store: Store, text: str, host: HostName | None, *, lost: Lost = NotFoundError) -> tuple[HostName, DumpId]:
    """Return the one dump that *text* means, as ``lookup.find_dump`` does.

    Raises as it does too; where no dump in the store is meant, and a log knows one that was, with what the log says. Whose dumps
    could not be looked at is said.
    """
    found = _find(store, text, host, lost)
    if found.problem is not None and found.dumps:
        terminal.tell_unlisted([found.problem])
    return found.one()


def find_only_dump(store: Store, text: str, host: HostName | None) -> tuple[HostName, DumpId]:
    """Return the same for what can't be undone; raises StorageError too where it may mean one that could not be looked at."""
    found = _find(store, text, host, NotFoundError)
    dump = found.one()
    found.check_decided()
    return dump


@contextmanager
def open_dump(store: Store, host: HostName, dump: DumpId) -> Iterator[DumpFiles]:
    """Give the files of a dump while the block runs; raises NotFoundError, with what the log says, when it is not there."""
    try:
        files = store.open_dump(host, dump)
    except NotFoundError:
        check_present(store, host, dump)
        raise
    with files:
        yield files


def check_present(store: Store, host: HostName, dump: DumpId, *, lost: Lost = NotFoundError) -> None:
    """Raise NotFoundError, with what the log says, when a dump that was there is not there any more."""
    if store.find_place(host, dump) is None and (absent := find_absences(store, str(dump), host)):
        raise _not_there(str(dump), absent, lost)


def find_absences(store: Store, text: str, host: HostName | None) -> list[Absence]:
    """Return the dumps that the store does not hold, and whose ids begin or end with *text*, in the logs' order.

    These are dumps that logs know, and those whose deletion has begun. Logs are read as they stand, once from their beginning. Not
    told: those of a host whose log cannot be read; `audit verify` says what is wrong with it.
    """
    wanted = text.strip().lower().replace("-", "")
    if not wanted:
        return []
    owners = [host] if host is not None else sorted({*store.audited_hosts(), *store.hosts_in(Place.DELETING)})
    return [absence for owner in owners for absence in _absences_of(store, owner, wanted)]


def _find(store: Store, text: str, host: HostName | None, lost: Lost) -> Candidates:
    found = find_candidates(store, text, host)
    if not found.dumps and (absent := find_absences(store, text, host)):
        raise _not_there(text, absent, lost)
    return found


def _absences_of(store: Store, host: HostName, wanted: str) -> Iterator[Absence]:
    said: dict[DumpId, list[tuple[int, Mapping[str, Value]]]] = {}
    for index, entry in _entries_of(store, host, wanted):
        statement = find_statement(entry)
        if statement is not None:
            said.setdefault(statement.dump, []).append((index, parse_entry(entry)))
    leaving = set(_leaving_of(store, host, wanted))
    # Last: of a deletion that we saw begin, and that is not under way any more, the entry is signed by now.
    signed = holdings.read_signed_size(store, host) if said else 0
    newest: dict[DumpId, tuple[int, Mapping[str, Value]]] = {}
    for dump, entries in said.items():
        counted = [entry for entry in entries if entry[0] < signed or entry[1]["event"] != DELETED]
        if counted:
            newest[dump] = counted[-1]
    in_order = sorted(newest.items(), key=lambda found: found[1][0])
    for dump, (_, fields) in in_order:
        if store.find_place(host, dump) is None:
            yield Absence(host, dump, fields, dump in leaving)
    for dump in sorted(leaving - newest.keys(), key=str):
        if store.find_place(host, dump) is None:
            yield Absence(host, dump, {}, is_leaving=True)


def _leaving_of(store: Store, host: HostName, wanted: str) -> Iterator[DumpId]:
    """Yield the dumps whose deletion has begun, and whose ids begin or end with *wanted*."""
    try:
        names = store.dump_names(Place.DELETING, host)
    except StorageError:
        return
    for name in names:
        try:
            dump = DumpId.parse(name)
        except NameRefused:
            continue
        if is_match(name, wanted):
            yield dump


def _entries_of(store: Store, host: HostName, wanted: str) -> Iterator[tuple[int, bytes]]:
    """Yield the entries of a host's log that are of a dump whose id begins or ends with *wanted*, each with its index.

    None when it cannot be opened.
    """
    try:
        audit = store.audit_directory(host, create=False)
    except (NotFoundError, StorageError):
        return
    try:
        entries = directory.open_file(ENTRIES, audit)
    except StorageError:
        return  # Where a log cannot be read, a name that means nothing is no more than that; `audit verify` says what is wrong.
    finally:
        os.close(audit)
    if entries is None:
        return
    try:
        for index, line in enumerate(scan_lines(entries)):
            match = _DUMP.search(line.data)
            if match is not None and is_match(match[1].decode("ascii"), wanted):
                yield index, line.data
    finally:
        os.close(entries)


def _not_there(text: str, absent: list[Absence], lost: Lost) -> BrokenError | NotFoundError:
    if len(absent) == 1:
        kind = lost if absent[0].is_lost else NotFoundError
        return kind(absent[0].words(), hint=absent[0].hint())
    shown = "; ".join(absence.words() for absence in absent[-_SHOWN:])
    more = f"; and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
    return NotFoundError(f"{text[:100]!a} means {len(absent)} dumps that are not in the store any more", hint=f"{shown}{more}")
