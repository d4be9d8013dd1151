"""Lines about crashes where there is no state that could count them: one now and then, by the time of an empty file in /run.

Without a spool nothing tells how often a line was said before, and whoever crashes on and on would fill the log with it.
"""

import os

from securecore.declarations import Final
from securecore.sender import storm_limits

STAMPS: Final = ("/run/securecore/uncounted", "/run/securecore-uncounted")
"""Its time is when the last line was said. It is the first of these whose directory is there and takes it: the agent may write
beside its socket only. Nobody but root writes in either, and both are empty after a boot."""


def is_due(now: float) -> bool:
    """Return whether a line may be said at *now* (Unix seconds), and note that it is; for root, before it is given up.

    Where nothing can be noted it may be said: one line too many is better than none.
    """
    for stamp in STAMPS:
        try:
            os.close(os.open(stamp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return _is_old(stamp, now)
        except OSError:
            continue
        break
    return True


def _is_old(stamp: str, now: float) -> bool:
    try:
        # A clock that was set back must not silence the lines.
        if 0 <= now - os.stat(stamp, follow_symlinks=False).st_mtime < storm_limits.UNCOUNTED_LINE_EVERY_S:
            return False
        os.utime(stamp, (now, now), follow_symlinks=False)
    except OSError:
        pass
    return True
