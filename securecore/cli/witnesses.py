"""Receipts that hosts, or anybody else, have kept, held against a store's audit logs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from securecore.audit.checkpoint import origin_of, verifier_key
from securecore.audit.comparison import Attestation, LogComparison, attest, compare_log
from securecore.audit.entry import DELETED
from securecore.audit.kept_receipt import Kept, Origin, ReceiptVerifier, Unread, find_origin
from securecore.audit.statement import LogKey
from securecore.certs.chain import Anchors
from securecore.cli import holdings, terminal
from securecore.cli.receipt_files import open_receipts, read_receipts
from securecore.errors import NotFoundError, SecurecoreError, StorageError
from securecore.names import DumpId, HostName
from securecore.store.layout import Store

DAMAGED: Final = "damaged"
ANOTHER_RECEIVER: Final = "another-receiver"
ANOTHER_KEY: Final = "another-key"
ANOTHER_STORE: Final = "another-store"
UNKNOWN_HOST: Final = "unknown-host"
DUMP: Final = "dump"


@dataclass(slots=True)
class Row:
    """One receipt, and what the store makes of it."""

    where: str
    host: HostName | None = None
    """Whose log it says that it is of."""
    dump: str | None = None
    said: Attestation | None = None
    strange_key: str | None = None
    """Why its key is none of the store's; how the log itself departs from it says more."""
    kind: str | None = None
    words: str = ""

    def contradict(self, kind: str, words: str) -> None:
        """Note what is wrong; what was found first counts."""
        if self.kind is None:
            self.kind, self.words = kind, words


@dataclass
class Findings:
    """All receipts, and what holds of the logs."""

    rows: list[Row] = field(default_factory=list)
    torn: list[Unread] = field(default_factory=list)
    logs: dict[HostName, LogComparison] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing contradicts anything."""
        return all(row.kind is None for row in self.rows) and all(log.problem is None for log in self.logs.values())

    def by_host(self) -> dict[HostName, list[Row]]:
        """Return the receipts of each host's log at this store's receiver, sorted by host."""
        found: dict[HostName, list[Row]] = {}
        for row in self.rows:
            if row.host is not None and row.kind != ANOTHER_RECEIVER:
                found.setdefault(row.host, []).append(row)
        return dict(sorted(found.items()))


def compare_receipts(
    store: Store, anchors: Anchors, log_key: LogKey, paths: Sequence[str], *, host_text: str | None, receiver_text: str | None
) -> Findings:
    """Return what a store makes of the receipts in files (``-`` is standard input), of a host and a receiver where these are named.

    Raises NotFoundError when there is no receipt to compare, ConfigError for what is no file of receipts.
    """
    found = Findings()
    gather = _Gathering(store, log_key, ReceiptVerifier(anchors, log_key), found)
    # All of them before any log: a receiver may be appending, and what it has given a receipt for is in its log by then.
    for path in paths:
        gather.read(path, host_text, receiver_text)
    if not found.rows:
        chosen = " ".join(text for text in (host_text, receiver_text) if text is not None)
        raise NotFoundError(f"no receipt{f' of {terminal.printable(chosen)}' if chosen else ''} to compare with")
    for host, rows in found.by_host().items():
        _compare(store, host, log_key, found.logs, [row for row in rows if row.said is not None and row.kind is None])
    for row in found.rows:
        if row.strange_key is not None:
            row.contradict(ANOTHER_KEY, row.strange_key)
    return found


class _Gathering:
    """Reads and verifies receipts; what the store contradicts without its logs being read is found here."""

    def __init__(self, store: Store, log_key: LogKey, verifier: ReceiptVerifier, found: Findings) -> None:
        self._store = store
        self._log_key = log_key
        self._verifier = verifier
        self._found = found

    def read(self, path: str, host_text: str | None, receiver_text: str | None) -> None:
        """Take the receipts in a file that are of a host and a receiver, where these are named.

        Of what is no receipt nobody knows whose it is, so it is taken too. Raises as open_receipts and read_receipts do.
        """
        with open_receipts(path) as file:
            for one in read_receipts(file, path):
                if isinstance(one, Kept):
                    origin = find_origin(one)
                    if origin is None or (_means(host_text, str(origin.host)) and _means(receiver_text, origin.receiver)):
                        self._take(one, origin)
                elif one.is_torn:
                    self._found.torn.append(one)
                else:
                    self._found.rows.append(Row(one.where, kind=DAMAGED, words=one.problem))

    def _take(self, kept: Kept, origin: Origin | None) -> None:
        row = Row(kept.where, host=origin.host if origin is not None else None)
        self._found.rows.append(row)
        if origin is not None and origin.key_name != self._log_key.name:
            row.contradict(ANOTHER_RECEIVER, f"it is {origin.receiver}'s, this store is {self._log_key.receiver.name}'s")
            return
        try:
            witness = self._verifier.verify(kept)
        except SecurecoreError as error:
            row.contradict(DAMAGED, error.message)
            return
        if witness.key not in (self._log_key.public_key, *self._log_key.earlier):
            why = f": {self._log_key.cut}" if self._log_key.cut is not None else ""
            key = verifier_key(self._log_key.name, witness.key)
            row.strange_key = f"log key {key} has signed it, which is not this store's nor one before that{why}"
        fields, store = witness.receipt.fields, str(self._store.store_id)
        row.dump, row.said = None if fields.get("dump") is None else str(fields["dump"]), attest(witness)
        if fields.get("store") not in (None, store):
            row.contradict(ANOTHER_STORE, f"its dump went to store {fields['store']}, this is {store}")


def _compare(
    store: Store, host: HostName, log_key: LogKey, logs: dict[HostName, LogComparison], rows: Sequence[Row]
) -> None:
    """Hold a host's log against its receipts, where there is one that holds."""
    if not rows:
        return
    try:
        fd = store.audit_directory(host, create=False)
    except (NotFoundError, StorageError) as error:
        reason = f": {error.message}" if isinstance(error, StorageError) else ""
        for row in rows:
            row.contradict(UNKNOWN_HOST, f"the store has no log of {host}{reason}")
        return
    try:
        with terminal.Progress(f"comparing {host}", None, "entry") as progress:
            log = compare_log(
                fd,
                origin_of(log_key.name, host),
                log_key.public_key,
                {row.said for row in rows if row.said is not None},
                progress=lambda done, total: progress.update(done),
            )
    finally:
        os.close(fd)
    logs[host] = log
    misplaced = _find_misplaced(store, host, log)
    for row in rows:
        departure = log.departures.get(row.said) if row.said is not None else None
        if departure is not None:
            row.contradict(*departure)
        elif row.said is not None and row.said.dump in misplaced:
            row.contradict(DUMP, misplaced[row.said.dump])


def _find_misplaced(store: Store, host: HostName, log: LogComparison) -> dict[DumpId | None, str]:
    """Return which of the receipts' dumps are not where the log says, and why."""
    there = [entered for entered in log.newest.values() if entered.event != DELETED]
    deleted = {dump: entered.at for dump, entered in log.newest.items() if entered.event == DELETED}
    misplaced: dict[DumpId | None, str] = {}
    for dump, problem in holdings.find_problems(store, host, there).items():
        misplaced[dump] = f"its dump is not in the store as the log says: {problem}"
    for dump in holdings.find_put_back(store, host, deleted):
        misplaced[dump] = "the log says that its dump was deleted, and it is there"
    return misplaced


def _means(text: str | None, name: str) -> bool:
    """Return whether a person means *name*: all of it, or its first labels; anything, where nothing is said."""
    return text is None or f"{name}.".startswith(f"{text.strip().lower().removesuffix('.')}.")
