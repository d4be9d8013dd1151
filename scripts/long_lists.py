"""What `securecore list` costs as a whole process, by the number of dumps of the one host that is listed."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import many_dumps
from benchmarks.figures import BenchError

from securecore import limits
from securecore.store.layout import create_store


class Pair(NamedTuple):
    """What a list of many dumps costs, and one of few: in turns, each as a process of its own."""

    what: str
    long: list[float]
    short: list[float]
    unit: str
    most: float
    """The ratio that it may have."""


_MOST: Final = 10.0


def compare(few: int, many: int, runs: int) -> list[Pair]:
    """Return what lists cost by their processor time and what is resident, of *many* dumps against *few*.

    The stores, and their catalogues, are made and removed.
    """
    directory = Path(tempfile.mkdtemp(prefix="securecore-bench-"))
    try:
        stores = [_make(directory / str(count), count) for count in (few, many)]
        found = []
        for what, words in (("list --host", []), ("list --host --json", ["--json"])):
            short, long = zip(*([_list(store, words) for store in stores] for _ in range(runs)), strict=True)
            found.append(Pair(f"{what}, processor", [cost.cpu_s for cost in long], [cost.cpu_s for cost in short], "s", _MOST))
            found.append(Pair(f"{what}, memory", [cost.mib for cost in long], [cost.mib for cost in short], "MiB", _MOST))
        return found
    finally:
        shutil.rmtree(directory)


class Cost(NamedTuple):
    """Of one process."""

    cpu_s: float
    mib: float


def _make(path: Path, count: int) -> Path:
    with create_store(str(path)) as store:
        many_dumps.make_dumps(store, count)
    _list(path, [])
    return path


def _list(store: Path, words: list[str]) -> Cost:
    """List a host's dumps, and return what that took, the start of the process included."""
    command = [sys.executable, "-m", "securecore.cli.main", "list", "--store", str(store), "--host", str(many_dumps.HOST), *words]
    watcher = [sys.executable, "-I", "-S", "-c", _WATCHER, *command]
    done = subprocess.run(watcher, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
    status, cpu_s, kib = done.stderr.split()[-3:]
    if int(status):
        raise BenchError(f"list has failed: {done.stderr.strip()[-200:]}")
    return Cost(float(cpu_s), int(kib) * limits.KIB / limits.MIB)


_WATCHER: Final = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
print(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, file=sys.stderr)
"""
"""Starts a command and says what it took. What is counted as resident begins with who has started it, so this is small."""
