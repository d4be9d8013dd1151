"""Receipts: a proof that an entry is in a host's audit log, checkable offline with the log's public key alone.

The format is C2SP tlog-proof; the entry itself travels in the ``extra`` line. That line is not authenticated by the format, but it
is the data of the very leaf that is proved, so it is believed once its hash leads to the signed root.
Source: https://c2sp.org/tlog-proof, RFC 6962 section 2.1.1.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit.checkpoint import Checkpoint, decode_base64, verify_checkpoint
from securecore.audit.entry import Value, parse_entry
from securecore.errors import BrokenError
from securecore.merkle import HASH_BYTES, Frontier, leaf_hash, node_hash, root_from_inclusion

_FIRST_LINE: Final = "c2sp.org/tlog-proof@v1"
_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})\Z")
_HASHES_MAX: Final = 64
"""A path in a tree of 2**64 leaves."""


class TlogProof(NamedTuple):
    """A proof's parts; nothing of it is verified."""

    leaf_index: int
    hashes: tuple[bytes, ...]
    """Siblings from the leaf's up to the root's child."""
    checkpoint: bytes
    extra: bytes | None

    def encode(self) -> bytes:
        """Return the proof as text."""
        lines = [_FIRST_LINE]
        if self.extra is not None:
            lines.append(f"extra {_encode(self.extra)}")
        lines.append(f"index {self.leaf_index}")
        lines += [_encode(sibling) for sibling in self.hashes]
        return "\n".join([*lines, "", ""]).encode("ascii") + self.checkpoint


class Receipt(NamedTuple):
    """A verified receipt."""

    entry: bytes
    fields: dict[str, Value]
    leaf_index: int
    checkpoint: Checkpoint


def parse_proof(text: bytes) -> TlogProof:
    """Return the parts of a proof; raises BrokenError when it has another form. Not checked: that it proves anything."""
    if len(text) > limits.MAX_RECEIPT_BYTES:
        raise BrokenError("proof is too long")
    head, blank, checkpoint = text.partition(b"\n\n")
    lines = head.decode("ascii", "replace").split("\n")
    if not blank or lines[0] != _FIRST_LINE:
        raise BrokenError(f"proof does not begin with {_FIRST_LINE!r}")
    del lines[0]
    extra = None
    if lines and lines[0].startswith("extra "):
        extra = decode_base64(lines.pop(0).removeprefix("extra "))
        if extra is None:
            raise BrokenError("proof has extra data that is not base64")
    match = _INDEX.match(lines.pop(0)) if lines else None
    if match is None:
        raise BrokenError("proof has no index")
    if len(lines) > _HASHES_MAX:
        raise BrokenError("proof has more hashes than any tree is high")
    hashes = []
    for line in lines:
        sibling = decode_base64(line)
        if sibling is None or len(sibling) != HASH_BYTES:
            raise BrokenError("proof has a line that is no SHA-256 hash")
        hashes.append(sibling)
    return TlogProof(int(match[1]), tuple(hashes), checkpoint, extra)


def verify_receipt(receipt: bytes, origin: str, public_key: bytes, earlier: Sequence[bytes] = ()) -> Receipt:
    """Return what a receipt proves: this entry is in the log *origin*, under a root that its key has signed.

    1. It has the form of a proof, and carries an entry.
    2. Its checkpoint is of that log and signed by that key, or by one of those *earlier* than it.
    3. The entry's hash and the path give the checkpoint's root.

    Raises BrokenError. Not checked: whose key that is (see statement.py) and of which dump the entry speaks (see
    entry.check_received).
    """
    proof = parse_proof(receipt)
    if proof.extra is None:
        raise BrokenError("receipt does not carry its entry")
    checkpoint = verify_checkpoint(proof.checkpoint, origin, public_key, earlier)
    if root_from_inclusion(leaf_hash(proof.extra), proof.leaf_index, checkpoint.size, proof.hashes) != checkpoint.root:
        raise BrokenError("receipt does not lead to the root of its checkpoint")
    return Receipt(proof.extra, parse_entry(proof.extra), proof.leaf_index, checkpoint)


def proved_ranges(leaf: bytes, index: int, size: int, hashes: Sequence[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield what an inclusion proof says of its log: ranges of entries (the first, and the one behind the last) and their hashes.

    From the leaf's own up to the root's. The hash of a range depends on its entries alone (RFC 6962 section 2.1), so two proofs
    that give one range two hashes are of two logs. Not checked: that the proof holds (root_from_inclusion does that); one that has
    another shape than its place in the tree gives fewer ranges.
    """
    first, end, node = index, index + 1, leaf
    yield first, end, node
    for (beside, beside_end), sibling in zip(reversed(_sibling_ranges(index, size)), hashes, strict=False):
        yield beside, beside_end, sibling
        node = node_hash(sibling, node) if beside < first else node_hash(node, sibling)
        first, end = min(first, beside), max(end, beside_end)
        yield first, end, node


def inclusion_from_stream(leaves: Iterable[bytes], index: int, size: int) -> tuple[list[bytes], bytes]:
    """Return the inclusion proof of the leaf at *index* in the tree of the first *size* leaves, and that leaf's hash.

    *leaves* are leaf hashes in order and are read once, in memory that does not grow with them. Raises BrokenError when there are
    fewer than *size*; ValueError when *index* is outside the tree.
    """
    if not 0 <= index < size:
        raise ValueError(index)
    ranges = _sibling_ranges(index, size)
    in_order = sorted(range(len(ranges)), key=lambda at: ranges[at])
    subtrees = [Frontier() for _ in ranges]
    leaf, position, current = b"", 0, 0
    for leaf_here in leaves:
        if position == size:
            break
        if position == index:
            leaf = leaf_here
        else:
            while position >= ranges[in_order[current]][1]:
                current += 1
            subtrees[in_order[current]].append(leaf_here)
        position += 1
    if position < size:
        raise BrokenError(f"log has {position} entries, its checkpoint says {size}")
    return [subtree.root() for subtree in reversed(subtrees)], leaf


def _sibling_ranges(index: int, size: int) -> Sequence[tuple[int, int]]:
    """Return the half-open ranges of leaves under the siblings of the path to *index*, from the root's child down."""
    ranges = []
    first, end = 0, size
    while end - first > 1:
        middle = first + (1 << (end - first - 1).bit_length() - 1)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    return ranges


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
