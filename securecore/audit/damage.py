"""Finding which frames of a stored core are damaged, and which plaintext that costs.

Only the Merkle root is signed, not each leaf; so what tells a damaged frame from a good one is its own checksum and form. Frames
are found by the seek table while that adds up, because it leads past a frame whose block headers are damaged; else by walking them.
"""

from collections.abc import Callable
from typing import NamedTuple

from securecore import limits
from securecore.dump.compression import Decompressor
from securecore.dump.frames import check_frame
from securecore.dump.reader import DumpReader, open_container, scan_frames
from securecore.errors import BrokenError, PeerError, StorageError
from securecore.merkle import Frontier, leaf_hash

Progress = Callable[[int, int], None]
"""Told how many frames (or entries) are done, and of how many."""


class Damage(NamedTuple):
    """Neighbouring frames that cannot be read back, and the half-open range of plaintext bytes that they stood for."""

    first_frame: int
    last_frame: int
    plain_start: int
    plain_end: int
    reason: str


class Survey(NamedTuple):
    """What stands in a core.zst, recomputed from nothing but itself."""

    frames: int
    root: bytes
    plain_bytes: int
    stored_bytes: int
    """Of the frames, without the seek table."""
    table_problem: str | None
    damage: list[Damage]


def survey_core(fd: int, expected: tuple[int, int] | None, *, decode: bool, progress: Progress | None = None) -> Survey:
    """Return a survey of the container behind *fd*, read once from its beginning in bounded memory.

    *expected* is the number of frames and of plaintext bytes by the manifest, so that what is missing at the end can be named. With
    *decode* every frame is decompressed and its checksum verified; without, only its form is checked, and damage to its content
    shows in the root alone. A read error counts as damage.
    """
    survey = _Surveyor(expected, decode=decode, progress=progress)
    try:
        reader = open_container(fd)
    except (BrokenError, StorageError) as error:
        survey.walk(fd, error.message)
    else:
        survey.follow_table(reader)
    return survey.result()


class _Surveyor:
    def __init__(self, expected: tuple[int, int] | None, *, decode: bool, progress: Progress | None) -> None:
        self._expected = expected
        self._decompressor = Decompressor() if decode else None
        self._progress = progress
        self._total = expected[0] if expected else 0
        self._frontier = Frontier()
        self._plain_bytes = 0
        self._stored_bytes = 0
        self._table_problem: str | None = None
        self._damage: list[Damage] = []

    def follow_table(self, reader: DumpReader) -> None:
        """Take the frames where the seek table says that they are."""
        self._total = self._total or len(reader.entries)
        for index, entry in enumerate(reader.entries):
            try:
                frame = reader.frame(index)
            except (BrokenError, StorageError) as error:
                self._lose(index, entry.plain, error.message)
                continue
            plain = self._take(frame, entry.plain)
            if plain != entry.plain:
                self._table_problem = f"says that frame {index} holds {entry.plain} bytes, it holds {plain}"
        self._lose_the_rest(self._frontier.size, "missing")

    def walk(self, fd: int, why: str) -> None:
        """Take the frames one after the other, as far as they can be told apart."""
        self._table_problem = why
        try:
            for scanned in scan_frames(fd):
                self._take(scanned.data, scanned.plain)
        except StorageError as error:
            self._lose_the_rest(self._frontier.size, error.message)
        else:
            self._lose_the_rest(self._frontier.size, "cut off, or damaged so that the frames behind it cannot be found")

    def result(self) -> Survey:
        return Survey(
            self._frontier.size, self._frontier.root(), self._plain_bytes, self._stored_bytes, self._table_problem, self._damage
        )

    def _take(self, frame: bytes | memoryview, plain: int) -> int:
        """Count one frame; return the length that it declares itself, *plain* when it is too damaged for that."""
        index = self._frontier.size
        self._frontier.append(leaf_hash(frame))
        self._stored_bytes += len(frame)
        try:
            plain = check_frame(frame) if self._decompressor is None else len(self._decompressor.piece(frame))
        except (BrokenError, PeerError) as error:
            self._note(index, index, plain, error.message)
        self._plain_bytes += plain
        if self._progress is not None:
            self._progress(index + 1, self._total)
        return plain

    def _lose(self, index: int, plain: int, reason: str) -> None:
        """Count a frame that cannot be read; the root can then no longer agree."""
        self._frontier.append(leaf_hash(b""))
        self._plain_bytes += plain
        self._note(index, index, plain, reason)

    def _lose_the_rest(self, index: int, reason: str) -> None:
        if self._expected is not None and index < self._expected[0]:
            self._note(index, self._expected[0] - 1, max(self._expected[1] - index * limits.PIECE_BYTES, 0), reason)

    def _note(self, first: int, last: int, plain: int, reason: str) -> None:
        start = first * limits.PIECE_BYTES
        before = self._damage[-1] if self._damage else None
        if before is not None and before.last_frame == first - 1 and before.reason == reason:
            self._damage[-1] = before._replace(last_frame=last, plain_end=start + plain)
        else:
            self._damage.append(Damage(first, last, start, start + plain, reason))
