"""Noticing that an identity directory has changed: a new CRL that was copied or fetched must count, whoever forgets the SIGHUP."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from securecore.certs import identity_directory

LOOK_EVERY_S: Final = 30.0
"""A change is taken at the second look that finds it: within a minute, next to the hour in which lists are fetched. A look is seven
calls of stat(2)."""

_END_S: Final = 1.0
"""A look at a disk that does not answer must not hold up a receiver that is told to stop."""

_FILES: Final = (
    identity_directory.CA, identity_directory.CERTIFICATE, identity_directory.KEY, identity_directory.CRL,
    identity_directory.LOG_KEY, identity_directory.LOG_STATEMENT, identity_directory.LOG_KEYS,
)  # fmt: skip

_Stamp = tuple[tuple[int, int, int] | None, ...]
"""Of each file: inode, time of the last change to its content, length; None where it is missing."""


class IdentityWatch:
    """What the files of an identity directory looked like when they were loaded, and at the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken: _Stamp | None = _stamp(path)
        self._last: _Stamp | None = self._taken

    def look(self, path: Path) -> bool:
        """Return whether the directory, now at *path*, has changed and is at rest again; then it counts as taken.

        At rest is what two looks in a row find the same: certificate and key are replaced one after the other.
        """
        found = _stamp(path)
        if path != self._path:
            # Whoever has changed the path has had it loaded, but nobody knows what it looked like then: once more is no harm.
            self._path, self._taken, self._last = path, None, None
        is_at_rest, self._last = found == self._last, found
        if found == self._taken or not is_at_rest:
            return False
        self._taken = found
        return True

    @contextmanager
    def telling(self, tell: Callable[[], None], where: Callable[[], Path]) -> Iterator[None]:
        """Call *tell*, from a thread, at each change of the directory that *where* names, while the block runs."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(LOOK_EVERY_S):
                if self.look(where()):
                    tell()

        thread = threading.Thread(target=watch, name="identity watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_END_S)


def _stamp(path: Path) -> _Stamp:
    return tuple(_stamp_of(path / name) for name in _FILES)


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
