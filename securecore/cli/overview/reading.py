"""From a store to what an audit report says of it: each log is verified, then read once, entry by entry."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from securecore import __version__
from securecore.audit.entry import VERIFIED
from securecore.audit.statement import LogKey
from securecore.certs import chain
from securecore.certs.chain import Anchors
from securecore.cli import evidence, options
from securecore.cli.overview import certificates
from securecore.cli.overview.crashes import CrashCount
from securecore.cli.overview.events import Event, find_events, scan_events
from securecore.cli.overview.model import ComingIn, Contradiction, HostOverview, Listed, Overview, Root, Totals, Witnesses
from securecore.cli.overview.notices import find_notices
from securecore.cli.overview.tally import Tally
from securecore.cli.overview.timeline import Histogram
from securecore.cli.overview.verification import ReportedLogs
from securecore.cli.wide_log import ALL_HOSTS
from securecore.cli.witnesses import compare_receipts
from securecore.errors import SecurecoreError
from securecore.names import DumpId, HostName
from securecore.store.layout import Place, Store
from securecore.store.rows import row_of

_LISTED: Final = 100
_LISTED_OF_ALL: Final = 2000
_LEAST: Final = 10
"""Entries of a kind that are listed of a host: a hundred, fewer where there are more than twenty hosts, never fewer than ten. So a
page of twenty hosts has at most some 10,000 lines; the rest is counted, and ``--csv`` has all of it."""
_PROGRAMS: Final = 10


class Subject(NamedTuple):
    """What a report is about, and what it is verified with."""

    store: Store
    only_host: HostName | None
    since: datetime | None
    root_path: Path | None
    anchors: Anchors
    root_is_the_stores_own: bool
    log_key: LogKey | None
    log_key_problem: str | None
    made_at: datetime
    logs: ReportedLogs
    hosts: tuple[HostName, ...]
    """Sorted: those that must have a log, and those whose first dump is coming in; or the one that was asked for."""


def open_subject(
    store: Store,
    host_text: str | None,
    since: datetime | None,
    root_path: Path | None,
    made_at: datetime,
    trusted: Collection[str] = (),
) -> Subject:
    """Return what a report of *store* is about; *host_text* is the one host that a person asked for.

    Raises ConfigError when there is no root, and what ``options.find_host`` does; a log key whose statement does not hold is in the
    outcome.
    """
    anchors, is_own = evidence.load_anchors(store, root_path)
    log_key = problem = None
    try:
        log_key = evidence.load_log_key(store, anchors, trusted)
    except SecurecoreError as error:
        problem = error.message
    logs = ReportedLogs(store, log_key, problem)
    only_host = options.find_host(host_text, store, logs.hosts)
    hosts = [only_host] if only_host is not None else sorted({*logs.hosts, *store.hosts_in(Place.INCOMING)})
    return Subject(store, only_host, since, root_path, anchors, is_own, log_key, problem, made_at, logs, tuple(hosts))


class VerifiedEvents:
    """The entries of the period, host by host, each with whether it stands in a log that holds, under its checkpoint.

    An entry whose time cannot be told belongs to any period.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.broken: list[str] = []
        """The logs that do not hold, of those that were verified so far: hosts, and at the end ``all hosts``."""

    def __iter__(self) -> Iterator[tuple[Event, bool]]:
        since = self._subject.since
        for host in self._subject.hosts:
            found = self._subject.logs.verify_host(host)
            if found.ok is False:
                self.broken.append(str(host))
            for event in scan_events(self._subject.store, host):
                if since is None or event.time is None or event.time >= since:
                    yield event, found.ok is True and event.entry < found.entries
        if self._subject.logs.verify_wide_log().ok is False:
            self.broken.append(ALL_HOSTS)


class Kept(NamedTuple):
    """Receipts that were kept elsewhere."""

    paths: Sequence[str] = ()
    receiver_text: str | None = None
    """Only those of this receiver, as a person means it."""


def read_overview(subject: Subject, identity: Path | None, kept: Kept) -> Overview:
    """Return what a report says.

    *identity* is the receiver's identity directory, if there is one to look at. Raises what ``compare_receipts`` does.
    """
    witnesses = _read_witnesses(subject, kept)
    hosts = subject.hosts
    most = max(_LEAST, min(_LISTED, _LISTED_OF_ALL // max(len(hosts), 1)))
    crashes, frame = CrashCount(), Histogram()
    coming = _coming_in(subject.store)
    read = []
    for host in hosts:
        tally = Tally(subject.made_at, subject.since, most, crashes)
        read.append((_read_host(subject, host, tally, coming.get(host, ()), most), tally.histogram))
        frame.add_all(tally.histogram)
    drawn = Histogram()
    drawn.add_all(frame)
    if any(overview.newest_at is not None for overview, _ in read):
        _cover(frame, subject)
    papers = _read_papers(subject, identity)
    vouching = [certificates.of_log_key(subject.log_key, subject.made_at)] if subject.log_key is not None else []
    overviews = tuple(overview._replace(timeline=counted.timeline(frame)) for overview, counted in read)
    return Overview(
        made_at=subject.made_at,
        since=subject.since,
        version=__version__,
        store=str(subject.store.store_id),
        only_host=str(subject.only_host) if subject.only_host is not None else None,
        root=Root(tuple(map(chain.fingerprint, subject.anchors.roots)), subject.root_is_the_stores_own),
        receiver=str(subject.log_key.receiver.name) if subject.log_key is not None else None,
        log_key_problem=subject.log_key_problem,
        certificates=(*papers.certificates, *vouching),
        revocation_lists=papers.lists,
        identity_problem=papers.problem,
        witnesses=witnesses,
        notices=find_notices(overviews, papers.certificates, papers.lists),
        wide_log=subject.logs.verify_wide_log(),
        totals=_sum(overviews),
        timeline=drawn.timeline(frame),
        programs=crashes.worst(_PROGRAMS),
        hosts=overviews,
    )


def _read_host(subject: Subject, host: HostName, tally: Tally, coming: Sequence[DumpId], most: int) -> HostOverview:
    verification = subject.logs.verify_host(host)
    unverified = 0
    for event in scan_events(subject.store, host):
        tally.take(event)
        unverified += event.entry >= verification.entries
    certificate, problem = certificates.find_host_certificate(
        subject.store, host, reversed(tally.newest), subject.root_path, subject.made_at
    )
    wanted = find_events(subject.store, host, tally.unfinished() | tally.broken())
    broken = [event for event in wanted if event.event == VERIFIED]
    unfinished = [event for event in wanted if event.event != VERIFIED]
    return HostOverview(
        host=str(host),
        verification=verification,
        certificate=certificate,
        certificate_problem=problem,
        totals=tally.totals,
        unverified=unverified,
        first_at=tally.first_at,
        newest_at=tally.newest_at,
        timeline=None,
        programs=tally.crashes.worst(_PROGRAMS),
        arrivals=tally.arrivals(),
        unfinished=Listed(tuple(unfinished), tally.totals.unfinished),
        coming_in=_rows_of(subject.store, host, coming[:most]),
        coming_in_total=len(coming),
        refusal_codes=tally.refusal_codes(),
        refusals=tally.refusals(),
        acts=tally.acts(),
        verified_last=tally.verified_last,
        broken=Listed(tuple(broken), tally.broken_total),
        others=tally.others(),
    )


def _read_witnesses(subject: Subject, kept: Kept) -> Witnesses | None:
    if subject.log_key is None or not kept.paths:
        return None
    host = str(subject.only_host) if subject.only_host is not None else None
    found = compare_receipts(
        subject.store, subject.anchors, subject.log_key, kept.paths, host_text=host, receiver_text=kept.receiver_text
    )  # fmt: skip
    wrong = (
        Contradiction(row.where, str(row.host) if row.host is not None else None, row.dump, row.kind, row.words)
        for row in found.rows
        if row.kind is not None
    )
    return Witnesses(len(found.rows), tuple(map(str, found.by_host())), tuple(wrong))


def _cover(frame: Histogram, subject: Subject) -> None:
    """Let all timelines reach from the beginning of the period to the report: silence is told too."""
    frame.cover(subject.made_at)
    if subject.since is not None and timedelta() < subject.made_at - subject.since < _LONGEST:
        frame.cover(subject.since)


_LONGEST: Final = timedelta(days=3660)
"""A period that begins longer ago is drawn from its first entry on: somebody means all that there is."""


def _read_papers(subject: Subject, identity: Path | None) -> certificates.Papers:
    if identity is None:
        return certificates.Papers(problem="no identity directory of the receiver was looked at; --identity names it")
    return certificates.read_receiver(identity, subject.log_key, subject.anchors, subject.made_at)


def _coming_in(store: Store) -> Mapping[HostName, list[DumpId]]:
    """Return the dumps that are not published yet, those that were begun last first: the ids begin with a clock."""
    found: dict[HostName, list[DumpId]] = {}
    for host, dump in store.incoming():
        found.setdefault(host, []).append(dump)
    return {host: sorted(dumps, key=str, reverse=True) for host, dumps in found.items()}


def _rows_of(store: Store, host: HostName, dumps: Sequence[DumpId]) -> tuple[ComingIn, ...]:
    rows = []
    for dump in dumps:
        try:
            files = store.find_files(Place.INCOMING, host, dump)
        except SecurecoreError:
            continue  # `list` says what keeps it from being looked at; it is counted all the same.
        if files is None:
            continue  # It was published since it was listed.
        with files:
            try:
                row, last_at = row_of(files), files.last_frame_at()
            except SecurecoreError:
                continue
        rows.append(ComingIn(row.id, last_at, row.stored_bytes, row.predicted_bytes, row.program, row.signal))
    return tuple(rows)


def _sum(hosts: Sequence[HostOverview]) -> Totals:
    total = Totals()
    for host in hosts:
        total = total.plus(host.totals)
    return total
