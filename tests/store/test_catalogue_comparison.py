"""What is found of a catalogue that somebody has edited, and that nothing is where nobody has."""

import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from securecore.audit.log import HostLogs
from securecore.errors import StorageError
from securecore.store import catalogue as catalogue_module
from securecore.store import catalogue_comparison
from securecore.store.catalogue import Catalogue, open_catalogue
from securecore.store.catalogue_comparison import find_contradictions, has_catalogue
from securecore.store.layout import Store
from tests.support.dumps import WEB, Signer, begin, core_bytes, dump_id, dump_path, store_dump

CORE = core_bytes(1, 40)
FIRST = str(dump_id(1))


@pytest.fixture
def settled(store: Store, logs: HostLogs, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with three dumps of a host, listed once its directory had been quiet, so that it is not read again."""
    for number in (1, 2, 3):
        store_dump(store, logs, signer, dump_id(number), CORE)
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    with open_catalogue(store) as catalogue:
        catalogue.reconcile()
    return store


def edit(store: Store, statement: str, *arguments: object) -> None:
    """Change the catalogue as anybody can who may write to it."""
    with sqlite3.connect(f"{store.path}/catalogue.sqlite") as connection:
        connection.execute(statement, arguments)
    connection.close()


def test_a_catalogue_that_nobody_edited_says_what_the_files_say(settled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in several batches; one dump is published since, one deleted since, and one is still coming in."""
    monkeypatch.setattr(catalogue_module, "_BATCH", 2)
    begin(settled, dump_id(4), CORE).close()
    assert find_contradictions(settled, WEB) == {}
    shutil.rmtree(dump_path(settled, dump_id(2)))
    assert find_contradictions(settled, WEB) == {}


def test_where_there_is_no_catalogue_there_is_none(store: Store) -> None:
    """And looking for it makes none."""
    assert not has_catalogue(store)
    with open_catalogue(store):
        pass
    assert has_catalogue(store)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE dumps SET program = 'innocent' WHERE id = ?", "program is listed as 'innocent', by its files it is 'nginx'"),
        ("UPDATE dumps SET state = 'incomplete' WHERE id = ?", "state is listed as 'incomplete', by its files it is 'complete'"),
        ("UPDATE dumps SET received_at = '2020' WHERE id = ?", "received_at is listed as '2020', by its files it is '2026-11-22T"),
        ("UPDATE dumps SET published = 0 WHERE id = ?", "published is listed as False, by its files it is True"),
        ("UPDATE dumps SET signal = x'00' WHERE id = ?", "signal is listed as b'\\x00', by its files it is 11"),
        ("DELETE FROM dumps WHERE id = ?", "it is not listed"),
    ],
)
def test_a_row_that_was_edited_is_named(statement: str, words: str, settled: Store) -> None:
    """With what the row says and what the files say; the other rows are as they should be."""
    edit(settled, statement, FIRST)

    found = find_contradictions(settled, WEB)

    assert list(found) == [FIRST]
    assert found[FIRST].startswith(words)


@pytest.mark.parametrize("name", [str(dump_id(9)), "no id", b"\xff"])
def test_a_row_of_no_dump_is_named(name: str | bytes, settled: Store) -> None:
    """Whatever stands in the place of its id."""
    edit(settled, "UPDATE dumps SET id = ? WHERE id = ?", name, FIRST)

    assert find_contradictions(settled, WEB) == {str(name): "it is not there", FIRST: "it is not listed"}


def test_what_changes_between_two_looks_is_no_contradiction(settled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump that is deleted behind the reading of the directory, and one that is published there."""
    real = Catalogue.reconcile
    stale = dump_path(settled, dump_id(1))

    def reconcile(catalogue: Catalogue, host: object = None) -> None:
        real(catalogue, WEB)
        if stale.exists():
            shutil.rmtree(stale)

    monkeypatch.setattr(Catalogue, "reconcile", reconcile)

    assert find_contradictions(settled, WEB) == {}
    assert not stale.exists()


def test_a_dump_that_cannot_be_read_is_no_contradiction(settled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads dumps says so; the catalogue has what was known of it."""

    def refuse(*arguments: object) -> None:
        raise StorageError("the disk refuses")

    monkeypatch.setattr(catalogue_comparison, "find_row", refuse)

    assert find_contradictions(settled, WEB) == {}


def test_a_link_in_its_place_is_refused(settled: Store, tmp_path: Path) -> None:
    """It is found, and not followed."""
    os.rename(f"{settled.path}/catalogue.sqlite", tmp_path / "elsewhere")
    os.symlink(tmp_path / "nowhere", f"{settled.path}/catalogue.sqlite")

    assert has_catalogue(settled)
    with pytest.raises(StorageError, match="not a regular file"):
        find_contradictions(settled, WEB)
