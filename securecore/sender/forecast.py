"""How much room the rest of a core is likely to take, by how well it has compressed so far: older ones may go for it."""

from collections import deque

from securecore.declarations import Final

_RECENT: Final = 16
"""Frames: what is dumped now compresses like what was dumped just before, and by fewer nobody can tell."""


class Forecast:
    """What is known of one core's compression."""

    def __init__(self) -> None:
        self._plain = self._stored = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)

    def add(self, plain: int, stored: int) -> None:
        """Take note of a frame: its plaintext and stored bytes."""
        self._plain += plain
        self._stored += stored
        self._recent.append((plain, stored))

    def expect(self, rest: int) -> int:
        """Return how many bytes *rest* bytes of plaintext are likely to take; 0 while nobody can tell.

        As all of the core so far, or as its last frames where these compressed worse. Not covered: a core that turns, a long way
        on, into what compresses otherwise, such as memory that was mapped and never touched.
        """
        if len(self._recent) < _RECENT:
            return 0
        plain, stored = sum(plain for plain, _ in self._recent), sum(stored for _, stored in self._recent)
        return max(rest * stored // plain, rest * self._stored // self._plain)
