"""Cores in files that a person names: as the kernel wrote them or compressed, whole or cut, and the reports beside them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from securecore import elfsize
from securecore.dump.frames import MAGIC
from securecore.dump.output import set_length, write_sparse
from securecore.dump.unpacking import Source, unpack
from securecore.elf.analysis import CoreKind, analyse
from securecore.elf.summary import CoreSummary
from securecore.errors import BrokenError, ConfigError, NotFoundError

_HEAD_BYTES: Final = 64
"""An ELF header."""


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of *path*, for reading; raises NotFoundError and ConfigError."""
    try:
        # A FIFO that somebody left there must not make us wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def analyse_file(fd: int, path: Path) -> CoreSummary | None:
    """Return what the core behind *fd* says of its crash, None when it is no core; raises BrokenError when that cannot be told.

    A container of ours is read where it lies. Whatever else is compressed is unpacked into a file without a name first, as far as
    it goes: its notes and the program's first page stand near its beginning. *path* is for messages.
    """
    try:
        head = os.pread(fd, _HEAD_BYTES, 0)
    except OSError:
        return None  # A directory, a pipe, a device: whoever wants a program from it says what it is.
    if _is_core(head):
        return analyse(fd, CoreKind.FILE)
    if head.startswith(MAGIC):
        try:
            return analyse(fd, CoreKind.STORED)
        except BrokenError:
            pass  # Another program's frames, or no core in ours: the next look tells.
    if head.startswith(b"\x7fELF") or not head:
        return None
    try:
        # The temporary file is sparse, 0600, and gone when we are.
        with tempfile.TemporaryFile() as plain:
            return analyse(plain.fileno(), CoreKind.FILE) if _unpack_core(fd, plain.fileno()) else None
    except OSError as error:
        where = tempfile.gettempdir()
        hint = "$TMPDIR names another directory for it"
        raise ConfigError(f"{path}: cannot be unpacked in {where}: {(error.strerror or '').lower()}", hint=hint) from error


def find_report_beside(path: Path) -> Path | None:
    """Return the report beside a core: ``STEM.json`` of ``STEM.gz`` and ``STEM.truncated.gz``, ``report.json`` in a store."""
    stem = path.name.rpartition(".")[0]
    names = [f"{name}.json" for name in (stem, stem.removesuffix(".truncated")) if name]
    if path.name == "core.zst":
        names.insert(0, "report.json")
    return next((found for name in names if (found := path.with_name(name)).is_file()), None)


def _is_core(head: bytes) -> bool:
    return head.startswith(b"\x7fELF") and elfsize.expected_size(head) != -1


def _unpack_core(fd: int, plain: int) -> bool:
    """Write what the compressed file behind *fd* holds to *plain*, and return whether it begins like a core."""
    offset = 0

    def read(length: int) -> bytes:
        nonlocal offset
        data = os.pread(fd, length, offset)
        offset += len(data)
        return data

    size, head = 0, b""
    try:
        for part in unpack(Source(read)).plaintext:
            head += part[: _HEAD_BYTES - len(head)]
            if len(head) == _HEAD_BYTES and not _is_core(head):
                return False
            write_sparse(plain, part, size)
            size += len(part)
    except BrokenError:
        pass  # Cut or damaged, or not compressed at all: what came before that is looked at.
    set_length(plain, size)
    return _is_core(head)
