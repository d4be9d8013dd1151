"""How much a run measures, and how it tells those who wait for it."""

import sys
from typing import Final, NamedTuple

from benchmarks.machine import Machine


class Plan(NamedTuple):
    """Sizes and numbers of one run."""

    runs: int
    """Measurements of each kind, in turns."""
    starts: int
    """Of the start, which is short."""
    mib: int
    """The large core."""
    sizes_mib: tuple[int, ...]
    """Cores for the handler's memory, the smallest first."""
    dumps: int
    """Of one host, in the store that is listed."""
    senders: tuple[int, ...]
    """At one receiver at once."""


FULL: Final = Plan(3, 15, 1024, (16, 64, 256, 1024, 8192), 100_000, (1, 16, 64, 256))
QUICK: Final = Plan(1, 5, 64, (16, 256), 3000, (1, 4))


class Run(NamedTuple):
    """A machine and what is to be measured on it."""

    machine: Machine
    plan: Plan

    def tell(self, what: str) -> None:
        """Say on a terminal what goes on now."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{what[:100]}")
            sys.stderr.flush()


def quiet() -> None:
    """Clear what was told last."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
