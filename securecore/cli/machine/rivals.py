"""Who else wants core_pattern: sysctl.d(5) files, and services that set it when they start."""

import re
from typing import Final, NamedTuple

from securecore.cli.machine.root import Root
from securecore.errors import StorageError

# In this order a file hides one of the same name in a later directory; all together are read in the order of their names.
_DIRECTORIES: Final = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
_LAST: Final = "/etc/sysctl.conf"
"""`sysctl --system` reads it after all others; Debian links it into /etc/sysctl.d as 99-sysctl.conf."""

_LINE: Final = re.compile(r"^\s*-?\s*kernel[./]core_pattern\s*=\s*(.*?)\s*$", re.MULTILINE)
_SERVICES: Final = ("apport.service", "abrt-ccpp.service")


class Rivals(NamedTuple):
    """Files that set core_pattern: read before ours, which then wins, and after ours; and services that set it."""

    earlier: tuple[str, ...]
    later: tuple[str, ...]
    services: tuple[str, ...]


def find_rivals(root: Root, ours: str) -> Rivals:
    """Return who sets core_pattern beside the sysctl.d file *ours*."""
    files: dict[str, str] = {}
    for directory in _DIRECTORIES:
        for name in _names(root, directory):
            if name.endswith(".conf"):
                files.setdefault(name, f"{directory}/{name}")
    own_name = ours.rpartition("/")[2]
    setting = {name: path for name, path in files.items() if path != ours and _sets_pattern(root, path)}
    later = [path for name, path in sorted(setting.items()) if name > own_name]
    if _sets_pattern(root, _LAST):
        later.append(_LAST)
    services = [
        name
        for name in _SERVICES
        if any(name in _names(root, directory) for directory in ("/etc/systemd/system", "/usr/lib/systemd/system"))
    ]
    return Rivals(tuple(path for name, path in sorted(setting.items()) if name < own_name), tuple(later), tuple(services))


def _names(root: Root, directory: str) -> list[str]:
    try:
        return root.names(directory)
    except StorageError:
        return []


def _sets_pattern(root: Root, path: str) -> bool:
    try:
        found = root.find(path)
    except StorageError:
        # A link (99-sysctl.conf leads to /etc/sysctl.conf, which is read by itself) or nothing that we can read.
        return False
    return found is not None and _LINE.search(found.content.decode("utf-8", "replace")) is not None
