"""What a crash's handler reads first, its settings and the roots that it believes, read before there is a crash.

The agent looks before each fork: a look is one stat(2) for either file, the reading 2 ms, for which a crashed process would wait.
Any change of a file, of its owner or its mode too, has all of it read again, so that what is kept is what a look would read.

The key is not kept: the child of a crash forks another one, for what the crashed program's file holds, before it reads that.
"""

import os
import ssl
from typing import NamedTuple

from securecore import tls
from securecore.errors import ConfigError
from securecore.sender.settings import Settings, load_settings

_State = tuple[int, ...]
"""What changes when a file is written, replaced, or given to others."""


class Provisions(NamedTuple):
    """What was read."""

    settings: Settings
    context: ssl.SSLContext | None
    """It has no certificate to present yet. None where there are no roots; who tries again learns why."""


class Keeper:
    """Keeps the provisions of one settings file."""

    def __init__(self, settings_path: str) -> None:
        self._settings_path = settings_path
        self._kept: Provisions | None = None
        self._states: list[_State] = []

    def look(self) -> Provisions | None:
        """Return what the files say now; None where that cannot be read: who tries again learns why."""
        if self._kept is None or self._states != [_find_state(self._settings_path), _find_state(_roots_of(self._kept.settings))]:
            self._kept = self._read()
        return self._kept

    def _read(self) -> Provisions | None:
        try:
            # Each before the reading: what is written meanwhile is another state than this one.
            state = _find_state(self._settings_path)
            settings = load_settings(self._settings_path)
            self._states = [state, _find_state(_roots_of(settings))]
            return Provisions(settings, _find_context(settings.identity))
        except (ConfigError, MemoryError):
            return None


def _roots_of(settings: Settings) -> str:
    return os.path.join(settings.identity, "ca.pem")


def _find_context(identity: str) -> ssl.SSLContext | None:
    try:
        return tls.anchored_context(identity)
    except ConfigError:
        return None


def _find_state(path: str) -> _State:
    try:
        found = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return (
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode, found.st_uid, found.st_gid,
    )  # fmt: skip
