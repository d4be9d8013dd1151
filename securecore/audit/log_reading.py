"""Reading a log once, from its files and in bounded memory: what is signed, what is there, and what else it must give."""

import os
from collections.abc import Callable
from typing import Final

from securecore import limits
from securecore.audit.checkpoint import Checkpoint, verify_checkpoint
from securecore.audit.checks import read_needed
from securecore.audit.damage import Progress
from securecore.audit.entry import parse_entry
from securecore.audit.handover import read_last_checkpoints
from securecore.audit.log_files import CHECKPOINT, ENTRIES, scan_lines
from securecore.audit.statement import LogKey
from securecore.audit.verified import Verified
from securecore.dump import directory
from securecore.errors import BrokenError, SecurecoreError
from securecore.merkle import Frontier, leaf_hash
from securecore.units import count

AS_VERIFIED: Final = "the log begins as it did when it was verified before"
SAME_KEYS: Final = "the log's key, or one before it, has signed what was verified before"


class LogReading:
    """A log, read once from its files: what is signed, what its entries are, and what else they must give."""

    def __init__(
        self,
        directory_fd: int | None,
        origin: str,
        public_key: bytes,
        progress: Progress | None,
        verified: Verified | None = None,
    ) -> None:
        """*verified* is what is known of the log's first entries: they are hashed, and not parsed once more."""
        self._fd = directory_fd
        self._verified = verified
        self._origin = origin
        self._public_key = public_key
        self._progress = progress
        self._agrees = False
        self._expected: list[Expectations] = []
        self.on_entry: Callable[[int, bytes, bool], None] = lambda index, entry, is_sound: None
        """Told of each whole entry, signed or not, with its index, and whether parse_entry takes it."""
        self.checkpoint: Checkpoint | None = None
        self.note = b""
        """The checkpoint as it stands, once it is known to be signed."""
        self.frontier = Frontier()
        self.has_departed = False
        """Whether the first entries are not those that are known: none of what was told of them counts then."""

    def expecting(self, whose: str) -> "Expectations":
        """Return what is to be held against the log while it is read, empty so far; *whose* words they are is for a person."""
        self._expected.append(Expectations(self, whose))
        return self._expected[-1]

    def expecting_verified(self, verified: Verified | None, log_key: LogKey | None) -> list[tuple[str, Callable[[], str]]]:
        """Return the checks, for when the log was read, that it goes on from what an earlier verification found; none without one.

        The keys before that of the log are those of *log_key*.
        """
        if verified is None:
            return []
        expected = self.expecting(verified.whose)
        expected.add(verified.size, verified.root)
        earlier, cut = (log_key.earlier, log_key.cut) if log_key is not None else ((), None)
        return [(AS_VERIFIED, expected.check), (SAME_KEYS, lambda: verified.check_key(self._public_key, earlier, cut))]

    def expecting_last(self, log_key: LogKey | None) -> Callable[[], str] | None:
        """Return the check, for when the log was read, that it goes on from what keys before *log_key* have signed last.

        None where nothing of that is kept beside the log.
        """
        expected = self.expecting("the last checkpoint of an earlier log key")
        found: list[Checkpoint] = []
        problem: SecurecoreError | None = None
        try:
            if self._fd is not None and log_key is not None:
                found = read_last_checkpoints(self._fd, self._origin, log_key)
        except SecurecoreError as error:
            problem = error
        for kept in found:
            expected.add(kept.size, kept.root)

        def check() -> str:
            if problem is not None:
                raise problem
            return expected.check()

        return check if found or problem is not None else None

    @property
    def signed_size(self) -> int:
        """Whole entries that are there and under the checkpoint; all that are there where it is unknown what is."""
        return min(self.checkpoint.size if self.checkpoint else self.frontier.size, self.frontier.size)

    def check_signature(self) -> str:
        """Check that the checkpoint is signed."""
        note = read_needed(self._directory(), CHECKPOINT, limits.MAX_CHECKPOINT_BYTES)
        self.checkpoint = verify_checkpoint(note, self._origin, self._public_key)
        self.note = note
        return f"{count(self.checkpoint.size, 'entry')}, root {self.checkpoint.root.hex()}"

    def check_entries(self) -> str:
        """Read the log, and check that its entries are whole and canonical; behind the checkpoint's, one may be under way."""
        fd = directory.open_file(ENTRIES, self._directory())
        if fd is None:
            raise BrokenError(f"{ENTRIES} is missing")
        signed = self.checkpoint.size if self.checkpoint else 0
        known = self._verified.size if self._verified is not None else 0
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
                found = _find_problem(line.data, self.frontier.size) if self.frontier.size >= known else None
                problem = problem or found
                self.on_entry(self.frontier.size, line.data, found is None)
                self.frontier.append(leaf_hash(line.data))
                self._compare()
                if self.has_departed:
                    break
                if self._progress is not None:
                    self._progress(self.frontier.size, signed)
        finally:
            os.close(fd)
        self.has_departed = self.has_departed or self.frontier.size < known
        if problem is not None:
            raise BrokenError(problem)
        before = f"; {self._verified.words()}, and only hashed now" if self._verified is not None else ""
        return f"{count(self.frontier.size, 'entry')}{under_way}{before}"

    def check_root(self) -> str:
        """Check that the entries are those that the checkpoint covers."""
        size = self.checkpoint.size if self.checkpoint else 0
        if self.frontier.size < size:
            raise BrokenError(f"the log has {count(self.frontier.size, 'entry')}, its checkpoint says {size}")
        if not self._agrees:
            raise BrokenError(f"the log does not begin as it was signed, with {count(size, 'entry')}")
        return f"from {count(size, 'entry')}"

    def _directory(self) -> int:
        if self._fd is None:
            raise BrokenError("the audit log is missing")
        return self._fd

    def _compare(self) -> None:
        """Hold the root at this size against those that are known for it."""
        size = self.frontier.size
        if self.checkpoint is not None and size == self.checkpoint.size:
            self._agrees = self.frontier.root() == self.checkpoint.root
        if self._verified is not None and size == self._verified.size:
            self.has_departed = self.frontier.root() != self._verified.root
        for expected in self._expected:
            expected.compare(size, self.frontier)


class Expectations:
    """Roots that a log's first so many entries gave once, as somebody has kept them."""

    def __init__(self, reading: LogReading, whose: str) -> None:
        self._reading = reading
        self._whose = whose
        self._roots: dict[int, set[bytes]] = {}
        self._contradictions: list[int] = []

    def add(self, size: int, root: bytes) -> None:
        """Hold the root of the first *size* entries against *root* when they are read."""
        self._roots.setdefault(size, set()).add(root)

    def compare(self, size: int, frontier: Frontier) -> None:
        """Hold the root at this size against what was kept for it."""
        if size in self._roots and frontier.root() not in self._roots[size]:
            self._contradictions.append(size)

    def find_problem(self) -> str | None:
        """Return why the log, which was read, does not give all of them, and which entries are to blame; None when it does."""
        contradicted = {*self._contradictions, *(size for size, roots in self._roots.items() if len(roots) > 1)}
        if contradicted:
            first = min(contradicted)
            sound = max((kept for kept in self._roots if kept < first and kept <= self._reading.frontier.size), default=0)
            which = f"entry {sound} is" if sound == first - 1 else f"one of the entries {sound} to {first - 1} is"
            return f"the log does not begin as it did under {self._whose} of {count(first, 'entry')}: {which} another, or gone"
        # A receipt is given for what is under the checkpoint on the disk, so entries behind that do not count.
        size = self._reading.signed_size
        if (newest := max(self._roots, default=0)) > size:
            return f"the log has {count(size, 'entry')}, {self._whose} says {newest}: it was put back to an earlier state"
        return None

    def check(self) -> str:
        """Check that find_problem finds none."""
        if (problem := self.find_problem()) is not None:
            raise BrokenError(problem)
        return f"{len(self._roots)} compared"


def _find_problem(entry: bytes, index: int) -> str | None:
    """Return why *entry* is none; None when it is one."""
    try:
        parse_entry(entry)
    except BrokenError as error:
        return f"entry {index}: {error.message}"
    return None
