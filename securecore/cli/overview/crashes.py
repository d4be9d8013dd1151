"""Which programs crash most, counted in bounded memory."""

from datetime import datetime
from typing import Final

from securecore.cli.overview.events import Event
from securecore.cli.overview.model import Program, Programs

MOST_NAMES: Final = 10_000
"""Programs that are told apart: a host chooses their names, of at most 255 characters, so 16 MB at the worst (measured)."""
_MOST_SIGNALS: Final = 8
"""Signals of a program that are told apart; ten of signal(7) dump core."""


class CrashCount:
    """Counts crashes by program."""

    def __init__(self) -> None:
        self._programs: dict[str | None, _Count] = {}
        self._beyond = 0

    def add(self, event: Event) -> None:
        """Count the crash of a dump that was received or given up."""
        found = self._programs.get(event.program)
        if found is None:
            if len(self._programs) >= MOST_NAMES:
                self._beyond += 1
                return
            found = self._programs[event.program] = _Count()
        found.add(event)

    def worst(self, most: int) -> Programs:
        """Return the *most* programs that crashed most often; those of equal number in the order of their names."""
        order = sorted(self._programs.items(), key=lambda item: (-item[1].dumps, item[0] or ""))
        rows = tuple(count.program(name) for name, count in order[:most])
        others = order[most:]
        return Programs(
            rows, len(others), sum(count.dumps for _, count in others) + self._beyond, is_exact=self._beyond == 0
        )  # fmt: skip


class _Count:
    """One program."""

    __slots__ = ("_signals", "dumps", "largest", "newest_at", "plain")

    def __init__(self) -> None:
        self.dumps = self.plain = self.largest = 0
        self.newest_at: datetime | None = None
        self._signals: dict[int | None, int] = {}

    def add(self, event: Event) -> None:
        self.dumps += 1
        self.plain += event.size_bytes or 0
        self.largest = max(self.largest, event.size_bytes or 0)
        if event.time is not None and (self.newest_at is None or event.time > self.newest_at):
            self.newest_at = event.time
        is_known = event.signal in self._signals or len(self._signals) < _MOST_SIGNALS
        signal = event.signal if is_known else None
        self._signals[signal] = self._signals.get(signal, 0) + 1

    def program(self, name: str | None) -> Program:
        signals = sorted(self._signals.items(), key=lambda item: (-item[1], item[0] or 0))
        return Program(name, self.dumps, self.plain, self.largest, self.newest_at, tuple(signals))
