"""Finding which frames of a stored core are damaged, and which plaintext that costs.

Only the Merkle root is signed, not each leaf; so what tells a damaged frame from a good one is its own checksum and form. Frames
are found by the seek table while that adds up, because it leads past a frame whose block headers are damaged; else by walking them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import NamedTuple

from securecore import limits
from securecore.audit.threads import in_order, usable_cpus
from securecore.dump.compression import Decompressor
from securecore.dump.frames import check_frame
from securecore.dump.reader import DumpReader, open_container, scan_frames
from securecore.errors import BrokenError, PeerError, StorageError
from securecore.merkle import Frontier, leaf_hash

Progress = Callable[[int, int], None]
"""Told how many frames (or entries) are done, and of how many, in the thread that verifies."""


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
    has_more: bool = False
    """Whether frames follow that were not read: one more than was expected tells that it is another core."""


def survey_core(
    fd: int, expected: tuple[int, int] | None, *, decode: bool, progress: Progress | None = None, threads: int | None = None
) -> Survey:
    """Return a survey of the container behind *fd*, read once from its beginning in bounded memory.

    *expected* is the number of frames and of plaintext bytes by the manifest, so that what is missing at the end can be named. With
    *decode* every frame is decompressed and its checksum verified; without, only its form is checked, and damage to its content
    shows in the root alone. A read error counts as damage. Of what stands behind the frames that are *expected* one is read. Frames
    are looked at by so many *threads*, else one for each CPU; the outcome is the same, and what *progress* raises ends it when the
    frames under way are done.
    """
    survey = _Surveyor(expected, decode=decode, progress=progress, threads=usable_cpus() if threads is None else threads)
    try:
        reader = open_container(fd)
    except (BrokenError, StorageError) as error:
        survey.walk(fd, error.message)
    else:
        survey.follow_table(reader)
    return survey.result()


class _Look(NamedTuple):
    """What was found of one frame."""

    leaf: bytes
    stored: int
    """Bytes that could be read."""
    plain: int
    """The length that it declares; of one that is too damaged for that, what was stated."""
    problem: str | None


class _Examiner:
    """Looks at frames; for use by several threads, each of which gets a decompressor of its own."""

    def __init__(self, *, decode: bool) -> None:
        self._decode = decode
        self._own = threading.local()

    def look(self, frame: bytes | memoryview, stated: int) -> _Look:
        """Return what holds of a frame, which ought to stand for so many bytes."""
        plain, problem = stated, None
        try:
            plain = len(self._decompressor().piece(frame)) if self._decode else check_frame(frame)
        except (BrokenError, PeerError) as error:
            problem = error.message
        return _Look(leaf_hash(frame), len(frame), plain, problem)

    def read(self, reader: DumpReader, index: int) -> _Look:
        """Return the same of a frame where the seek table says that it is; with one that cannot be read no root can agree."""
        stated = reader.entries[index].plain
        try:
            frame = reader.frame(index)
        except (BrokenError, StorageError) as error:
            return _Look(leaf_hash(b""), 0, stated, error.message)
        return self.look(frame, stated)

    def _decompressor(self) -> Decompressor:
        made: Decompressor | None = getattr(self._own, "decompressor", None)
        if made is None:
            made = self._own.decompressor = Decompressor()
        return made


class _Surveyor:
    def __init__(self, expected: tuple[int, int] | None, *, decode: bool, progress: Progress | None, threads: int) -> None:
        self._expected = expected
        self._examiner = _Examiner(decode=decode)
        self._progress = progress
        self._threads = threads
        self._total = expected[0] if expected else 0
        self._frontier = Frontier()
        self._plain_bytes = 0
        self._stored_bytes = 0
        self._table_problem: str | None = None
        self._read_problem: str | None = None
        self._damage: list[Damage] = []
        self._most = expected[0] + 1 if expected else limits.MAX_FRAMES
        """Frames to be read: whoever sends a core for verification decides how many there are."""
        self._has_more = False

    def follow_table(self, reader: DumpReader) -> None:
        """Take the frames where the seek table says that they are."""
        frames = min(len(reader.entries), self._most)
        self._total = self._total or frames
        self._has_more = len(reader.entries) > frames
        threads = self._threads if frames >= limits.MIN_SHARED_FRAMES else 1
        with closing(in_order((partial(self._examiner.read, reader, index) for index in range(frames)), threads)) as looks:
            for index, look in enumerate(looks):
                self._take(look)
                stated = reader.entries[index].plain
                if look.plain != stated:
                    self._table_problem = f"says that frame {index} holds {stated} bytes, it holds {look.plain}"
        self._lose_the_rest("missing")

    def walk(self, fd: int, why: str) -> None:
        """Take the frames one after the other, as far as they can be told apart."""
        self._table_problem = why
        with closing(in_order(self._walk(fd), self._threads)) as looks:
            for look in looks:
                self._take(look)
        self._lose_the_rest(self._read_problem or "cut off, or damaged so that the frames behind it cannot be found")

    def result(self) -> Survey:
        return Survey(
            self._frontier.size,
            self._frontier.root(),
            self._plain_bytes,
            self._stored_bytes,
            self._table_problem,
            self._damage,
            self._has_more,
        )

    def _walk(self, fd: int) -> Iterator[Callable[[], _Look]]:
        """Yield a look at each frame that can be found; where the disk refuses to go on, they end, and it is noted."""
        try:
            for number, scanned in enumerate(scan_frames(fd)):
                if number == self._most:
                    self._has_more = True
                    break
                yield partial(self._examiner.look, scanned.data, scanned.plain)
        except StorageError as error:
            self._read_problem = error.message

    def _take(self, look: _Look) -> None:
        """Count one frame, the next in order."""
        index = self._frontier.size
        self._frontier.append(look.leaf)
        self._stored_bytes += look.stored
        self._plain_bytes += look.plain
        if look.problem is not None:
            self._note(index, index, look.plain, look.problem)
        if self._progress is not None:
            self._progress(index + 1, self._total)

    def _lose_the_rest(self, reason: str) -> None:
        index = self._frontier.size
        if self._expected is not None and index < self._expected[0]:
            self._note(index, self._expected[0] - 1, max(self._expected[1] - index * limits.PIECE_BYTES, 0), reason)

    def _note(self, first: int, last: int, plain: int, reason: str) -> None:
        start = first * limits.PIECE_BYTES
        before = self._damage[-1] if self._damage else None
        if before is not None and before.last_frame == first - 1 and before.reason == reason:
            self._damage[-1] = before._replace(last_frame=last, plain_end=start + plain)
        else:
            self._damage.append(Damage(first, last, start, start + plain, reason))
