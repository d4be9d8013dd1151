"""Processes that end at any of their calls, for state machines: killed, so that all stays that they wrote, or without power."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.support.disk import NAMED, OPEN, Disk

Survivors = dict[str, bytes | None]
"""The bytes of files, None for directories, by path under a root."""

_FACTOR: Final = int(os.environ.get("SECURECORE_EXAMPLES", "1"))
"""How many times as many examples as usual: for a long run, whose examples are random too."""


def examples(count: int, steps: int) -> settings:
    """Return a machine's settings: *count* examples, the same in every run, or $SECURECORE_EXAMPLES times as many random ones."""
    return settings(
        max_examples=count * _FACTOR,
        stateful_step_count=steps,
        deadline=None,
        derandomize=_FACTOR == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def hunt(count: int, steps: int) -> settings:
    """Return settings for a machine that is to find a planted bug: it need not be made small."""
    return settings(examples(count, steps), phases=[Phase.generate], report_multiple_bugs=False)


def scratch() -> Path:
    """Return a new directory, in memory where there is such a place: that a sync was asked for counts, not how long it takes."""
    return Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


class Killed(BaseException):
    """The process ends here; no handler of errors sees it."""


class Loss(Enum):
    """What an end of a process takes with it."""

    KILLED = "killed"
    """Nothing that it had written."""
    POWER = "power cut"
    """All that was not made durable."""


class End(NamedTuple):
    """Before which call a process ends, counted from 0, and how."""

    calls: int
    loss: Loss
    tears: bool = False
    """If it is a write, half of it is done."""


def ends(most: int) -> st.SearchStrategy[End | None]:
    """Return when a process ends, if it does, within so many calls."""
    return st.none() | st.builds(End, st.integers(0, most), st.sampled_from(Loss), st.sampled_from([True, True, False]))


_REAL: Final = {name: getattr(os, name) for name in (*NAMED, *OPEN)}


class _Switchboard:
    """The calls that are watched, for several directories at once, each of which may come and go in any order."""

    def __init__(self) -> None:
        self._powers: list[Power] = []
        self._patch = pytest.MonkeyPatch()

    def add(self, power: "Power") -> None:
        """Watch one more."""
        if not self._powers:
            for name in _REAL:
                self._patch.setattr(os, name, partial(self._call, name))
        self._powers.append(power)

    def remove(self, power: "Power") -> None:
        """Watch one no longer."""
        self._powers.remove(power)
        if not self._powers:
            self._patch.undo()

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        for power in self._powers:
            if power.disk.concerns(name, arguments, options):
                return power.disk.watched(name, _REAL[name])(*arguments, **options)
        return _REAL[name](*arguments, **options)


_switchboard: Final = _Switchboard()


class Power:
    """A directory whose process can be ended: the calls that change it are watched, and counted down to the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.is_off = False
        self.fatal: str | None = None
        """The call before which the process ended last."""
        self._end: End | None = None
        self._left = 0
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self.disk = Disk(self.root)
        self.disk.before = self._count
        _switchboard.add(self)

    def _count(self, call: str) -> None:
        with self._lock:
            self.disk.is_tearing = False
            if self._end is not None and not self.is_off:
                self._left -= 1
                self.is_off = self._left < 0
                self.fatal = call if self.is_off else self.fatal
                self.disk.is_tearing = self.is_off and self._end.tears
            if self.is_off:
                raise Killed

    def end_within(self, end: End | None) -> None:
        """Have the process end before one of its next calls; None takes that back."""
        self._end, self._left = end, 0 if end is None else end.calls

    def survivors(self) -> Survivors:
        """Return what a power cut would leave now."""
        return self.disk.survivors()

    def restart(self, loss: Loss) -> Path:
        """Return the directory that the next process finds, and close what the last one had open; nothing of it may still run."""
        self._close_left_open()
        if loss is Loss.POWER:
            self.root = Path(tempfile.mkdtemp(dir=self.root.parent)) / self.root.name
            self.disk.restore(self.root)
        self.replace(self.root)
        return self.root

    def replace(self, root: Path) -> None:
        """Go on with another directory, all of which is durable."""
        self.close()
        self.root, self.is_off, self._end = root, False, None
        self._begin()

    def _close_left_open(self) -> None:
        """Close what code that was ended has left open, and with it the locks, as the system does for a process."""
        ours = self.disk.descriptors()
        for name in os.listdir("/proc/self/fd"):
            try:
                is_left = f"{os.readlink(f'/proc/self/fd/{name}')}/".startswith(f"{self.root}/") and int(name) not in ours
            except OSError:
                continue  # It was that of the listing.
            if is_left:
                os.close(int(name))

    def close(self) -> None:
        """Watch no more."""
        _switchboard.remove(self)
        self.disk.close()


def contents(root: Path) -> Survivors:
    """Return what stands under a directory, in the form of survivors."""
    paths = [path for path in root.rglob("*") if path.is_dir() or path.is_file()]
    return {str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in paths}


def swallowing(kind: type[BaseException], report: Callable[..., object]) -> Callable[..., object]:
    """Return a threading.excepthook that lets threads end by *kind* without a word, and tells *report* of all else."""
    return lambda arguments: None if issubclass(arguments.exc_type, kind) else report(arguments)


def ended_at_each_call(ready: Path, act: Callable[[Path], object], loss: Loss) -> Iterator[tuple[Path, str | None]]:
    """Do *act* in copies of *ready*, and end it before its first call that changes one, its second, and so on to its end.

    Yields each directory as it is left, and which call was not done; None where it came to its end. It is removed afterwards.
    """
    for number in count():
        top = scratch()
        power = Power(Path(shutil.copytree(ready, top / "place")))
        power.end_within(End(number, loss))
        try:
            with suppress(Killed):
                act(power.root)
            left, fatal = power.restart(loss) if power.fatal else power.root, power.fatal
            power.close()
            yield left, fatal
        finally:
            shutil.rmtree(top)
        if fatal is None:
            return
