"""Words of peers and people in an audit report: nothing in them is invisible, moves other text, or is taken for a formula."""

import unicodedata
from collections.abc import Iterator
from itertools import groupby
from typing import Final, NamedTuple

_BLANKS: Final = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
"""Letters and symbols by their category that are drawn as nothing: Hangul fillers and the empty Braille pattern."""
_MARKS_MOST: Final = 3
"""Combining marks on one letter that are let through: pointed Hebrew needs three. More are drawn over the lines above and below."""
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the beginning of a formula, and the full-width forms that some turn into these (OWASP, CSV
Injection)."""


class Part(NamedTuple):
    """A stretch of text as it stands, or the name of a sign that would not be seen, with how often it stands there in a row."""

    text: str
    is_sign: bool


def parts(text: str, most: int) -> Iterator[Part]:
    """Yield *text*, cut to *most* characters, in stretches; what is not printable, or is drawn as nothing, by its code point.

    Control characters, bidirectional overrides, joiners, line ends, lone surrogates and unassigned code points are signs, and so
    are combining marks beyond what a letter bears. What was cut is said.
    """
    for is_sign, stretch in groupby(_judged(text[:most]), key=lambda judged: judged[1]):
        characters = [character for character, _ in stretch]
        if not is_sign:
            yield Part("".join(characters), is_sign=False)
            continue
        for sign, same in groupby(characters):
            times = len(list(same))
            yield Part(f"U+{ord(sign):04X}" + (f" ×{times}" if times > 1 else ""), is_sign=True)
    if len(text) > most:
        yield Part(f"… {len(text)} characters", is_sign=True)


def _judged(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each character, and whether it would not be seen."""
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        yield character, not character.isprintable() or character in _BLANKS or marks > _MARKS_MOST


def visible(text: str, most: int) -> str:
    """Return the same as one plain text, signs in angle brackets."""
    if len(text) <= most and text.isascii() and text.isprintable():
        return text  # As almost all are: a report of a long log would spend half its time here.
    return "".join(f"<{part.text}>" if part.is_sign else part.text for part in parts(text, most))


def cell(text: str, most: int) -> str:
    """Return the same for a spreadsheet: what it would take for a formula has an apostrophe before it, and is text."""
    shown = visible(text, most)
    return f"'{shown}" if shown.lstrip(" ").startswith(_FORMULA) else shown
