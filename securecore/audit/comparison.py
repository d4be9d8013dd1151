"""A log held against receipts that were given for it: whether it still is what it was then.

A receipt names a size of the log, the root that its entries had at that size, and one of them. A log that was shortened, forked or
rewritten since contradicts it, whoever signed that and however well the log agrees with itself.
"""

import os
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit.checkpoint import Checkpoint, verify_checkpoint
from securecore.audit.checks import read_needed
from securecore.audit.damage import Progress
from securecore.audit.entry import find_statement
from securecore.audit.kept_receipt import Witness
from securecore.audit.log_files import CHECKPOINT, ENTRIES, scan_lines
from securecore.audit.log_verification import Entered, read_entered
from securecore.dump import directory
from securecore.errors import BrokenError, SecurecoreError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId, NameRefused
from securecore.units import count

SHORTENED: Final = "shortened"
FORKED: Final = "forked"


class Attestation(NamedTuple):
    """What a receipt says of a log, without what proved it."""

    size: int
    """Of the receipt's checkpoint; and *root* is what the first so many entries had."""
    root: bytes
    leaf_index: int
    leaf: bytes
    """Hash of the entry at *leaf_index*."""
    dump: DumpId | None
    """Which dump the entry is about."""


class Departure(NamedTuple):
    """In which way a log is not what a receipt says that it was."""

    kind: str
    """SHORTENED or FORKED."""
    words: str


class LogComparison(NamedTuple):
    """The outcome of compare_log."""

    size: int
    """Entries that count: under the checkpoint, and there."""
    problem: str | None
    """Why the log does not hold by itself; it is compared as it stands then."""
    departures: dict[Attestation, Departure]
    """What the log contradicts, and in which way."""
    newest: dict[DumpId, Entered]
    """What the log says last of the dumps that were attested."""


def attest(witness: Witness) -> Attestation:
    """Return what a receipt says of its log."""
    receipt, dump = witness.receipt, witness.receipt.fields.get("dump")
    try:
        named = DumpId.parse(dump) if isinstance(dump, str) else None
    except NameRefused:
        named = None
    checkpoint = receipt.checkpoint
    return Attestation(checkpoint.size, checkpoint.root, receipt.leaf_index, leaf_hash(receipt.entry), named)


def compare_log(
    directory_fd: int,
    origin: str,
    public_key: bytes,
    attestations: Collection[Attestation],
    *,
    progress: Progress | None = None,
) -> LogComparison:
    """Return what the log in a directory makes of receipts that were given for it.

    Its entries are read once, in memory that does not grow with them, without any lock: the receipts must have been read before
    this is called, because a receiver may be appending. A receipt is given for what is under the checkpoint on the disk, so entries
    behind that count for none. Raises nothing that a log can cause. Not checked: that the log is in order otherwise (verify_log),
    and that its dumps are there.
    """
    checkpoint: Checkpoint | None = None
    problem: str | None = None
    try:
        checkpoint = verify_checkpoint(read_needed(directory_fd, CHECKPOINT, limits.MAX_CHECKPOINT_BYTES), origin, public_key)
    except SecurecoreError as error:
        problem = error.message
    reading = _Reading(attestations, checkpoint.size if checkpoint is not None else 0)
    try:
        reading.read(directory_fd, progress)
    except SecurecoreError as error:
        problem = problem or error.message
    there = reading.frontier.size
    if checkpoint is not None and problem is None:
        if there < checkpoint.size:
            problem = f"the log has {count(there, 'entry')}, its checkpoint says {checkpoint.size}"
        elif reading.roots[checkpoint.size] != checkpoint.root:
            problem = f"the log does not begin as it was signed, with {count(checkpoint.size, 'entry')}"
    size = there if checkpoint is None else min(there, checkpoint.size)
    departures = {one: found for one in attestations if (found := reading.find_departure(one, size)) is not None}
    return LogComparison(size, problem, departures, reading.newest)


class _Reading:
    """The entries of a log, of which only that is kept which receipts speak of."""

    def __init__(self, attestations: Collection[Attestation], signed: int) -> None:
        self._signed = signed
        self._dumps = {one.dump for one in attestations if one.dump is not None}
        self._wanted = {one.leaf_index for one in attestations}
        self._leaves: dict[int, bytes] = {}
        self._sizes = {signed, *(one.size for one in attestations)}
        self.roots: dict[int, bytes] = {}
        """The roots of the first so many entries, for each size that somebody has signed."""
        self.newest: dict[DumpId, Entered] = {}
        self.frontier = Frontier()

    def read(self, directory_fd: int, progress: Progress | None) -> None:
        """Read all entries; raises BrokenError when there is no file of them, StorageError when it cannot be read."""
        fd = directory.open_file(ENTRIES, directory_fd)
        if fd is None:
            raise BrokenError(f"{ENTRIES} is missing")
        try:
            self._note_root()
            for entry in _whole_entries(fd):
                self._take(entry)
                if progress is not None:
                    progress(self.frontier.size, self._signed)
        finally:
            os.close(fd)

    def find_departure(self, one: Attestation, size: int) -> Departure | None:
        """Return in which way a log of *size* entries is not what a receipt says; None when it is."""
        if one.size > size:
            has = f"the log has {count(size, 'entry')}, this receipt was given when it had {one.size}"
            return Departure(SHORTENED, has)
        if self._leaves.get(one.leaf_index) != one.leaf:
            return Departure(FORKED, f"entry {one.leaf_index} of the log is another than the one that this receipt proves")
        if self.roots.get(one.size) != one.root:
            words = f"the entry that this receipt proves is there, and another of the first {one.size} is not what it was"
            return Departure(FORKED, words)
        return None

    def _take(self, entry: bytes) -> None:
        index = self.frontier.size
        statement = find_statement(entry)
        if statement is not None and statement.dump in self._dumps:
            self.newest[statement.dump] = read_entered(statement, index, entry)
        leaf = leaf_hash(entry)
        if index in self._wanted:
            self._leaves[index] = leaf
        self.frontier.append(leaf)
        self._note_root()

    def _note_root(self) -> None:
        if self.frontier.size in self._sizes:
            self.roots[self.frontier.size] = self.frontier.root()


def _whole_entries(fd: int) -> Iterator[bytes]:
    for line in scan_lines(fd):
        if not line.is_whole:
            return
        yield line.data
