"""Proof of where a dump stands: inclusion proofs of the log's newest entries that say it, under its newest checkpoint."""

import os
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from securecore import limits
from securecore.audit.checkpoint import Checkpoint, verify_checkpoint
from securecore.audit.checks import read_needed
from securecore.audit.entry import DELETED, find_statement
from securecore.audit.log_files import CHECKPOINT, ENTRIES, scan_lines
from securecore.audit.proof import TlogProof, inclusion_from_stream
from securecore.dump import directory
from securecore.errors import BrokenError
from securecore.merkle import leaf_hash, root_from_inclusion
from securecore.names import DumpId


class Proofs(NamedTuple):
    """What a log proves of a dump, as tlog-proofs under one checkpoint; what it does not say is None."""

    receipt: bytes | None
    """Of the newest entry that says that it was received, or given up."""
    deletion: bytes | None
    """Of one that says that it was deleted, where that is newer."""


class _Found(NamedTuple):
    at: int
    entry: bytes
    event: str


def prove_standing(directory_fd: int, origin: str, public_key: bytes, dump: DumpId) -> Proofs:
    """Return what the log in a directory proves of *dump*, without any lock: what stands behind the checkpoint is passed over.

    The log is read once for what it says and once for each proof, in memory that does not grow with it; a proof has a hash for each
    doubling of the log. Raises BrokenError when the checkpoint is not signed with that key, or the entries do not give its root.
    """
    note = read_needed(directory_fd, CHECKPOINT, limits.MAX_CHECKPOINT_BYTES)
    checkpoint = verify_checkpoint(note, origin, public_key)
    entries = directory.open_file(ENTRIES, directory_fd)
    if entries is None:
        raise BrokenError(f"{ENTRIES} is missing")
    stands: _Found | None = None
    deletion: _Found | None = None
    try:
        for found in _statements(entries, checkpoint.size, dump):
            if found.event == DELETED:
                deletion = found
            else:
                stands, deletion = found, None
        proofs = [_prove(entries, checkpoint, note, found) if found is not None else None for found in (stands, deletion)]
    finally:
        os.close(entries)
    return Proofs(*proofs)


def _statements(entries: int, size: int, dump: DumpId) -> Iterator[_Found]:
    """Yield each of the first entries, *size* of them, that says where *dump* stands."""
    name = str(dump).encode("ascii")
    for index, line in enumerate(islice(scan_lines(entries), size)):
        if name in line.data and (statement := find_statement(line.data)) is not None and statement.dump == dump:
            yield _Found(index, line.data, statement.event)


def _prove(entries: int, checkpoint: Checkpoint, note: bytes, found: _Found) -> bytes:
    leaves = (leaf_hash(line.data) for line in scan_lines(entries))
    path, _ = inclusion_from_stream(leaves, found.at, checkpoint.size)
    if root_from_inclusion(leaf_hash(found.entry), found.at, checkpoint.size, path) != checkpoint.root:
        raise BrokenError("the log does not begin as it was signed")
    return TlogProof(found.at, tuple(path), note, found.entry).encode()
