"""Real cores, by the kernel: programs of scripts/crashers that crash."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore.cli.core_pattern import CORE_PATTERN
from tests.support.kernel import build_crasher, start_crash

CRASHERS = Path(__file__).parent.parent.parent / "scripts" / "crashers"
# The lock of securecore.cli.core_pattern: while another test borrows the pattern, our cores would go to its handler.
LOCK = "/run/securecore-core-pattern.lock"


@pytest.fixture(scope="session")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, int]]:
    """Runs a crasher by name, with its arguments; returns its core and its pid. A core is made once for each set of arguments."""
    made: dict[tuple[str, ...], tuple[Path, int]] = {}

    def make(name: str, *arguments: str) -> tuple[Path, int]:
        if (name, *arguments) not in made:
            directory = tmp_path_factory.mktemp(name)
            program = build_crasher(CRASHERS / f"{name}.c", directory)
            made[name, *arguments] = _crash([str(program), *arguments], directory)
        return made[name, *arguments]

    return make


def _crash(command: list[str], directory: Path) -> tuple[Path, int]:
    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        lock = -1  # Only root borrows the pattern, and only root may lock.
    try:
        if lock >= 0:
            fcntl.flock(lock, fcntl.LOCK_EX)
        pattern = CORE_PATTERN.read_text().strip()
        if not pattern or set(pattern) & set("|@/%"):
            pytest.skip(f"core_pattern is {pattern!r}, no plain file name")
        process = start_crash(command, directory)
        process.wait()
    finally:
        if lock >= 0:
            os.close(lock)
    cores = list(directory.glob(f"{pattern}*"))
    if not cores:
        pytest.skip("this machine writes no core files")
    return cores[0], process.pid
