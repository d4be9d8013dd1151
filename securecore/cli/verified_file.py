"""The file in which ``audit verify --state`` remembers what it verified, and who else may write it."""

import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from securecore import limits
from securecore.audit.statement import LogKey
from securecore.audit.verified import Verified, VerifiedLogs
from securecore.dump import directory
from securecore.errors import ConfigError
from securecore.names import HostName
from securecore.store.layout import Store

_NEW: Final = "there is nothing in {path} yet: all is verified from the beginning, and held against nothing earlier"
_SAME_OWNER: Final = "{path} belongs to the owner of the store, who could put both back; keep it as another user, or elsewhere"


class VerifiedFile:
    """What is remembered of a store's logs, read from a file and written to it; a context manager."""

    def __init__(self, path: Path, store: Store, log_key: LogKey) -> None:
        """Raises ConfigError when the file is none of ours, is of another store, may be written by others, or lies in the store."""
        self._path = path
        self._is_changed = False
        self._directory = _open_parent(path, store)
        try:
            self._logs = self._read(store, log_key.name)
        except BaseException:
            os.close(self._directory)
            raise

    @property
    def hosts(self) -> list[HostName]:
        """The hosts whose logs have been verified once."""
        return self._logs.hosts

    def find(self, origin: str) -> Verified | None:
        """Return what is remembered of a log."""
        return self._logs.find(origin)

    def take(self, note: bytes | None) -> None:
        """Remember that the log of this checkpoint holds; None, that of one that does not, changes nothing."""
        if note is not None:
            self._logs.take(note, datetime.now(UTC))
            self._is_changed = True

    def write(self) -> None:
        """Make it durable, whole; raises StorageError, and then the file is what it was."""
        if self._is_changed:
            directory.replace_file(self._path.name, self._directory, self._logs.encode())

    def _read(self, store: Store, receiver: str) -> VerifiedLogs:
        fd = directory.open_file(self._path.name, self._directory)
        if fd is None:
            click.echo(f"note: {_NEW.format(path=self._path)}", err=True)
            return VerifiedLogs(store.store_id, receiver)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"{self._path}: others than you may write it", hint="it is no witness then; begin a new one")
        if status.st_uid == os.stat(store.path).st_uid:
            click.echo(f"note: {_SAME_OWNER.format(path=self._path)}", err=True)
        text = directory.read_file(self._path.name, self._directory, limits.MAX_VERIFIED_BYTES)
        try:
            return VerifiedLogs.parse(text or b"", store.store_id, receiver)
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {error.message}", hint=error.hint) from error

    def __enter__(self) -> "VerifiedFile":
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self._directory)


def _open_parent(path: Path, store: Store) -> int:
    """Return a descriptor of the directory that a file lies in, not in the store; no link is followed in its own place."""
    parent = os.path.realpath(path.parent)
    if Path(parent).is_relative_to(os.path.realpath(store.path)):
        raise ConfigError(f"{path}: lies in the store", hint="whoever edits the store would edit it too; name a file elsewhere")
    try:
        return os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: its directory cannot be opened: {(error.strerror or '').lower()}") from error
