"""Turns that handlers take at what they share: flock(2), with a bound on how long a crashed process waits for one."""

import fcntl
import time

from securecore.declarations import Final

_PAUSE_S: Final = 0.002
"""Between two tries: a few turns, of less than a millisecond each (STORM_LOCK_S). A flock that waits by itself has no bound."""


def take_turn(fd: int, patience_s: float) -> bool:
    """Lock the file *fd*, trying for *patience_s* where others have it; return whether it is ours. Raises OSError as flock(2) does.

    Closing every descriptor of the same opening lets it go.
    """
    ends_at = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= ends_at:
                return False
            time.sleep(_PAUSE_S)
        else:
            return True
