"""The receiver-wide log: which checkpoint each host's log has had, so that a host that is removed whole is missed.

A log of the same form as a host's, signed under the log key's own name. Each entry says that a host's log has had a checkpoint of
this size and root; it is written when that checkpoint is durable. Entries of hosts' logs in turn say what is durable of this log
(WideHead): so neither can be put back to an earlier state by itself, and every receipt vouches for the hosts that were known then.
"""

import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit.checkpoint import LogSigner, parse_checkpoint, verify_checkpoint
from securecore.audit.entry import Value, WideHead, encode, find_statement, parse_entry, timestamp
from securecore.audit.log import HostLog
from securecore.audit.log_files import CHECKPOINT, ENTRIES, scan_lines
from securecore.dump import directory
from securecore.errors import BrokenError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import HostName, NameRefused

SAID: Final = "checkpoint"
"""The event of an entry."""

_VERSION: Final = 1
_HEX: Final = re.compile("[0-9a-f]{64}")
_OF_HOST: Final = re.compile(f'"event":"{SAID}".*"host":"([^"]*)"'.encode("ascii"))
"""Quotes within text are escaped and keys are sorted, so these bytes in an entry are two fields and nothing else."""
_SIZE_END: Final = 1 << 63
"""No log has more entries: checkpoints have 19 digits at most."""


class Tree(NamedTuple):
    """What a checkpoint says of a log."""

    size: int
    root: bytes


def said_entry(moment: datetime, host: HostName, tree: Tree) -> bytes:
    """Return the entry that says that a host's log has this checkpoint."""
    said: dict[str, Value] = {"host": str(host), "size": tree.size, "root": tree.root.hex()}
    return encode({"version": _VERSION, "event": SAID, "time": timestamp(moment), **said})


def parse_said(entry: bytes) -> tuple[HostName, Tree] | None:
    """Return whose checkpoint an entry speaks of, and what it is; None for another event.

    Raises BrokenError for what is no entry, and for one that does not say it.
    """
    fields = parse_entry(entry)
    if fields["event"] != SAID:
        return None
    size, root = fields.get("size"), fields.get("root")
    if not isinstance(size, int) or not 0 <= size < _SIZE_END or not isinstance(root, str) or not _HEX.fullmatch(root):
        raise BrokenError("entry says no checkpoint")
    try:
        return HostName(str(fields.get("host"))), Tree(size, bytes.fromhex(root))
    except NameRefused as error:
        raise BrokenError(f"entry names no host: {error.message}") from error


def speaks_of_a_dump(directory_fd: int, size: int) -> bool:
    """Return whether the first *size* entries of a host's log say of any dump where it stands; before that it is not said here.

    Raises BrokenError and StorageError when its entries cannot be read. Not checked: that they are sound.
    """
    return any(find_statement(entry) is not None for entry in islice(_entries(directory_fd), size))


def check_log(directory_fd: int, origin: str, public_key: bytes) -> int:
    """Return how many entries the log in a directory has under its checkpoint; linear, without any lock, and nothing is written.

    Raises BrokenError when a receiver could not go on with it, StorageError when it cannot be read. Not checked: what the entries
    say (verify_wide_log does that).
    """
    note = directory.read_file(CHECKPOINT, directory_fd, limits.MAX_CHECKPOINT_BYTES)
    if note is None:
        raise BrokenError(f"{CHECKPOINT} is missing")
    checkpoint, tree = verify_checkpoint(note, origin, public_key), Frontier()
    tree.extend(leaf_hash(entry) for entry in islice(_entries(directory_fd), checkpoint.size))
    if (tree.size, tree.root()) != (checkpoint.size, checkpoint.root):
        raise BrokenError(f"its entries are not the {checkpoint.size} that were signed")
    return checkpoint.size


class WideLog:
    """The receiver-wide log, open for appending, and what it says of each host. For one thread at a time."""

    def __init__(self, log: HostLog) -> None:
        self._log = log
        self._frontier = Frontier()
        self.said: dict[HostName, Tree] = {}
        """The newest checkpoint of each host that the log says."""

    @classmethod
    def open(cls, directory_fd: int, signer: LogSigner) -> "WideLog":
        """Return the log in a directory, new if there is none; linear in its entries.

        What a crash has left behind its checkpoint is kept, and signed. Raises as HostLog.open does, BrokenError too when the
        newest entry of a host says no checkpoint; StorageError when the disk does not take a checkpoint. The caller holds the
        store's lock.
        """
        log = HostLog.open(directory_fd, signer.name, signer)
        wide = cls(log)
        try:
            newest: dict[bytes, bytes] = {}
            for entry in _entries(directory_fd):
                wide._frontier.append(leaf_hash(entry))
                if (found := _OF_HOST.search(entry)) is not None:
                    newest[found[1]] = entry
            # The newest alone: to parse one takes ten times as long as to hash it, and a busy host has half a million in a year.
            wide.said = dict(said for entry in newest.values() if (said := parse_said(entry)) is not None)
            note = directory.read_file(CHECKPOINT, directory_fd, limits.MAX_CHECKPOINT_BYTES)
            if note is not None and parse_checkpoint(note).size < log.size:
                log.receipt_for(log.size - 1)
        except BaseException:
            log.close()
            raise
        return wide

    @property
    def head(self) -> WideHead:
        """What is durable of the log."""
        return WideHead(self._frontier.size, self._frontier.root())

    def say(self, trees: Mapping[HostName, Tree], moment: datetime) -> None:
        """Add that these hosts' logs have these checkpoints, all with as many fsyncs as one, durably.

        Raises StorageError, after which the log takes nothing more until it is opened again.
        """
        entries = [said_entry(moment, host, tree) for host, tree in trees.items()]
        self._log.append_all(entries)
        self._frontier.extend(map(leaf_hash, entries))
        self.said |= trees

    def close(self) -> None:
        """Close the log's files."""
        self._log.close()



def _entries(directory_fd: int) -> Iterator[bytes]:
    """Yield the entries of a log, and what is torn at its end, where it was not opened since."""
    fd = directory.open_file(ENTRIES, directory_fd)
    if fd is None:
        raise BrokenError(f"{ENTRIES} is missing")
    try:
        for line in scan_lines(fd):
            yield line.data
    finally:
        os.close(fd)
