"""Verification of the receiver-wide log: by itself, against the hosts' logs that it speaks of, and against what they say of it.

The order matters beside a receiver that runs. A host's checkpoint is durable before this log says it, so what it says is read
first, then the hosts' logs. These say what was durable of this log, so it is verified last.
"""

import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit.checkpoint import verify_checkpoint
from securecore.audit.checks import Check, Steps, read_needed
from securecore.audit.damage import Progress
from securecore.audit.entry import WideHead
from securecore.audit.log_files import CHECKPOINT, ENTRIES, scan_lines
from securecore.audit.log_reading import LogReading
from securecore.audit.statement import LogKey
from securecore.audit.verified import Verified
from securecore.audit.wide_log import Tree, parse_said
from securecore.dump import directory
from securecore.errors import BrokenError, StorageError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import HostName
from securecore.units import count

_NAMED: Final = 3
"""Hosts that a check names; the outcome has all of them."""

_TREE: Final = struct.Struct(">Q32s")
"""A Tree in memory: a log that is looked at once a minute says half a million of a busy host in a year."""


class Said:
    """What a receiver-wide log says of hosts' logs, under the checkpoint that it has."""

    def __init__(self) -> None:
        self.tree: Tree | None = None
        """The log itself; None where nothing of it can be believed."""
        self._trees: dict[HostName, bytearray] = {}

    @property
    def hosts(self) -> list[HostName]:
        """The hosts that it names, sorted."""
        return sorted(self._trees)

    def of(self, host: HostName) -> Iterator[tuple[int, bytes]]:
        """Yield sizes and roots that a host's log has had."""
        yield from _TREE.iter_unpack(self._trees.get(host, b""))

    def add(self, host: HostName, tree: Tree) -> None:
        """Add one."""
        self._trees.setdefault(host, bytearray()).extend(_TREE.pack(*tree))


class HostsLogs(NamedTuple):
    """What was found in hosts' logs, and in the store, after Said was read."""

    heads: Sequence[WideHead]
    """What their entries say of the receiver-wide log."""
    problems: Mapping[HostName, str]
    """Hosts whose logs are not what it says that they were, and why."""
    published: Sequence[HostName]
    """Hosts that have a dump, each of which had its receipt."""
    looked_at: Collection[HostName]
    """Hosts whose logs were looked at; of others it is not known whether they have one."""


class WideVerification(NamedTuple):
    """The outcome of verify_wide_log."""

    origin: str
    checks: list[Check]
    size: int
    """Entries that the checkpoint covers."""
    unsigned: int
    """Whole entries behind them."""
    contradicted: list[HostName]
    """Hosts whose logs are gone, or are not what this log says that they were."""
    unnamed: list[HostName]
    """Hosts that have a dump, and are not in this log."""
    note: bytes | None
    """As in a LogVerification."""

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)


def read_said(directory_fd: int, origin: str, public_key: bytes) -> Said:
    """Return what the log in a directory says, as far as its checkpoint goes; what is wrong with it verify_wide_log finds."""
    said, tree = Said(), Frontier()
    try:
        note = read_needed(directory_fd, CHECKPOINT, limits.MAX_CHECKPOINT_BYTES)
        checkpoint = verify_checkpoint(note, origin, public_key)
        fd = directory.open_file(ENTRIES, directory_fd)
    except (BrokenError, StorageError):
        return said
    if fd is None:
        return said
    try:
        for line in scan_lines(fd):
            if tree.size == checkpoint.size:
                break
            try:
                found = parse_said(line.data)
            except BrokenError:
                found = None
            if found is not None:
                said.add(*found)
            tree.append(leaf_hash(line.data))
    except StorageError:
        return said
    finally:
        os.close(fd)
    said.tree = Tree(checkpoint.size, checkpoint.root)
    return said


def verify_wide_log(
    directory_fd: int | None,
    origin: str,
    public_key: bytes,
    said: Said,
    hosts: HostsLogs,
    *,
    log_key: LogKey | None = None,
    verified: Verified | None = None,
    from_the_start: bool = False,
    progress: Progress | None = None,
) -> WideVerification:
    """Return what holds of the log in a directory (None: there is none); linear, streaming, without any lock.

    *said* is what read_said returned, *hosts* what was found since; *log_key*, *verified* and *from_the_start* are as in
    verify_log. Raises nothing that a log can cause.
    """
    reading = LogReading(directory_fd, origin, public_key, progress, None if from_the_start else verified)
    by_verifier = reading.expecting_verified(verified, log_key)
    earlier = reading.expecting("a host's log")
    for head in hosts.heads:
        earlier.add(*head)
    if said.tree is not None:
        earlier.add(*said.tree)
    by_earlier_keys = reading.expecting_last(log_key)
    growth = _Growth()
    reading.on_entry = growth.take
    unnamed: list[HostName] = []

    def check_hosts() -> str:
        if hosts.problems:
            raise BrokenError(_name([f"{host} ({problem})" for host, problem in sorted(hosts.problems.items())]))
        others = len(growth.newest.keys() - set(hosts.looked_at))
        more = f", and {count(others, 'other')} not looked at" if others else ""
        return count(len(growth.newest) - others, "host") + more

    def check_named() -> str:
        unnamed.extend(sorted(set(hosts.published) - growth.newest.keys()))
        if unnamed:
            raise BrokenError(f"not named: {_name([str(host) for host in unnamed])}")
        return count(len(hosts.published), "host")

    steps = Steps()
    steps.run("the checkpoint is signed with the log's key", reading.check_signature)
    steps.run("every entry is whole and canonical", reading.check_entries)
    if reading.has_departed:
        again = (directory_fd, origin, public_key, said, hosts)
        return verify_wide_log(*again, log_key=log_key, verified=verified, from_the_start=True, progress=progress)
    steps.run("the entries give the checkpoint's root", reading.check_root, possible=reading.checkpoint is not None)
    for what, check in by_verifier:
        steps.run(what, check)
    steps.run("no host's log has ever become shorter, or another", growth.check)
    if by_earlier_keys is not None:
        steps.run("the log goes on from what earlier log keys have signed last", by_earlier_keys)
    steps.run("the log contains every state of it that hosts' logs tell of", earlier.check)
    note = reading.note if all(check.ok for check in steps.checks) else None
    steps.run("every host that it names has its log, as it says", check_hosts)
    steps.run("every host with a dump is named in it", check_named)
    size = reading.checkpoint.size if reading.checkpoint else 0
    unsigned = max(reading.frontier.size - size, 0)
    return WideVerification(origin, steps.checks, size, unsigned, sorted(hosts.problems), unnamed, note)


class _Growth:
    """How hosts' logs have grown, entry by entry."""

    def __init__(self) -> None:
        self.newest: dict[HostName, Tree] = {}
        self._problem: str | None = None

    def take(self, index: int, entry: bytes, is_sound: bool) -> None:
        """Note what the entry at *index* says; one that is not sound is told of too."""
        try:
            found = parse_said(entry)
        except BrokenError as error:
            self._problem = self._problem or f"entry {index}: {error.message}"
            return
        if found is None:
            return
        host, tree = found
        before = self.newest.get(host)
        if before is not None and (tree.size < before.size or (tree.size == before.size and tree.root != before.root)):
            words = f"entry {index}: the log of {host} has {count(tree.size, 'entry')}, and had {before.size}, or others, before"
            self._problem = self._problem or words
        self.newest[host] = tree

    def check(self) -> str:
        """Check that nothing was wrong."""
        if self._problem is not None:
            raise BrokenError(self._problem)
        return count(len(self.newest), "host")


def _name(words: Sequence[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more
