"""Reading files whose permissions matter: private keys, passphrases, and the public files beside them."""

import os
import stat
from pathlib import Path
from typing import Final

from securecore.errors import ConfigError, NotFoundError, StorageError

_LOOSE: Final = stat.S_IRWXG | stat.S_IRWXO


def read_private(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file that only its owner may touch.

    Raises ConfigError when the file gives its group or others any right, when it belongs to somebody other than us or root, or
    when it isn't a regular file of at most *max_bytes*; NotFoundError when it isn't there; StorageError when it can't be read. A
    symbolic link is followed, and what it leads to is checked, on the descriptor that is read.
    """
    return _read(path, max_bytes, private=True)


def read_public(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file of at most *max_bytes*; raises like read_private, whatever mode and owner are."""
    return _read(path, max_bytes, private=False)


def _read(path: Path, max_bytes: int, *, private: bool) -> bytes:
    try:
        # O_NONBLOCK so that a FIFO in the file's place is refused below instead of waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise StorageError(f"{path}: can't be opened: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path}: not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if private:
            _check_private(path, status)
        if status.st_size > max_bytes:
            raise ConfigError(f"{path}: {status.st_size} bytes, at most {max_bytes} are read")
        try:
            return file.read(max_bytes)
        except OSError as error:
            raise StorageError(f"{path}: can't be read: {error.strerror}") from error


def _check_private(path: Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & _LOOSE:
        raise ConfigError(f"{path}: its mode is {mode:04o}, others than its owner may touch it", hint=f"chmod 600 {path}")
    if status.st_uid not in (os.geteuid(), 0):
        hint = "run this as the key's owner, as in `runuser -u securecore -- securecore …`"
        raise ConfigError(f"{path}: it belongs to user {status.st_uid}, not to us (user {os.geteuid()}) or root", hint=hint)
