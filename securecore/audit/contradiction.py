"""Receipts that contradict each other: two proofs of one log that cannot both be true, found without the log.

A log only ever grows, so a range of its entries has one hash for ever. Each receipt gives the hashes of some ranges: of its entry,
of the whole log at its size, and of what stands beside its path. So one receipt can be caught by another that is about quite
different entries: a history that was rewritten between the two gives what both speak of two hashes.
"""

from typing import NamedTuple

from securecore.audit.kept_receipt import Witness
from securecore.audit.proof import proved_ranges
from securecore.merkle import leaf_hash
from securecore.units import count


class Contradiction(NamedTuple):
    """Two receipts that speak of the same entries of one log, and do not agree on them. Which of them is true, neither says."""

    origin: str
    first: int
    end: int
    """Of the half-open range of entries."""
    size: int
    """Of the later receipt's checkpoint."""
    earlier: str
    later: str
    """Where the two stand."""
    stores: tuple[str, str] | None
    """The ids of two stores, where the entries say that the receipts are of two: the receiver began its log anew."""

    @property
    def what(self) -> str:
        """What cannot be, in words."""
        if self.end == self.first + 1:
            words = f"entry {self.first} is two entries"
        elif (self.first, self.end) == (0, self.size):
            words = f"the first {count(self.size, 'entry')} have two roots"
        else:
            words = f"entries {self.first} to {self.end - 1} have two hashes"
        return words if self.stores is None else f"{words}, of stores {self.stores[0]} and {self.stores[1]}"


class _Said(NamedTuple):
    hash: bytes
    where: str
    store: object


class Histories:
    """What receipts say of their logs; memory grows with the receipts, not with the logs."""

    def __init__(self) -> None:
        self._said: dict[str, dict[tuple[int, int], _Said]] = {}

    def take(self, witness: Witness) -> Contradiction | None:
        """Add a receipt, and return how it contradicts one that was added before; None when it does not.

        Of several ways the one that is about the fewest entries.
        Not found: what two receipts say in ways that only the entries between them could connect.
        """
        receipt, store = witness.receipt, witness.receipt.fields.get("store")
        size = receipt.checkpoint.size
        found: list[Contradiction] = []
        said = self._said.setdefault(witness.origin, {})
        for first, end, value in proved_ranges(leaf_hash(receipt.entry), receipt.leaf_index, size, witness.hashes):
            # Other ranges than these are in no tree but those of one size, and there the root speaks for them.
            if (end - first) & (end - first - 1) and (first, end) != (0, size):
                continue
            before = said.setdefault((first, end), _Said(value, witness.where, store))
            if before.hash != value:
                stores = _two_stores(before.store, store)
                found.append(Contradiction(witness.origin, first, end, size, before.where, witness.where, stores))
        return min(found, key=lambda one: one.end - one.first, default=None)


def _two_stores(earlier: object, later: object) -> tuple[str, str] | None:
    """Return the ids of two entries' stores when both have one and they differ."""
    if not isinstance(earlier, str) or not isinstance(later, str) or earlier == later:
        return None
    return earlier[:36], later[:36]
