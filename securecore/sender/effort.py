"""How hard to compress, told by what waits for whom.

A process that crashed waits for the slowest of three: whoever writes its core, the compressor, and whoever takes the frames. Level
1 is for the first two. Where finished frames wait for a slow wire the workers would stand still: in the same time they make smaller
frames, and all of them are through sooner. As soon as that queue gets short, or a piece waits for a worker, it is level 1 again.

Nothing is lighter than level 1. The levels below it, -1 to -5, take 17 to 37 % less time and 6 to 55 % more room for a managed
heap; what they save one worker, the wire, the receiver and its disk pay for.
"""

from securecore import limits
from securecore.declarations import Callable, Final
from securecore.dump.compression import EagerCompressor
from securecore.sender import ahead
from securecore.sender.pump import Pump

LEVELS: Final = (limits.ZSTD_LEVEL, 3, 6)
"""Program text takes 1, 0.87 and 0.82 of room, and 1, 1.8 and 5 of time (measured). Above 6 the tables of two workers have no place
in the handler's 64 MiB."""
_MANY: Final = 8
"""Of a pump's eleven pieces: so many frames wait for the wire, and not for each other."""
_FEW: Final = 2
"""A worker may need as long for its piece as the wire for so many frames."""
TURN: Final = ahead.PIECES
"""Pieces for which a state must last before more is tried, as many as a full queue: a receiver that is busy with its disk for a
moment is no slow wire."""


class Effort:
    """The level for the next piece. For several threads at once: a piece that one of them does not count does no harm."""

    def __init__(self) -> None:
        self._step = self._pieces = 0

    def find_level(self, frames: int, pieces: int) -> int:
        """Return the level for a piece that a worker has just taken up.

        So many *frames* wait to be taken, those that are being made included, and so many *pieces* for a worker.
        """
        if pieces or frames <= _FEW:
            self._step = self._pieces = 0
        elif frames >= _MANY:
            self._pieces += 1
            if self._pieces >= TURN:
                self._step, self._pieces = min(self._step + 1, len(LEVELS) - 1), 0
        return LEVELS[self._step]


def eager_pump(on_progress: Callable[[int], None] | None = None) -> Pump:
    """Return a pump whose frames get smaller where they wait to be taken; *on_progress* is as Pump has it."""
    effort = Effort()
    pump = Pump(lambda: EagerCompressor(lambda: effort.find_level(*pump.queues)), on_progress)
    return pump
