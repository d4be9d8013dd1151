"""What was measured: repeated figures, their median and spread, and what they are when each is divided by its pair."""

import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

Samples = tuple[float, ...]

_SCALES: Final = {"s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))}
"""Units that small values are shown in, the largest first; a unit that is not here stays as it is."""


class BenchError(Exception):
    """A measurement that says nothing: a program that failed, a dump that did not come; the text says which and why."""


class Spread(NamedTuple):
    """Median, smallest and largest."""

    median: float
    least: float
    most: float


def spread(samples: Sequence[float]) -> Spread:
    """Return the spread of at least one figure; raises BenchError where there is none."""
    if not samples:
        raise BenchError("nothing was measured")
    return Spread(statistics.median(samples), min(samples), max(samples))


def ratios(measured: Sequence[float], compared: Sequence[float]) -> Samples:
    """Return each figure divided by the one that was measured beside it.

    One figure to compare with stands for all. Raises BenchError when the pairs do not come out, or one would divide by nothing.
    """
    others = list(compared) * len(measured) if len(compared) == 1 else list(compared)
    if len(others) != len(measured) or not measured:
        raise BenchError(f"{len(measured)} figures have {len(compared)} to be compared to")
    if min(others) <= 0:
        raise BenchError("compared to nothing")
    return tuple(one / other for one, other in zip(measured, others, strict=True))


def text_of(samples: Sequence[float], unit: str) -> str:
    """Return figures as people read them: the median with its unit; in brackets smallest and largest, where there are several."""
    found = spread(samples)
    size, name = next(((size, name) for size, name in _SCALES.get(unit, ()) if abs(found.median) >= size), (1.0, unit))
    shown = f"{number(found.median / size)} {name}".strip()
    if len(samples) == 1:
        return shown
    return f"{shown} ({number(found.least / size)}-{number(found.most / size)})"


def number(value: float) -> str:
    """Return three digits of a number, more where it has them before its point."""
    if abs(value) >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
