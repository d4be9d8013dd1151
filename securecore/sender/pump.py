"""The pump: from a descriptor to frames, in order, with bounded memory.

One thread (the caller's) reads pieces of 1 MiB; worker threads compress them and hash the frames, both outside the interpreter's
lock; frames leave in order through ``Pump.frames``. A piece occupies a buffer from its first byte until it is compressed, and a
place in the queue until its frame was taken: both are counted, so a slow consumer stops the reading and not the memory.
"""

import os
from _queue import SimpleQueue  # what the queue module would give us, without the five modules that it loads first
from collections.abc import Callable, Iterator
from threading import Event, Semaphore, Thread
from typing import Final, NamedTuple

from securecore import limits
from securecore.dump.compression import Compressor, is_zero
from securecore.dump.frames import ZERO_PIECE_FRAME, ZERO_PIECE_LEAF, zero_frame
from securecore.elfsize import CoreSize
from securecore.errors import StorageError
from securecore.merkle import leaf_hash

WORKERS: Final = 2
_BUFFERS: Final = WORKERS + 2
_QUEUED_FRAMES: Final = 8


class Frame(NamedTuple):
    """One frame, its leaf hash, and the plaintext bytes that it stands for."""

    stored: bytes
    leaf: bytes
    plain: int


class SourceEnd(NamedTuple):
    """What is known once the source has ended."""

    size: int
    """Plaintext bytes read."""
    predicted_size: int | None
    is_header_cut: bool
    """The source ended before its ELF headers did (or before its first byte): it was a core, and most of it is missing."""
    failure: str | None
    """Why reading failed, None when it ended by itself."""


class _Slot:
    """A piece on its way to become a frame."""

    __slots__ = ("buffer", "done", "frame", "length")

    def __init__(self, buffer: bytearray | None, length: int) -> None:
        self.buffer = buffer
        self.length = length
        self.frame: Frame | None = None
        self.done = Event()


class Pump:
    """Reads a descriptor to its end; see the module's docstring for the threads."""

    def __init__(self, level: int = limits.ZSTD_LEVEL, on_progress: Callable[[int], None] | None = None) -> None:
        self.end: SourceEnd | None = None
        """Set before ``frames`` is exhausted."""
        self.first_piece_read = Event()
        """Set when the size can be predicted from the first piece, or never will be."""
        self._abandoned = False
        self._exhausted = False
        self._core_size = CoreSize()
        self._level = level
        self._on_progress = on_progress
        self._buffers: SimpleQueue[bytearray] = SimpleQueue()
        self._work: SimpleQueue[_Slot | None] = SimpleQueue()
        self._ordered: SimpleQueue[_Slot | None] = SimpleQueue()
        self._places = Semaphore(_QUEUED_FRAMES)
        self._workers = [Thread(target=self._compress, daemon=True) for _ in range(WORKERS)]

    @property
    def predicted_size(self) -> int | None:
        """The length that the core must have by its ELF headers; None when unknown so far, or for good."""
        return self._core_size.expected

    def read(self, fd: int) -> None:
        """Read *fd* to its end, blocking when frames are not taken; the caller closes it."""
        for worker in self._workers:
            worker.start()
        for _ in range(_BUFFERS):
            self._buffers.put(bytearray(limits.PIECE_BYTES))
        # Until it has ended by itself, it has not: an exception on the way must not look like an end.
        size = 0
        failure: str | None = "reading was interrupted"
        try:
            while True:
                buffer = self._buffers.get()
                length, problem = _fill(fd, buffer)
                size += length
                if length:
                    self._core_size.feed(memoryview(buffer)[:length])
                    self._dispatch(buffer, length)
                self.first_piece_read.set()
                if self._on_progress is not None:
                    self._on_progress(size)
                if length < limits.PIECE_BYTES or self._abandoned:
                    failure = problem
                    break
        finally:
            self.end = SourceEnd(size, self.predicted_size, self._core_size.is_undecided, failure)
            self.first_piece_read.set()
            self._ordered.put(None)
            for _ in self._workers:
                self._work.put(None)

    def abandon(self) -> None:
        """Make ``read`` stop at its next piece: nobody will keep what it reads. The consumer still takes ``frames`` to the end."""
        self._abandoned = True

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order, for one consumer in another thread than ``read``'s; nothing more once it was exhausted."""
        while not self._exhausted:
            slot = self._ordered.get()
            if slot is None:
                self._exhausted = True
                return
            slot.done.wait()
            self._places.release()
            if slot.frame is None:
                raise StorageError("a piece could not be compressed: out of memory")
            yield slot.frame

    def _dispatch(self, buffer: bytearray, length: int) -> None:
        self._places.acquire()
        piece = buffer if length == limits.PIECE_BYTES else memoryview(buffer)[:length]
        slot = _Slot(buffer, length)
        if is_zero(piece):
            stored = ZERO_PIECE_FRAME if length == limits.PIECE_BYTES else zero_frame(length)
            leaf = ZERO_PIECE_LEAF if length == limits.PIECE_BYTES else leaf_hash(stored)
            slot.frame = Frame(stored, leaf, length)
            slot.done.set()
            self._buffers.put(buffer)
        else:
            self._work.put(slot)
        self._ordered.put(slot)

    def _compress(self) -> None:
        compressor = Compressor(self._level)
        while (slot := self._work.get()) is not None:
            buffer = slot.buffer
            if buffer is None:
                continue
            try:
                stored = compressor.frame(memoryview(buffer)[: slot.length])
                slot.frame = Frame(stored, leaf_hash(stored), slot.length)
            except MemoryError:
                pass  # The slot stays empty, and its consumer says why.
            finally:
                slot.buffer = None
                self._buffers.put(buffer)
                slot.done.set()


def _fill(fd: int, buffer: bytearray) -> tuple[int, str | None]:
    """Read until *buffer* is full or the source ends; return the bytes read and why reading failed, if it did."""
    view = memoryview(buffer)
    filled = 0
    while filled < len(buffer):
        try:
            got = os.readv(fd, [view[filled:]])
        except OSError as error:
            return filled, error.strerror or "read failed"
        if got == 0:
            break
        filled += got
    return filled, None
