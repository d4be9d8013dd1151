"""One host's audit log: entries, the checkpoint that covers them, and the receipts that prove them.

A directory with two files: ``entries.jsonl``, one entry a line, only ever appended to, and ``checkpoint``, replaced whole. An
append is durable in this order: the entry's line, then the checkpoint; then its receipt may be shown. What opening does after a
crash:

1. A new log gets the checkpoint of the empty tree before it gets a file for entries. So entries without a checkpoint are damage.
2. Behind the entries that the checkpoint covers, whole entries are kept, written once more (a sync of them may have failed), and
   signed with the next append; what follows the last whole one is cut off. No receipt was ever given for either. So is a deletion,
   with what follows it: nothing of its dump is removed before it is signed, and whoever wrote one to explain that a dump is not
   there must not have it signed.
3. Fewer entries than the checkpoint says, or others, are damage: the log is refused and never signed again.

A log whose checkpoint a log key before the one in use has signed is handed over first (handover.py).

Of each dump the log knows where it stands: what the newest entry says that speaks of that; and it knows the certificates that were
introduced to it. Both are found in the entries alone.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from securecore import limits
from securecore.audit.appends import Append, AppendQueue
from securecore.audit.checkpoint import Checkpoint, LogSigner, origin_of, verify_checkpoint
from securecore.audit.entry import DELETED, Statement, Value, WideHead, find_statement, is_entry, parse_entry
from securecore.audit.handover import hand_over
from securecore.audit.introductions import Introduction, Introductions
from securecore.audit.log_files import CHECKPOINT, ENTRIES, Line, scan_lines
from securecore.audit.proof import TlogProof, inclusion_from_stream
from securecore.audit.standings import Standing, Standings
from securecore.dump import directory
from securecore.errors import BrokenError, NotFoundError, StorageError
from securecore.merkle import EMPTY_ROOT, Frontier, leaf_hash, root_from_inclusion
from securecore.names import DumpId, HostName

_KEEP_OPEN: Final = 128
"""Logs that stay open while nobody uses them: twice the senders that the design's load budget has at once, and with two descriptors
each a quarter of the 1,024 that a process has by default. To open one of 10,000 entries takes 0.34 s of a CPU; it holds 1.2 MiB."""


class HostLog:
    """An open log. Safe for use by several threads.

    After an error that a disk caused, appending is refused (``has_failed``): what reached the disk is found out by opening again.
    """

    def __init__(self, directory_fd: int, entries: int, origin: str, signer: LogSigner) -> None:
        self.origin = origin
        self.has_failed = False
        self.on_checkpoint: Callable[[int, bytes], None] = lambda size, root: None
        """Told of each checkpoint that is durable, before a receipt under it is given out; what it raises keeps that back."""
        self._signer = signer
        self._directory = directory_fd
        self._entries = entries
        self._lock = threading.Lock()
        self._waiting = AppendQueue()
        self._frontier = Frontier()
        self._signed_size = 0
        self._standings = Standings()
        self._introductions = Introductions()

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
            entries = found
            # Also what a process that was killed has left in memory only: receipts are given under the checkpoint that was found.
            directory.sync(own)
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

    def append_all(self, entries: Sequence[bytes], introducing: Introduction | None = None) -> list[bytes]:
        """Add entries that share their writes to the disk, and return their receipts, once all of it is durable.

        Before them stands the entry of the certificate that they are *introducing*, when the log does not know it yet. Two fsyncs
        and one of the directory, however many entries; none where a known certificate is introduced to no entry. Each receipt has a
        checkpoint of the size at which its entry was the last; only the last of these is kept on the disk. Raises StorageError when
        the disk refuses, BrokenError for what is no entry and no certificate, Bug for an entry that says of a dump what cannot
        follow what was said last (Statement.follows).

        Threads that come while another one's writes are on their way to the disk share the next ones.
        """
        append = Append(entries, introducing)
        self._waiting.add(append)
        try:
            with self._lock:
                while not append.is_done:
                    self._waiting.write(self._prepare, self._add)
        finally:
            self._waiting.drop(append)
        return append.result()

    def standing(self, dump_id: DumpId) -> Standing | None:
        """Return where *dump_id* stands, by the newest entry that says it; None when none does."""
        with self._lock:
            return self._standings.find(dump_id)

    def history(self, dump_id: DumpId) -> list[tuple[int, dict[str, Value]]]:
        """Return the entries that said where *dump_id* stood, oldest first, each with its index. Reads the log once."""
        with self._lock:
            if self._standings.find(dump_id) is None:
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
            self.on_checkpoint(self._frontier.size, self._frontier.root())
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

    def take_over(self, signer: LogSigner) -> None:
        """Go on with *signer*, of the same name, which has the present one among the keys before it; durable on return."""
        with self._lock:
            self._check_usable()
            with self._failing_for_good():
                hand_over(self._directory, self.origin, signer)
                self._signer = signer

    def close(self) -> None:
        """Close the log's files; an append that is under way is finished first."""
        with self._lock:
            self.has_failed = True
            for fd in (self._entries, self._directory):
                if fd >= 0:
                    os.close(fd)
            self._entries = self._directory = -1

    def _prepare(self, append: Append, before: Sequence[Append]) -> None:
        """Find out what is written for an append behind others; raises as append_all does."""
        self._check_usable()
        append.introduced = self._introductions.find_entry(append.introducing) if append.introducing is not None else None
        said = [statement for other in before for statement in other.statements]
        self._standings.check_order(self.origin, [*said, *append.statements])

    def _add(self, together: Sequence[Append]) -> None:
        with self._failing_for_good():
            entries = [entry for append in together for entry in (append.introduced, *append.entries) if entry is not None]
            directory.write_all(self._entries, b"".join(entry + b"\n" for entry in entries))
            self._sync_entries()
            for append in together:
                if append.introduced is not None:
                    self._take(append.introduced, find_statement(append.introduced))
                for entry, statement in zip(append.entries, append.statements, strict=True):
                    index, path = self._frontier.size, tuple(self._frontier.proof_for_next())
                    self._take(entry, statement)
                    append.receipts.append(TlogProof(index, path, self._sign(), entry).encode())
            self._put_checkpoint()
        # A host is said first with a dump: that it has come, by its certificate's entry alone, must not keep its first receipt from
        # waiting.
        if not self._standings.is_empty:
            self.on_checkpoint(self._frontier.size, self._frontier.root())

    def _recover(self, checkpoint: Checkpoint) -> None:
        torn_at: int | None = None
        agrees = checkpoint.size == 0 and checkpoint.root == EMPTY_ROOT
        for line in scan_lines(self._entries):
            statement = find_statement(line.data)
            if self._frontier.size >= checkpoint.size and not _is_kept(line, statement):
                torn_at = line.offset
                break
            if not line.is_whole:
                break
            if self._frontier.size >= checkpoint.size:
                # Its sync may have failed: then it is read from the cache, and no sync writes what is only there.
                directory.write_again(self._entries, line.data + b"\n", line.offset)
            self._take(line.data, statement)
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
            self._standings.take(statement, self._frontier.size)
        self._introductions.take(entry)
        self._frontier.append(leaf_hash(entry))

    def _check_usable(self) -> None:
        if self.has_failed:
            raise StorageError(f"audit log {self.origin} was closed after an error", hint="it is opened again with the next dump")

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
        self.on_checkpoint: Callable[[HostName, int, bytes], None] = lambda host, size, root: None
        """As of a HostLog; for who keeps the receiver-wide log."""
        self.find_wide_head: Callable[[], WideHead | None] = lambda: None
        """Where the receiver-wide log stands, for entries to say; None while it takes none."""
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

    def use(self, signer: LogSigner) -> None:
        """Open logs with *signer* from now on; those that are open go on with the one before until they are handed over."""
        with self._lock:
            self._signer = signer

    def hand_over(self, host: HostName) -> None:
        """Hand the log of *host* over to the signer in use, open or not; raises BrokenError and StorageError as hand_over does."""
        slot = self._borrow(host)
        try:
            with slot.lock:
                if slot.log is not None and not slot.log.has_failed:
                    slot.log.take_over(self._signer)
                    return
                fd = self._open_directory(host)
                try:
                    hand_over(fd, origin_of(self._signer.name, host), self._signer)
                finally:
                    os.close(fd)
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
                slot.log.on_checkpoint = lambda size, root: self.on_checkpoint(host, size, root)
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


def _is_kept(line: Line, statement: Statement | None) -> bool:
    """Return whether what stands behind the checkpoint is kept, to be signed."""
    return line.is_whole and is_entry(line.data) and (statement is None or statement.event != DELETED)


def _open_checkpoint(directory_fd: int, origin: str, signer: LogSigner) -> Checkpoint:
    """Return the checkpoint on the disk; that of the empty tree, written first, for a new log."""
    note = directory.read_file(CHECKPOINT, directory_fd, limits.MAX_CHECKPOINT_BYTES)
    if note is None:
        if ENTRIES in directory.names_in(directory_fd):
            raise BrokenError(f"audit log {origin}: its checkpoint is missing")
        note = signer.sign(origin, 0, EMPTY_ROOT)
        directory.write_new_file(CHECKPOINT, directory_fd, note)
    try:
        hand_over(directory_fd, origin, signer)
        note = directory.read_file(CHECKPOINT, directory_fd, limits.MAX_CHECKPOINT_BYTES) or b""
        return verify_checkpoint(note, origin, signer.public_key)
    except BrokenError as error:
        raise BrokenError(f"audit log {origin}: {error.message}") from error
