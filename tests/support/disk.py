"""A disk that loses power: what is left of a directory when only what was made durable survives.

The real calls are watched and done. A file survives with the bytes that it had at its last fsync, and a name when its directory was
fsynced since it was given; so a missing fsync anywhere loses something, as it may on a real disk and almost never does in a test.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from securecore.errors import StorageError

NAMED: Final = ("link", "rename", "unlink", "mkdir", "rmdir")
"""Calls that take names in directories."""
OPEN: Final = ("write", "ftruncate", "fsync", "fdatasync")
"""Calls that take a descriptor."""


_Answer = TypeVar("_Answer")


class Killed(BaseException):
    """The process ends here; no handler of errors sees it."""


class Disk:
    """Watches the calls that change what is under *root*; all that is there in the beginning is durable."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.before: Callable[[str], None] = lambda call: None
        """Told of each call before it is done, as ``rename hosts/HOST``: with the new name, or that of the open file."""
        self.is_tearing = False
        """Whether a write that *before* ends, by raising, is done by half all the same."""
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._moved: list[tuple[int, int, str]] = []
        self._held: list[int] = []
        for path in (root, *(path for path in root.rglob("*") if path.is_dir() or path.is_file())):
            self._keep(os.open(path, os.O_RDONLY))

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Put the watched calls in place of the real ones."""
        for name in NAMED:
            patch.setattr(os, name, self._watch_named(name, getattr(os, name)))
        for name in OPEN:
            patch.setattr(os, name, self._watch_open(name, getattr(os, name)))

    def watched(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return what watches a call, of NAMED or OPEN, and does *real*: for who does not put it in its place by ``watch``."""
        return self._watch_named(call, real) if call in NAMED else self._watch_open(call, real)

    def concerns(self, call: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        """Return whether a call with these arguments changes what is under the root."""
        if call in OPEN:
            return self._find(arguments[0], "") is not None
        paths = [name for name in arguments if isinstance(name, (str, os.PathLike))]
        return self._find(options.get("dst_dir_fd", options.get("dir_fd")), os.fspath(paths[-1])) is not None

    def survivors(self) -> dict[str, bytes | None]:
        """Return what a power cut leaves: the bytes of every file and None for every directory, by path under the root."""
        found: dict[str, bytes | None] = {}
        self._collect(os.stat(self._root).st_ino, "", found)
        return found

    def restore(self, target: Path) -> None:
        """Make the new directory *target* what a power cut leaves."""
        target.mkdir(0o700)
        for name, data in self.survivors().items():
            if data is None:
                (target / name).mkdir(0o700)
            else:
                (target / name).write_bytes(data)
                (target / name).chmod(0o600)

    def descriptors(self) -> frozenset[int]:
        """Return the descriptors that hold the inodes."""
        return frozenset(self._held)

    def close(self) -> None:
        """Let go of the inodes, whose numbers were kept from being given out again."""
        for fd in self._held:
            os.close(fd)
        self._held.clear()

    def _watch_named(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*names: Any, **options: Any) -> Any:
            paths = [name for name in names if isinstance(name, (str, os.PathLike))]
            source, target = options.get("src_dir_fd", options.get("dir_fd")), options.get("dst_dir_fd", options.get("dir_fd"))
            where = self._find(target, os.fspath(paths[-1]))
            if where is not None:
                self.before(f"{call} {where}")
            real(*names, **options)
            if where is not None and call == "mkdir":
                self._keep_new_directory(self._root / where)
            if where is not None and call == "rename" and source is not None and target is not None:
                self._moved.append((os.fstat(target).st_ino, os.fstat(source).st_ino, os.fspath(paths[0])))

        return watched

    def _watch_open(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(fd: int, *arguments: Any) -> Any:
            where = self._find(fd, "")
            if where is not None:
                try:
                    self.before(f"{call} {where}")
                except BaseException:
                    if call == "write" and self.is_tearing:
                        real(fd, arguments[0][: len(arguments[0]) // 2])
                    raise
            result = real(fd, *arguments)
            if where is not None and call in ("fsync", "fdatasync"):
                self._keep(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
            return result

        return watched

    def _find(self, fd: int | None, name: str) -> str | None:
        """Return the path under the root, None for what is elsewhere."""
        path = Path(os.readlink(f"/proc/self/fd/{fd}") if fd is not None else "", name)
        return str(path.relative_to(self._root)) if path.is_relative_to(self._root) else None

    def _keep_new_directory(self, path: Path) -> None:
        self._held.append(os.open(path, os.O_RDONLY))
        self._names[os.fstat(self._held[-1]).st_ino] = {}

    def _keep(self, fd: int) -> None:
        self._held.append(fd)
        inode = os.fstat(fd).st_ino
        path = os.readlink(f"/proc/self/fd/{fd}")
        if not os.path.isdir(path):
            self._bytes[inode] = os.pread(fd, os.fstat(fd).st_size, 0)
            return
        with os.scandir(fd) as entries:
            self._names[inode] = {entry.name: entry.inode() for entry in entries}
        # A rename is one step of a file system's journal: when its new name is durable, the old one is gone.
        for target, source, name in self._moved:
            if target == inode != source and self._names.get(source, {}).get(name) in self._names[inode].values():
                del self._names[source][name]

    def _collect(self, inode: int, prefix: str, found: dict[str, bytes | None]) -> None:
        for name, child in self._names.get(inode, {}).items():
            if child in self._names:
                found[prefix + name] = None
                self._collect(child, f"{prefix}{name}/", found)
            else:
                found[prefix + name] = self._bytes.get(child, b"")


def run_until(fatal: int | None, disk: Disk, work: Callable[[], _Answer]) -> _Answer | None:
    """Do *work*, and die before the disk's call with that number; return its answer when it did not come to that."""
    calls = 0

    def count(call: str) -> None:
        nonlocal calls
        calls += 1
        if fatal is not None and calls >= fatal:
            raise Killed

    disk.before = count
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        try:
            return work()
        except Killed:
            return None


def refuse(fd: int, data: bytes) -> None:
    """Be a full disk, in the place of directory.write_all."""
    raise StorageError("the disk is full")


class FailingDisk:
    """In the place of os.fsync: fails the *fatal*-th time it is called, for want of room."""

    def __init__(self, fatal: int) -> None:
        self.calls = 0
        self.fatal = fatal
        self.real = os.fsync

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls == self.fatal:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.real(descriptor)
