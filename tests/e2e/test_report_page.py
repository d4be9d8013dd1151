"""The page of `audit report` in a real Chromium: hostile names are inert, nothing leaves, and it fits where it is read."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from securecore.cli.main import run
from tests.support.browser import Page, needs_chromium, open_browser
from tests.support.certificates import make_fleet
from tests.support.chronicles import HOSTILE, Chronicle

pytestmark = [needs_chromium, pytest.mark.slow]

NOW: Final = datetime.now(UTC)
PHONE: Final = (390, 844)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a report of a store whose hosts have done all that hosts can do, under hostile names."""
    directory = tmp_path_factory.mktemp("page")
    fleet = make_fleet(directory / "fleet", now=NOW - timedelta(days=10))
    with Chronicle(fleet, directory / "store") as chronicle:
        for number, name in enumerate(HOSTILE.values()):
            moment = NOW - timedelta(days=9) + number * timedelta(hours=7)
            dump = chronicle.receive("web-1", moment, name)
            chronicle.extract("web-1", moment, dump, user=name)
            chronicle.refuse("web-1", moment, name, others=number)
            chronicle.note("web-1", moment, name, word=name)
            chronicle.delete("web-1", moment, chronicle.receive("web-1", moment, name), reason=name)
            chronicle.give_up("db-2", moment, name)
            chronicle.begin("db-2", moment, name)
    arguments = ["audit", "report", "--store", directory / "store", "--root", fleet.host / "ca.pem"]
    assert run([*map(str, arguments), "--identity", str(fleet.receiver), "-o", str(directory / "report.html")]) == 0
    return directory


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser without a window."""
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, place: Path) -> Page:
    """The report, as a light desktop shows it."""
    browser.resize(1200, 900)
    browser.prefer("light")
    browser.open(place / "report.html")
    return browser


def complaints(page: Page) -> list[str]:
    """Return what the browser has logged, and what scripts threw."""
    return [str(event["params"]) for event in page.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


def test_hostile_names_do_nothing(page: Page) -> None:
    """No script runs, no dialogue opens, no element is there that we did not draw; the browser has nothing to complain of."""
    assert page.evaluate("document.title").startswith("Audit report, collector.")
    assert page.evaluate("document.querySelectorAll('script, img, iframe, object, embed, link, form, input').length") == 0
    assert page.evaluate("document.body.innerText").count(HOSTILE["markup"]) >= 5
    assert [event for event in page.events if event["method"] == "Page.javascriptDialogOpening"] == []
    assert complaints(page) == []


def test_nothing_is_asked_of_a_network(page: Page, place: Path) -> None:
    """The page itself is all that is loaded."""
    assert page.requests() == [(place / "report.html").resolve().as_uri()]


def test_the_policy_stops_what_would_run_if_escaping_failed(browser: Page, place: Path, tmp_path: Path) -> None:
    """A page into which scripts and pictures were put by force still runs and loads none."""
    text = (place / "report.html").read_text("utf-8")
    attack = (
        "<script>document.title='owned'</script><img src=https://example.org/x onerror=\"document.title='owned'\">"
        "<style>body { background: red }</style>"
    )
    (tmp_path / "attacked.html").write_text(text.replace("<main>", f"<main>{attack}"), "utf-8")
    browser.prefer("light")
    browser.open(tmp_path / "attacked.html")

    assert browser.evaluate("document.title").startswith("Audit report, ")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    answered = [event for event in browser.events if event["method"] == "Network.responseReceived"]
    assert [event["params"]["response"]["url"] for event in answered if "example.org" in event["params"]["response"]["url"]] == []
    assert len(complaints(browser)) >= 3


def test_our_own_style_is_taken(page: Page) -> None:
    """Its digest in the policy is that of the style: without it the page would be bare."""
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).fontFamily").startswith("system-ui")


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_the_page_is_no_wider_than_the_screen(page: Page, width: int) -> None:
    """Only tables, within boxes of their own, are scrolled sideways; each such box can be reached with the keyboard."""
    page.resize(width, 844, mobile=width < 600)

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1)"
    assert page.evaluate(f"[...document.body.querySelectorAll('*')].{wide}.map(e => e.outerHTML.slice(0, 80))") == []
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)") is True


def test_a_narrow_table_is_scrolled_in_its_own_box(page: Page) -> None:
    """There are some at all, so that the test above has something to see."""
    page.resize(*PHONE, mobile=True)
    assert page.evaluate("[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length") > 3


def luminance(colour: str) -> float:
    """Return the relative luminance of ``rgb(r, g, b)`` (WCAG 2.2)."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(page: Page, scheme: str) -> None:
    """At least 4.5 to 1, in both schemes (WCAG 2.2, 1.4.3), and dark is dark."""
    page.prefer(scheme)
    script = """
      [...document.body.querySelectorAll('*')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .filter(e => e.namespaceURI.endsWith('xhtml')).map(e => {
          let ground = e;
          while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
          return getComputedStyle(e).color + '|' + getComputedStyle(ground || document.body).backgroundColor;
        })"""
    pairs = {tuple(pair.split("|")) for pair in page.evaluate(script)}

    assert len(pairs) > 3
    for ink, ground in pairs:
        high, low = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) < 0.1) == (scheme == "dark")


def test_paper_is_white_whatever_the_screen_prefers(page: Page) -> None:
    """Nothing is printed dark, and no box cuts a table off."""
    page.prefer("dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    boxes = "[...document.querySelectorAll('.scroll')]"
    assert page.evaluate(f"{boxes}.every(e => getComputedStyle(e).overflowX === 'visible')") is True


def test_paper_is_wide_enough(page: Page, place: Path) -> None:
    """An A4 sheet without its margins, 184 mm, cuts nothing off; a PDF is made of it."""
    page.resize(695, 900)
    page.prefer("light", media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 695
    page.print(place / "report.pdf")
    assert (place / "report.pdf").read_bytes().startswith(b"%PDF")
