"""From a descriptor to one local file: the pump's frames between a header and a trailer, written in order by a thread."""

import os
from collections.abc import Callable
from hashlib import sha256
from threading import Thread
from typing import NamedTuple

from securecore.dump.packing import Packing
from securecore.errors import Bug, SecurecoreError
from securecore.sender.pump import Pump, SourceEnd


class Packed(NamedTuple):
    """What became of a source."""

    end: SourceEnd
    stored_bytes: int
    sha256: bytes
    """Of all that was written."""
    failure: SecurecoreError | None
    """Why not everything could be written; then the source was not read to its end."""


class Packer:
    """Writes what a pump makes of its source; for one source."""

    def __init__(self, packing: Packing, write: Callable[[bytes], None], on_progress: Callable[[int], None] | None = None) -> None:
        """*write* raises a SecurecoreError when it cannot take all of its bytes; *on_progress* is told plaintext bytes."""
        self._packing, self._write = packing, write
        self._pump = Pump(packing.make_encoder, on_progress, packing.observe)
        self._digest = sha256()
        self._stored_bytes = 0
        self._failure: SecurecoreError | None = None
        self._finished = False
        self._thread = Thread(target=self._take_frames, daemon=True)

    def pack(self, source: int) -> Packed:
        """Drain *source*, close it at once, finish the file, and return what became of it."""
        self._thread.start()
        try:
            self._pump.read(source)
        finally:
            os.close(source)
            self._thread.join()
        end = self._pump.end
        if end is None:
            raise Bug("the source has not ended")
        if not self._finished:
            self._failure = Bug("the packing thread died")
        if self._failure is None:
            self._try(lambda: self._put(self._packing.trailer()))
        return Packed(end, self._stored_bytes, self._digest.digest(), self._failure)

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
        self._put(self._packing.header)
        for frame in self._pump.frames():
            self._packing.add(len(frame.stored), frame.plain)
            self._put(frame.stored)

    def _put(self, data: bytes) -> None:
        self._write(data)
        self._digest.update(data)
        self._stored_bytes += len(data)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except SecurecoreError as error:
            self._failure = error
