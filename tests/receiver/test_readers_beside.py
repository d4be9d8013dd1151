"""Whoever reads the store, or holds its catalogue, keeps no dump from coming in: reception needs no index."""

import random
import sqlite3
from pathlib import Path

from securecore import limits
from securecore.receiver.server import Receiver
from securecore.store.catalogue import open_catalogue
from securecore.store.forms import ROW
from securecore.store.layout import CATALOGUE, open_store
from tests.support.certificates import Fleet
from tests.support.receivers import new_dump_id, papers_of, send_bytes

CORE = random.Random(8).randbytes(limits.MIB // 2)


def test_a_catalogue_that_somebody_has_locked_keeps_no_receipt_back(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """While another process has the whole database to itself, for as long as it likes, a dump gets its receipt."""
    papers = papers_of(fleet.host)
    with open_store(str(tmp_path / "store")) as store, open_catalogue(store) as catalogue:
        catalogue.reconcile()
    locked = sqlite3.connect(tmp_path / "store" / CATALOGUE, isolation_level=None)
    locked.execute("PRAGMA locking_mode = EXCLUSIVE")
    locked.execute("BEGIN EXCLUSIVE")
    try:
        assert send_bytes(CORE, papers, receiver.addresses).receipt is not None
    finally:
        locked.close()


def test_a_list_that_nobody_reads_to_its_end_keeps_no_receipt_back(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """A list that waits for its reader, as before a pager, is of its own moment; later dumps come in, and are in the next."""
    papers, dumps = papers_of(fleet.host), [new_dump_id() for _ in range(3)]
    for dump in dumps[:2]:
        assert send_bytes(CORE, papers, receiver.addresses, dump=dump).receipt is not None
    with open_store(str(tmp_path / "store")) as store, open_catalogue(store) as catalogue, open_catalogue(store) as other:
        catalogue.reconcile()
        waiting = catalogue.listed(ROW)
        first = next(waiting)
        assert send_bytes(CORE, papers, receiver.addresses, dump=dumps[2]).receipt is not None
        other.reconcile()
        assert {row.id for row in other.listed(ROW)} == set(map(str, dumps))
        assert {row.id for row in (first, *waiting)} == set(map(str, dumps[:2]))


def test_a_catalogue_in_whose_place_something_else_stands_keeps_no_receipt_back(
    fleet: Fleet, receiver: Receiver, tmp_path: Path
) -> None:
    """What no list could open is nothing to a receiver."""
    (tmp_path / "store" / CATALOGUE).mkdir()
    assert send_bytes(CORE, papers_of(fleet.host), receiver.addresses).receipt is not None
