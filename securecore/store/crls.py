"""The revocation lists by which certificates were judged: each distinct crl.pem once, under its digest, and for good.

    STORE/crls/<SHA-256>.pem

An entry of an audit log refers to one by that digest, so whoever has the log has what vouches for the file. A store from before has
none of it; the directory is made when the first one is kept.
"""

import os
from collections.abc import Iterator
from hashlib import sha256
from threading import Lock
from typing import Final, NamedTuple

from securecore import limits
from securecore.dump import directory
from securecore.errors import StorageError
from securecore.store.layout import Store

CRLS: Final = "crls"


class CrlFile(NamedTuple):
    """A crl.pem, as it stands in an identity directory."""

    pem: bytes
    sha256: str
    """Of these bytes, in lower-case hexadecimal."""

    @classmethod
    def of(cls, pem: bytes) -> "CrlFile":
        """Return the file with these bytes."""
        return cls(pem, sha256(pem).hexdigest())


class CrlArchive:
    """Keeps CRLs in a store. Safe for use by several threads; the caller holds the store's lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._kept: set[str] = set()
        """Those of which this process has seen to it that they are durable."""

    def keep(self, crl: CrlFile) -> None:
        """Keep a CRL: when this returns it is there, whole and durable. Costs nothing when it was kept before.

        One whose bytes are no longer those of its digest is written anew. Raises StorageError when the disk refuses, or something
        stands there that is no regular file.
        """
        with self._lock:
            if crl.sha256 in self._kept:
                return
            fd = directory.enter_directory(CRLS, self._store.fd)
            try:
                name = _name_of(crl.sha256)
                if directory.read_file(name, fd, limits.MAX_CRL_BYTES) != crl.pem:
                    directory.replace_file(name, fd, crl.pem)
                # A process that was killed may have left the names without making them durable.
                directory.sync(fd)
                directory.sync(self._store.fd)
            finally:
                os.close(fd)
            self._kept.add(crl.sha256)


def read_crl(store: Store, digest: str) -> bytes | None:
    """Return the CRL of that digest; None when it is missing. Not checked: that the bytes have it.

    *digest* is 64 lower-case hexadecimal digits. Raises StorageError when it cannot be read.
    """
    fd = directory.open_directory(CRLS, store.fd)
    if fd is None:
        return None
    try:
        return directory.read_file(_name_of(digest), fd, limits.MAX_CRL_BYTES)
    finally:
        os.close(fd)


def kept_crls(store: Store) -> Iterator[bytes]:
    """Yield each CRL that is kept and has the bytes of its name, in no order; what else stands there is passed over.

    Raises StorageError when the directory cannot be read.
    """
    fd = directory.open_directory(CRLS, store.fd)
    if fd is None:
        return
    try:
        for name in directory.names_in(fd):
            try:
                pem = directory.read_file(name, fd, limits.MAX_CRL_BYTES)
            except StorageError:
                continue
            if pem is not None and name == _name_of(sha256(pem).hexdigest()):
                yield pem
    finally:
        os.close(fd)


def find_problem(store: Store, digest: str) -> str | None:
    """Return why the CRL of that digest is not there; None when it is."""
    try:
        pem = read_crl(store, digest)
    except StorageError as error:
        return error.message
    if pem is None:
        return f"{CRLS}/{_name_of(digest)} is missing"
    if sha256(pem).hexdigest() != digest:
        return f"{CRLS}/{_name_of(digest)} has other bytes than its name says"
    return None


def _name_of(digest: str) -> str:
    return f"{digest}.pem"
