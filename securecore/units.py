"""Sizes, numbers and lengths of time as people read and write them, in one way wherever that is."""

import re
from datetime import timedelta
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

_SIZE: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]))? ?(B|[KMGTP]iB)")
_SPAN: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_SPANS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SECONDS: Final = (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60), ("s", 1))

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


def parse_size(text: str) -> int | None:
    """Return the bytes that ``size`` would write so, or a person does: 500MiB, 1.5 TiB; None when the text says nothing like it."""
    found = _SIZE.fullmatch(text)
    if found is None:
        return None
    tenths = int(found[1]) * 10 + int(found[2] or "0")
    return (tenths << 10 * _UNITS.index(found[3])) // 10


def parse_span(text: str) -> timedelta | None:
    """Return the length of time that 90s, 15m, 6h, 1d or 2w means; None when the text means none, or one too long."""
    found = _SPAN.fullmatch(text)
    if found is None:
        return None
    try:
        return timedelta(**{_SPANS[found[2]]: int(found[1])})
    except OverflowError:
        return None


def exact_size(number: int) -> str:
    """Return bytes so that ``parse_size`` returns the same number, in their largest whole unit: 20GiB, 1537B; below 1e15 bytes."""
    power = max((power for power in range(len(_UNITS)) if number and number % (1 << 10 * power) == 0), default=0)
    return f"{number >> 10 * power}{_UNITS[power]}"


def exact_span(span: timedelta) -> str:
    """Return a length of time so that ``parse_span`` returns the same one, in its largest whole unit; without parts of a second."""
    seconds = span // timedelta(seconds=1)
    unit, length = next((unit, length) for unit, length in _SECONDS if seconds % length == 0)
    return f"{seconds // length}{unit}"
