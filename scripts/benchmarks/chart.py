"""The chart of holds: for each corpus a bar for each handler, as SVG that reads on a light page and on a dark one."""

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from benchmarks.figures import number, spread
from benchmarks.table import Bar

_WIDTH: Final = 900
_NAMES: Final = 250
"""Where bars begin: right of the handlers' names."""
_FIGURES: Final = 150
"""What stays free right of the longest bar, for its figures."""
_LINE: Final = 24
_GROUP: Final = 40
_TOP: Final = 64

_STYLE: Final = """
    text { fill: #24292f }
    .quiet { fill: #57606a }
    .head { font-weight: bold }
    .name { text-anchor: end }
    .bar { fill: #8c96a0 }
    .ours { fill: #2f6fb5 }
    .spread { stroke: #24292f; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .quiet { fill: #9aa5b1 }
      .bar { fill: #6e7883 }
      .ours { fill: #5b9be0 }
      .spread { stroke: #e6edf3 }
    }
"""


def draw(bars: Sequence[Bar], size: str, ours: Sequence[str]) -> str:
    """Return the picture of holds of cores of *size*; the handlers named in *ours* stand out."""
    longest = max((spread(bar.hold).most for bar in bars if bar.hold), default=1.0)
    corpora = list(dict.fromkeys(bar.corpus for bar in bars))
    lines, y = [], _TOP
    for corpus in corpora:
        lines.append(f'<text class="head" x="16" y="{y}">{escape(corpus)}</text>')
        y += 12
        for bar in (bar for bar in bars if bar.corpus == corpus):
            lines += _bar(bar, y, longest, is_ours=bar.taker in ours)
            y += _LINE
        y += _GROUP - 12
    return "\n".join([*_head(bars, size, y), *(f"  {line}" for line in lines), "</svg>", ""])


def _head(bars: Sequence[Bar], size: str, height: int) -> list[str]:
    described = "; ".join(f"{bar.corpus}, {bar.taker}: {_seconds(bar)}" for bar in bars)
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="title what"',
        "     font-family=\"'DejaVu Sans', Verdana, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"13\">",
        f'  <title id="title">How long a crash of {escape(size)} is held, by content and handler</title>',
        f'  <desc id="what">{escape(described)}</desc>',
        f"  <style>{_STYLE}  </style>",
        f'  <text class="head" x="16" y="24">Seconds from the crash of {escape(size)} until its process is gone</text>',
        '  <text class="quiet" x="16" y="42">median; the line spans all runs</text>',
    ]


def _bar(bar: Bar, y: int, longest: float, *, is_ours: bool) -> list[str]:
    name = f'<text class="name" x="{_NAMES - 8}" y="{y + 14}">{escape(bar.taker)}</text>'
    if not bar.hold:
        return [name, f'<text class="quiet" x="{_NAMES}" y="{y + 14}">{_seconds(bar)}</text>']
    scale, middle = (_WIDTH - _NAMES - _FIGURES) / longest, y + 9
    median, least, most = (value * scale for value in spread(bar.hold))
    kind = "bar ours" if is_ours else "bar"
    return [
        name,
        f'<rect class="{kind}" x="{_NAMES}" y="{y}" width="{max(median, 1):.1f}" height="{_LINE - 6}" rx="2"/>',
        f'<path class="spread" d="M{_NAMES + least:.1f} {middle} H{_NAMES + most:.1f}"/>',
        f'<text x="{_NAMES + most + 8:.1f}" y="{y + 14}">{_seconds(bar)}</text>',
    ]


def _seconds(bar: Bar) -> str:
    return f"{number(spread(bar.hold).median)} s" if bar.hold else "not measured"
