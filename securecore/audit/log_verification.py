"""Verification of an audit log, by itself and against the dumps that a store holds, as numbered checks that a person can follow.

Everything is recomputed from the log's files. What was signed once and stands elsewhere in the store, in receipts, is held against
it: a log that was put back to an earlier state agrees with itself, but not with the receipts that were given since.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from securecore.audit.checkpoint import Checkpoint
from securecore.audit.checks import Check, Steps
from securecore.audit.damage import Progress
from securecore.audit.entry import DELETED, RECEIVED, Statement, WideHead, find_wide_head, scan_extent, scan_statement
from securecore.audit.log_reading import LogReading
from securecore.audit.revocation import find_reference
from securecore.audit.statement import LogKey
from securecore.audit.verified import Verified
from securecore.errors import BrokenError
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
    """The published dumps, each with the index of the entry that its receipt proves; None when it proves none, or when the dump's
    manifest or length is not that entry's."""
    roots: dict[int, set[bytes]]
    """What the dumps' receipts say of the log: the roots of its first so many entries."""
    unproved: list[tuple[DumpId, str]]
    """Dumps whose receipt does not hold, and why."""
    find_problems: Callable[[Iterable[Entered]], dict[DumpId, str]]
    """Which of the dumps that were not published as their newest entries say, with the receipts of those, are missing, and why.

    Not missing is what was published since, is about to be, was taken back, or was deleted since the log was read."""
    find_restored: Callable[[Mapping[DumpId, int]], list[DumpId]]
    """Which of the dumps that were published, and that the log says were deleted (each by the entry with this index), still are: a
    deletion is in the log only when it has moved its dump. Not one that was received once more since the log was read."""
    find_list_problem: Callable[[str], str | None]
    """Why the revocation lists of a digest are not in the store; None when they are."""
    find_misstatements: Callable[[], dict[str, str]] | None
    """Which of the dumps the catalogue lists otherwise than their files say, and how; None where there is no catalogue."""


class LogVerification(NamedTuple):
    """The outcome of verify_log."""

    origin: str
    checks: list[Check]
    size: int
    """Entries that the checkpoint covers."""
    unsigned: int
    """Whole entries behind them: an append was under way or was interrupted."""
    gone: list[DumpId]
    """Dumps that were received or given up, by the log, and are not in the store as it says: gone, or not the same any more."""
    unlogged: list[DumpId]
    """Published dumps that the log does not know."""
    restored: list[DumpId]
    """Published dumps that were deleted, by the log: somebody has put them back."""
    said_problem: str | None
    """In which way it is not what the receiver-wide log says that it was."""
    wide_heads: list[WideHead]
    """What its entries say of the receiver-wide log, each different thing once."""
    note: bytes | None
    """Its checkpoint as it stands, where the log holds by itself and against all that is known of it, whatever became of dumps."""

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)


def verify_log(
    directory_fd: int | None,
    origin: str,
    public_key: bytes,
    *,
    log_key: LogKey | None = None,
    earlier: Sequence[Checkpoint] = (),
    said: Sequence[tuple[int, bytes]] | None = None,
    holdings: Holdings | None = None,
    verified: Verified | None = None,
    from_the_start: bool = False,
    progress: Progress | None = None,
) -> LogVerification:
    """Return what holds of the log in a directory (None: there is none); linear, streaming, without any lock.

    *verified* is what an earlier verification found: the log must begin so. These entries are hashed and compared with dumps and
    receipts like all others, but their form is known; where they are others now, or *from_the_start* is said, it is looked at too.
    A key of *log_key* must have signed what was found then.

    Of each dump only where it stands is kept. *log_key* is the one of *public_key* with those before it: what these have signed
    last of the log, as far as it is kept beside it, must be in it too. *earlier* are verified checkpoints of the same log that
    somebody kept, as in receipts: the log must still contain them; *said* are sizes and roots that it had by the receiver-wide
    log. With *holdings* the log is compared with the dumps too. All of these must have been read before this is called, because a
    receiver may be appending. Behind the checkpoint's entries, a last line that is not whole is an append under way, not damage.
    Raises nothing that a log can cause. Not checked: the dumps (verify_dump does that).
    """
    reading = LogReading(directory_fd, origin, public_key, progress, None if from_the_start else verified)
    by_verifier = reading.expecting_verified(verified, log_key)
    by_receipts = reading.expecting("a kept checkpoint")
    by_wide_log = reading.expecting("a checkpoint in the receiver-wide log")
    by_earlier_keys = reading.expecting_last(log_key)
    for kept in earlier:
        by_receipts.add(kept.size, kept.root)
    for size, roots in holdings.roots.items() if holdings else ():
        for root in roots:
            by_receipts.add(size, root)
    for size, root in said or ():
        by_wide_log.add(size, root)
    order, heads = _Order(), set[WideHead]()

    def take(index: int, entry: bytes, is_sound: bool) -> None:
        is_signed = reading.checkpoint is not None and index < reading.checkpoint.size
        if is_signed and (head := find_wide_head(entry)) is not None:
            heads.add(head)
        if is_sound and (statement := scan_statement(entry)) is not None:
            order.take(statement, index)
            if comparison is not None:
                comparison.take(statement, index, entry, is_signed=is_signed)

    reading.on_entry = take
    comparison = _Comparison(holdings) if holdings else None
    steps = Steps()
    steps.run("the checkpoint is signed with the log's key", reading.check_signature)
    steps.run("every entry is whole and canonical", reading.check_entries)
    if reading.has_departed:
        return verify_log(
            directory_fd,
            origin,
            public_key,
            log_key=log_key,
            earlier=earlier,
            said=said,
            holdings=holdings,
            verified=verified,
            from_the_start=True,
            progress=progress,
        )
    steps.run("the entries give the checkpoint's root", reading.check_root, possible=reading.checkpoint is not None)
    for what, check in by_verifier:
        steps.run(what, check)
    steps.run("no dump was received or given up twice", order.check)
    steps.run("the log contains every earlier checkpoint", by_receipts.check)
    if by_earlier_keys is not None:
        steps.run("the log goes on from what earlier log keys have signed last", by_earlier_keys)
    if said is not None:
        steps.run("the log has all that the receiver-wide log says of it", by_wide_log.check)
    holds = all(check.ok for check in steps.checks)
    if comparison is not None:
        steps.run("every dump's receipt proves its entry", comparison.check_receipts)
        steps.run("every dump that was received or given up is in the store", comparison.check_gone)
        steps.run("every dump in the store has its entry", comparison.check_unlogged)
        steps.run("the revocation lists of every reception are in the store", comparison.check_lists)
    if holdings is not None and holdings.find_misstatements is not None:
        find = holdings.find_misstatements
        steps.run("the catalogue lists every dump as its files say", lambda: _check_catalogue(find, len(holdings.published)))
    size = reading.checkpoint.size if reading.checkpoint else 0
    gone, unlogged, restored = (comparison.gone, comparison.unlogged, comparison.restored) if comparison else ([], [], [])
    unsigned = max(reading.frontier.size - size, 0)
    problem = by_wide_log.find_problem()
    note = reading.note if holds else None
    return LogVerification(origin, steps.checks, size, unsigned, gone, unlogged, restored, problem, sorted(heads), note)


def read_entered(statement: Statement, index: int, entry: bytes) -> Entered:
    """Return what the entry at *index* says, in which find_statement has found *statement*; what it does not say fits no dump."""
    return Entered(statement.dump, statement.event, index, statement.digest, *scan_extent(entry))


def _check_catalogue(find_misstatements: Callable[[], dict[str, str]], published: int) -> str:
    if misstated := find_misstatements():
        is_listed = "is not" if len(misstated) == 1 else "are not"
        named = _name([f"{dump} ({problem})" for dump, problem in misstated.items()])
        raise BrokenError(f"{count(len(misstated), 'dump')} {is_listed}: {named}")
    return count(published, "dump")


class _Order:
    """Whether what a log says of each dump may follow what it said of it before."""

    def __init__(self) -> None:
        self._disorder: str | None = None
        self._standings: dict[DumpId, tuple[str, bytes, int]] = {}

    def take(self, statement: Statement, index: int) -> None:
        """Note what the entry at *index* says of where a dump stands."""
        before = self._standings.get(statement.dump)
        if before is not None and not statement.follows(*before):
            self._disorder = f"entry {index}: dump {statement.dump} is {statement.event}, and was {before[0]} before"
        self._standings[statement.dump] = (statement.event, statement.digest, statement.damaged_bytes)

    def check(self) -> str:
        """Check that all of it did."""
        if self._disorder is not None:
            raise BrokenError(self._disorder)
        return count(len(self._standings), "dump")


class _Comparison:
    """The log's entries and a store's dumps, each held against the other."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._logged: set[DumpId] = set()
        self._unlogged = set(holdings.published)
        self._absent: dict[DumpId, Entered] = {}
        self._deleted: dict[DumpId, int] = {}
        self._lists: dict[str, int] = {}
        self._without_lists = 0
        self.gone: list[DumpId] = []
        self.restored: list[DumpId] = []

    @property
    def unlogged(self) -> list[DumpId]:
        """Published dumps of which no entry says where they stand."""
        return sorted(self._unlogged, key=str)

    def take(self, statement: Statement, index: int, entry: bytes, *, is_signed: bool) -> None:
        """Note where the log says that a dump stands, in place of what it said before.

        A deletion that is not signed yet does not explain that a dump is not there: its files are removed afterwards.
        """
        dump = statement.dump
        self._logged.add(dump)
        self._unlogged.discard(dump)
        self._deleted.pop(dump, None)
        if statement.event == DELETED:
            self._deleted[dump] = index
        elif statement.event == RECEIVED:
            self._note_lists(index, entry)
        if (statement.event == DELETED and is_signed) or self._holdings.published.get(dump) == index:
            self._absent.pop(dump, None)
        elif statement.event != DELETED:
            self._absent[dump] = read_entered(statement, index, entry)

    def _note_lists(self, index: int, entry: bytes) -> None:
        digest = find_reference(entry)
        if digest is None:
            self._without_lists += 1
        else:
            self._lists.setdefault(digest, index)

    def check_receipts(self) -> str:
        unproved = sorted(self._holdings.unproved, key=lambda found: str(found[0]))
        if unproved:
            first, problem = unproved[0]
            others = f"; the receipts of {_name([str(dump) for dump, _ in unproved[1:]])} neither" if unproved[1:] else ""
            raise BrokenError(f"dump {first}: {problem}{others}")
        return count(len(self._holdings.published), "receipt")

    def check_gone(self) -> str:
        problems = self._holdings.find_problems(self._absent.values())
        self.gone = sorted(problems, key=str)
        if self.gone:
            missing = "is not" if len(self.gone) == 1 else "are not"
            named = _name([f"{dump} ({problems[dump]})" for dump in self.gone])
            raise BrokenError(f"{len(self.gone)} of {count(len(self._logged), 'dump')} {missing}: {named}")
        were = "was" if len(self._deleted) == 1 else "were"
        deleted = f", and {len(self._deleted)} more that {were} deleted" if self._deleted else ""
        return count(len(self._logged) - len(self._deleted), "dump") + deleted

    def check_unlogged(self) -> str:
        if self.unlogged:
            have = "has" if len(self.unlogged) == 1 else "have"
            raise BrokenError(f"{count(len(self.unlogged), 'dump')} {have} no entry: {_name(list(map(str, self.unlogged)))}")
        published = self._holdings.published
        self.restored = self._holdings.find_restored({dump: at for dump, at in self._deleted.items() if dump in published})
        if self.restored:
            raise BrokenError(f"published, and the log says that it was deleted: {_name(list(map(str, self.restored)))}")
        return count(len(self._holdings.published), "dump")

    def check_lists(self) -> str:
        found = ((at, self._holdings.find_list_problem(digest)) for digest, at in self._lists.items())
        problems = [f"{problem}, to which entry {at} refers" for at, problem in found if problem is not None]
        if problems:
            raise BrokenError(_name(problems))
        none = f", and {count(self._without_lists, 'reception')} without any" if self._without_lists else ""
        return count(len(self._lists), "file") + none


def _name(dumps: Sequence[str]) -> str:
    more = f" and {len(dumps) - _NAMED} more" if len(dumps) > _NAMED else ""
    return ", ".join(dumps[:_NAMED]) + more
