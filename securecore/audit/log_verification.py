"""Verification of an audit log, by itself and against the dumps that a store holds, as numbered checks that a person can follow.

Everything is recomputed from the log's files. What was signed once and stands elsewhere in the store, in receipts, is held against
it: a log that was put back to an earlier state agrees with itself, but not with the receipts that were given since.
"""

import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit.checkpoint import Checkpoint, verify_checkpoint
from securecore.audit.checks import Check, Steps, read_needed
from securecore.audit.damage import Progress
from securecore.audit.entry import DELETED, Statement, find_statement, parse_entry
from securecore.audit.log import CHECKPOINT, ENTRIES, scan_lines
from securecore.dump import directory
from securecore.errors import BrokenError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId
from securecore.units import count

_NAMED: Final = 3
"""Dumps that a check names; the outcome has all of them."""


class Entered(NamedTuple):
    """What the newest entry that says where a dump stands says of one that was received or given up."""

    dump: DumpId
    event: str
    at: int
    """Index of the entry."""
    digest: bytes
    """As in a Statement."""
    frames: int
    stored_bytes: int


class Holdings(NamedTuple):
    """What a store holds of a host, looked up before its log is read: an entry is durable before its dump is published."""

    published: dict[DumpId, int | None]
    """The published dumps, each with the index of the entry that its receipt proves; None when it proves none."""
    roots: dict[int, set[bytes]]
    """What the dumps' receipts say of the log: the roots of its first so many entries."""
    unproved: list[tuple[DumpId, str]]
    """Dumps whose receipt does not hold, and why."""
    is_held: Callable[[Entered], bool]
    """Whether a dump that was not published with the receipt of its newest entry is in the store now as that says, published since,
    about to be, or taken back."""


class LogVerification(NamedTuple):
    """The outcome of verify_log."""

    origin: str
    checks: list[Check]
    size: int
    """Entries that the checkpoint covers."""
    unsigned: int
    """Whole entries behind them: an append was under way or was interrupted."""
    gone: list[DumpId]
    """Dumps that were received or given up, by the log, and are not in the store as it says."""
    unlogged: list[DumpId]
    """Published dumps that the log does not know."""

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)


def verify_log(
    directory_fd: int | None,
    origin: str,
    public_key: bytes,
    *,
    earlier: Sequence[Checkpoint] = (),
    holdings: Holdings | None = None,
    progress: Progress | None = None,
) -> LogVerification:
    """Return what holds of the log in a directory (None: there is none); linear, streaming, without any lock.

    Of each dump only where it stands is kept. *earlier* are verified checkpoints of the same log that somebody kept, as in
    receipts: the log must still contain them. With *holdings* the log is compared with the dumps too. Both must have been read
    before this is called, because a receiver may be appending. Behind the checkpoint's entries, a last line that is not whole is an
    append under way, not damage. Raises nothing that a log can cause. Not checked: the dumps (verify_dump does that).
    """
    reading = _LogReading(directory_fd, origin, public_key, progress)
    for kept in earlier:
        reading.expect(kept.size, kept.root)
    for size, roots in holdings.roots.items() if holdings else ():
        for root in roots:
            reading.expect(size, root)
    comparison = _Comparison(holdings) if holdings else None
    if comparison is not None:
        reading.on_statement = comparison.take
    steps = Steps()
    steps.run("the checkpoint is signed with the log's key", reading.check_signature)
    steps.run("every entry is whole and canonical", reading.check_entries)
    steps.run("the entries give the checkpoint's root", reading.check_root, possible=reading.checkpoint is not None)
    steps.run("no dump was received or given up twice", reading.check_order)
    steps.run("the log contains every earlier checkpoint", reading.check_earlier)
    if comparison is not None:
        steps.run("every dump's receipt proves its entry", comparison.check_receipts)
        steps.run("every dump that was received or given up is in the store", comparison.check_gone)
        steps.run("every dump in the store has its entry", comparison.check_unlogged)
    size = reading.checkpoint.size if reading.checkpoint else 0
    gone, unlogged = (comparison.gone, comparison.unlogged) if comparison else ([], [])
    return LogVerification(origin, steps.checks, size, max(reading.frontier.size - size, 0), gone, unlogged)


def read_entered(statement: Statement, index: int, entry: bytes) -> Entered:
    """Return what the entry at *index* says, in which find_statement has found *statement*; what it does not say fits no dump."""
    fields = parse_entry(entry)
    frames, stored = (value if isinstance(value, int) else -1 for value in (fields.get("frames"), fields.get("stored_bytes")))
    return Entered(statement.dump, statement.event, index, statement.digest, frames, stored)


class _LogReading:
    def __init__(self, directory_fd: int | None, origin: str, public_key: bytes, progress: Progress | None) -> None:
        self._fd = directory_fd
        self._origin = origin
        self._public_key = public_key
        self._expected: dict[int, set[bytes]] = {}
        self._progress = progress
        self._contradictions: list[int] = []
        self._agrees = False
        self._disorder: str | None = None
        self._standings: dict[DumpId, tuple[str, bytes]] = {}
        self.on_statement: Callable[[Statement, int, bytes], None] = lambda statement, index, entry: None
        self.checkpoint: Checkpoint | None = None
        self.frontier = Frontier()

    def expect(self, size: int, root: bytes) -> None:
        """Hold the root of the first *size* entries against *root* when they are read."""
        self._expected.setdefault(size, set()).add(root)

    def check_signature(self) -> str:
        note = read_needed(self._directory(), CHECKPOINT, limits.MAX_CHECKPOINT_BYTES)
        self.checkpoint = verify_checkpoint(note, self._origin, self._public_key)
        return f"{self.checkpoint.size} entries, root {self.checkpoint.root.hex()}"

    def check_entries(self) -> str:
        fd = directory.open_file(ENTRIES, self._directory())
        if fd is None:
            raise BrokenError(f"{ENTRIES} is missing")
        signed = self.checkpoint.size if self.checkpoint else 0
        problem: str | None = None
        under_way = ""
        self._compare()
        try:
            for line in scan_lines(fd):
                if not line.is_whole:
                    if self.frontier.size >= signed:
                        under_way = ", and one that is not whole yet"
                    else:
                        problem = problem or f"entry {self.frontier.size} is cut off or too long"
                    break
                problem = problem or _find_problem(line.data, self.frontier.size)
                self._take(line.data)
                if self._progress is not None:
                    self._progress(self.frontier.size, signed)
        finally:
            os.close(fd)
        if problem is not None:
            raise BrokenError(problem)
        return f"{self.frontier.size} entries{under_way}"

    def check_root(self) -> str:
        size = self.checkpoint.size if self.checkpoint else 0
        if self.frontier.size < size:
            raise BrokenError(f"the log has {self.frontier.size} entries, its checkpoint says {size}")
        if not self._agrees:
            raise BrokenError(f"the first {size} entries are not those that were signed")
        return f"{size} entries hash to it"

    def check_order(self) -> str:
        if self._disorder is not None:
            raise BrokenError(self._disorder)
        return count(len(self._standings), "dump")

    def check_earlier(self) -> str:
        # A receipt is given for what is under the checkpoint on the disk, so entries behind that do not count.
        size = self.checkpoint.size if self.checkpoint else self.frontier.size
        size = min(size, self.frontier.size)
        if (newest := max(self._expected, default=0)) > size:
            raise BrokenError(f"the log has {size} entries, a kept checkpoint says {newest}: it was put back to an earlier state")
        contradicted = [*self._contradictions, *(size for size, roots in self._expected.items() if len(roots) > 1)]
        if contradicted:
            raise BrokenError(f"the first {min(contradicted)} entries are not those of a kept checkpoint")
        return f"{len(self._expected)} compared"

    def _directory(self) -> int:
        if self._fd is None:
            raise BrokenError("the audit log is missing")
        return self._fd

    def _take(self, entry: bytes) -> None:
        statement = find_statement(entry)
        if statement is not None:
            before = self._standings.get(statement.dump)
            if before is not None and not statement.follows(*before):
                self._disorder = (
                    f"entry {self.frontier.size}: dump {statement.dump} is {statement.event}, and was {before[0]} before"
                )
            self._standings[statement.dump] = (statement.event, statement.digest)
            self.on_statement(statement, self.frontier.size, entry)
        self.frontier.append(leaf_hash(entry))
        self._compare()

    def _compare(self) -> None:
        """Hold the root at this size against those that are known for it."""
        size = self.frontier.size
        if self.checkpoint is not None and size == self.checkpoint.size:
            self._agrees = self.frontier.root() == self.checkpoint.root
        if size in self._expected and self.frontier.root() not in self._expected[size]:
            self._contradictions.append(size)


class _Comparison:
    """The log's entries and a store's dumps, each held against the other."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._logged: set[DumpId] = set()
        self._unlogged = set(holdings.published)
        self._absent: dict[DumpId, Entered] = {}
        self._deleted: set[DumpId] = set()
        self.gone: list[DumpId] = []

    @property
    def unlogged(self) -> list[DumpId]:
        """Published dumps of which no entry says where they stand."""
        return sorted(self._unlogged, key=str)

    def take(self, statement: Statement, index: int, entry: bytes) -> None:
        """Note where the log says that a dump stands, in place of what it said before."""
        dump = statement.dump
        self._logged.add(dump)
        self._unlogged.discard(dump)
        (self._deleted.add if statement.event == DELETED else self._deleted.discard)(dump)
        if statement.event == DELETED or self._holdings.published.get(dump) == index:
            self._absent.pop(dump, None)
        else:
            self._absent[dump] = read_entered(statement, index, entry)

    def check_receipts(self) -> str:
        unproved = sorted(self._holdings.unproved, key=lambda found: str(found[0]))
        if unproved:
            first, problem = unproved[0]
            others = f"; the receipts of {_name([dump for dump, _ in unproved[1:]])} neither" if unproved[1:] else ""
            raise BrokenError(f"dump {first}: {problem}{others}")
        return count(len(self._holdings.published), "receipt")

    def check_gone(self) -> str:
        self.gone = sorted((dump for dump, entered in self._absent.items() if not self._holdings.is_held(entered)), key=str)
        if self.gone:
            raise BrokenError(f"{len(self.gone)} of {count(len(self._logged), 'dump')} are gone: {_name(self.gone)}")
        deleted = f", and {len(self._deleted)} more that were deleted" if self._deleted else ""
        return count(len(self._logged) - len(self._deleted), "dump") + deleted

    def check_unlogged(self) -> str:
        if self.unlogged:
            raise BrokenError(f"{len(self.unlogged)} dumps have no entry: {_name(self.unlogged)}")
        return count(len(self._holdings.published), "dump")


def _name(dumps: Sequence[DumpId]) -> str:
    more = f" and {len(dumps) - _NAMED} more" if len(dumps) > _NAMED else ""
    return ", ".join(map(str, dumps[:_NAMED])) + more


def _find_problem(entry: bytes, index: int) -> str | None:
    """Return why *entry* is none; None when it is one."""
    try:
        parse_entry(entry)
    except BrokenError as error:
        return f"entry {index}: {error.message}"
    return None
