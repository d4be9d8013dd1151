"""The lock of an identity directory: who makes, replaces or removes files in it holds it, and so one run at a time does.

It is flock(2) on the directory itself: no file that stays behind, and the kernel drops it with whoever held it. Readers need none,
for each file is replaced whole.
"""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from securecore.errors import ConfigError, NotFoundError, StorageError

WAIT_S: Final = 30.0
"""An installation takes milliseconds; a renewal as long as its enroller, which has 30 s itself for the lock of its PKI."""

_PAUSE_S: Final = 0.01


class IdentityLock:
    """The lock of one identity directory, for a ``with`` block.

    Raises ConfigError when others hold it for WAIT_S, StorageError when the directory can't be opened or locked. What is not there
    yet, or no directory, is not locked: whoever makes it says ``take`` then. A block within a block is kept out as another process
    is, so functions that are to be called under the lock say so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        """A descriptor of the directory; raises NotFoundError where none was there to lock."""
        if self._fd is None:
            raise NotFoundError(f"{self._path}: no identity directory there")
        return self._fd

    def take(self) -> None:
        """Lock the directory, unless this has been done or it is not there; raises as the class says."""
        if self._fd is not None:
            return
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StorageError(f"{self._path}: can't be opened: {error.strerror}") from error
        try:
            self._wait_for(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _wait_for(self, fd: int) -> None:
        # The kernel knows no deadline for it, and a signal would be the whole process's: hence asking again.
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    words = f"identity {self._path}: another run has been changing it for {WAIT_S:g} s"
                    hint = f"wait for that one; `fuser -v {self._path}` says which process it is, and it may have been stopped"
                    raise ConfigError(words, hint=hint) from error
            except OSError as error:
                raise StorageError(f"{self._path}: can't be locked: {error.strerror}") from error
            time.sleep(_PAUSE_S)
