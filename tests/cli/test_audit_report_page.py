"""The page of ``audit report``: where it goes, and that whatever names stand in a log, it is text that loads and runs nothing."""

import re
import stat
import sys
from html.parser import HTMLParser

import pytest

from tests.support.chronicles import HOSTILE
from tests.support.reports import Report


def test_the_file_is_ours_alone_and_nothing_is_overwritten(report: Report) -> None:
    """0600, and a second run is refused with the first one's page untouched."""
    output = report.store.parent / "once.html"
    assert report.run("-o", output).code == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    before = output.read_bytes()
    ran = report.run("-o", output)
    assert (ran.code, output.read_bytes()) == (5, before)
    assert "already exists" in ran.err


def test_forms_exclude_one_another(report: Report) -> None:
    """Usage errors, before anything is read."""
    assert report.run("--json", "--csv").code == 2
    assert report.run("-o", "").code == 2


def test_a_page_does_not_belong_on_a_terminal(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says where to instead."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    ran = report.run()
    assert ran.code == 2
    assert "-o report.html" in ran.err


class Reader(HTMLParser):
    """What a browser would make of a page, in tags and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.words.append(data)


def test_hostile_names_are_text_on_the_page(report: Report) -> None:
    """No tag but ours, no attribute that runs or loads anything, and no character that cannot be seen."""
    page = report.page()
    read = Reader(page)

    assert {tag for tag, _ in read.tags} <= {
        "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "div", "h1", "h2", "h3", "p", "ul",
        "li", "b", "strong", "span", "bdi", "a", "code", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td",
        "svg", "desc", "line", "rect",
    }  # fmt: skip
    attributes = [(name, value or "") for _, found in read.tags for name, value in found.items()]
    assert [name for name, _ in attributes if name.startswith("on") or name in ("src", "style", "srcset", "action")] == []
    assert [value for name, value in attributes if name == "href" and not value.startswith("#")] == []
    assert [character for character in page if not character.isprintable() and character != "\n"] == []
    assert HOSTILE["markup"] in "".join(read.words)
    assert "{{ 7 * 7 }}" in page
    assert "U+202E</span>gpj.exe" in page


def test_the_page_loads_and_runs_nothing_by_its_own_policy(report: Report) -> None:
    """Only the one style whose digest it names."""
    page = report.page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/]{43}='; base-uri 'none'; form-action 'none'", policy[1]
    )  # fmt: skip
    assert "http://" not in page
    assert re.findall(r"https://[^\s<&]*", page.replace("https://example.org", "")) == []


def test_tables_and_pictures_are_for_those_who_hear_the_page(report: Report) -> None:
    """Each table has a caption and heads with a scope; each drawing a title and a description, or is hidden; ids are unique."""
    tags = Reader(report.page()).tags
    names = [tag for tag, _ in tags]
    ids = [found["id"] for _, found in tags if "id" in found]

    assert names.count("table") == names.count("caption") > 5
    assert all(found.get("scope") in ("col", "row") for tag, found in tags if tag == "th")
    pictures = [found for tag, found in tags if tag == "svg"]
    assert all(found.get("aria-hidden") == "true" or found.get("role") == "img" for found in pictures)
    named = [name for found in pictures if found.get("role") == "img" for name in (found.get("aria-labelledby") or "").split()]
    assert set(named) <= set(ids)
    assert len(ids) == len(set(ids))


def test_only_the_page_needs_the_template_library(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON and CSV are there where it is not."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert report.run("--json").code == 0
    assert report.run("--csv").code == 0
