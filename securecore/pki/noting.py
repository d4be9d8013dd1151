"""A place in the ledger, noted in a file elsewhere, so that the next look finds an older copy of the whole PKI directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from securecore.certs.private_file import read_public
from securecore.errors import BrokenError, ConfigError, NotFoundError
from securecore.limits import KIB
from securecore.pki.directory import PkiDirectory
from securecore.pki.revocation import find_behind
from securecore.pki.staging import PUBLIC_MODE, disk_errors, replace
from securecore.pki.verification import Head, check_noted, parse_head

MAX_NOTE_BYTES: Final = KIB
"""A noted place takes 70 bytes of its file."""


def find_lost(pki: PkiDirectory, note: Path | None) -> str | None:
    """Return how the ledger is behind what it has been, None when it is not; raises like Ledger.read, ConfigError, StorageError.

    It is held against the lists beside it, and against the place that the file *note* has, which is then moved to the ledger's end.
    A first run makes that file; where something was lost it stays as it is. Raises ConfigError when it holds no place, or lies in
    the PKI directory, with which it would be put back.
    """
    if note is None:
        pki.ledger.read()
        return find_behind(pki)
    if note.resolve().is_relative_to(pki.path.resolve()):
        words = f"{note}: lies in the PKI directory, and an old copy of that would bring it along"
        raise ConfigError(words, hint="keep it elsewhere")
    with _alone(note) as is_alone:
        # Read before the ledger: meanwhile others may append, and note what they have found.
        before = _read(note)
        pki.ledger.read()
        heads = pki.ledger.digests()
        problem = find_behind(pki)
        try:
            if before is not None:
                check_noted(heads, before)
        except BrokenError as error:
            return problem or f"the ledger: {error.message}"
        if problem is None and is_alone and heads and before != (head := Head(len(heads), heads[-1])):
            replace(note, f"{head}\n".encode("ascii"), PUBLIC_MODE)
    return problem


@contextmanager
def _alone(note: Path) -> Iterator[bool]:
    """Yield whether nobody else is noting in that directory now, who then does it for us; nobody else begins meanwhile.

    No lock is waited for, for others may hold one on a directory that is not the PKI's.
    """
    with disk_errors(note.parent):
        descriptor = os.open(note.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _read(note: Path) -> Head | None:
    try:
        return parse_head(read_public(note, MAX_NOTE_BYTES).decode("ascii"))
    except NotFoundError:
        return None
    except ValueError as error:
        hint = "`securecore pki log verify` prints one: LINES:DIGEST"
        raise ConfigError(f"{note}: holds no noted place of a ledger", hint=hint) from error
