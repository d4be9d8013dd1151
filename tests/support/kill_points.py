"""The real programs, each made to end itself with SIGKILL at one step: before or after one of its calls that change a disk.

Steps are counted from 0, two for each such call, over all threads. A record in shared memory says which one was the last, so that a
first run tells how many there are. A killed process leaves all that the kernel was told; for what a power cut leaves see disk.py.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from securecore.names import Address
from tests.support.kernel import write_script

IS_LONG: Final = bool(os.environ.get("SECURECORE_LONG"))
"""Whether every step is tried; else some, evenly spaced."""

PATIENCE_S: Final = 60.0
"""How long a test waits for a program that takes a second."""

_ROOT: Final = Path(__file__).parents[2]
_RECORD_BYTES: Final = 1 << 18

# A core of four pieces is to be acknowledged, and to overflow into the spool, as one of a gigabyte is.
_SMALL: Final = "from securecore import limits\nlimits.ACK_EVERY_BYTES = limits.RING_BYTES = 1 << 20\n"
_COMMAND: Final = "import sys\nfrom securecore.cli.main import main\nmain(sys.argv[1:])\n"
_HANDLER: Final = "from securecore.sender.handler import main\nmain({!r})\n"

# The record is mapped, because a handler closes every descriptor that it does not know.
_ARMED: Final = """
def arm(die_at, record):
    import mmap, os, signal, stat, threading
    lock, steps = threading.Lock(), 0
    fd = os.open(record, os.O_RDWR)
    told = mmap.mmap(fd, 0)
    os.close(fd)

    def step(words):
        nonlocal steps
        with lock:
            if steps == die_at:
                told.write(b"killed\\n")
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            told.write(words.encode() + b"\\n")

    def changes_disk(name, arguments):
        if name == "open":
            return bool(arguments[1] & os.O_CREAT)
        if name in ("write", "pwrite"):
            return stat.S_ISREG(os.fstat(arguments[0]).st_mode)
        return True

    def watched(name, real):
        def call(*arguments, **options):
            if not changes_disk(name, arguments):
                return real(*arguments, **options)
            what = arguments[-1] if name in ("open", "mkdir", "rename", "replace", "link", "unlink", "rmdir") else ""
            what = arguments[0] if name in ("open", "mkdir", "unlink", "rmdir") else what
            step(f"before {name} {what}")
            result = real(*arguments, **options)
            step(f"after {name} {what}")
            return result
        return call

    for name in ("open", "write", "pwrite", "fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir", "rmdir",
                 "truncate", "ftruncate", "posix_fallocate"):
        setattr(os, name, watched(name, getattr(os, name)))
"""


class Point:
    """Where a program is to end; None is nowhere."""

    def __init__(self, directory: Path, step: int | None) -> None:
        self.step = step
        self._record = directory / "record"
        self._record.write_bytes(bytes(_RECORD_BYTES))
        self._record.chmod(0o666)

    @property
    def steps(self) -> list[str]:
        """What was done, in order: ``before fsync``, ``after rename core.zst``, and ``killed`` at last."""
        return self._record.read_bytes().rstrip(b"\0").decode().splitlines()

    def program(self, body: str = _COMMAND) -> str:
        """Return the text of a program that ends there."""
        return f"{_ARMED}\narm({self.step!r}, {str(self._record)!r})\n{_SMALL}{body}"

    def command(self, *words: object) -> list[str]:
        """Return the arguments of the ``securecore`` command that ends there."""
        return [sys.executable, "-c", self.program(), *map(str, words)]

    def handler(self, path: Path, settings: Path) -> None:
        """Write a handler, as the kernel starts it, that ends there."""
        write_script(path, f"#!{sys.executable} -I\n{self.program(_HANDLER.format(str(settings)))}")


def sampled(steps: range, count: int) -> list[int]:
    """Return *count* of the steps, evenly spaced with the first and the last; all where this is the long run."""
    if IS_LONG or len(steps) <= count:
        return list(steps)
    return [steps[round(at * (len(steps) - 1) / (count - 1))] for at in range(count)]


@contextmanager
def armed_receiver(point: Point, identity: Path, store: Path) -> Iterator[Address | None]:
    """Run a receiver that ends at *point* while the block runs; yields None where it ends before it listens.

    It is killed at the block's end where it still lives.
    """
    words = point.command("receive", "--identity", identity, "--store", store, "--listen", "127.0.0.1:0")
    with subprocess.Popen(words, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        try:
            assert popen.stdout is not None
            line = popen.stdout.readline().decode()
            if not line:
                assert popen.stderr is not None
                said = popen.stderr.read().decode()
                assert point.steps[-1:] == ["killed"], said
            yield Address(line.split()[2]) if line else None
        finally:
            popen.kill()
            popen.communicate()


def run_until_killed(words: Sequence[str], core: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run a program with *core* in its standard input, a pipe, and return how it ended."""
    return subprocess.run(words, cwd=_ROOT, input=core, capture_output=True, timeout=PATIENCE_S, check=False)
