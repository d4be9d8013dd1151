"""May root run this file? Only when nobody but root can change it, or any directory on the way to it (R26)."""

import os
import stat
from typing import Final

from securecore.cli.machine.root import Root
from securecore.errors import ConfigError

_MAX_LINKS: Final = 40
"""Symbolic links on the way: as many as the kernel follows (path_resolution(7))."""


def check_trusted(path: str, root: Root, what: str) -> list[str]:
    """Return warnings about the way to *path*; raises ConfigError when somebody other than root can change anything on it.

    Links are followed, each as the machine that boots from *root* would, and both ends are looked at. What is not there yet is as
    safe as the directory that it will be made in. A sticky directory such as /tmp is safe for what root has made there, but it is
    no place for what must last: a warning.
    """
    warnings: list[str] = []
    left, seen, links = path.split("/")[1:], "", 0
    _check_one("/", root, what, warnings)
    while left:
        name = left.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            seen = seen.rpartition("/")[0]
            continue
        here = f"{seen}/{name}"
        status = _check_one(here, root, what, warnings)
        if status is None:
            break
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MAX_LINKS:
                raise ConfigError(f"{what} {path}: too many symbolic links on the way")
            target = os.readlink(root.outside(here))
            left = [*target.split("/"), *left]
            seen = "" if target.startswith("/") else seen
        else:
            seen = here
    return warnings


def check_contents(directory: str, root: Root, what: str) -> None:
    """Raise ConfigError when somebody other than root can change anything directly in *directory*; it may be missing."""
    try:
        names = sorted(os.listdir(root.outside(directory)))
    except OSError:
        return
    for name in names:
        _check_one(f"{directory}/{name}", root, what, [])


def is_reachable(path: str) -> bool:
    """Return whether every user of the live machine may read what is at *path*, as far as the modes of the way to it say."""
    real = os.path.realpath(path)
    parts = real.split("/")[1:]
    ways = ["/" + "/".join(parts[:count]) for count in range(len(parts))]
    try:
        return all(os.stat(way).st_mode & stat.S_IXOTH for way in ways) and bool(os.stat(real).st_mode & stat.S_IROTH)
    except OSError:
        return False


def _check_one(path: str, root: Root, what: str, warnings: list[str]) -> os.stat_result | None:
    try:
        status = os.lstat(root.outside(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{what}: {root.outside(path)}: {(error.strerror or '').lower()}") from error
    place, mode = root.outside(path), stat.S_IMODE(status.st_mode)
    # Whoever builds an image without root owns it until it is packed.
    if status.st_uid not in ({0} if root.is_live else {0, os.geteuid()}):
        raise ConfigError(f"{what}: {place} belongs to uid {status.st_uid}, who could change what root runs", hint=_HINT)
    if stat.S_ISLNK(status.st_mode) or not mode & 0o022:
        return status
    if stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX:
        warnings.append(f"{what} lies below {place}, where everybody may write: fit for a trial, not for good")
        return status
    raise ConfigError(
        f"{what}: {place} can be written by others than root (mode {mode:04o}), who could change what root runs",
        hint=f"chmod go-w {place}",
    )


_HINT: Final = "install where only root can write, as in /opt/securecore or /usr"
