"""What whoever tries a dry run may not look at: set-up itself is root's, and so is much of what it looks at first."""

import os
from collections.abc import Iterable

from securecore.cli.machine.root import Root


def find_unseen(directory: str, names: Iterable[str], root: Root) -> str | None:
    """Return the path of what this user may not read: *directory*, or else the first of *names* in it.

    None where all of them can be read. What is not there is no matter of sight: whoever needs it says so.
    """
    place = root.outside(directory)
    if _is_hidden(place, os.R_OK | os.X_OK):
        return place
    return next((path for name in names if _is_hidden(path := f"{place}/{name}", os.R_OK)), None)


def _is_hidden(path: str, rights: int) -> bool:
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(path, rights, effective_ids=True)
