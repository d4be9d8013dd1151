"""The directory of local mode as one that may be used: all that who asks the storm limits has to know of it, and pays for."""

import os

from securecore.declarations import Final
from securecore.dump import directory as files
from securecore.errors import ConfigError, StorageError
from securecore.sender import privileges

STATE: Final = ".storms"
"""The directory, among the cores, that has the state of the storm limits: nothing else there is the handler's to write."""

Owner = tuple[int, int]


def open_cores_directory(path: str) -> tuple[int, Owner]:
    """Return a descriptor of the directory, and its owner: user and group.

    Raises ConfigError when it is missing, or others than its owner can write in it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        hint = f"make it: install -d -m 0700 -o securecore -g securecore {path}"
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}", hint=hint) from error
    status = os.fstat(fd)
    if status.st_mode & 0o022:
        os.close(fd)
        raise ConfigError(f"{path}: others than its owner can write there", hint=f"chmod go-w {path}")
    return fd, (status.st_uid, status.st_gid)


def check_owner(owner: Owner, path: str) -> None:
    """Raise ConfigError when the directory is root's, or of root's group: its owner is what the handler gives root up for."""
    uid, gid = owner
    if uid == 0 or gid == 0:
        whose = "root" if uid == 0 else "root's group"
        raise ConfigError(
            f"{path}: belongs to {whose}, which the handler must not stay",
            hint=f"chown securecore:securecore {path}, or another user",
        )


def open_state(cores: int, owner: Owner) -> int:
    """Return a descriptor of STATE, made by the owner where it is missing; raises StorageError where the disk refuses it."""
    with privileges.Acting(*owner):
        _make_state(cores)
        fd = files.open_directory(STATE, cores)
    if fd is None:
        raise StorageError(f"cannot open directory {STATE!r}: it vanished")
    return fd


def _make_state(cores: int) -> None:
    # Not durably: the state is advice, and a crashed process would wait for that.
    try:
        os.mkdir(STATE, 0o700, dir_fd=cores)
    except FileExistsError:
        pass
    except OSError as error:
        raise files.disk_refused(error, f"cannot make directory {STATE!r}") from error
