"""Files for parsers that read files: in memory, made once for each process and written anew for each input."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def scratch(name: str) -> Path:
    """Return a directory of this process, the same for the same *name*; it goes when the process ends in an orderly way."""
    directory = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@cache
def _memory_file(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC)


def file_of(data: bytes, name: str = "input") -> int:
    """Return a descriptor, the same for the same *name*, of a regular file in memory that holds *data*; mode 0600."""
    fd = _memory_file(name)
    os.ftruncate(fd, 0)
    os.fchmod(fd, 0o600)
    os.pwrite(fd, data, 0)
    return fd
