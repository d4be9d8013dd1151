"""Wall clocks that a test turns, for the real programs: what they load, OpenSSL included, sees the turned time."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support.programs import needed

DAY_S: Final = 86400
YEAR_S: Final = 365 * DAY_S

_SOURCE: Final = Path(__file__).with_name("clock.c")
_IS_TURNED_S: Final = YEAR_S / 2


class Clock:
    """A clock that is right until it is turned; *environment* is what a process needs to go by it."""

    def __init__(self, directory: Path) -> None:
        """Skips the test where no library can be built or preloaded."""
        library, self._file = directory / "clock.so", directory / "clock"
        directory.mkdir()
        build = [needed("gcc"), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(_SOURCE)]
        subprocess.run(build, check=True)
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library), "SECURECORE_CLOCK": str(self._file)}
        self.within: Sequence[str] = ("env", *(f"{name}={value}" for name, value in self.environment.items()))
        """What comes before a command, so that it goes by this clock."""
        self.turn(YEAR_S)
        self._check_is_seen()
        self.turn(0)

    def turn(self, ahead_s: int) -> None:
        """Set the clock so many seconds ahead of the right time, for every process that goes by it, at once."""
        fd = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            # In place and in one write: what is mapped is these eight bytes.
            os.pwrite(fd, ahead_s.to_bytes(8, sys.byteorder, signed=True), 0)
        finally:
            os.close(fd)

    def _check_is_seen(self) -> None:
        command = [sys.executable, "-I", "-c", "import time; print(time.time())"]
        told = subprocess.run(command, env=dict(self.environment), capture_output=True, text=True, check=True).stdout
        if float(told) - time.time() < _IS_TURNED_S:
            pytest.skip("this machine's Python does not take the time from a C library that can be preloaded")
