"""Where the dumps of one log stand, in memory: for each, what the newest entry says that speaks of that."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from securecore.audit.entry import DELETED, INCOMPLETE, RECEIVED, Statement
from securecore.errors import Bug
from securecore.names import DumpId

_EVENTS: Final = (RECEIVED, INCOMPLETE, DELETED)
_PACKED: Final = struct.Struct(">BQ")
"""A standing in memory: the event's place in _EVENTS and the entry's index, then the digest, of 32 bytes or none, and eight more
for the few that have damaged_bytes. With its key 175 bytes for each dump (measured, CPython 3.11); a tuple would make it 260."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a dump stands, by the newest entry of its host's log that says it."""

    event: str
    """``received``, ``incomplete`` or ``deleted``."""
    index: int
    """Of that entry."""
    digest: bytes
    """Its manifest_sha256 when it is received, its root when it is incomplete, empty when it is deleted."""
    damaged_bytes: int = 0
    """As in a Statement."""


class Standings:
    """The standings of a log; the log sees to it that one thread at a time is here."""

    def __init__(self) -> None:
        self._packed: dict[bytes, bytes] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no entry says yet where any dump stands."""
        return not self._packed

    def take(self, statement: Statement, index: int) -> None:
        """Note what the entry at *index* says, in place of what was said before."""
        head = _PACKED.pack(_EVENTS.index(statement.event), index)
        damage = statement.damaged_bytes.to_bytes(8, "big") if statement.damaged_bytes else b""
        self._packed[bytes(statement.dump)] = head + statement.digest + damage

    def find(self, dump_id: DumpId) -> Standing | None:
        """Return where a dump stands; None when no entry says it."""
        packed = self._packed.get(bytes(dump_id))
        if packed is None:
            return None
        event, index = _PACKED.unpack_from(packed)
        end = _PACKED.size + (len(packed) - _PACKED.size) // 32 * 32
        return Standing(_EVENTS[event], index, packed[_PACKED.size : end], int.from_bytes(packed[end:], "big"))

    def check_order(self, origin: str, statements: Sequence[Statement | None]) -> None:
        """Check that these may be said next in the log of that origin; raises Bug naming the first that cannot."""
        newest: dict[DumpId, Statement] = {}
        for statement in statements:
            if statement is None:
                continue
            before = newest.get(statement.dump) or self.find(statement.dump)
            if before is not None and not statement.follows(before.event, before.digest, before.damaged_bytes):
                raise Bug(f"audit log {origin} already says that dump {statement.dump} is {before.event}")
            newest[statement.dump] = statement
