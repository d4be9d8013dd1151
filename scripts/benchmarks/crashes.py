"""Crashes: a program of a given content and size, held by whoever takes its core."""

import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.figures import BenchError
from benchmarks.machine import Machine
from benchmarks.takers import Settled, Taker
from securecore.cli import core_pattern

_PATIENCE_S: Final = 900
"""Others, a run of the tests for example, borrow core_pattern for one crash each; one of theirs may wait for a long dump."""
_CRASH_S: Final = 900


class Crash(NamedTuple):
    """A process of so many MiB, of which the first *filled_mib* hold a corpus."""

    corpus: Path
    mib: int
    filled_mib: int | None = None

    def words(self, machine: Machine) -> Sequence[str]:
        """Return the command that crashes."""
        filled = [] if self.filled_mib is None else [str(self.filled_mib)]
        return [str(machine.crasher), str(self.mib), str(self.corpus), *filled]


class Held(NamedTuple):
    """For how long a crash was held, and what became of it."""

    hold_s: float
    settled: Settled


def hold(machine: Machine, taker: Taker, crash: Crash) -> Held:
    """Crash once, wait until what came of it is on the disk, and say how long the crashed process was there.

    The time is that from just before abort() until the process is reaped. Raises BenchError when the program could not be made
    ready or its core was not taken whole.
    """
    taker.arm()
    with core_pattern.borrowed(taker.pattern, patience_s=_PATIENCE_S):
        held = _seconds(crash.words(machine), machine.directory)
    return Held(held, taker.settle())


def _seconds(words: Sequence[str], directory: Path) -> float:
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=directory) as process:
        assert process.stdout is not None
        try:
            if process.stdout.read(1) != b".":
                raise BenchError("the program that crashes could not get its memory")
            started = time.perf_counter()
            _wait(process.pid)
            process.wait()
            return time.perf_counter() - started
        finally:
            process.kill()


def _wait(pid: int) -> None:
    """Wait for the end of a process, to the microsecond; Popen's wait with a deadline looks 20 times in a second."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_CRASH_S * 1000):
            raise BenchError(f"a crash was held for more than {_CRASH_S} s")
    finally:
        os.close(pidfd)
