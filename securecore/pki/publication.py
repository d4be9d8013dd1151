"""What an enroller gives to anybody: the fleet's CAs, and their revocation lists, each written as an answer once for each file."""

import os
import threading
from pathlib import Path
from typing import NamedTuple

from securecore.certs.identity_directory import MAX_CA_BYTES
from securecore.certs.private_file import read_public
from securecore.limits import MAX_CRL_BYTES
from securecore.pki.directory import PkiDirectory
from securecore.pki.enrolment import Answer, encode_answer

_Mark = tuple[tuple[int, int, int, int], ...]
"""Which files were read: of each device, inode, size and time of its last change."""


class Published(NamedTuple):
    """An answer, and its line."""

    answer: Answer
    line: bytes


class Publication:
    """The answers that everybody gets, for several threads; they share one line, which may have 64 MiB."""

    def __init__(self, pki: PkiDirectory) -> None:
        self._pki = pki
        self._guard = threading.Lock()
        self._kept: dict[str, tuple[_Mark, Published]] = {}

    def find(self, op: str) -> Published:
        """Return the answer to ``roots`` or ``lists``, of the files that are there now.

        Without the PKI's lock, which no stranger should have a part in. Each file is replaced whole; of a pair that a rotation
        replaces at this moment one may be new, which a receiver refuses, and asks again. Raises as read_public does.
        """
        paths = (self._pki.ca_path,) if op == "roots" else (self._pki.ca_path, self._pki.crl_path)
        with self._guard:
            # Before they are read: what takes a file's place meanwhile has another mark, and is read when somebody asks again.
            mark = _mark_of(paths)
            kept = self._kept.get(op)
            if kept is not None and kept[0] == mark:
                return kept[1]
            answer = Answer(*(_read(path, most) for path, most in zip(paths, (MAX_CA_BYTES, MAX_CRL_BYTES), strict=False)))
            found = Published(answer, encode_answer(answer))
            if mark is not None:
                self._kept[op] = mark, found
            return found


def _mark_of(paths: tuple[Path, ...]) -> _Mark | None:
    """Return which files these are now; None where one can't be looked at, which is then said by whoever reads it."""
    try:
        found = [os.stat(path) for path in paths]
    except OSError:
        return None
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def _read(path: Path, most: int) -> str:
    return read_public(path, most).decode("ascii")
