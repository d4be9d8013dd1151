"""Counting what one host has, from its directories, while its dumps go on changing.

A count may take minutes, and nothing is to wait for it. So each dump is counted once, by whoever comes to it first: the count, or
the change of its place. The count lists the names before it looks at any; a change takes its dump away from it, and counts
it itself.
"""

import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from securecore import limits
from securecore.dump import directory
from securecore.dump.container import TABLE_END_BYTES, find_plain_bytes
from securecore.errors import SecurecoreError, StorageError
from securecore.names import DumpId, HostName
from securecore.store.account import Account, Amount
from securecore.store.layout import Place, Store
from securecore.store.reading import CORE, REPORT, remains_bytes

HOUR_S: Final = 3600.0


class Found(NamedTuple):
    """What a dump's files tell of it; as here where it has no core that can be read.

    So what cannot be told is not held against its host.
    """

    amount: Amount = Amount()
    changed_at: float = 0.0
    """When its core was last written to, in Unix seconds."""
    is_whole: bool = False
    """It has its seek table: no frame is to come, but of a dump that is given up just now."""
    begun_at: float | None = None
    """When it was begun; None of one that is whole and was not written to within the hour, because nobody asks."""


class Census:
    """A count that is under way. For whoever holds one lock around each call."""

    def __init__(self) -> None:
        self.account = Account()
        """What was counted so far, with the changes since."""
        self.begun: list[tuple[float, DumpId]] = []
        """When dumps were begun, in ticks and in no order; one may be in it twice."""
        self.grown: dict[DumpId, Amount] = {}
        """What sessions have told meanwhile of dumps that the count has not come to."""
        self.is_spoiled = False
        """A change has left a dump nobody knows where."""
        self._taken: set[str] = set()
        self._pending: set[str] | None = None

    def list_names(self, names: Iterable[str]) -> None:
        """Take the names of all dumps that are to be counted, but for what has changed since the beginning."""
        self._pending = set(names) - self._taken

    def take(self, name: str) -> bool:
        """Leave a dump to the caller alone, by its directory's name; return whether it is one that nobody has counted."""
        pending = self._pending
        is_uncounted = name not in self._taken if pending is None else name in pending
        if pending is None:
            self._taken.add(name)
        else:
            pending.discard(name)
        return is_uncounted


def find_dump(store: Store, place: Place, host: HostName, dump_id: DumpId, since: float) -> Found:
    """Return what a dump at *place* tells, as ``look`` does; nothing where it cannot be read."""
    try:
        host_fd = store.find_host_directory(place, host)
    except SecurecoreError:
        return Found()
    if host_fd is None:
        return Found()
    try:
        return look(host_fd, str(dump_id), since)
    finally:
        os.close(host_fd)


def look(host_fd: int, name: str, since: float) -> Found:
    """Return what a dump takes, by its core's length, its seek table's end and what was cut off damaged; and what its times are.

    *since* is when the hour began of which it is asked what was begun, in Unix seconds.
    """
    try:
        fd = os.open(f"{name}/{CORE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=host_fd)
    except OSError:
        return Found()
    try:
        status = os.fstat(fd)
        end = os.pread(fd, TABLE_END_BYTES, max(0, status.st_size - TABLE_END_BYTES))
        stored = status.st_size + remains_bytes(host_fd, name)
    except (OSError, StorageError):
        return Found()
    finally:
        os.close(fd)
    plain = find_plain_bytes(end)
    certain = status.st_size // limits.MAX_FRAME_BYTES * limits.PIECE_BYTES
    amount, changed_at = Amount(stored, plain if plain is not None else certain), status.st_mtime
    # A core is never older than its report: most dumps need no second look.
    begun_at = _begun_at(host_fd, name, changed_at) if plain is None or changed_at > since else None
    return Found(amount, changed_at, plain is not None, begun_at)


def _begun_at(host_fd: int, name: str, otherwise: float) -> float:
    """Return when a dump was begun, in Unix seconds: its report is the first that is written of it, and never written again."""
    for report in (REPORT, directory.aside_name(REPORT)):
        try:
            return os.stat(f"{name}/{report}", dir_fd=host_fd, follow_symlinks=False).st_mtime
        except OSError:
            continue
    return otherwise
