"""A file on a disk that loses a write: the sync says so once, and the page cache goes on to show what the disk has not.

That is what Linux does after an error of writeback: the pages are marked clean, so that no later sync writes them, and they are
read back as they were written until the cache drops them (fsync(2), "Errors"; Rebello and others, USENIX ATC 2020).
"""

import errno
import os
from pathlib import Path
from typing import Any, Final

import pytest

_WATCHED: Final = ("write", "pwrite", "ftruncate", "fsync", "fdatasync", "posix_fadvise")


class LossyFile:
    """What the disk has of one file, that the calls of this process change; all that is there in the beginning is on it."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self._path = path
        self.losses = 0
        """How many of the next syncs fail, and lose what they were to write."""
        self.on_disk = bytearray(path.read_bytes())
        self._dirty: list[tuple[int, int]] = []
        self._real = {name: getattr(os, name) for name in _WATCHED}
        for name in _WATCHED:
            patch.setattr(os, name, self._watch(name))

    def _watch(self, name: str) -> Any:
        def watched(fd: int, *arguments: Any) -> Any:
            if not os.path.samestat(os.fstat(fd), self._path.stat()):
                return self._real[name](fd, *arguments)
            if name in ("fsync", "fdatasync"):
                return self._sync()
            before = os.lseek(fd, 0, os.SEEK_END)
            answer = self._real[name](fd, *arguments)
            if name == "write":
                self._dirty.append((before, before + answer))
            elif name == "pwrite":
                start = arguments[1] if os.fstat(fd).st_size == before else before
                self._dirty.append((start, start + answer))
            elif name == "ftruncate":
                del self.on_disk[arguments[0] :]
                self._dirty = [(start, min(end, arguments[0])) for start, end in self._dirty if start < arguments[0]]
            elif arguments[2] == os.POSIX_FADV_DONTNEED:
                self._drop_clean_pages()
            return answer

        return watched

    def _sync(self) -> None:
        dirty, self._dirty = self._dirty, []
        if self.losses:
            self.losses -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data = self._path.read_bytes()
        self.on_disk.extend(bytes(max(0, len(data) - len(self.on_disk))))
        for start, end in dirty:
            self.on_disk[start:end] = data[start:end]

    def _drop_clean_pages(self) -> None:
        data = bytearray(self.on_disk.ljust(self._path.stat().st_size, b"\0"))
        cached = self._path.read_bytes()
        for start, end in self._dirty:
            data[start:end] = cached[start:end]
        with self._path.open("r+b") as file:
            file.write(data)
