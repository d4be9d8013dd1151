"""How far a pump reads ahead: so many pieces, read or made into frames, that nobody has taken, and the memory for them.

A process that crashed is let go once its core is read, whatever has become of that here: a small one is read whole, at the speed of
memory, before much of it was compressed. What a piece takes is a buffer until it is compressed, and its frame after that. Buffers
are made when they are needed, the one that was used last is used next, and while many frames wait some are let go of: so pieces and
frames together stay within the same memory, whichever of the two it is that waits.
"""

import time
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from threading import Condition, Lock

from securecore import limits
from securecore.declarations import Callable, Final

PIECES: Final = 11
"""The core of a process with 10 MiB of its own has so many. Beside the ring of 16 MiB they leave the interpreter, its libraries and
two compressors their part of the handler's 64 MiB."""
_STEADY_BUFFERS: Final = 4
"""Once a core has turned out to be larger: two that are compressed, two that are read meanwhile. Eleven in turns would be out of
the processor's caches when they are compressed, which then takes 3 to 5 % more of its time (measured)."""
_MOST_BYTES: Final = (PIECES + 1) * limits.PIECE_BYTES
"""Of buffers and frames: one buffer more, for the piece that is read as soon as a place is free."""


class Ahead:
    """Places for pieces, and their buffers; one thread reads, one takes frames, any number compress."""

    def __init__(self, is_compressing: Callable[[], bool], on_full: Callable[[], object]) -> None:
        """*is_compressing* says whether a piece waits for a worker, *on_full* is called before who reads waits for a place."""
        self._is_compressing, self._on_full = is_compressing, on_full
        self._changed = Condition(Lock())
        self._idle: list[mmap] = []
        self._pieces = self._buffers = self._frame_bytes = 0
        self._most_buffers = PIECES
        self._held: tuple[float, float | None] = (0.0, None)
        """Seconds for which reading stood still until its last wait, and since when it does now; read by another thread."""

    @property
    def held_s(self) -> float:
        """For how long reading has stood still so far because frames were not taken: whoever writes to the source was held.

        Not counted is the time in which a piece waited for a worker, whoever took frames. It takes no lock, see Pump.wake.
        """
        before, since = self._held
        return before if since is None else before + time.monotonic() - since

    @property
    def is_full(self) -> bool:
        """Whether who reads would have to wait for a place."""
        with self._changed:
            return not self._has_place()

    @property
    def bytes(self) -> int:
        """How much memory buffers and frames take."""
        return self._buffers * limits.PIECE_BYTES + self._frame_bytes

    def take(self) -> mmap:
        """Return a buffer for the next piece, once there is a place for it; raises MemoryError when not even one can be had.

        Where memory is short, the buffers that there are have to do.
        """
        while True:
            if self.is_full:
                self._on_full()
            with self._changed:
                self._wait_for_place()
                self._pieces += 1
                if self._idle:
                    return self._idle.pop()
                self._buffers += 1
            try:
                # The kernel's zeroes. A bytearray writes its own over them before a byte of the core is there: a fifth of the time
                # that reading a small core takes (measured).
                return mmap(-1, limits.PIECE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS)
            except OSError as error:
                with self._changed:
                    self._pieces, self._buffers = self._pieces - 1, self._buffers - 1
                    if not self._buffers:
                        raise MemoryError from error
                    self._most_buffers = self._buffers

    def give_back(self, buffer: mmap, frame_bytes: int = 0) -> None:
        """Take the buffer of a piece that has become a frame of so many bytes, 0 for one that takes none."""
        with self._changed:
            self._frame_bytes += frame_bytes
            # One always stays: where memory is short by then, there may be none to be had again.
            if self._buffers > 1 and (self.bytes > _MOST_BYTES or self._buffers > self._most_buffers):
                self._buffers -= 1
            else:
                self._idle.append(buffer)
            self._changed.notify()

    def leave(self, frame_bytes: int = 0) -> None:
        """Give the place back of a piece whose frame, of so many bytes, was taken, or which has none."""
        with self._changed:
            self._pieces -= 1
            self._frame_bytes -= frame_bytes
            self._changed.notify()

    def _wait_for_place(self) -> None:
        if not self._has_place():
            self._most_buffers = min(self._most_buffers, _STEADY_BUFFERS)
        while not self._has_place():
            if self._held[1] is None and self._pieces == PIECES and not self._is_compressing():
                self._held = (self._held[0], time.monotonic())
            self._changed.wait()
        self._held = (self.held_s, None)

    def _has_place(self) -> bool:
        return self._pieces < PIECES and (bool(self._idle) or self._buffers < self._most_buffers)
