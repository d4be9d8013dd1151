"""Cores in files that a person names: as the kernel wrote them or compressed, whole or cut, and the reports beside them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from securecore import elfsize, limits
from securecore.cli.sources import open_named
from securecore.dump.frames import MAGIC
from securecore.dump.output import set_length, write_sparse
from securecore.dump.unpacking import Source, unpack
from securecore.elf.analyser import open_core
from securecore.elf.analysis import CoreKind, analyse
from securecore.elf.summary import CoreSummary
from securecore.elfid import ReadAt
from securecore.elfsize import CoreSize
from securecore.errors import BrokenError, StorageError

_HEAD_BYTES: Final = 64
"""An ELF header."""

_UNPACKED_MAX: Final = limits.GIB
"""Plaintext of a foreign file that is looked at: a bomb of a few KiB takes seconds of unpacking, and no disk without end. Notes and
the program's first page stand before the heap, in the first few MiB of a core (fs/binfmt_elf.c)."""

_ELSEWHERE: Final = "$TMPDIR names another directory for it"


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of *path*, for reading; raises NotFoundError and ConfigError."""
    # A FIFO that somebody left there must not make us wait.
    fd = open_named(str(path), os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


class CoreFile(NamedTuple):
    """A core that was looked at."""

    summary: CoreSummary
    is_cut: bool
    """It names no program, and ends before its headers say: what names one may have been in the rest."""


def analyse_file(fd: int, path: Path) -> CoreFile | None:
    """Return what the core behind *fd* says of its crash, None when it is no core; raises BrokenError when that cannot be told.

    A container of ours is read where it lies. The beginning of whatever else is compressed is unpacked into a file without a
    name first, as far as it goes and the disk takes it: notes and the program's first page stand there. Raises StorageError when
    that was too little. *path* is for messages.
    """
    try:
        head = os.pread(fd, _HEAD_BYTES, 0)
    except OSError:
        return None  # A directory, a pipe, a device: whoever wants a program from it says what it is.
    if _is_core(head):
        return analyse_core(fd, CoreKind.FILE)
    if head.startswith(MAGIC):
        try:
            return analyse_core(fd, CoreKind.STORED)
        except BrokenError:
            pass  # Another program's frames, or no core in ours: the next look tells.
    if head.startswith(b"\x7fELF") or not head:
        return None
    return _analyse_unpacked(fd, path)


def analyse_core(fd: int, kind: CoreKind) -> CoreFile:
    """Return what the core behind *fd* says of its crash; raises BrokenError as ``analyse`` does."""
    summary = analyse(fd, kind)
    return CoreFile(summary, summary.build_id is None and _ends_early(*open_core(fd, kind)))


def _ends_early(read_at: ReadAt, size_bytes: int) -> bool:
    core, offset = CoreSize(), 0
    while core.is_undecided and (part := read_at(offset, min(limits.PIECE_BYTES, size_bytes - offset))):
        core.feed(part)
        offset += len(part)
    return core.is_undecided or (core.expected or 0) > size_bytes


def find_report_beside(path: Path) -> Path | None:
    """Return the report beside a core: ``STEM.json`` of ``STEM.gz`` and ``STEM.truncated.gz``, ``report.json`` in a store."""
    stem = path.name.rpartition(".")[0]
    names = [f"{name}.json" for name in (stem, stem.removesuffix(".truncated")) if name]
    if path.name == "core.zst":
        names.insert(0, "report.json")
    return next((found for name in names if (found := path.with_name(name)).is_file()), None)


def _is_core(head: bytes) -> bool:
    return head.startswith(b"\x7fELF") and elfsize.expected_size(head) != -1


def _analyse_unpacked(fd: int, path: Path) -> CoreFile | None:
    try:
        where = tempfile.gettempdir()
        # The temporary file is sparse, 0600, and gone when we are.
        with tempfile.TemporaryFile() as plain:
            is_core, refusal = _unpack_core(fd, plain.fileno())
            if not is_core:
                return None
            try:
                found = analyse_core(plain.fileno(), CoreKind.FILE)
            except BrokenError as error:
                raise refusal or error from error
            if found.summary.build_id is None and refusal is not None:
                raise refusal  # What did not fit may be what the analyser has missed.
            return found
    except OSError as error:
        # The words of tempfile name all directories that it has tried.
        raise StorageError(f"{path}: cannot be unpacked: {(error.strerror or '').lower()}", hint=_ELSEWHERE) from error
    except StorageError as error:
        raise StorageError(f"{path}: cannot be unpacked in {where}: {error.message}", hint=_ELSEWHERE) from error


def _unpack_core(fd: int, plain: int) -> tuple[bool, StorageError | None]:
    """Write the beginning of what the compressed file behind *fd* holds to *plain*.

    Return whether it begins like a core, and what the disk said when it did not take all of that beginning.
    """
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
                return False, None
            write_sparse(plain, part, size)
            size += len(part)
            if size >= _UNPACKED_MAX:
                break
    except BrokenError:
        pass  # Cut or damaged, or not compressed at all: what came before that is looked at.
    except StorageError as error:
        return _is_core(head), error
    set_length(plain, size)
    return _is_core(head), None
