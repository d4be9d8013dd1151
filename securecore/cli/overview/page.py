"""An audit report as one page of HTML that needs nothing beside it: no network, no script, no font.

A template library escapes everything that is put into the page, and the page's own policy lets a browser load and run nothing: only
the style whose digest stands in it is taken. So a name that a host made up is text, twice over.
"""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from securecore import limits
from securecore.cli import terminal
from securecore.cli.overview.model import Overview
from securecore.cli.overview.peer_text import parts
from securecore.cli.overview.tally import code_name
from securecore.cli.overview.timeline import LANE_HEIGHT, draw

_ROOM: Final = "securecore.cli.overview"
_NAME_MOST: Final = 120
"""Characters of a program's or a person's name that are shown; what is longer says so."""
_RECEIPTS_MOST: Final = 100
"""Receipts that do not fit are told one by one, so many: a log that was put back contradicts all that came since."""
_WIDTHS: Final = ((604800, "week"), (86400, "day"), (3600, "hour"), (60, "minute"))


def draw_page(overview: Overview) -> Iterator[bytes]:
    """Yield the page in pieces, as UTF-8."""
    style = _read("page.css")
    digest = base64.b64encode(sha256(style.encode("utf-8")).digest()).decode("ascii")
    template = _environment().from_string(_read("page.html.j2"))
    for piece in template.generate(report=overview, style=Markup(style), style_digest=digest):  # noqa: S704  # our own file
        yield piece.encode("utf-8")


def _read(name: str) -> str:
    return files(_ROOM).joinpath(name).read_text("utf-8")


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        peer=_peer, size=terminal.size, count=terminal.count, signal=terminal.signal_name, short=terminal.short_id, when=_when,
        day=_day, clock=_clock, width=_width, number=_number, code=code_name,
    )  # fmt: skip
    environment.globals.update(draw=draw, lane_height=LANE_HEIGHT, words_most=limits.MAX_WORDS, receipts_most=_RECEIPTS_MOST)
    return environment


def _peer(text: str | None, most: int = _NAME_MOST) -> Markup:
    """Return text of a host or a person: what would not be seen is named, and its direction of writing ends where it ends."""
    if not text:
        return Markup("–")
    shown = (f'<span class="sign">{escape(one)}</span>' if is_sign else str(escape(one)) for one, is_sign in parts(text, most))
    return Markup(f"<bdi>{''.join(shown)}</bdi>")  # noqa: S704  # every part is escaped


def _when(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if moment is not None else "–"


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d}"


def _width(seconds: int) -> str:
    """Return the width of a bar in words: ``1 hour``, ``4 weeks``."""
    unit, name = next((unit, name) for unit, name in _WIDTHS if seconds % unit == 0)
    return terminal.count(seconds // unit, name)


def _number(number: int) -> str:
    """Return a number with its thousands apart, by narrow spaces that do not break."""
    return f"{number:,}".replace(",", "\u202f")
