"""What the catalogue hands out of a dump: the same in every form, all of one moment, however many dumps there are."""

import json
import os
import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from securecore.errors import StorageError
from securecore.names import HostName
from securecore.report import CrashReport
from securecore.store import catalogue as catalogues
from securecore.store.catalogue import Catalogue, open_catalogue
from securecore.store.forms import DOCUMENT, LINE, ROW, Form
from securecore.store.layout import Place, Store, create_store
from tests.support.dumps import NOW, WEB, dump_id, dump_path

DB = HostName("db-2.hosts.test.example")
PROGRAMS = ("plain", 'quo"ted\\', "naïve ☃ \U0001f600", "\x1b[2J\x9b1m\x7f", "new\nline\ttab", "</script>&", "", None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of ten dumps, of two hosts in turns, an hour between each two; the last two are still coming in."""
    made = create_store(str(tmp_path / "store"))
    for number in range(10):
        add(made, number, PROGRAMS[number % len(PROGRAMS)], Place.HOSTS if number < 8 else Place.INCOMING)
    return made


def add(store: Store, number: int, program: str | None, place: Place = Place.HOSTS) -> None:
    """Put a dump there that has a report and nothing else; two rows of such fill a page of the database."""
    path = dump_path(store, dump_id(number), place.value, host=(WEB, DB)[number % 2])
    path.mkdir(parents=True)
    (path / "report.json").write_bytes(
        CrashReport(sender="test", program=program, signal=number, executable="/" + "x" * 1500).encode()
    )
    at = (NOW + timedelta(hours=number)).timestamp()
    os.utime(path, (at, at))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three dumps are read at a time."""
    monkeypatch.setattr(catalogues, "_BATCH", 3)


def reconciled(store: Store) -> Catalogue:
    """Return the store's catalogue, up to date."""
    catalogue = open_catalogue(store)
    catalogue.reconcile()
    return catalogue


def numbers(signals: list[int | None]) -> list[int]:
    """Return which dumps these are: their signals tell."""
    return [signal or 0 for signal in signals]


def test_all_forms_say_the_same_newest_first(store: Store) -> None:
    """Rows, lines and JSON objects are of the same dumps in the same order, those coming in where their time puts them."""
    add(store, 1000, "old", Place.INCOMING)
    os.utime(dump_path(store, dump_id(1000), "incoming", host=WEB), (0, (NOW + timedelta(hours=4.5)).timestamp()))
    with reconciled(store) as catalogue:
        rows, lines = list(catalogue.listed(ROW)), list(catalogue.listed(LINE))
        documents = [json.loads(text) for text in catalogue.listed(DOCUMENT)]
    assert numbers([row.signal for row in rows]) == [9, 8, 7, 6, 5, 1000, 4, 3, 2, 1, 0]
    assert documents == [row._asdict() for row in rows]
    assert [list(document) for document in documents] == [list(row._fields) for row in rows]
    for row, line in zip(rows, lines, strict=True):
        said = line._asdict()
        assert said.pop("is_given_up") == (row.given_up_at is not None)
        assert said == {name: getattr(row, name) for name in said}


def test_a_document_is_one_line_of_printable_ascii(store: Store) -> None:
    """Whatever a peer calls its program, its characters reach a terminal escaped, and a reader of lines sees one line."""
    with reconciled(store) as catalogue:
        documents = list(catalogue.listed(DOCUMENT))
    assert {json.loads(text)["program"] for text in documents} >= set(PROGRAMS)
    assert [text for text in documents if not text.replace("\x7f", "").isprintable() or not text.isascii()] == []


def test_of_one_host_from_a_moment_on(store: Store) -> None:
    """What is asked for of one host, or since a moment, is the same part of the whole list, in every form."""
    with reconciled(store) as catalogue:
        for form in (ROW, LINE):
            assert numbers([one.signal for one in catalogue.listed(form, DB)]) == [9, 7, 5, 3, 1]
            assert numbers([one.signal for one in catalogue.listed(form, WEB, NOW + timedelta(hours=4))]) == [8, 6, 4]


def test_a_list_is_of_one_moment_and_keeps_nobody_waiting(store: Store) -> None:
    """While one process reads its list, another brings the catalogue up to date, and does not change what the first reads."""
    with reconciled(store) as catalogue, open_catalogue(store) as other:
        reading = catalogue.listed(ROW)
        first = next(reading)
        shutil.rmtree(dump_path(store, dump_id(2), host=WEB))
        add(store, 20, "new")
        other.reconcile()
        assert numbers([row.signal for row in other.listed(ROW)]) == [20, 9, 8, 7, 6, 5, 4, 3, 1, 0]
        assert numbers([row.signal for row in (first, *reading)]) == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_one_that_another_process_publishes_meanwhile_is_listed_once(store: Store) -> None:
    """A dump that was coming in when the directories were read, and is published in the catalogue by now, is not there twice."""
    with reconciled(store) as catalogue, open_catalogue(store) as other:
        os.rename(dump_path(store, dump_id(8), "incoming", host=WEB), dump_path(store, dump_id(8), host=WEB))
        other.reconcile()
        assert numbers([row.signal for row in catalogue.listed(ROW)]) == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_damage_that_is_met_halfway_is_mended_and_the_list_goes_on(store: Store) -> None:
    """Where the file turns out to be damaged behind the first dumps, it is made again, and the rest comes from there."""
    with reconciled(store) as catalogue:
        catalogue._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        catalogue._connection.execute("PRAGMA cache_size = 1")  # What was read is not kept.
        reading = catalogue.listed(ROW)
        found = [next(reading) for _ in range(4)]
        before = catalogue._connection
        with (Path(store.path) / "catalogue.sqlite").open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (os.fstat(file.fileno()).st_size - 4096))
        assert numbers([row.signal for row in (*found, *reading)]) == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
        assert catalogue._connection is not before


def test_sound_dumps_are_not_looked_at_to_find_damaged_ones(store: Store) -> None:
    """Each list asks which dumps were damaged, to look at them again: an index has these alone, however many dumps a host has."""
    with reconciled(store) as catalogue:
        asked: list[str] = []
        catalogue._connection.set_trace_callback(asked.append)
        catalogue.reconcile(WEB)
        catalogue._connection.set_trace_callback(None)
        (question,) = [statement for statement in asked if statement.startswith("SELECT id FROM dumps")]
        plan = catalogue._connection.execute(f"EXPLAIN QUERY PLAN {question}").fetchall()
    assert [detail for *_, detail in plan] == ["SEARCH dumps USING INDEX damaged (host=?)"]


def test_old_databases_have_what_a_list_asks_for(store: Store) -> None:
    """SQLite 3.26, which RHEL 8 has beside its Python 3.11, has functions for JSON, and none that is younger."""
    asked: set[str] = set()

    def note(action: int, _: str | None, name: str | None, *more: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            asked.add(name or "")
        return sqlite3.SQLITE_OK

    with reconciled(store) as catalogue:
        catalogue._connection.set_authorizer(note)
        assert len(list(catalogue.listed(ROW))) == len(list(catalogue.listed(LINE))) == len(list(catalogue.listed(DOCUMENT))) == 10
    assert asked == {"json_object", "json"}


def test_what_no_database_can_answer_is_said(store: Store) -> None:
    """Where a new catalogue does no better, as where SQLite lacks a function, the error says so and is one of ours."""
    form = Form("json_of_tomorrow(id)", lambda columns: str(columns[3]), lambda row: row.id)
    with reconciled(store) as catalogue, pytest.raises(StorageError, match="cannot use the catalogue: no such function"):
        list(catalogue.listed(form))
