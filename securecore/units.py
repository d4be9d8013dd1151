"""Sizes and numbers for people, written in one way wherever they are shown."""

from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

SIZE_WIDTH: Final = len("1023 MiB")
"""The widest that ``size`` writes of what is below an exbibyte; for columns."""


def size(number: float) -> str:
    """Return bytes for people: three digits and a binary unit."""
    value = float(number)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.0f} {_UNITS[-1]}" if value >= 100 else f"{value:.1f} {_UNITS[-1]}"


def count(number: int, noun: str) -> str:
    """Return a number of things, in words that agree: ``1 frame``, ``2 days``, ``2 entries``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{number} {noun}s"
