"""Blocks that a file system keeps for a file before they are written, so that nobody else takes them meanwhile.

By fallocate(2) with FALLOC_FL_KEEP_SIZE: the file's length stays what was written, so no reader sees zeroes.
"""

import ctypes
import errno
import os

from securecore.declarations import Final
from securecore.dump import directory as files

_KEEP_SIZE: Final = 0x01
"""FALLOC_FL_KEEP_SIZE of linux/falloc.h."""
_REFUSALS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What a disk says that would not take the bytes either. Anything else only says that it keeps none for us: EOPNOTSUPP on NFS 3 and
FAT, ENOSYS of an old kernel, EPERM of a filter of system calls."""
_BLOCK_BYTES: Final = 512
"""What st_blocks counts, whatever the file system's own block is (stat(2))."""


def allocate(fd: int, size: int) -> bool:
    """Keep blocks for the first *size* bytes of a file; return False where that cannot be had.

    Raises StorageError when it has not so many; then nothing is kept beyond the file's end, not even what was kept there before.
    """
    if size <= 0:
        return True
    library = ctypes.CDLL(None, use_errno=True)
    # Where a C library has both, the plain one takes offsets of 32 bits on a machine of 32.
    call = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None:
        return False
    code = errno.EINTR
    while code == errno.EINTR:
        done = call(ctypes.c_int(fd), ctypes.c_int(_KEEP_SIZE), ctypes.c_longlong(0), ctypes.c_longlong(size)) == 0
        code = 0 if done else ctypes.get_errno()
    if code in _REFUSALS:
        # ext4 keeps what it had found by then; tmpfs gives it back itself.
        release(fd)
        raise files.disk_refused(OSError(code, os.strerror(code)), f"cannot keep {size} bytes free for a core")
    return code == 0


def release(fd: int) -> None:
    """Give back what is kept beyond the end of a file; raises StorageError.

    A truncate to the length that the file has frees it on ext4, tmpfs and overlayfs (measured, Linux 6.18); to punch a hole there
    does nothing on ext4.
    """
    try:
        os.ftruncate(fd, os.fstat(fd).st_size)
    except OSError as error:
        raise files.disk_refused(error, "cannot give back what was kept for a core") from error


def taken_bytes(status: os.stat_result) -> int:
    """Return what a file takes of its disk, with what is kept for it; its length, where a disk that compresses takes less."""
    return max(status.st_size, status.st_blocks * _BLOCK_BYTES)
