"""A machine that has memory for so many of a pump's buffers, and for no more."""

import errno
import os
from mmap import mmap

import pytest

from securecore.sender import ahead


def leave_memory_for(buffers: int, patch: pytest.MonkeyPatch) -> None:
    """Have every buffer after the next *buffers* refused, as the kernel does when there is no memory."""
    left = buffers

    def make(fd: int, length: int, flags: int) -> mmap:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        left -= 1
        return mmap(fd, length, flags)

    patch.setattr(ahead, "mmap", make)
