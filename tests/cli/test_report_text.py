"""Words of hosts and people in an audit report: what would not be seen is named, and nothing is a formula."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.cli.overview.events import Event
from securecore.cli.overview.lines import COLUMNS, csv_lines
from securecore.cli.overview.peer_text import cell, visible

NAMES = {
    "nginx": "nginx",
    "nginx\u202egpj.exe": "nginx<U+202E>gpj.exe",
    "a\r\nb\x00": "a<U+000D><U+000A>b<U+0000>",
    "\x1b[2J": "<U+001B>[2J",
    "z" + "\u0301" * 40: "z\u0301\u0301\u0301<U+0301 ×37>",
    "half \ud83d": "half <U+D83D>",
    "\u3164\u2800": "<U+3164><U+2800>",
    "👩\u200d🔬": "👩<U+200D>🔬",
    "x" * 21: "x" * 20 + "<… 21 characters>",
    "עברית": "עברית",
}


@pytest.mark.parametrize("text", NAMES, ids=ascii)
def test_what_would_not_be_seen_is_named(text: str) -> None:
    """Controls, overrides, joiners, halves of characters, piles of accents, blanks; and what was cut."""
    assert visible(text, 20 if "x" in text[:2] else 60) == NAMES[text]


@given(st.text(st.characters(), max_size=30))
def test_any_text_becomes_printable(text: str) -> None:
    """Nothing is left that moves a cursor or is not in UTF-8."""
    shown = visible(text, 400)
    assert shown.isprintable()
    shown.encode("utf-8")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "  =1", "＝1", "=cmd|' /C calc'!A0"])
def test_a_formula_is_text_in_a_spreadsheet(text: str) -> None:
    """With an apostrophe before it, which spreadsheets take for: as it stands."""
    assert cell(text, 60) == f"'{text}"


@pytest.mark.parametrize("text", ["nginx", "a=b", "a-b", "", "'=1"])
def test_what_is_no_formula_stays_as_it_is(text: str) -> None:
    """Also where the sign stands further on."""
    assert cell(text, 60) == text


@given(st.lists(st.text(st.characters(), max_size=30), max_size=5))
def test_any_words_are_one_line_of_csv_each(words: list[str]) -> None:
    """A reader of RFC 4180 finds as many rows as there are entries, of as many cells as there are columns."""
    events = [(Event(at, None, "web-1.example.org", "received", program=word), True) for at, word in enumerate(words)]
    text = b"".join(csv_lines(events)).decode("utf-8")

    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))

    assert rows[0] == list(COLUMNS)
    assert [row[:2] for row in rows[1:]] == [["yes", str(at)] for at in range(len(words))]
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert text.count("\r\n") == len(words) + 1
