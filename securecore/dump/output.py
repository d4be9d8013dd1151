"""A file that a person asked for: it appears whole and durable under its name, or not at all.

It is written beside its name and linked into place at the end, never over anything. Until then its aside name is visible; what a
kill -9 leaves there is refused by the next run, which cannot know whether somebody still writes it.
"""

import os
from types import TracebackType
from typing import Final

from securecore import limits
from securecore.dump import directory as files
from securecore.dump.frames import is_zero
from securecore.errors import StorageError

_HOLE_BYTES: Final = 64 * limits.KIB
"""Stretches of zeroes at least this long become holes: sixteen looks at a piece instead of 256, and few small writes."""


class NewFile:
    """A new file at *path*, 0600, open for writing as ``fd`` until ``publish``; without that, leaving the block removes it."""

    def __init__(self, path: str) -> None:
        """Raises StorageError when something stands at *path*, or its directory does not take a file."""
        parent, self._name = os.path.split(path)
        self._path, self._directory = path, -1
        self.fd = -1
        if os.path.lexists(path):
            raise StorageError(f"{path}: already exists", hint="name another file, or remove it first")
        self._aside = files.aside_name(self._name)
        self._is_ours = False
        try:
            self._directory = os.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(self._aside, flags, 0o600, dir_fd=self._directory)
            self._is_ours = True
        except FileExistsError as error:
            self._close()
            left = os.path.join(parent, self._aside)
            raise StorageError(f"{left}: already exists", hint="another run writes it, or was killed: then remove it") from error
        except OSError as error:
            self._close()
            raise files.disk_refused(error, path) from error

    def publish(self) -> None:
        """Make the file durable and give it its name; raises StorageError when the disk refuses or the name is taken by now."""
        files.sync(self.fd)
        fd, self.fd = self.fd, -1
        files.close(fd)
        files.link_into_place(self._aside, self._name, self._directory)
        self._is_ours = False
        files.sync(self._directory)

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_ours:
            # Half a file that looks like a whole one is worse than none.
            os.unlink(self._aside, dir_fd=self._directory)
        self._close()

    def _close(self) -> None:
        for fd in (self.fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self.fd = self._directory = -1


def write_sparse(fd: int, piece: bytes | memoryview, offset: int) -> None:
    """Write *piece*, at most PIECE_BYTES, at *offset*, leaving out its long stretches of zeroes.

    The caller sets the file's length at the end.
    """
    if is_zero(piece):
        return
    view = memoryview(piece)
    begin: int | None = None
    for start in range(0, len(piece) + _HOLE_BYTES, _HOLE_BYTES):
        stretch = view[start : start + _HOLE_BYTES]
        if begin is None and not is_zero(stretch):
            begin = start
        elif begin is not None and is_zero(stretch):  # the empty stretch behind the end counts as zeroes
            files.write_all_at(fd, view[begin:start], offset + begin)
            begin = None


def set_length(fd: int, size_bytes: int) -> None:
    """Give a file that was written sparsely its length; raises StorageError when the file system has no file of that length."""
    try:
        os.ftruncate(fd, size_bytes)
    except OSError as error:
        raise files.disk_refused(error, "cannot write") from error
