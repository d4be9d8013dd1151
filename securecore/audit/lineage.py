"""The keys that have signed what a host keeps, held against each other: whether one chain of successions has all of them.

A receiver's TLS key states every log key of its own; so whoever has that key can state another, and sign a history with it. What
he cannot do without the log key is to have it say that the other one is the next. So of two keys that receipts of one receiver
show, either successions lead from one to the other, or one of them is somebody else's; and a key that has handed over to two has
been used by two.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from securecore.audit.checkpoint import verifier_key
from securecore.audit.kept_receipt import Witness
from securecore.audit.succession import Succession


class Strange(NamedTuple):
    """What one chain of successions cannot have."""

    where: str
    """The first receipt that shows it."""
    words: str


class _Keys:
    """Of one name: who has signed what, and which successions there are."""

    def __init__(self) -> None:
        self.signers: dict[bytes, str] = {}
        """Each key with the first receipt that it signed; so the first one is that of the first receipt."""
        self.next: dict[bytes, dict[bytes, str]] = {}
        """Each key with those that it has handed over to, and the receipts that show it."""
        self.lost: dict[bytes, Succession] = {}
        """Keys that took the place of a lost one, by nobody's word but their own."""


class Lineages:
    """The log keys of each receiver that receipts show; memory grows with the keys."""

    def __init__(self, trusted: Collection[str] = ()) -> None:
        self._trusted = trusted
        """Verifier keys that may take the place of a lost one, by the word of who verifies."""
        self._of: dict[str, _Keys] = {}

    def take(self, witness: Witness) -> None:
        """Add what a receipt shows."""
        name = witness.origin.rpartition("/")[0]
        keys = self._of.setdefault(name, _Keys())
        keys.signers.setdefault(witness.key, witness.where)
        for one in witness.successions:
            if one.is_lost and verifier_key(name, one.after) not in self._trusted:
                keys.lost.setdefault(one.after, one)
            else:
                keys.next.setdefault(one.before, {}).setdefault(one.after, witness.where)

    def find_strange(self) -> Iterator[Strange]:
        """Yield each key that has handed over to two, and each that has signed and that no chain leads to from the first signer."""
        for name, keys in self._of.items():
            for before, nexts in keys.next.items():
                if len(nexts) > 1:
                    both = " and to ".join(verifier_key(name, key) for key in nexts)
                    words = f"log key {verifier_key(name, before)} was handed over twice, to {both}: somebody else has used it"
                    yield Strange(list(nexts.values())[1], words)
            chain = _connected(next(iter(keys.signers)), keys.next)
            for key, where in keys.signers.items():
                if key not in chain:
                    yield Strange(where, _words(name, key, keys))


def _connected(first: bytes, nexts: dict[bytes, dict[bytes, str]]) -> set[bytes]:
    """Return the keys that successions lead to from *first*, forward or back, itself included."""
    beside: dict[bytes, set[bytes]] = {}
    for before, afters in nexts.items():
        for after in afters:
            beside.setdefault(before, set()).add(after)
            beside.setdefault(after, set()).add(before)
    # A receiver may show as many keys as it likes: each is looked at once.
    found, waiting = {first}, [first]
    while waiting:
        new = beside.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _words(name: str, key: bytes, keys: _Keys) -> str:
    if key in keys.lost:
        return f"{keys.lost[key].words}; whether that is so, the receiver's operator knows"
    return f"log key {verifier_key(name, key)} is outside of the chain: no succession leads to it from the key of the first receipt"
