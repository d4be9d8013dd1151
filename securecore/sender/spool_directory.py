"""The spool as a directory that may be used: all that who asks the storm limits has to know of it, and pays for."""

import os

from securecore.declarations import Final
from securecore.dump import directory as files
from securecore.errors import ConfigError
from securecore.names import DumpId, is_uuid

_FORMAT: Final = b"securecore-spool 1\n"
DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_HINTS: Final[dict[type[OSError], str]] = {
    FileNotFoundError: "`securecore setup sender` makes it",
    PermissionError: "root may look into it, and whose it is",
    NotADirectoryError: "name the directory itself, and no link to it",
}


def open_spool_directory(path: str) -> int:
    """Return a descriptor of the spool at *path*; raises ConfigError when there is none of this version, or others may look in.

    Raises StorageError when FORMAT cannot be read.
    """
    try:
        fd = os.open(path, DIRECTORY_FLAGS)
    except OSError as error:
        raise ConfigError(f"spool {path}: {error.strerror}", hint=_HINTS.get(type(error))) from error
    try:
        check_format(fd, path)
        mode = os.fstat(fd).st_mode
        if mode & 0o077:
            raise ConfigError(f"spool {path}: mode is {mode & 0o777:04o}, others may look into it", hint=f"chmod 700 {path}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_format(spool: int, path: str) -> None:
    """Raise ConfigError when a directory is no spool of this version, StorageError when its FORMAT cannot be read."""
    text = files.read_file("FORMAT", spool, 200) or b""
    is_ours = text.startswith(_FORMAT) and text.endswith(b"\n")
    if not is_ours or not is_uuid(text[len(_FORMAT) : -1].decode("latin-1")):
        raise ConfigError(f"{path} is not a spool of this version")


def has_dump(spool: int | None, dump: DumpId) -> bool:
    """Return whether the spool has an entry of a dump; not where there is none, or where the disk does not say."""
    if spool is None:
        return False
    try:
        os.stat(f"dumps/{dump}", dir_fd=spool, follow_symlinks=False)
    except OSError:
        return False
    return True
