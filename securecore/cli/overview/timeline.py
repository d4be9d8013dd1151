"""When things happened: counts in stretches of time, gathered in bounded memory, and the bars that stand for them.

Nobody knows how long a log reaches before it is read. So counting begins with minutes, and whenever there are too many of them
neighbours are put together: each width is a multiple of the one before it, so nothing is lost but detail.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

LANES: Final = ("complete", "incomplete", "refused", "extracted", "deleted")
"""What is counted, each by itself, in the order in which it is drawn."""

MAX_BINS: Final = 120
"""Bars in a lane: six pixels each on a page 720 wide, three on a telephone."""

_DAY: Final = 86400
_WIDTHS_S: Final = (
    60, 300, 900, 3600, 10800, 21600, 43200, _DAY, 7 * _DAY, 28 * _DAY, 364 * _DAY, 3640 * _DAY, 36400 * _DAY,
)  # fmt: skip
"""Each divides the next; with the last one MAX_BINS reach beyond the year 9999."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

LANE_HEIGHT: Final = 24
"""In the units of the drawing, which a page shows as pixels; so that labels beside it can have the same height."""
_ROOM: Final = 4
_LEAST: Final = 2.0
"""The height of the lowest bar: one among thousands is seen too."""


class Timeline(NamedTuple):
    """Counts of each lane in stretches of the same width, from the first to the last, empty ones too."""

    starts_at: datetime
    width_s: int
    counts: tuple[tuple[int, ...], ...]
    """One row for each stretch, with a number for each of LANES."""

    @property
    def ends_at(self) -> datetime:
        """The end of the last stretch."""
        return moment_at(_bin_of(self.starts_at, self.width_s) + len(self.counts), self.width_s)


class Histogram:
    """Counts as they come in, in any order."""

    def __init__(self) -> None:
        self._level = 0
        self._bins: dict[int, list[int]] = {}

    @property
    def width_s(self) -> int:
        """The present width of a stretch."""
        return _WIDTHS_S[self._level]

    def add(self, moment: datetime, lane: str, number: int = 1) -> None:
        """Count *number* things; *moment* is aware and not before 1970."""
        self._bin_at(moment)[LANES.index(lane)] += number
        self._fit()

    def cover(self, moment: datetime) -> None:
        """Let the stretches reach to a moment at which nothing may have happened."""
        self._bin_at(moment)
        self._fit()

    def add_all(self, other: "Histogram") -> None:
        """Count what another one has counted."""
        self.coarsen(other.width_s)
        factor = self.width_s // other.width_s
        for number, counts in other._bins.items():
            _add(self._bins.setdefault(number // factor, _nothing()), counts)
        self._fit()

    def coarsen(self, width_s: int) -> None:
        """Make the stretches at least so wide."""
        while self.width_s < width_s:
            self._widen()

    def timeline(self, frame: "Histogram") -> Timeline | None:
        """Return what was counted, in the stretches of *frame*, which has counted all of it too; None where that is nothing."""
        if not frame._bins:
            return None
        self.coarsen(frame.width_s)
        first, last = min(frame._bins), max(frame._bins)
        counts = tuple(tuple(self._bins.get(number, _nothing())) for number in range(first, last + 1))
        return Timeline(moment_at(first, self.width_s), self.width_s, counts)

    def _bin_at(self, moment: datetime) -> list[int]:
        return self._bins.setdefault(_bin_of(moment, self.width_s), _nothing())

    def _fit(self) -> None:
        while max(self._bins, default=0) - min(self._bins, default=0) >= MAX_BINS:
            self._widen()

    def _widen(self) -> None:
        factor = _WIDTHS_S[self._level + 1] // self.width_s
        self._level += 1
        wider: dict[int, list[int]] = {}
        for number, counts in self._bins.items():
            _add(wider.setdefault(number // factor, _nothing()), counts)
        self._bins = wider


def moment_at(number: int, width_s: int) -> datetime:
    """Return when the stretch with this number begins; the calendar's end for one behind it."""
    try:
        return _EPOCH + timedelta(seconds=number * width_s)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


class Bar(NamedTuple):
    """A rectangle in the units of the drawing."""

    x: int
    y: float
    height: float
    starts_at: datetime
    ends_at: datetime
    number: int


class Lane(NamedTuple):
    """One row of bars, with its name, the sum of its counts and the largest of them, which has the highest bar."""

    name: str
    total: int
    most: int
    base: int
    bars: tuple[Bar, ...]


class Drawing(NamedTuple):
    """What a page draws of a timeline: as wide as it has stretches, each one unit."""

    width: int
    height: int
    starts_at: datetime
    ends_at: datetime
    width_s: int
    lanes: tuple[Lane, ...]


def draw(timeline: Timeline) -> Drawing:
    """Return the bars of a timeline; a function of nothing else."""
    lanes = tuple(_lane(timeline, place, name) for place, name in enumerate(LANES))
    return Drawing(
        len(timeline.counts), LANE_HEIGHT * len(lanes), timeline.starts_at, timeline.ends_at, timeline.width_s, lanes
    )  # fmt: skip


def _lane(timeline: Timeline, place: int, name: str) -> Lane:
    numbers = [counts[place] for counts in timeline.counts]
    most, base = max(numbers, default=0), LANE_HEIGHT * (place + 1)
    first = _bin_of(timeline.starts_at, timeline.width_s)
    bars = []
    for at, number in enumerate(numbers):
        if number:
            height = max(round((LANE_HEIGHT - _ROOM) * number / most, 2), _LEAST)
            starts, ends = (moment_at(first + at + step, timeline.width_s) for step in (0, 1))
            bars.append(Bar(at, base - height, height, starts, ends, number))
    return Lane(name, sum(numbers), most, base, tuple(bars))


def _bin_of(moment: datetime, width_s: int) -> int:
    return int((moment - _EPOCH).total_seconds()) // width_s


def _nothing() -> list[int]:
    return [0] * len(LANES)


def _add(counts: list[int], others: Sequence[int]) -> None:
    for place, number in enumerate(others):
        counts[place] += number
