"""Receipts in files that a person names: hosts' receipt logs, tlog-proofs, or either on standard input."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

from securecore.audit.kept_receipt import Kept, Unread, read_kept
from securecore.cli.sources import check_stream, open_named
from securecore.errors import ConfigError

_STRANGE: Final = 100
"""Lines of a file that are no receipts, before it has had one: then it is no file of receipts, and not all of them are told."""


@contextmanager
def open_receipts(path: str) -> Iterator[IO[bytes]]:
    """Yield a file, standard input for ``-``; raises NotFoundError, ConfigError, or click.UsageError for a terminal."""
    if path == "-":
        check_stream(sys.stdin, "standard input", "standard input is a terminal; pipe receipts into it")
    elif os.path.isdir(path):
        raise ConfigError(f"{path}: is a directory")
    with os.fdopen(os.dup(0) if path == "-" else open_named(path), "rb") as file:
        yield file


def read_receipts(file: IO[bytes], path: str) -> Iterator[Kept | Unread]:
    """Yield what stands in a file, each named by file and line.

    Raises ConfigError when it cannot be read, and when it begins with 100 lines that are no receipts.
    """
    strangers: int | None = 0
    try:
        for one in read_kept(file, "stdin" if path == "-" else path):
            yield one
            strangers = None if strangers is None or isinstance(one, Kept) else strangers + 1
            if strangers == _STRANGE:
                raise ConfigError(f"{path}: no receipts in it", hint="a host's receipts.jsonl, or a tlog-proof, is wanted")
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}") from error
