"""A spool's entry as it travels: as it was begun, or with placeholders for a beginning that was lost.

The frames before the first one here were acknowledged, and so are not kept. A store that was put back from an older backup, or
that answers no more, has taken them along. What is here is delivered all the same: whole pieces of zeroes stand for what was lost,
so that each byte keeps its offset, and the manifest says how many they are (docs/wire.md, "A beginning that was lost").
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Final, NamedTuple

from securecore import limits
from securecore.dump import manifest
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.merkle import Frontier, leaf_hash, node_hash
from securecore.names import DumpId
from securecore.sender.settlement import Statement
from securecore.sender.spool_entry import EntryEnd, SpoolEntry

_PLACEHOLDER_LEAF: Final = leaf_hash(ZERO_PIECE_FRAME)
_DOMAIN: Final = b"securecore/instead\0"
"""Keeps the digest from being one of something else."""


class Consignment:
    """One way in which an entry's frames can be a dump."""

    def __init__(self, contents: "Contents", dump: DumpId, lost_frames: int) -> None:
        self._contents = contents
        self.dump = dump
        self.lost_frames = lost_frames
        """The first so many frames are placeholders; 0 where the store has what was there."""

    def tree_at(self, frames: int) -> Frontier | None:
        """Return the tree over the dump's first *frames* frames; None when this entry cannot tell."""
        first = self._contents.first_frame
        if frames < 0 or frames > self.frames or (frames < first and not self.lost_frames):
            return None
        if frames < first:
            return _tree_of_placeholders(frames)
        tree = _tree_of_placeholders(first) if self.lost_frames else self._contents.entry.start.frontier.copy()
        tree.extend(self._contents.leaves[: frames - first])
        return tree

    @property
    def frames(self) -> int:
        """How many frames the dump has."""
        return self._contents.first_frame + self._contents.count

    def frames_from(self, number: int) -> Iterator[bytes]:
        """Yield the frames from *number* on, as they are sent."""
        first = self._contents.first_frame
        for at in range(number, self.frames):
            yield ZERO_PIECE_FRAME if at < first else self._contents.frame(at)

    def end(self) -> EntryEnd:
        """Return how the source ended; what the entry cannot vouch for, or was lost, is ``cut``."""
        end, found, size = self._contents.end, self._contents.whole_end(), self._contents.size
        if found is not None and not self.lost_frames:
            return found
        ended_at = end.ended_at if end is not None else self._contents.entry.start.started_at
        return EntryEnd(size, end.predicted_size if end is not None else None, manifest.CUT, ended_at)

    def statement(self, tree: Frontier) -> Statement:
        """Return what is signed of it, *tree* being that over all its frames."""
        entry = self._contents.entry
        return Statement(self.dump, entry.report, entry.start.started_at, self.end(), tree, self.lost_frames)

    def content(self) -> dict[str, object]:
        """Return what an audit entry of this dump must say, as far as the spool knows it.

        A handler that was killed while it wrote the entry may have sent more than it kept: then the report is all that is known.
        """
        content: dict[str, object] = {"report_sha256": sha256(self._contents.entry.report).hexdigest()}
        end, tree = self._contents.whole_end(), self.tree_at(self.frames)
        if tree is not None and (end is not None or self.lost_frames):
            content |= {"size": self.end().size, "frames": tree.size, "root": tree.root().hex()}
        return content | ({"lost_frames": self.lost_frames} if self.lost_frames else {})


class Contents:
    """What an entry holds, read once."""

    def __init__(self, entry: SpoolEntry) -> None:
        self.entry = entry
        self.end = entry.end()
        self._reader, self.leaves = entry.read()
        self.first_frame = entry.start.frontier.size
        self.count = len(self.leaves)

    def frame(self, number: int) -> bytes:
        """Return the stored bytes of the dump's frame *number*, one of those here."""
        return self._reader.frame(number - self.first_frame)

    @property
    def size(self) -> int:
        """The plaintext bytes of the dump up to the last whole frame here."""
        return self.first_frame * limits.PIECE_BYTES + self._reader.size

    def whole_end(self) -> EntryEnd | None:
        """Return how the source ended, when the frames here are all up to that end, and as they were written; None when not.

        In an entry of an earlier version nothing tells whether they have changed; when none is here, the last one may be a short
        piece that the store has.
        """
        end = self.end
        if end is None:
            return None
        if end.root is not None:
            tree = self.entry.start.frontier.copy()
            tree.extend(self.leaves)
            return end if (tree.size, tree.root()) == (end.frames, end.root) else None
        is_short_one_there = self.count == 0 and self.size - limits.PIECE_BYTES < end.size < self.size
        return end if end.size == self.size or is_short_one_there else None


class Consignments(NamedTuple):
    """All ways in which an entry may travel."""

    as_begun: Consignment
    with_placeholders: Consignment | None
    """Under the same id; None when the entry begins with the dump's first frame."""
    apart: Consignment
    """Under an id of its own, for a receiver that holds something else under the first."""


def consign(entry: SpoolEntry) -> Consignments:
    """Return the ways in which *entry* may travel, after reading all of it.

    Raises BrokenError when its end.json is malformed, StorageError when its core cannot be read.
    """
    contents, dump = Contents(entry), entry.start.dump
    lost = contents.first_frame
    return Consignments(
        Consignment(contents, dump, 0),
        Consignment(contents, dump, lost) if lost else None,
        Consignment(contents, derived_id(dump, lost), lost),
    )


def derived_id(dump: DumpId, first_frame: int) -> DumpId:
    """Return the id under which the frames from *first_frame* on travel when *dump*'s own is taken: always the same one.

    Source: docs/wire.md, "A beginning that was lost".
    """
    digest = sha256(_DOMAIN + bytes(dump) + first_frame.to_bytes(8, "big")).digest()
    return DumpId.make(dump.time_ms, digest[:10])


def _tree_of_placeholders(count: int) -> Frontier:
    """Return the tree over *count* placeholders, in log(count) steps: its perfect subtrees of one height are all the same."""
    peaks, node = [], _PLACEHOLDER_LEAF
    for height in range(count.bit_length()):
        if count >> height & 1:
            peaks.append(node)
        node = node_hash(node, node)
    return Frontier.from_peaks(count, peaks[::-1])
