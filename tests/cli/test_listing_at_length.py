"""Lists of many dumps: printed while they are read, as one document or table all the same."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from securecore.cli import terminal
from securecore.errors import StorageError
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


@pytest.mark.parametrize("change", ["received_at = '2026-13-99T00:00:00.000Z'", "size_bytes = 'abc'", "program = x'00ff'"])
def test_a_row_that_the_disk_has_changed_is_no_riddle(change: str, sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    """SQLite does not see a bit that has turned in a value: the list ends in words, and its hint makes the catalogue anew."""
    run, catalogue = captured(capsys), Path(sample.store) / "catalogue.sqlite"
    _, before, _ = run("list", "--store", sample.store)
    with closing(sqlite3.connect(catalogue)) as database, database:
        database.execute(f"UPDATE dumps SET {change} WHERE outcome IS NOT NULL")  # noqa: S608  # a constant
    code, _, said = run("list", "--store", sample.store)
    assert (code, said.splitlines()[1]) == (StorageError.exit_code, f"  hint: remove {catalogue}: it is made again")
    assert said.startswith("securecore: the catalogue says of a dump what cannot be: ")
    catalogue.unlink()
    assert run("list", "--store", sample.store)[:2] == (0, before)
