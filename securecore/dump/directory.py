"""Files in private directories, through directory descriptors: no link is followed, nothing is replaced by accident.

Everything here takes the descriptor of a directory and one plain name in it. Files are made 0600 and directories 0700 (the caller's
umask can only take more away); whatever is not a regular file where one is expected is refused and left alone (R9, R10: symbolic
links, FIFOs, devices, directories). Every failure of the disk becomes a StorageError.
"""

import errno
import fcntl
import os
import stat

from securecore.declarations import Final
from securecore.errors import StorageError

_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: opening a planted FIFO must not wait for its other end
_LINES_BYTES: Final = 64 * 1024
"""What a search for the last newline reads at once."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def disk_refused(error: OSError, what: str) -> StorageError:
    """Return the StorageError that says *what* could not be done, and why."""
    reason = "not a regular file" if error.errno in (errno.ELOOP, errno.ENXIO) else (error.strerror or str(error)).lower()
    hint = "free space on that file system" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return StorageError(f"{what}: {reason}", hint=hint)


def open_directory(name: str, parent: int) -> int | None:
    """Return a descriptor of the directory *name* in *parent*; None when there is nothing of that name.

    Raises StorageError when something else stands there.
    """
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise StorageError(f"cannot open {name!r}: not a directory") from error
        raise disk_refused(error, f"cannot open directory {name!r}") from error


def exists(name: str, directory: int, what: str) -> bool:
    """Return whether anything has this name, a link that leads nowhere included; raises StorageError, of *what*."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise disk_refused(error, what) from error
    return True


def make_directory(name: str, parent: int, *, is_durable: bool = True) -> bool:
    """Make the directory *name* in *parent*; return whether it is new. What already stands there is left as it is.

    Not made durable where it is to get another name, or the caller does that; nor is the name of what stands there.
    """
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise disk_refused(error, f"cannot make directory {name!r}") from error
    if is_durable:
        sync(parent)
    return True


def enter_directory(name: str, parent: int) -> int:
    """Return a descriptor of the directory *name* in *parent*, making it as make_directory does when it is not there."""
    make_directory(name, parent)
    fd = open_directory(name, parent)
    if fd is None:
        raise StorageError(f"cannot open directory {name!r}: it vanished")
    return fd


def names_in(directory: int) -> list[str]:
    """Return the names in a directory, in no order."""
    try:
        return os.listdir(directory)
    except OSError as error:
        raise disk_refused(error, "cannot list a directory") from error


def open_file(name: str, directory: int, *, append: bool = False) -> int | None:
    """Return a descriptor of the regular file *name*; None when there is nothing of that name.

    For reading, or with *append* for reading and for writing at its end: then a file with a second hard link is refused too,
    because the bytes would appear under a name that is not ours. Raises StorageError when it is not a regular file.
    """
    try:
        fd = os.open(name, (os.O_RDWR | os.O_APPEND if append else os.O_RDONLY) | _SAFE, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise disk_refused(error, f"cannot open {name!r}") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or (append and status.st_nlink > 1):
        os.close(fd)
        raise StorageError(f"cannot open {name!r}: not a regular file with one name")
    return fd


def create_file(name: str, directory: int) -> int:
    """Return a descriptor, for reading and for writing at its end, of the new file *name*; StorageError when it is there."""
    try:
        return os.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=directory)
    except OSError as error:
        raise disk_refused(error, f"cannot create {name!r}") from error


def read_file(name: str, directory: int, max_bytes: int) -> bytes | None:
    """Return the bytes of the regular file *name*; None when it is not there.

    Raises StorageError when it is longer than *max_bytes*, or no regular file.
    """
    fd = open_file(name, directory)
    if fd is None:
        return None
    try:
        parts, left = [], max_bytes + 1
        while left > 0 and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise disk_refused(error, f"cannot read {name!r}") from error
    finally:
        os.close(fd)
    if left <= 0:
        raise StorageError(f"cannot read {name!r}: longer than {max_bytes} bytes")
    return b"".join(parts)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of *data*; raises StorageError when the disk takes only a part."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(fd, left) :]
    except OSError as error:
        raise disk_refused(error, "cannot write") from error


def write_all_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of *data* at *offset* of a file; raises StorageError when the disk takes only a part."""
    left = memoryview(data)
    try:
        while left:
            written = os.pwrite(fd, left, offset)
            left, offset = left[written:], offset + written
    except OSError as error:
        raise disk_refused(error, "cannot write") from error


def write_again(fd: int, data: bytes, offset: int) -> None:
    """Write the *data* that was read at *offset* of a file once more, where they stand, so that the next sync covers them.

    After a sync that failed Linux goes on to read back what the disk has lost, and no later sync writes it. The file may be open
    for appending; no other thread may write to it meanwhile. Raises StorageError. Source: fsync(2), "Errors".
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    # pwrite(2), "Bugs": with O_APPEND Linux writes at the file's end, whatever the offset.
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
    try:
        write_all_at(fd, data, offset)
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def open_lines(name: str, directory: int) -> int:
    """Return a descriptor of the file of lines *name* for append_line; it is made, durably under its name, when it is not there."""
    fd = open_file(name, directory, append=True)
    if fd is not None:
        return fd
    try:
        fd = create_file(name, directory)
    except StorageError:
        # Another process may have made it meanwhile.
        fd = open_file(name, directory, append=True)
        if fd is None:
            raise
    sync(directory)
    return fd


def append_line(fd: int, line: bytes) -> None:
    """Append *line* and a newline to a file of lines, durably and whole; the caller holds its lock.

    What a crash has left behind the last newline is cut off first, or it would become a part of this line. Raises StorageError when
    the disk refuses; what it has taken of the line is taken back.
    """
    end = _end_of_lines(fd)
    try:
        if os.fstat(fd).st_size > end:
            os.ftruncate(fd, end)
        write_all(fd, line + b"\n")
        sync(fd)
    except OSError as error:
        raise disk_refused(error, "cannot write") from error
    except StorageError:
        try:
            os.ftruncate(fd, end)
        except OSError:
            pass  # The next line cuts it off.
        raise


def _end_of_lines(fd: int) -> int:
    """Return the offset behind the last newline."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - _LINES_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def sync(fd: int) -> None:
    """Make a file or a directory durable; raises StorageError, after which nothing is known of what reached the disk."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise disk_refused(error, "cannot make a write durable") from error


def sync_parent(path: str) -> None:
    """Make the name of what stands at *path* durable, where its parent may be read; raises StorageError as sync does."""
    try:
        fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # A parent that may be entered but not read is durable by its owner's doing: the store was mounted or made for us.
    try:
        sync(fd)
    finally:
        os.close(fd)


def close(fd: int) -> None:
    """Close a file that was written; raises StorageError when the disk says only now that a write failed (close(2))."""
    try:
        os.close(fd)
    except OSError as error:
        raise disk_refused(error, "cannot finish a file") from error


def write_aside(name: str, directory: int, data: bytes) -> str:
    """Write *data* to a new file beside *name*, durably, and return its name; one left there by a crash is replaced."""
    aside = aside_name(name)
    remove_file(aside, directory)
    fd = create_file(aside, directory)
    try:
        write_all(fd, data)
        sync(fd)
    finally:
        os.close(fd)
    return aside


def link_into_place(aside: str, name: str, directory: int) -> None:
    """Give the file *aside* the name *name*, never replacing what stands there; not yet durable."""
    try:
        os.link(aside, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(aside, dir_fd=directory)
    except OSError as error:
        raise disk_refused(error, f"cannot create {name!r}") from error


def write_new_file(name: str, directory: int, data: bytes) -> None:
    """Write the file *name*, which appears whole and durable or not at all; raises StorageError when something stands there."""
    link_into_place(write_aside(name, directory, data), name, directory)
    sync(directory)


def replace_file(name: str, directory: int, data: bytes) -> None:
    """Write the file *name* in place of the one that stands there, durably; at every instant it is the old one or the new one."""
    aside = write_aside(name, directory, data)
    try:
        os.rename(aside, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        raise disk_refused(error, f"cannot replace {name!r}") from error
    sync(directory)


def remove_file(name: str, directory: int) -> None:
    """Remove the file *name* (of a link, the link) if it is there."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise disk_refused(error, f"cannot remove {name!r}") from error


def aside_name(name: str) -> str:
    """Return the name that the file *name* has while it is being written."""
    return f".{name}.new"


def is_aside(name: str) -> bool:
    """Return whether *name* is that of a file that was being written."""
    return name.startswith(".") and name.endswith(".new")
