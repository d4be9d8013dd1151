"""What an audit report says, as a plain value: made from a store once, then drawn as a page or printed as JSON.

Sizes are bytes, times are aware and in UTC. Text that came from a host or a person stands here as the log has it; whoever shows it
makes it harmless.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from securecore.audit.checks import Check
from securecore.cli.overview.events import Event
from securecore.cli.overview.timeline import Timeline
from securecore.cli.wide_log import ALL_HOSTS


class Totals(NamedTuple):
    """What was counted in the period of the report."""

    entries: int = 0
    dumps: int = 0
    """Received or given up; one that was given up and received later counts once."""
    unfinished: int = 0
    """Of these, incomplete as the log says last, and not deleted."""
    plain_bytes: int = 0
    stored_bytes: int = 0
    extracted: int = 0
    deleted: int = 0
    verified: int = 0
    """Verifications of dumps that somebody has had recorded."""
    refused: int = 0
    """Refusals, those that had no entry of their own included."""
    other: int = 0
    """Entries of other events."""
    unreadable: int = 0
    """Lines that are no entries."""
    undated: int = 0
    """Entries without a time that can be drawn: in no calendar, before 1970, or later than the report; they count in any period."""

    def plus(self, other: "Totals") -> "Totals":
        """Return the sums."""
        return Totals(*(one + another for one, another in zip(self, other, strict=True)))


class Program(NamedTuple):
    """How often one program crashed; the name is the hosts' word."""

    name: str | None
    dumps: int
    plain_bytes: int
    largest_bytes: int
    newest_at: datetime | None
    signals: tuple[tuple[int | None, int], ...]
    """Each with how often, the most frequent first; None for other signals and for dumps that name none."""


class Programs(NamedTuple):
    """The programs that crashed most, the worst first."""

    rows: tuple[Program, ...]
    other_programs: int
    other_dumps: int
    is_exact: bool
    """False where there were more names than are told apart: then rare ones are among the others."""


class Listed(NamedTuple):
    """The newest entries of one kind, newest first, and how many there are."""

    rows: tuple[Event, ...]
    total: int

    @property
    def left_out(self) -> int:
        """How many are not listed."""
        return self.total - len(self.rows)


class RefusalCount(NamedTuple):
    """How often a host was refused with one code, and the receiver's words the last time."""

    code: int | None
    name: str
    refusals: int
    newest_at: datetime | None
    reason: str | None


class ComingIn(NamedTuple):
    """A dump that is not published yet."""

    dump: str
    last_at: datetime
    """When its last frame came."""
    stored_bytes: int
    predicted_bytes: int | None
    program: str | None
    signal: int | None


class Certificate(NamedTuple):
    """How long a certificate lives."""

    of: str
    """What it is, in words."""
    name: str
    fingerprint: str
    not_before: datetime
    not_after: datetime
    days_left: int
    """Below zero when it has expired."""
    ends_soon: bool
    """It is in the last third of its life, or behind it."""


class RevocationList(NamedTuple):
    """How long a CA's revocation list lives."""

    owner: str
    next_update: datetime
    days_left: int
    problem: str | None


class Verification(NamedTuple):
    """What `audit verify` finds of a host's log."""

    ok: bool | None
    """None: there is no log that must be there, or nothing to verify it with."""
    problem: str | None
    """Why not, where ``ok`` is None."""
    origin: str | None = None
    verifier_key: str | None = None
    """For other readers of C2SP signed notes."""
    entries: int = 0
    """Under the checkpoint."""
    checks: tuple[Check, ...] = ()


class HostOverview(NamedTuple):
    """One host."""

    host: str
    verification: Verification
    certificate: Certificate | None
    certificate_problem: str | None
    totals: Totals
    unverified: int
    """Entries that are told here and that no checkpoint covered when the log was verified."""
    first_at: datetime | None
    newest_at: datetime | None
    timeline: Timeline | None
    programs: Programs
    arrivals: Listed
    unfinished: Listed
    coming_in: tuple[ComingIn, ...]
    coming_in_total: int
    refusal_codes: tuple[RefusalCount, ...]
    refusals: Listed
    acts: Listed
    """Extractions and deletions."""
    verified_last: Event | None
    """The newest recorded verification of a dump, in the period."""
    broken: Listed
    """Recorded verifications that found a dump broken, the newest of each dump, in any period; not of one that was deleted or
    received since."""
    others: Listed


class Notice(NamedTuple):
    """Something that somebody should look at soon."""

    host: str | None
    """None: the receiver."""
    words: str


class Contradiction(NamedTuple):
    """A kept receipt that a store's history does not fit, or that does not hold by itself."""

    receipt: str
    """The file, and the place in it."""
    host: str | None
    dump: str | None
    kind: str
    """The word that ``audit compare`` has for it."""
    words: str


class Witnesses(NamedTuple):
    """What the store makes of receipts that were kept elsewhere, as ``audit compare`` finds it."""

    receipts: int
    """How many were compared."""
    hosts: tuple[str, ...]
    """Those whose receipts they are."""
    contradictions: tuple[Contradiction, ...]


class Root(NamedTuple):
    """What everything was verified up to."""

    fingerprints: tuple[str, ...]
    is_the_stores_own: bool


class Overview(NamedTuple):
    """A store, or one host of it."""

    made_at: datetime
    since: datetime | None
    version: str
    store: str
    """The store's id."""
    only_host: str | None
    root: Root
    receiver: str | None
    """Its name, from the certificate that vouches for the log key; None where that does not hold."""
    log_key_problem: str | None
    certificates: tuple[Certificate, ...]
    """The receiver's."""
    revocation_lists: tuple[RevocationList, ...]
    identity_problem: str | None
    """Why the receiver's present certificate and lists are not told."""
    notices: tuple[Notice, ...]
    """What somebody should look at, beside logs that do not hold."""
    witnesses: Witnesses | None
    """None where no receipts were given, or the log key is not known."""
    wide_log: Verification
    """Of the receiver-wide log, which says whether a host is missing whole."""
    totals: Totals
    timeline: Timeline | None
    programs: Programs
    hosts: tuple[HostOverview, ...]

    @property
    def broken(self) -> list[str]:
        """The logs that do not hold: hosts, and at the end ``all hosts``."""
        found = [host.host for host in self.hosts if host.verification.ok is False]
        return [*found, ALL_HOSTS] if self.wide_log.ok is False else found


def document_of(value: object) -> Any:
    """Return a value of this module as what JSON has: objects by their fields' names, times as RFC 3339 in UTC."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        fields: Mapping[str, object] = value._asdict()
        return {name: document_of(field) for name, field in fields.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [document_of(one) for one in value]
    return value
