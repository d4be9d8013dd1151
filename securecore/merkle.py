"""RFC 6962 Merkle trees: one implementation, for the frames of a dump and for audit logs.

A leaf hash is SHA-256(0x00 || data), a node SHA-256(0x01 || left || right) (RFC 6962 section 2.1). The Frontier keeps only the
roots of the perfect subtrees, one for each bit set in the size, so a tree of any size grows in O(log n) memory.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256

from securecore.declarations import Final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()


def leaf_hash(data: bytes | bytearray | memoryview) -> bytes:
    """Return the leaf hash of *data*."""
    digest = sha256(b"\x00")
    digest.update(data)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of the node above two 32-byte hashes."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """A growing tree, as the roots of its perfect subtrees, largest first."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash at the end."""
        # Nothing is changed until all is there: where memory runs out the tree stays what it was.
        size, kept = self.size, len(self._peaks)
        while size & 1:
            kept -= 1
            leaf = node_hash(self._peaks[kept], leaf)
            size >>= 1
        self._peaks[kept:] = [leaf]
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes in order."""
        for leaf in leaves:
            self.append(leaf)

    def root(self) -> bytes:
        """Return the tree's root; SHA-256 of nothing for the empty tree."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root

    def proof_for_next(self) -> list[bytes]:
        """Return the inclusion proof that the next leaf will have right after it is appended.

        The path of the last leaf has only left siblings, and these are the present peaks, smallest first (RFC 6962 section
        2.1.1: each step splits off the largest power of two below the size).
        """
        return self._peaks[::-1]

    @property
    def peaks(self) -> list[bytes]:
        """The roots of the perfect subtrees, largest first: with ``size``, all that is needed to go on."""
        return self._peaks[:]

    @classmethod
    def from_peaks(cls, size: int, peaks: Sequence[bytes]) -> "Frontier":
        """Return the frontier of a tree of *size* whose ``peaks`` were kept; raises ValueError when they can't belong to it."""
        if size < 0 or len(peaks) != size.bit_count() or any(len(peak) != HASH_BYTES for peak in peaks):
            raise ValueError("peaks do not fit the size")
        frontier = cls()
        frontier.size, frontier._peaks = size, list(peaks)
        return frontier

    def copy(self) -> "Frontier":
        """Return an independent copy."""
        other = Frontier()
        other.size = self.size
        other._peaks = self._peaks[:]
        return other


def root_of(leaves: Iterable[bytes]) -> bytes:
    """Return the root over leaf hashes in order."""
    frontier = Frontier()
    frontier.extend(leaves)
    return frontier.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return PATH(index, leaves) of RFC 6962 section 2.1.1: sibling hashes from the leaf up. Raises IndexError outside the tree."""
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*inclusion_proof(leaves[:split], index), root_of(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index - split), root_of(leaves[:split])]


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """Return the root that *proof* gives for the leaf hash at *index* of a tree of *size*.

    None when the proof has not the shape of that place. The algorithm of RFC 9162 section 2.1.3.2. Not checked:
    that the root is the one that somebody signed; compare it.
    """
    if not 0 <= index < size:
        return None
    node, last, root = index, size - 1, leaf
    for sibling in proof:
        if last == 0 or len(sibling) != HASH_BYTES:
            return None
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            root = node_hash(root, sibling)
        node >>= 1
        last >>= 1
    return root if last == 0 else None
