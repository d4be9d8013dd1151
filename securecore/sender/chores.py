"""What the agent does beside crashes, now and then, in a child each: when it is due, and that it ends."""

import random
from collections.abc import Callable
from typing import NamedTuple


class Chore(NamedTuple):
    """One of them."""

    name: str
    work: Callable[[], int]
    """What a child does; its exit code comes back."""
    first_s: float
    """How long after the agent's start, at least."""
    every_s: float
    """From the end of one to the beginning of the next, at least."""
    jitter_s: float
    """What chance adds to either at most: a fleet must not come to its receiver in one second."""
    most_s: float
    """How long it may take, before it is killed."""


class Planned:
    """A chore and its times, all by one monotonic clock."""

    def __init__(self, chore: Chore, now: float, chance: Callable[[], float] = random.random) -> None:
        self.chore = chore
        self.pid: int | None = None
        """Of the child that is at it."""
        self.last_code = 0
        """What the last one ended with."""
        self._chance = chance
        self._at = now + chore.first_s + chance() * chore.jitter_s

    @property
    def next_at(self) -> float:
        """When something is to be done about it: begin it, or end the one that takes too long."""
        return self._at

    def is_due(self, now: float) -> bool:
        """Return whether it is to begin."""
        return self.pid is None and now >= self._at

    def is_overdue(self, now: float) -> bool:
        """Return whether it has had its time."""
        return self.pid is not None and now >= self._at

    def hurry(self, now: float) -> None:
        """Have it begin now, if it is not under way."""
        if self.pid is None:
            self._at = now

    def begin(self, pid: int, now: float) -> None:
        """Note that a child is at it."""
        self.pid, self._at = pid, now + self.chore.most_s

    def put_off(self, now: float) -> None:
        """Note that it is over, or could not begin."""
        self.pid = None
        self._at = now + self.chore.every_s + self._chance() * self.chore.jitter_s
