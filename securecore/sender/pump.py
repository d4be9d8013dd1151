"""The pump: from a descriptor to frames, in order, with bounded memory.

One thread (the caller's) reads pieces of 1 MiB; worker threads compress them and hash the frames, both outside the interpreter's
lock; frames leave in order through ``Pump.frames``. A piece has a place from its first byte until its frame was taken, and there
are only so many (ahead.py): a slow consumer stops the reading and not the memory.

Reading comes first, for a process that crashed waits for nothing else: the workers begin when it can go no further, or a moment
after somebody has asked for frames.
"""

import math
import os
import select
import time
from _queue import SimpleQueue  # what the queue module would give us, without the five modules that it loads first
from collections.abc import Callable, Iterator
from mmap import mmap
from threading import Event, Lock, Thread

from securecore import limits
from securecore.declarations import Final, NamedTuple
from securecore.dump.frames import is_zero
from securecore.dump.manifest import COMPLETE, CUT, SOURCE_TRUNCATED
from securecore.dump.packing import PieceEncoder
from securecore.elfsize import CoreSize
from securecore.errors import StorageError
from securecore.merkle import leaf_hash
from securecore.sender.ahead import Ahead
from securecore.sender.threads import start

WORKERS: Final = 2
"""At the most: a crash must not starve its neighbours. On one processor one: two would take turns there, and twice the memory."""
_HEAD_START_S: Final = 0.05
"""For how long who wants frames lets the reading go on alone: at the speed of memory ahead.PIECES take 6 to 15 ms (measured), and a
source that is slower than that waits for no compressor."""


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

    def outcome(self, *, is_part_lost: bool) -> str:
        """Return what a manifest calls this end; *is_part_lost* when not all that was read could be kept."""
        if self.failure is not None or is_part_lost:
            return CUT
        if self.is_header_cut or (self.predicted_size is not None and self.size < self.predicted_size):
            return SOURCE_TRUNCATED
        return COMPLETE


class _Slot:
    """A piece on its way to become a frame."""

    __slots__ = ("buffer", "done", "failure", "frame", "frame_bytes", "length")

    def __init__(self, buffer: mmap | None, length: int) -> None:
        self.buffer = buffer
        self.length = length
        self.frame: Frame | None = None
        self.frame_bytes = 0
        """Of memory that the frame takes for itself."""
        self.failure: StorageError | None = None
        self.done = Event()


_CALL: Final = _Slot(None, 0)
"""Stands in the queue of frames for a call to the consumer."""


class Pump:
    """Reads a descriptor to its end; see the module's docstring for the threads."""

    def __init__(
        self,
        make_encoder: Callable[[], PieceEncoder],
        on_progress: Callable[[int], None] | None = None,
        on_piece: Callable[[memoryview], None] | None = None,
    ) -> None:
        """*make_encoder* makes one encoder for each worker; *on_progress* is told the plaintext bytes read so far.

        *on_piece* is shown every piece's plaintext, in order, in the reading thread, before anything else is done with it.
        """
        self.size = 0
        """Plaintext bytes read so far, of frames that were not taken yet too."""
        self.end: SourceEnd | None = None
        """Set before ``frames`` is exhausted."""
        self.first_piece_read = Event()
        """Set when the size can be predicted from the first piece, or never will be."""
        self._began_at: float | None = None
        self._abandoned = self._stopped = False
        self._exhausted = False
        self._is_alone = True
        """Whether no worker could be started."""
        self._core_size = CoreSize()
        self._make_encoder = make_encoder
        self._on_progress = on_progress
        self._on_piece = on_piece
        self._whole_zero_piece: Frame | None = None
        self._work: SimpleQueue[_Slot | None] = SimpleQueue()
        self._ordered: SimpleQueue[_Slot | None] = SimpleQueue()
        self._is_ahead = Event()
        """Set when the reading is as far ahead as it can be, or through, or the workers were started meanwhile."""
        # Who takes frames and compresses as well is the one that does not take them.
        self._ahead = Ahead(lambda: self._work.qsize() > 0 and not self._is_alone, self._start_workers)
        self._encoders: list[PieceEncoder] = []
        """The one of who takes frames, where there is no worker."""
        self._starting = Lock()
        self._workers = [Thread(target=self._compress, daemon=True) for _ in range(count_workers())]
        self._unstarted = self._workers

    @property
    def predicted_size(self) -> int | None:
        """The length that the core must have by its ELF headers; None when unknown so far, or for good."""
        return self._core_size.expected

    @property
    def queues(self) -> tuple[int, int]:
        """How many frames wait to be taken, those that are being made included, and how many pieces wait for a worker."""
        return self._ordered.qsize(), self._work.qsize()

    @property
    def held_s(self) -> float:
        """For how long reading has stood still so far because frames were not taken: whoever writes to the source was held."""
        return self._ahead.held_s

    @property
    def reading_s(self) -> float:
        """For how long the source has been read so far, without the time for which that stood still."""
        return 0.0 if self._began_at is None else time.monotonic() - self._began_at - self.held_s

    def read(
        self, fd: int, head: bytes = b"", find_cut: Callable[[], str | None] = lambda: None, piece_s: float = math.inf
    ) -> None:
        """Read *fd* to its end, blocking when frames are not taken; the caller closes it, and may have read *head* of it before.

        *find_cut* tells why the end that was met is not the source's own. Want of memory ends it too, and is named as its cause; so
        does a piece that takes longer than *piece_s* to come.
        """
        # Until it has ended by itself, it has not: an exception on the way must not look like an end.
        begun, self._began_at = memoryview(head), time.monotonic()
        failure: str | None = "reading was interrupted"
        try:
            while True:
                buffer = self._ahead.take()
                filled, begun = begun[: limits.PIECE_BYTES], begun[limits.PIECE_BYTES :]
                buffer[: len(filled)] = filled
                length, problem = fill(fd, buffer, len(filled), piece_s)
                self.size += length
                if length:
                    self._show(memoryview(buffer)[:length])
                    self._dispatch(buffer, length)
                self.first_piece_read.set()
                if self._on_progress is not None:
                    self._on_progress(self.size)
                if length < limits.PIECE_BYTES or self._abandoned or self._stopped:
                    failure = problem or find_cut()
                    break
        except MemoryError:
            failure = "out of memory"
        except StorageError as error:
            failure = error.message
        finally:
            self.end = SourceEnd(self.size, self.predicted_size, self._core_size.is_undecided, failure)
            self.first_piece_read.set()
            self._ordered.put(None)
            for _ in self._workers:
                self._work.put(None)
            self._is_ahead.set()

    def abandon(self) -> None:
        """Make ``read`` stop at its next piece: nobody will keep what it reads. The consumer still takes ``frames`` to the end."""
        self._abandoned = True

    def stop(self) -> None:
        """Make ``read`` stop at its next piece, of which the frame is kept still; from any thread, a signal's handler too."""
        self._stopped = True

    def wake(self) -> None:
        """Have the consumer of ``frames`` look up, also where it waits for a source that stands still; from anywhere, too.

        As ``stop`` and ``held_s`` it takes no lock: the reading thread may have one when a signal's handler calls it there.
        """
        self._ordered.put(_CALL)

    def wait_for_head_start(self) -> None:
        """Let the reading go on alone for a moment, as far as it can go; for whoever would be at work beside it."""
        self._is_ahead.wait(_HEAD_START_S)

    def frames(self, on_wake: Callable[[], None] = lambda: None) -> Iterator[Frame]:
        """Yield the frames in order, for one consumer in another thread than ``read``'s; nothing more once it was exhausted.

        *on_wake* is called between two frames, in the consumer's thread, when somebody calls ``wake``. Raises StorageError where a
        piece could not be compressed; after abandon such pieces are passed over.
        """
        self.wait_for_head_start()
        self._start_workers()
        while not self._exhausted:
            slot = self._ordered.get()
            if slot is _CALL:
                on_wake()
                continue
            if slot is None:
                self._exhausted = True
                return
            while self._is_alone and not slot.done.is_set():
                self._compress_next(self._encoders)
            slot.done.wait()
            self._ahead.leave(slot.frame_bytes)
            if slot.frame is not None:
                yield slot.frame
            elif not self._abandoned:
                raise slot.failure or StorageError("a piece could not be compressed")

    def _start_workers(self) -> None:
        """Start as many as can be, once: where somebody has used up all processes, who takes frames does their work too."""
        with self._starting:
            waiting, self._unstarted = self._unstarted, []
            for worker in waiting:
                try:
                    start(worker)
                except StorageError:
                    # It may run all the same, where memory has failed on the way back.
                    if worker.ident is None:
                        break
                self._is_alone = False
            self._is_ahead.set()

    def _show(self, piece: memoryview) -> None:
        """Let those look at the plaintext who must see all of it in order."""
        self._core_size.feed(piece)
        if self._on_piece is not None:
            self._on_piece(piece)

    def _dispatch(self, buffer: mmap, length: int) -> None:
        slot = _Slot(buffer, length)
        if is_zero(memoryview(buffer)[:length]):
            slot.frame = self._frame_of_zeroes(length)
            slot.done.set()
            self._ahead.give_back(buffer)
        else:
            self._work.put(slot)
        self._ordered.put(slot)

    def _frame_of_zeroes(self, length: int) -> Frame:
        """Return the frame of a piece of zeroes; a whole one, of which there may be very many, is made once."""
        if length == limits.PIECE_BYTES and self._whole_zero_piece is not None:
            return self._whole_zero_piece
        frame = make_frame(self._make_encoder(), bytes(length))
        if length == limits.PIECE_BYTES:
            self._whole_zero_piece = frame
        return frame

    def _compress(self) -> None:
        encoders: list[PieceEncoder] = []
        while self._compress_next(encoders):
            pass

    def _compress_next(self, encoders: list[PieceEncoder]) -> bool:
        """Make a frame of the next piece, and return whether there was one, and not the end; *encoders* has one or none yet."""
        slot = self._work.get()
        if slot is None or slot.buffer is None:
            return False
        buffer = slot.buffer
        try:
            # Made here, not before: a thread that dies for want of memory would leave its pieces waiting for ever.
            if not encoders:
                encoders.append(self._make_encoder())
            slot.frame = make_frame(encoders[0], memoryview(buffer)[: slot.length])
            slot.frame_bytes = len(slot.frame.stored)
        except MemoryError:
            slot.failure = StorageError("a piece could not be compressed: out of memory")
        except StorageError as error:
            slot.failure = error
        finally:
            slot.buffer = None
            try:
                self._ahead.give_back(buffer, slot.frame_bytes)
            finally:
                slot.done.set()
        return True


def count_workers() -> int:
    """Return how many workers a pump has: one for each processor that this process may run on, WORKERS at the most."""
    return min(WORKERS, len(os.sched_getaffinity(0)))


def make_frame(encoder: PieceEncoder, piece: bytes | memoryview) -> Frame:
    """Return the frame of a piece; raises what the encoder does."""
    stored = encoder.frame(piece)
    return Frame(stored, leaf_hash(stored), len(piece))


def fill(fd: int, buffer: bytearray | mmap, filled: int, piece_s: float = math.inf) -> tuple[int, str | None]:
    """Read until *buffer*, of which *filled* bytes are there, is full or the source ends; what is there is read in any case.

    Return the bytes that are there then, and why reading failed, if it did: also where nothing more comes and *piece_s* are over.
    """
    view, ends_at = memoryview(buffer), time.monotonic() + piece_s
    while filled < len(buffer):
        if piece_s < math.inf and not _comes_before(fd, ends_at):
            return filled, f"not a megabyte of the core has come in {piece_s:g} s (source_deadline in [handler] of sender.toml)"
        try:
            got = os.readv(fd, [view[filled:]])
        except OSError as error:
            return filled, error.strerror or "read failed"
        if got == 0:
            break
        filled += got
    return filled, None


def _comes_before(fd: int, ends_at: float) -> bool:
    """Return whether there is something to read, or the end, before a time of the monotonic clock; at once where it is over."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, ends_at - time.monotonic()) * 1000))
