"""What a run found, as Markdown, as JSON, and in its place on a page."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from benchmarks.figures import BenchError, Samples, ratios, spread, text_of

HOLDS: Final = "holds"
MISSED: Final = "missed"
REPORTED: Final = "reported"
SKIPPED: Final = "not measured"
BEGIN: Final = "<!-- scripts/bench --write begins here -->"
END: Final = "<!-- scripts/bench --write ends here -->"


class Row(NamedTuple):
    """One thing that was measured beside what it is compared to."""

    what: str
    measured: Samples
    unit: str
    against: str
    """What *compared* are figures of."""
    compared: Samples
    """In *unit* as well: one for each that was measured, or one for all."""
    most: float | None
    """The ratio that it may have; None where nothing is promised."""
    trouble: str = ""
    """Why nothing was measured, or why what was measured cannot be judged."""

    @classmethod
    def skipped(cls, what: str, why: str) -> "Row":
        """Return the row of what could not be measured."""
        return cls(what, (), "", "", (), None, why)

    @property
    def ratio(self) -> Samples:
        """The ratios of the pairs."""
        return ratios(self.measured, self.compared)

    @property
    def verdict(self) -> str:
        """Whether the median of the ratios keeps within the budget."""
        if not self.measured:
            return SKIPPED
        if self.most is None or self.trouble:
            return REPORTED
        return HOLDS if spread(self.ratio).median <= self.most else MISSED


class Grid(NamedTuple):
    """Figures that are compared with each other only: a title, the heads of the columns, and the cells."""

    title: str
    heads: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    words: str = ""
    """What to know of them."""


class Bar(NamedTuple):
    """A bar of the chart: how long a crash was held."""

    corpus: str
    taker: str
    hold: Samples
    """In seconds; nothing where it could not be measured."""


class Findings(NamedTuple):
    """What one part of a run, or all of it, has found."""

    rows: tuple[Row, ...] = ()
    grids: tuple[Grid, ...] = ()
    bars: tuple[Bar, ...] = ()

    def __add__(self, other: object) -> "Findings":
        """Return both, one behind the other."""
        if not isinstance(other, Findings):
            return NotImplemented
        return Findings(self.rows + other.rows, self.grids + other.grids, self.bars + other.bars)


def markdown(findings: Findings) -> str:
    """Return tables: first what is promised, then what else was seen."""
    lines = _rows(findings.rows) if findings.rows else []
    for grid in findings.grids:
        lines += [""] * bool(lines) + [f"**{grid.title}**", ""]
        lines += [textwrap.fill(grid.words, 130), ""] if grid.words else []
        lines += _table(grid.heads, grid.cells)
    return "\n".join(lines) + "\n"


def document(conditions: dict[str, Any], findings: Findings) -> str:
    """Return everything as one JSON document, with every figure."""
    rows = [
        {
            "what": row.what,
            "unit": row.unit,
            "measured": row.measured,
            "against": row.against,
            "compared": row.compared,
            "ratio": row.ratio if row.measured else (),
            "budget": row.most,
            "verdict": row.verdict,
            "trouble": row.trouble,
        }
        for row in findings.rows
    ]
    grids = [{"title": grid.title, "heads": grid.heads, "cells": grid.cells, "words": grid.words} for grid in findings.grids]
    bars = [bar._asdict() for bar in findings.bars]
    return json.dumps({"conditions": conditions, "rows": rows, "grids": grids, "holds": bars}, indent=1)


def placed(page: str, text: str) -> str:
    """Return *page* with *text* between its two markers, all else as it was; raises BenchError when it has not one of each."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise BenchError(f"the page does not have one {BEGIN} and behind it one {END}")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{rest.partition(END)[2]}"


def _rows(rows: Sequence[Row]) -> list[str]:
    return _table(("what", "measured", "compared to", "ratio", "budget", ""), tuple(_cells(row) for row in rows))


def _cells(row: Row) -> tuple[str, ...]:
    if not row.measured:
        return (row.what, "", "", "", "", f"{SKIPPED}: {row.trouble}")
    compared = f"{text_of(row.compared, row.unit)} {row.against}"
    budget = "" if row.most is None else f"<= {row.most:.3g}"
    verdict = f"{row.verdict}: {row.trouble}" if row.trouble else row.verdict
    return (row.what, text_of(row.measured, row.unit), compared, text_of(row.ratio, ""), budget, verdict)


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
