"""One host's audit log: entries, the checkpoint that covers them, and the receipts that prove them.

A directory with two files: ``entries.jsonl``, one entry a line, only ever appended to, and ``checkpoint``, replaced whole. An
append is durable in this order: the entry's line, then the checkpoint; then its receipt may be shown. What opening does after a
crash:

1. A new log gets the checkpoint of the empty tree before it gets a file for entries. So entries without a checkpoint are damage.
2. Behind the entries that the checkpoint covers, whole entries are kept and signed with the next append; what follows the last
   whole one is cut off. No receipt was ever given for either.
3. Fewer entries than the checkpoint says, or others, are damage: the log is refused and never signed again.

Of each dump the log knows where it stands: what the newest entry says that speaks of that. It is found in the entries alone.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit.checkpoint import Checkpoint, LogSigner, origin_of, verify_checkpoint
from securecore.audit.entry import DELETED, INCOMPLETE, RECEIVED, Statement, Value, find_statement, parse_entry
from securecore.audit.proof import TlogProof, inclusion_from_stream
from securecore.dump import directory
from securecore.errors import BrokenError, Bug, NotFoundError, StorageError
from securecore.merkle import EMPTY_ROOT, Frontier, leaf_hash, root_from_inclusion
from securecore.names import DumpId, HostName

ENTRIES: Final = "entries.jsonl"
CHECKPOINT: Final = "checkpoint"

_READ_BYTES: Final = 1 << 20
_KEEP_OPEN: Final = 64
"""Logs that stay open while nobody uses them: as many hosts as the design's load budget has senders at once."""


_EVENTS: Final = (RECEIVED, INCOMPLETE, DELETED)
_PACKED: Final = struct.Struct(">BQ")
"""A standing in memory: the event's place in _EVENTS and the entry's index, then the digest. With its key in the dictionary that
makes 175 bytes for each dump (measured, CPython 3.11); a tuple of the three would make 260."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a dump stands, by the newest entry of its host's log that says it."""

    event: str
    """``received``, ``incomplete`` or ``deleted``."""
    index: int
    """Of that entry."""
    digest: bytes
    """Its manifest_sha256 when it is received, its root when it is incomplete, empty when it is deleted."""


class Line(NamedTuple):
    """A line of an entries file; *is_whole* is false for what stands behind the last newline, and for one that is too long."""

    offset: int
    data: bytes
    """Without its newline."""
    is_whole: bool


class HostLog:
    """An open log. Safe for use by several threads.

    After an error that a disk caused, appending is refused (``has_failed``): what reached the disk is found out by opening again.
    """

    def __init__(self, directory_fd: int, entries: int, origin: str, signer: LogSigner) -> None:
        self.origin = origin
        self.has_failed = False
        self._signer = signer
        self._directory = directory_fd
        self._entries = entries
        self._lock = threading.Lock()
        self._frontier = Frontier()
        self._signed_size = 0
        self._standings: dict[bytes, bytes] = {}

    @classmethod
    def open(cls, directory_fd: int, origin: str, signer: LogSigner) -> "HostLog":
        """Return the log in a directory (its descriptor is duplicated), new if there is none; linear in its entries.

        Raises BrokenError when the log is not what its checkpoint says, or the checkpoint is not signed with our key for *origin*.
        The caller holds the store's lock.
        """
        own = os.dup(directory_fd)
        entries = -1
        try:
            checkpoint = _open_checkpoint(own, origin, signer)
            found = directory.open_file(ENTRIES, own, append=True)
            if found is None:
                if checkpoint.size:
                    raise BrokenError(f"audit log {origin}: {ENTRIES} is missing, the checkpoint says {checkpoint.size} entries")
                found = directory.create_file(ENTRIES, own)
                directory.sync(own)
            entries = found
            log = cls(own, entries, origin, signer)
            log._recover(checkpoint)
        except BaseException:
            os.close(own)
            if entries >= 0:
                os.close(entries)
            raise
        return log

    @property
    def size(self) -> int:
        """Entries in the log, signed or not."""
        return self._frontier.size

    def append(self, entry: bytes) -> bytes:
        """Add one entry and return its receipt, once entry and checkpoint are durable."""
        return self.append_all([entry])[0]

    def append_all(self, entries: Sequence[bytes]) -> list[bytes]:
        """Add entries that share their writes to the disk, and return their receipts, once all of it is durable.

        Two fsyncs and one of the directory, however many entries. Each receipt has a checkpoint of the size at which its entry was
        the last; only the last of these is kept on the disk. Raises StorageError when the disk refuses, BrokenError for what is no
        entry, Bug for one that says of a dump what cannot follow what was said last (Statement.follows).
        """
        with self._lock:
            self._check_usable()
            statements = [find_statement(entry) for entry in entries]
            self._check_order(entries, statements)
            with self._failing_for_good():
                directory.write_all(self._entries, b"".join(entry + b"\n" for entry in entries))
                self._sync_entries()
                receipts = []
                for entry, statement in zip(entries, statements, strict=True):
                    index, path = self._frontier.size, tuple(self._frontier.proof_for_next())
                    self._take(entry, statement)
                    receipts.append(TlogProof(index, path, self._sign(), entry).encode())
                self._put_checkpoint()
            return receipts

    def standing(self, dump_id: DumpId) -> Standing | None:
        """Return where *dump_id* stands, by the newest entry that says it; None when none does."""
        with self._lock:
            return self._find_standing(dump_id)

    def history(self, dump_id: DumpId) -> list[tuple[int, dict[str, Value]]]:
        """Return the entries that said where *dump_id* stood, oldest first, each with its index. Reads the log once."""
        with self._lock:
            if bytes(dump_id) not in self._standings:
                return []
            lines = enumerate(scan_lines(self._entries))
            found = [(at, line.data) for at, line in lines if str(dump_id).encode("ascii") in line.data]
            statements = ((at, data, find_statement(data)) for at, data in found if at < self._frontier.size)
            return [(at, parse_entry(data)) for at, data, said in statements if said is not None and said.dump == dump_id]

    def receipt_for(self, index: int) -> bytes:
        """Return a receipt for the entry at *index*, under a checkpoint of the present size, signed first if it is not yet.

        Reads the log once, from its beginning. Raises NotFoundError outside the log.
        """
        with self._lock:
            self._check_usable()
            if not 0 <= index < self._frontier.size:
                raise NotFoundError(f"audit log {self.origin} has no entry {index}")
            if self._signed_size < self._frontier.size:
                with self._failing_for_good():
                    self._sync_entries()
                    self._put_checkpoint()
            entry = b""

            def leaves() -> Iterator[bytes]:
                nonlocal entry
                for at, line in enumerate(scan_lines(self._entries)):
                    if at == index:
                        entry = line.data
                    yield leaf_hash(line.data)

            path, leaf = inclusion_from_stream(leaves(), index, self._frontier.size)
            if root_from_inclusion(leaf, index, self._frontier.size, path) != self._frontier.root():
                raise BrokenError(f"audit log {self.origin}: its entries are no longer those that were read when it was opened")
            return TlogProof(index, tuple(path), self._sign(), entry).encode()

    def close(self) -> None:
        """Close the log's files; an append that is under way is finished first."""
        with self._lock:
            self.has_failed = True
            for fd in (self._entries, self._directory):
                if fd >= 0:
                    os.close(fd)
            self._entries = self._directory = -1

    def _recover(self, checkpoint: Checkpoint) -> None:
        torn_at: int | None = None
        agrees = checkpoint.size == 0 and checkpoint.root == EMPTY_ROOT
        for line in scan_lines(self._entries):
            if self._frontier.size >= checkpoint.size and not (line.is_whole and _is_entry(line.data)):
                torn_at = line.offset
                break
            if not line.is_whole:
                break
            self._take(line.data, find_statement(line.data))
            if self._frontier.size == checkpoint.size:
                agrees = self._frontier.root() == checkpoint.root
                if not agrees:
                    break
        if self._frontier.size < checkpoint.size:
            have = self._frontier.size
            raise BrokenError(f"audit log {self.origin}: has {have} entries, its checkpoint says {checkpoint.size}")
        if not agrees:
            raise BrokenError(f"audit log {self.origin}: its first {checkpoint.size} entries are not those that were signed")
        self._signed_size = checkpoint.size
        if torn_at is not None:
            try:
                os.ftruncate(self._entries, torn_at)
            except OSError as error:
                raise directory.disk_refused(error, f"cannot cut the torn end of audit log {self.origin}") from error
            self._sync_entries()

    def _take(self, entry: bytes, statement: Statement | None) -> None:
        if statement is not None:
            head = _PACKED.pack(_EVENTS.index(statement.event), self._frontier.size)
            self._standings[bytes(statement.dump)] = head + statement.digest
        self._frontier.append(leaf_hash(entry))

    def _find_standing(self, dump_id: DumpId) -> Standing | None:
        packed = self._standings.get(bytes(dump_id))
        if packed is None:
            return None
        event, index = _PACKED.unpack_from(packed)
        return Standing(_EVENTS[event], index, packed[_PACKED.size :])

    def _check_usable(self) -> None:
        if self.has_failed:
            raise StorageError(f"audit log {self.origin} was closed after an error", hint="it is opened again with the next dump")

    def _check_order(self, entries: Sequence[bytes], statements: Sequence[Statement | None]) -> None:
        newest: dict[DumpId, Statement] = {}
        for entry, statement in zip(entries, statements, strict=True):
            parse_entry(entry)
            if statement is None:
                continue
            before = newest.get(statement.dump) or self._find_standing(statement.dump)
            if before is not None and not statement.follows(before.event, before.digest):
                raise Bug(f"audit log {self.origin} already says that dump {statement.dump} is {before.event}")
            newest[statement.dump] = statement

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """Mark the log as failed when the block does not come to its end, whatever the reason."""
        try:
            yield
        except BaseException:
            self.has_failed = True
            raise

    def _sync_entries(self) -> None:
        try:
            os.fdatasync(self._entries)
        except OSError as error:
            raise directory.disk_refused(error, f"cannot make audit log {self.origin} durable") from error

    def _sign(self) -> bytes:
        return self._signer.sign(self.origin, self._frontier.size, self._frontier.root())

    def _put_checkpoint(self) -> None:
        directory.replace_file(CHECKPOINT, self._directory, self._sign())
        self._signed_size = self._frontier.size


class HostLogs:
    """The open logs of a receiver, one for each host: opened when first needed, again after a failure. Thread-safe.

    *open_directory* returns a new descriptor of a host's log directory, made if need be. An open log holds two descriptors, so the
    least recently used ones are closed when there are more than *keep_open* of them; never one that is in use.
    """

    def __init__(self, signer: LogSigner, open_directory: Callable[[HostName], int], keep_open: int = _KEEP_OPEN) -> None:
        self._signer = signer
        self._open_directory = open_directory
        self._keep_open = keep_open
        self._lock = threading.Lock()
        self._slots: dict[HostName, _Slot] = {}
        self._is_closed = False

    @contextmanager
    def using(self, host: HostName) -> Iterator[HostLog]:
        """Give the log of *host* while the block runs; raises BrokenError and StorageError as HostLog.open does."""
        slot = self._borrow(host)
        try:
            with slot.lock:  # One lock a host, so that reading a long log keeps nobody else waiting.
                log = self._opened(slot, host)
            yield log
        finally:
            self._give_back(slot)

    def close(self) -> None:
        """Close all logs, and open none again."""
        with self._lock:
            self._is_closed = True
            slots = list(self._slots.values())
            self._slots.clear()
        for slot in slots:
            with slot.lock:
                slot.close()

    def _borrow(self, host: HostName) -> "_Slot":
        with self._lock:
            if self._is_closed:
                raise StorageError("the audit logs are closed", hint="the receiver is stopping")
            slot = self._slots.pop(host, None) or _Slot()
            self._slots[host] = slot  # the last one in order is the one most recently used
            slot.users += 1
            return slot

    def _give_back(self, slot: "_Slot") -> None:
        with self._lock:
            slot.users -= 1
            idle = [host for host, found in self._slots.items() if found.users == 0]
            # What nobody uses cannot be borrowed while we hold the lock, so it can be closed here.
            for host in idle[: max(len(self._slots) - self._keep_open, 0)]:
                self._slots.pop(host).close()

    def _opened(self, slot: "_Slot", host: HostName) -> HostLog:
        if slot.log is not None and slot.log.has_failed:
            slot.close()
        if slot.log is None:
            fd = self._open_directory(host)
            try:
                slot.log = HostLog.open(fd, origin_of(self._signer.name, host), self._signer)
            finally:
                os.close(fd)
        return slot.log


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.log: HostLog | None = None

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
            self.log = None


def scan_lines(fd: int) -> Iterator[Line]:
    """Yield the lines of an entries file, from its beginning, in bounded memory.

    Ends behind a line that is not whole. Raises StorageError when the file cannot be read.
    """
    offset, rest = 0, b""
    while True:
        try:
            chunk = os.pread(fd, _READ_BYTES, offset + len(rest))
        except OSError as error:
            raise directory.disk_refused(error, "cannot read an audit log") from error
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for data in lines:
            is_whole = len(data) <= limits.MAX_ENTRY_BYTES
            yield Line(offset, data, is_whole)
            if not is_whole:
                return
            offset += len(data) + 1
        if len(rest) > limits.MAX_ENTRY_BYTES:
            break
    if rest:
        yield Line(offset, rest, is_whole=False)


def _open_checkpoint(directory_fd: int, origin: str, signer: LogSigner) -> Checkpoint:
    """Return the checkpoint on the disk; that of the empty tree, written first, for a new log."""
    note = directory.read_file(CHECKPOINT, directory_fd, limits.MAX_CHECKPOINT_BYTES)
    if note is None:
        if ENTRIES in directory.names_in(directory_fd):
            raise BrokenError(f"audit log {origin}: its checkpoint is missing")
        note = signer.sign(origin, 0, EMPTY_ROOT)
        directory.write_new_file(CHECKPOINT, directory_fd, note)
    try:
        return verify_checkpoint(note, origin, signer.public_key)
    except BrokenError as error:
        raise BrokenError(f"audit log {origin}: {error.message}") from error


def _is_entry(data: bytes) -> bool:
    try:
        parse_entry(data)
    except BrokenError:
        return False
    return True
