"""Lists of many dumps: printed while they are read, as one document or table all the same."""

import json
from collections.abc import Iterator

import pytest

from securecore.cli import terminal
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
