"""The beginning of a core, read before anything is done with it: how long the core must be, for who takes none that is too long."""

import os

from securecore import limits
from securecore.declarations import NamedTuple
from securecore.elfsize import CoreSize


class Head(NamedTuple):
    """What was read of a core."""

    data: bytes = b""
    predicted_size: int | None = None
    """None where that is not known: it is no ELF core, or has ended within its headers."""


def read_head(core: int) -> Head:
    """Return as much of *core* as tells its length: its headers, which come first, and what the pipe held behind them.

    A source that cannot be read has ended here; whoever goes on reading meets the same error.
    """
    size, data = CoreSize(), bytearray()
    while size.is_undecided:
        try:
            part = os.read(core, limits.PIECE_BYTES)
        except OSError:
            break
        if not part:
            break
        data += part
        size.feed(part)
    return Head(bytes(data), size.expected)
