"""From a descriptor to one local file: the pump's frames between a header and a trailer, written in order by a thread.

Where no thread can be started the caller's does all of it.
"""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from threading import Thread

from securecore import limits
from securecore.declarations import NamedTuple
from securecore.dump.packing import Packing
from securecore.elfsize import CoreSize
from securecore.errors import Bug, SecurecoreError, StorageError
from securecore.sender.forecast import Forecast
from securecore.sender.pump import Frame, Pump, SourceEnd, fill, make_frame
from securecore.sender.threads import start


class Packed(NamedTuple):
    """What became of a source."""

    end: SourceEnd
    size: int
    """Plaintext bytes that what was written stands for."""
    stored_bytes: int
    sha256: bytes
    """Of all that was written."""
    failure: SecurecoreError | None
    """Why not everything could be written; then the source was not read to its end."""


class Packer:
    """Writes what a pump makes of its source; for one source."""

    def __init__(
        self,
        packing: Packing,
        write: Callable[[bytes], None],
        on_progress: Callable[[int], None] | None = None,
        end: Callable[[bytes], None] | None = None,
    ) -> None:
        """*write* raises a SecurecoreError when it cannot take all of its bytes, and takes none of them then.

        *end* is the same for what ends the file, *write* where it is None; *on_progress* is told plaintext bytes.
        """
        self._packing, self._write, self._end, self._on_progress = packing, write, end or write, on_progress
        self._header: bytes | None = packing.header
        self._forecast, self._size = Forecast(), 0
        self._find_size: Callable[[], int | None] = lambda: self._pump.predicted_size
        self._pump = Pump(packing.make_encoder, on_progress, packing.observe)
        self._digest = sha256()
        self._stored_bytes = 0
        self._failure: SecurecoreError | None = None
        self._finished = False
        self._thread = Thread(target=self._take_frames, daemon=True)

    def pack(
        self, source: int, head: bytes = b"", find_cut: Callable[[], str | None] = lambda: None, piece_s: float = math.inf
    ) -> Packed:
        """Drain *source*, close it at once, finish the file, and return what became of it; the rest is Pump.read's.

        A process that may start no thread packs in this one: slower, but the core is kept.
        """
        try:
            start(self._thread)
        except StorageError:
            end = self._pack_alone(source, head, find_cut, piece_s)
        else:
            end = self._pack_with_pump(source, head, find_cut, piece_s)
        self._finish()
        return Packed(end, self._size, self._stored_bytes, self._digest.digest(), self._failure)

    @property
    def expected_bytes(self) -> int:
        """How many bytes the frames are likely to take that are not written yet; 0 where nobody can tell."""
        size = self._find_size()
        return self._forecast.expect(max(0, size - self._size)) if size is not None else 0

    def _pack_with_pump(self, source: int, head: bytes, find_cut: Callable[[], str | None], piece_s: float) -> SourceEnd:
        try:
            self._pump.read(source, head, find_cut, piece_s)
        finally:
            os.close(source)
            self._thread.join()
        end = self._pump.end
        if end is None:
            raise Bug("the source has not ended")
        if not self._finished:
            self._failure = Bug("the packing thread died")
        return end

    def _pack_alone(self, source: int, head: bytes, find_cut: Callable[[], str | None], piece_s: float) -> SourceEnd:
        """Do without a pump what it and the thread do; want of memory for a piece ends the source here too."""
        core, begun, size = CoreSize(), memoryview(head), 0
        problem: str | None = None
        try:
            self._find_size = lambda: core.expected
            encoder, buffer, length = self._packing.make_encoder(), bytearray(limits.PIECE_BYTES), limits.PIECE_BYTES
            while length == limits.PIECE_BYTES and self._failure is None:
                filled, begun = begun[: limits.PIECE_BYTES], begun[limits.PIECE_BYTES :]
                buffer[: len(filled)] = filled
                length, problem = fill(source, buffer, len(filled), piece_s)
                if length:
                    piece = memoryview(buffer)[:length]
                    core.feed(piece)
                    frame = make_frame(encoder, piece)
                    self._packing.observe(piece)
                    self._try(self._put_frame, frame)
                    size += length
                if self._on_progress is not None:
                    self._on_progress(size)
        except MemoryError:
            problem = "out of memory"
        except StorageError as error:
            problem = error.message
        finally:
            os.close(source)
        return SourceEnd(size, core.expected, core.is_undecided, problem or find_cut())

    def _take_frames(self) -> None:
        try:
            self._try(self._put_frames)
            self._finished = True
        finally:
            # Frames that nobody will keep are taken all the same, so that the reading thread does not wait for ever.
            self._pump.abandon()
            for _ in self._pump.frames():
                pass

    def _put_frames(self) -> None:
        for frame in self._pump.frames():
            self._put_frame(frame)

    def _put_frame(self, frame: Frame) -> None:
        # Before anything is written: whether there is room is asked with it.
        self._forecast.add(frame.plain, len(frame.stored))
        self._put_header()
        self._put(frame.stored, self._write)
        # Only now: the trailer speaks of what was written.
        self._packing.add(len(frame.stored), frame.plain)
        self._size += frame.plain

    def _put_header(self) -> None:
        if self._header is not None:
            self._put(self._header, self._write)
            self._header = None

    def _finish(self) -> None:
        """End the file, also one whose rest was refused, if there is anything in it: standard programs read it then."""
        if self._failure is None:
            self._try(self._put_header)
        if self._failure is None:
            self._try(self._put_trailer)
        elif self._size > 0 and not isinstance(self._failure, Bug):
            with suppress(SecurecoreError, MemoryError):
                self._put_trailer()

    def _put_trailer(self) -> None:
        self._put(self._packing.trailer(), self._end)

    def _put(self, data: bytes, write: Callable[[bytes], None]) -> None:
        write(data)
        self._digest.update(data)
        self._stored_bytes += len(data)

    def _try(self, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except SecurecoreError as error:
            self._failure = error
        except MemoryError:
            self._failure = StorageError("the file could not be written: out of memory")
