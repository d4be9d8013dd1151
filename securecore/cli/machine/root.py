"""The file system that set-up works in: the live one, or an image below ``--root``.

Every path is walked from the root's descriptor, component by component, and no symbolic link is followed: neither out of the root
nor to a place that somebody else chose. Files appear whole or not at all, with their mode and owner.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from securecore import limits
from securecore.dump import directory as files
from securecore.errors import ConfigError, StorageError

MAX_FILE_BYTES: Final = limits.MIB
"""A file that set-up replaces, and keeps for --undo: configuration, in practice below 4 KiB."""

Owner = tuple[int, int]
"""User id and group id."""


class Found(NamedTuple):
    """A regular file: its bytes, permissions and owner."""

    content: bytes
    mode: int
    owner: Owner


class Root:
    """An open root directory; paths are absolute as the machine that boots from it sees them.

    Everything raises StorageError with the path when something of the wrong kind is in the way or the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.path = path.resolve(strict=True)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"--root {path}: {(error.strerror or '').lower()}") from error
        self.is_live = self.path == Path("/")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)

    def outside(self, path: str) -> str:
        """Return the path as this machine sees it: below the root directory."""
        return path if self.is_live else f"{self.path}{path}"

    def find(self, path: str, max_bytes: int = MAX_FILE_BYTES) -> Found | None:
        """Return the regular file at *path*, None when there is nothing."""
        with self._about(path), self._parent(path) as (parent, name):
            fd = None if parent is None else files.open_file(name, parent)
            if fd is None:
                return None
            with os.fdopen(fd, "rb") as file:
                status, content = os.fstat(fd), file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise StorageError(f"{self.outside(path)}: longer than any file that set-up knows")
        return Found(content, stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid))

    def status(self, path: str) -> os.stat_result | None:
        """Return what stands at *path*, of a link the link itself; None when nothing does."""
        with self._about(path), self._parent(path) as (parent, name):
            try:
                return None if parent is None else os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def can_look_into(self, path: str) -> bool:
        """Return whether we may look into the directory *path*: who is not root and tries a dry run may not into the handler's."""
        with self._about(path), self._parent(path) as (parent, name):
            return parent is not None and os.access(name, os.R_OK | os.X_OK, dir_fd=parent, effective_ids=True)

    def link_target(self, path: str) -> str | None:
        """Return where the symbolic link at *path* leads, None when there is nothing."""
        status = self.status(path)
        if status is None:
            return None
        if not stat.S_ISLNK(status.st_mode):
            raise StorageError(f"{self.outside(path)}: in the way: not a symbolic link")
        with self._about(path), self._parent(path) as (parent, name):
            return os.readlink(name, dir_fd=parent)

    def names(self, path: str) -> list[str]:
        """Return the names in the directory *path*; none when it is not there."""
        with self._about(path), self._directory(path) as fd:
            return [] if fd is None else files.names_in(fd)

    def write(self, path: str, file: Found) -> None:
        """Write a file, in place of a regular file or of nothing, durably."""
        with self._about(path), self._present_parent(path) as (parent, name):
            aside = files.write_aside(name, parent, file.content)
            fd = os.open(aside, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                _own(fd, file.owner)
                os.fchmod(fd, file.mode)
                files.sync(fd)
            finally:
                os.close(fd)
            os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
            files.sync(parent)

    def write_in_place(self, path: str, content: bytes) -> None:
        """Write to a file that is a door to the kernel (proc(5)): one write, no other name."""
        with self._about(path), self._present_parent(path) as (parent, name):
            fd = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=parent)
            try:
                os.write(fd, content)
            finally:
                os.close(fd)

    def make_link(self, path: str, target: str) -> None:
        """Make the symbolic link *path*."""
        with self._about(path), self._present_parent(path) as (parent, name):
            os.symlink(target, name, dir_fd=parent)

    def make_directory(self, path: str, mode: int, owner: Owner) -> None:
        """Make the directory *path*, or give the one that is there this mode and owner."""
        with self._about(path), self._present_parent(path) as (parent, name):
            fd = files.enter_directory(name, parent)
            try:
                _own(fd, owner)
                os.fchmod(fd, mode)
            finally:
                os.close(fd)

    def rename(self, path: str, name: str) -> None:
        """Give the file *path* another name in its directory, replacing what has that name."""
        with self._about(path), self._present_parent(path) as (parent, old):
            os.rename(old, name, src_dir_fd=parent, dst_dir_fd=parent)

    def remove(self, path: str) -> None:
        """Remove the file or link at *path* if it is there."""
        with self._about(path), self._parent(path) as (parent, name):
            if parent is not None:
                files.remove_file(name, parent)

    def remove_directory(self, path: str) -> bool:
        """Remove the directory *path* if it is there and empty; return whether it is gone."""
        with self._about(path), self._parent(path) as (parent, name):
            try:
                if parent is not None:
                    os.rmdir(name, dir_fd=parent)
            except FileNotFoundError:
                return True
            except OSError:
                return False
        return True

    def give(self, path: str, owners: Mapping[str, Owner]) -> None:
        """Change the owner of regular files in the directory *path*, by name, and of the directory itself (the name ``.``)."""
        with self._about(path), self._directory(path) as directory:
            if directory is None:
                raise FileNotFoundError(0, "no such directory")
            for name, owner in owners.items():
                fd = os.dup(directory) if name == "." else files.open_file(name, directory)
                if fd is None:
                    continue
                try:
                    _own(fd, owner)
                finally:
                    os.close(fd)

    @contextmanager
    def _about(self, path: str) -> Iterator[None]:
        """Put the path before whatever goes wrong."""
        try:
            yield
        except StorageError as error:
            raise StorageError(f"{self.outside(path)}: {error.message}", hint=error.hint) from error
        except OSError as error:
            raise files.disk_refused(error, self.outside(path)) from error

    @contextmanager
    def _present_parent(self, path: str) -> Iterator[tuple[int, str]]:
        with self._parent(path) as (parent, name):
            if parent is None:
                raise FileNotFoundError(0, "no such directory")
            yield parent, name

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int | None, str]]:
        head, _, name = path.rpartition("/")
        with self._directory(head) as fd:
            yield fd, name

    @contextmanager
    def _directory(self, path: str) -> Iterator[int | None]:
        """Yield a descriptor of the directory *path* (empty for the root), None when it, or one above it, is not there."""
        fd: int | None = os.dup(self._fd)
        try:
            for name in path.split("/")[1:]:
                if fd is None:
                    break
                above = fd
                fd = files.open_directory(name, above)
                os.close(above)
            yield fd
        finally:
            if fd is not None:
                os.close(fd)


def _own(fd: int, owner: Owner) -> None:
    """Change the owner unless it is the right one; without root this machine's user keeps what is meant for root."""
    status = os.fstat(fd)
    if (status.st_uid, status.st_gid) != owner and (os.geteuid() == 0 or owner != (0, 0)):
        os.fchown(fd, *owner)
