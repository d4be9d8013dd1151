"""What scripts/bench says of its figures: medians, ratios of pairs, verdicts, and their place on the page."""

import json
from xml.etree import ElementTree

import pytest
from benchmarks import chart
from benchmarks.figures import BenchError, number, ratios, spread, text_of
from benchmarks.table import BEGIN, END, HOLDS, MISSED, REPORTED, SKIPPED, Bar, Findings, Grid, Row, document, markdown, placed


def row(measured: tuple[float, ...], compared: tuple[float, ...], most: float | None, trouble: str = "") -> Row:
    """Return a row of seconds."""
    return Row("hold", measured, "s", "another handler", compared, most, trouble)


def test_the_ratio_is_that_of_pairs() -> None:
    """Each figure is divided by the one beside it: a machine that was slow for one turn was so for both of it."""
    found = row((1.0, 20.0, 1.2), (2.0, 40.0, 2.0), 0.7)

    assert found.ratio == pytest.approx((0.5, 0.5, 0.6))
    assert spread(found.ratio).median == pytest.approx(0.5)


def test_one_figure_to_compare_with_stands_for_all() -> None:
    """A bound that somebody allows is no measurement, and has no spread."""
    assert ratios((32.0, 48.0), (64.0,)) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("measured", "compared"), [((1.0, 2.0), (1.0, 2.0, 3.0)), ((), ()), ((1.0,), (0.0,)), ((1.0, 2.0), (1.0, 0.0))]
)
def test_pairs_that_do_not_come_out_have_no_ratio(measured: tuple[float, ...], compared: tuple[float, ...]) -> None:
    """Neither a figure without its other, nor one that would be divided by nothing."""
    with pytest.raises(BenchError):
        ratios(measured, compared)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (row((0.7,), (1.0,), 0.7), HOLDS),
        (row((0.7001,), (1.0,), 0.7), MISSED),
        (row((0.6, 0.6, 9.0), (1.0,), 0.7), HOLDS),
        (row((0.6, 9.0, 9.0), (1.0,), 0.7), MISSED),
        (row((9.0,), (1.0,), None), REPORTED),
        (row((9.0,), (1.0,), 0.7, "the disk is too slow to tell"), REPORTED),
        (Row.skipped("hold", "no socat here"), SKIPPED),
    ],
)
def test_the_median_of_the_ratios_is_judged(found: Row, verdict: str) -> None:
    """A budget is met or missed; without one, or where the figures cannot say, nothing is claimed."""
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("samples", "unit", "text"),
    [
        ((3.456,), "s", "3.46 s"),
        ((3.456, 3.1, 12.34), "s", "3.46 s (3.10-12.3)"),
        ((0.0731, 0.055, 0.09), "s", "73.1 ms (55.0-90.0)"),
        ((0.0000113,), "s", "11.3 us"),
        ((1024.0,), "MiB", "1024 MiB"),
        ((0.0201,), "MiB", "0.020 MiB"),
        ((0.5, 0.4), "", "0.45 (0.40-0.50)"),
        ((0.0,), "s", "0 s"),
    ],
)
def test_figures_are_shown_with_median_and_spread(samples: tuple[float, ...], unit: str, text: str) -> None:
    """Three digits, in the unit that the median reads best in."""
    assert text_of(samples, unit) == text


def test_a_small_number_keeps_its_digits() -> None:
    """Where two digits behind the point would leave one that counts, there are three."""
    assert [number(value) for value in (0.0456, 0.456, 4.56, 45.6, 456.0)] == ["0.046", "0.46", "4.56", "45.6", "456"]


FINDINGS = Findings(
    (
        row((0.6, 0.7), (1.0, 1.0), 0.7),
        row((2.0,), (1.0,), 0.7),
        row((2.0,), (1.0,), 0.7, "the disk is too slow to tell"),
        Row.skipped("hold, zeros", "socat | not here"),
    ),
    (Grid("Parts", ("part", "CPU"), (("a | b", "1 s"),), "In words."),),
    (Bar("zeros", "zstd & <openssl>", (1.0, 2.0, 3.0)), Bar("zeros", "socat", ()), Bar("heap", "securecore", (0.5,))),
)


def test_the_table_says_what_was_measured_against_what_and_how_it_ended() -> None:
    """One line for each row, of as many cells as the head has, a bar in a name notwithstanding."""
    lines = markdown(FINDINGS).splitlines()

    assert lines[0].count("|") == 7
    assert lines[2] == "| hold | 650 ms (600-700) | 1.00 s (1.00-1.00) another handler | 0.65 (0.60-0.70) | <= 0.7 | holds |"
    assert lines[3].endswith("| 2.00 | <= 0.7 | missed |")
    assert lines[4].endswith("| 2.00 | <= 0.7 | reported: the disk is too slow to tell |")
    assert lines[5] == "| hold, zeros |  |  |  |  | not measured: socat \\| not here |"
    assert lines[6:10] == ["", "**Parts**", "", "In words."]
    assert lines[-1] == "| a \\| b | 1 s |"


def test_json_has_every_figure() -> None:
    """Nothing is rounded, and verdicts are those of the table."""
    told = json.loads(document({"cpus": 2}, FINDINGS))

    assert told["conditions"] == {"cpus": 2}
    assert [one["verdict"] for one in told["rows"]] == [HOLDS, MISSED, REPORTED, SKIPPED]
    assert told["rows"][0]["measured"] == [0.6, 0.7]
    assert told["rows"][0]["ratio"] == [0.6, 0.7]
    assert told["rows"][3]["ratio"] == []
    assert told["holds"][2] == {"corpus": "heap", "taker": "securecore", "hold": [0.5]}


def test_a_page_keeps_what_people_have_written() -> None:
    """Only what stands between the markers is replaced, however often."""
    page = f"# Title\n\nwords\n{BEGIN}\nold\n{END}\nmore \\1 words\n"
    once = placed(page, "new \\1\n")

    assert once == f"# Title\n\nwords\n{BEGIN}\n\nnew \\1\n\n{END}\nmore \\1 words\n"
    assert placed(once, "new \\1") == once


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}", f"{BEGIN}\n{END}\n{END}"])
def test_a_page_without_its_markers_is_left_alone(page: str) -> None:
    """There is no telling what would be overwritten."""
    with pytest.raises(BenchError, match="does not have one"):
        placed(page, "new")


def test_the_chart_is_a_picture_that_stands_alone() -> None:
    """Well-formed, with title and description; nothing is loaded or run; names are text, whatever signs they have."""
    picture = chart.draw(FINDINGS.bars, "1024 MiB", ("securecore",))
    tree = ElementTree.fromstring(picture)  # noqa: S314  # our own
    texts = ["".join(element.itertext()) for element in tree.iter() if element.tag.endswith("}text")]

    assert {"title", "desc"} <= {element.tag.rpartition("}")[2] for element in tree}
    assert {"zeros", "heap", "zstd & <openssl>", "socat", "securecore", "2.00 s", "not measured", "500 ms"} - set(texts) == {
        "500 ms"
    }
    assert "0.50 s" in texts
    assert "prefers-color-scheme: dark" in picture


def test_bars_are_as_long_as_their_medians() -> None:
    """To one scale in all groups, and within the picture; ours stand out."""
    tree = ElementTree.fromstring(chart.draw(FINDINGS.bars, "1024 MiB", ("securecore",)))  # noqa: S314  # our own
    bars = [element for element in tree.iter() if element.tag.endswith("}rect")]
    width = float(tree.attrib["viewBox"].split()[2])

    assert [bar.attrib["class"] for bar in bars] == ["bar", "bar ours"]
    assert float(bars[0].attrib["width"]) == pytest.approx(4 * float(bars[1].attrib["width"]), rel=0.01)
    assert all(float(bar.attrib["x"]) + float(bar.attrib["width"]) < width for bar in bars)


def test_a_chart_of_nothing_is_still_one() -> None:
    """A run without holds must not end with a traceback."""
    assert ElementTree.fromstring(chart.draw((), "1 MiB", ())).tag.endswith("}svg")  # noqa: S314  # our own
