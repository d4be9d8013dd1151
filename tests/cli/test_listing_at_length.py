"""Lists of many dumps: printed while they are read, as one document or table all the same."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from securecore.cli import terminal
from securecore.errors import StorageError
from securecore.store import catalogue
from securecore.store.layout import Store
from tests.support.commands import captured
from tests.support.samples import Sample


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_LINES", 2)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("number", range(6))
def test_lines_are_separated_and_ended_once_whatever_goes_out_together(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Where one write ends and the next begins does not show; no lines are nothing at all."""

    def texts() -> Iterator[str]:
        yield from map(str, range(number))

    assert terminal.lines(texts(), between=", ", end=".") == number
    assert capsys.readouterr().out == (", ".join(texts()) + "." if number else "")


def test_a_list_is_one_array_with_a_line_for_each_dump(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    """A reader of JSON sees one document; one of lines finds each dump on a line of its own."""
    _, printed, _ = captured(capsys)("list", "--store", sample.store, "--json")
    first, *dumps, last = printed.splitlines()
    assert (first, last) == ("[", "]")
    assert [json.loads(line.removesuffix(",")) for line in dumps] == json.loads(printed)
    assert len(dumps) == 4


@pytest.fixture
def whole(sample: Sample, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """What a list is while nothing is wrong."""
    listed: list[Any] = json.loads(captured(capsys)("list", "--store", sample.store, "--json")[1])
    return listed


@pytest.fixture
def _damaged_meanwhile(whole: list[Any], sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue's last row can't be read, on a disk that takes no new one; rows are read and printed one by one."""
    with closing(sqlite3.connect(Path(sample.store) / "catalogue.sqlite")) as database, database:
        database.execute("UPDATE dumps SET program = x'00ff' WHERE id = (SELECT min(id) FROM dumps)")
    opened = catalogue._open_connection

    def open_once(store: Store, *, discard: bool = False) -> sqlite3.Connection:
        if discard:
            raise StorageError("cannot use the catalogue: no space left on device", hint="free space on that file system")
        return opened(store, discard=discard)

    monkeypatch.setattr(catalogue, "_open_connection", open_once)
    monkeypatch.setattr(catalogue, "_BATCH", 1)
    monkeypatch.setattr(terminal, "_LINES", 1)


@pytest.mark.usefixtures("_damaged_meanwhile")
def test_a_list_that_breaks_off_is_no_document_and_its_error_is_another(
    whole: list[Any], sample: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody takes half of the dumps for all of them, and no error stands among dumps: it is on standard error, as JSON."""
    code, printed, said = captured(capsys)("list", "--store", sample.store, "--json")

    first, *dumps = printed.splitlines()
    assert 0 < len(dumps) < len(whole)
    assert (first, [json.loads(line.removesuffix(",")) for line in dumps]) == ("[", whole[: len(dumps)])
    with pytest.raises(json.JSONDecodeError):
        json.loads(printed)
    assert code == json.loads(said)["error"]["exit_code"] == StorageError.exit_code


@pytest.mark.usefixtures("_damaged_meanwhile")
def test_an_error_before_the_first_dump_is_the_document(
    sample: Sample, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard output has nothing else then, so a program finds the error where it looks for the list."""
    monkeypatch.setattr(terminal, "_LINES", 5)
    code, printed, said = captured(capsys)("list", "--store", sample.store, "--json")

    assert (json.loads(printed)["error"]["exit_code"], said) == (code, "")


@pytest.mark.parametrize("change", ["received_at = '2026-13-99T00:00:00.000Z'", "size_bytes = 'abc'", "program = x'00ff'"])
def test_a_row_that_the_disk_has_changed_is_no_riddle(change: str, sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    """SQLite does not see a bit that has turned in a value: the list ends in words, and its hint makes the catalogue anew."""
    run, file = captured(capsys), Path(sample.store) / "catalogue.sqlite"
    _, before, _ = run("list", "--store", sample.store)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(f"UPDATE dumps SET {change} WHERE outcome IS NOT NULL")  # noqa: S608  # a constant
    code, _, said = run("list", "--store", sample.store)
    assert (code, said.splitlines()[1]) == (StorageError.exit_code, f"  hint: remove {file}: it is made again")
    assert said.startswith("securecore: the catalogue says of a dump what cannot be: ")
    file.unlink()
    assert run("list", "--store", sample.store)[:2] == (0, before)
