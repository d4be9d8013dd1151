"""Whether the catalogue says of dumps what their files say: what `list` would show that is not so."""

import os
from contextlib import suppress
from typing import Final

from securecore.errors import StorageError
from securecore.names import HostName
from securecore.store.catalogue import Catalogue, find_row, open_catalogue
from securecore.store.layout import CATALOGUE, Store
from securecore.store.rows import DumpRow

_UNLISTED: Final = "it is not listed"
_NOT_THERE: Final = "it is not there"


def has_catalogue(store: Store) -> bool:
    """Return whether anything stands in the catalogue's place; `list` and `vacuum` make one."""
    return os.access(CATALOGUE, os.F_OK, dir_fd=store.fd, follow_symlinks=False)


def find_contradictions(store: Store, host: HostName) -> dict[str, str]:
    """Return which published dumps of a host the catalogue lists otherwise than their files say, and how, sorted by id.

    It is brought up to date first, as for a list, so only what it took for known is found. Linear in the dumps. What cannot be read
    is passed over. Raises StorageError when the catalogue cannot be used. Not checked: the files (verify_dump does that).
    """
    with open_catalogue(store) as catalogue:
        found = _find(store, catalogue, host)
        # A dump may have been deleted, taken back or published between two looks; then the next one finds them agree.
        again = _find(store, catalogue, host) if found else {}
    return {dump: again[dump] for dump in sorted(found) if dump in again}


def _find(store: Store, catalogue: Catalogue, host: HostName) -> dict[str, str]:
    unlisted = {str(dump) for dump in store.dump_ids(host)}
    catalogue.reconcile(host)
    found: dict[str, str] = {}
    for listed in catalogue.rows_of(host):
        dump = str(listed.id)
        unlisted.discard(dump)
        with suppress(StorageError):
            row = find_row(store, host, dump)
            difference = _NOT_THERE if row is None else _find_difference(listed, row)
            if difference is not None:
                found[dump] = difference
    for dump in unlisted:
        with suppress(StorageError):
            if (row := find_row(store, host, dump)) is not None and row.published:
                found[dump] = _UNLISTED
    return found


def _find_difference(listed: DumpRow, row: DumpRow) -> str | None:
    """Return the first field in which two rows of a dump are not the same, and what they say; None when all are."""
    for name, said, true in zip(DumpRow._fields, listed, row, strict=True):
        if said != true:
            return f"{name} is listed as {said!a:.60}, by its files it is {true!a:.60}"
    return None
