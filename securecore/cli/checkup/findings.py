"""What a check of a machine has found, as values."""

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from securecore.errors import SecurecoreError


class Level(Enum):
    """How it is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


class Finding(NamedTuple):
    """One thing that was looked at: its name, how it is, in words, and the command (or act) that mends it."""

    name: str
    level: Level
    words: str
    remedy: str | None = None


def ok(name: str, words: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(name, Level.OK, words)


def warning(name: str, words: str, remedy: str | None = None) -> Finding:
    """Return a finding that should be looked at, and with which things work for now."""
    return Finding(name, Level.WARNING, words, remedy)


def wrong(name: str, words: str, remedy: str | None = None) -> Finding:
    """Return a finding because of which cores are lost, kept back or not to be trusted."""
    return Finding(name, Level.WRONG, words, remedy)


def attempt(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what *check* finds; an error that it meets is a finding too, and its hint the remedy."""
    try:
        yield from check()
    except SecurecoreError as error:
        yield wrong(name, error.message, error.hint)
