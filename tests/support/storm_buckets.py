"""Limits of storms, and crashes that are asked about within them."""

from securecore.sender import storm_limits
from securecore.sender.admission import StormLimit
from securecore.sender.buckets import Bounds, State

PROGRAM, USER, HOST = StormLimit(3, 60), StormLimit(5, 10), StormLimit(0, 1)
BOUNDS = Bounds(PROGRAM, USER, HOST)
NOW = 1_795_000_000_000
PAUSE_MS = storm_limits.LOST_PAUSE_S * 1000


def taken(
    state: State, crashes: int, program: str | None = "8:1", user: str = "33", now_ms: int = NOW, bounds: Bounds = BOUNDS
) -> int:
    """Return how many of *crashes* at one moment are taken."""
    return sum(state.admit(program, user, bounds, now_ms).limit is None for _ in range(crashes))
