"""A file that a person asked for: it appears whole and durable under its name, or not at all.

It is written without a name (O_TMPFILE of open(2)) and linked into place at the end, never over anything: whatever ends us before,
kill -9 too, leaves nothing. File systems that have no such files (NFS, FAT, FUSE) get one beside the name, and what a kill leaves
there is refused by the next run, which cannot know whether somebody still writes it.
"""

import errno
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
        self._aside: str | None = None
        try:
            self._directory = os.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.fd = self._open_unnamed()
            if self.fd < 0:
                self.fd = self._open_aside(parent)
        except OSError as error:
            self._close()
            raise files.disk_refused(error, path) from error
        except StorageError:
            self._close()
            raise

    def _open_unnamed(self) -> int:
        """Return a descriptor of a file without a name, -1 where there is none, or no /proc to name it by in the end."""
        try:
            fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        except OSError as error:
            # EISDIR: a kernel or a file system below (NFS, FUSE) that does not know the flag opens the directory itself (open(2)).
            if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):
                return -1
            raise
        if os.path.exists(f"/proc/self/fd/{fd}"):
            return fd
        os.close(fd)
        return -1

    def _open_aside(self, parent: str) -> int:
        aside = files.aside_name(self._name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(aside, flags, 0o600, dir_fd=self._directory)
        except FileExistsError as error:
            left = os.path.join(parent, aside)
            raise StorageError(f"{left}: already exists", hint="another run writes it, or was killed: then remove it") from error
        self._aside = aside
        return fd

    def publish(self) -> None:
        """Make the file durable and give it its name; raises StorageError when the disk refuses or the name is taken by now."""
        files.sync(self.fd)
        # A file system that finds out at close says so to every close; ours is what the name is given to.
        files.close(os.dup(self.fd))
        if self._aside is None:
            self._link_unnamed()
        else:
            files.link_into_place(self._aside, self._name, self._directory)
            self._aside = None
        files.sync(self._directory)

    def _link_unnamed(self) -> None:
        try:
            # With a directory's descriptor Python calls linkat(2), with AT_SYMLINK_FOLLOW: of the link in /proc the file behind it.
            os.link(f"/proc/self/fd/{self.fd}", self._name, dst_dir_fd=self._directory, follow_symlinks=True)
        except OSError as error:
            raise files.disk_refused(error, f"cannot create {self._name!r}") from error

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._aside is not None:
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
