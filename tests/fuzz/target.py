"""What a fuzz target is: a check that takes any bytes, and good inputs to begin with."""

import importlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from securecore.errors import SecurecoreError


class Target(NamedTuple):
    """One or more parsers under attack."""

    check: Callable[[bytes], None]
    """Returns when the parsers did right by these bytes: took them, or refused them by the project's own error. Raises whatever
    else happened, and AssertionError where an answer is not what an independent look at the same bytes says."""
    seeds: Callable[[], Iterable[bytes]]
    """Good inputs, made by the code that writes them."""
    parsers: tuple[str, ...]
    """What is driven, as ``module.function`` within the package."""
    max_bytes: int = 4096
    """The longest input that is tried; what is long by nature is not worth a fuzzer's time."""
    is_json: bool = False
    """Whether lines of an input are JSON, which half of the changes then leave JSON."""


def check_words(error: SecurecoreError) -> None:
    """Hold an error to what people see of it: one printable line."""
    assert error.message
    assert error.message.isprintable()


def check_begins(error: SecurecoreError, what: str) -> None:
    """Hold an error to naming what it is about."""
    assert error.message.startswith(what)


def find_parser(name: str) -> object:
    """Return what ``module.function`` or ``module.Class.method`` names within the package."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(["securecore", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise LookupError(name)
