"""Files that a person names for reading and writing, standard input and output among them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

import click

from securecore.dump import directory as files
from securecore.dump.output import NewFile, set_length, write_sparse
from securecore.errors import ConfigError, NotFoundError


def open_named(path: str, flags: int = 0) -> int:
    """Return a descriptor of *path*, for reading; raises NotFoundError or ConfigError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}") from error


def open_source(file: str) -> tuple[int, int | None]:
    """Return a descriptor and the size, when it can be known."""
    if file == "-":
        check_stream(sys.stdin, "standard input", "standard input is a terminal; pipe a core into it")
        return os.dup(0), None
    fd = open_named(file)
    if os.path.isdir(file):
        os.close(fd)
        raise ConfigError(f"{file}: is a directory")
    return fd, os.fstat(fd).st_size or None


def check_stream(stream: TextIO | None, name: str, words: str) -> None:
    """Raise click.UsageError when *stream* was closed when we were started, and with *words* when it is a terminal."""
    if stream is None:
        raise click.UsageError(f"{name} is closed")
    if stream.isatty():
        raise click.UsageError(words)


def check_streams(file: str, output: str, as_json: bool) -> None:
    """Raise click.UsageError when the output has no name, or cannot go to standard output."""
    if not output:
        raise click.BadParameter("an empty text names no file", param_hint="'--output'")
    if output != "-":
        return
    if as_json:
        raise click.UsageError("standard output cannot take the file and a JSON document; use -o OUT")
    words = f"what {file} becomes does not belong on a terminal; use -o OUT, or pipe it somewhere"
    check_stream(sys.stdout, "standard output", words)


class Output(Protocol):
    """Where bytes go, in order."""

    def write(self, data: bytes) -> None:
        """Take *data*; raises StorageError when it does not fit."""

    def publish(self) -> None:
        """Say that this was all, and good; without it a file does not appear."""


@contextmanager
def local_output(output: str, *, is_sparse: bool = False) -> Iterator[Output]:
    """Yield standard output for ``-``, else a new file, which with *is_sparse* has holes where the bytes are zeroes."""
    if output == "-":
        yield _Stream(sys.stdout.fileno())
        return
    with NewFile(output) as file:
        yield _SparseFile(file) if is_sparse else _File(file)


class _Stream:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        files.write_all(self._fd, data)

    def publish(self) -> None:
        """Nothing is left to do: the bytes are with whoever reads them."""


class _File:
    def __init__(self, file: NewFile) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        files.write_all(self._file.fd, data)

    def publish(self) -> None:
        self._file.publish()


class _SparseFile:
    def __init__(self, file: NewFile) -> None:
        self._file, self._size = file, 0

    def write(self, data: bytes) -> None:
        write_sparse(self._file.fd, data, self._size)
        self._size += len(data)

    def publish(self) -> None:
        set_length(self._file.fd, self._size)
        self._file.publish()
