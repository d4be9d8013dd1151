"""Real crashes: core_pattern borrowed from the machine, programs that crash, handlers that the kernel starts."""

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from securecore.cli import core_pattern
from securecore.cli.machine.interpreter import find_interpreter
from securecore.names import Address
from securecore.sender.admission import Admission, StormLimit
from securecore.sender.buckets import State
from securecore.sender.kernel_arguments import SPECIFIERS
from securecore.sender.settings import Settings, load_settings
from securecore.sender.spool import create_spool

Found = TypeVar("Found")

NOBODY = 65534
OWNER = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.getuid(), os.getgid())
"""The user that a handler becomes, and the group: as nobody but root can become another, these are our own elsewhere."""

UNLIMITED = Admission(program=StormLimit(0, 1), user=StormLimit(0, 1), host=StormLimit(0, 1))
"""For handlers that meet the crash of one program, the test's own, more often than a host should."""

needs_kernel = pytest.mark.skipif(
    not core_pattern.is_borrowable(), reason="needs root and a writable /proc/sys/kernel/core_pattern"
)

# Stands between the kernel and the handler, as the handler's parent: keeps what the kernel sent, and how much memory it took.
# For itself it needs 1 and 2; the handler it starts as the kernel does, with both closed.
_TEE = """#!{python} -I
import fcntl, json, os, resource, subprocess, sys
core = fcntl.fcntl(0, fcntl.F_DUPFD, 20)
null = os.open("/dev/null", os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
reading, writing = os.pipe()
fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
handler = subprocess.Popen(
    [{handler!r}, *sys.argv[1:]], stdin=reading, pass_fds=(3,), env={{}}, cwd="/", preexec_fn=lambda: os.closerange(1, 3)
)
os.close(reading)
with open({copy!r}, "wb") as copy:
    while data := os.read(core, 1 << 20):
        copy.write(data)
        view = memoryview(data)
        while view:
            view = view[os.write(writing, view):]
os.close(writing)
os.close(core)
code = handler.wait()
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open({facts!r} + ".new", "w") as facts:
    json.dump({{"code": code, "max_resident_kib": usage.ru_maxrss}}, facts)
os.rename({facts!r} + ".new", {facts!r})
"""


class Installed:
    """A handler as `setup sender` leaves it: spool, settings and script, all in one directory."""

    def __init__(self, directory: Path, identity: Path, receivers: Sequence[Address], owner: tuple[int, int] = OWNER) -> None:
        self.identity = identity
        self.spool = directory / "spool"
        self.settings = directory / "handler.json"
        self.handler = directory / "handler"
        create_spool(str(self.spool), os.urandom(16), owner)
        self.settings.write_bytes(Settings(tuple(receivers), str(identity), str(self.spool), *owner).encode())
        self.settings.chmod(0o644)
        write_script(self.handler, find_interpreter().handler_script(str(self.settings)).decode())

    def change(self, **fields: Any) -> None:
        """Change the handler's settings."""
        self.settings.write_bytes(load_settings(str(self.settings))._replace(**fields).encode())

    def spooled_reports(self) -> list[dict[str, Any]]:
        """Return the reports of the dumps in the spool, oldest first."""
        return [json.loads((self.spool / "dumps" / name / "report.json").read_bytes()) for name in self.spooled()]

    def receipts(self) -> list[dict[str, object]]:
        """Return the receipts that the handler has kept; one that is being written is not there yet."""
        log = self.spool / "receipts.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def state(self) -> State:
        """The state of the storm limits."""
        return State.parse((self.spool / "storms.json").read_bytes())

    def spooled(self) -> list[str]:
        """Return the ids of the dumps in the spool."""
        return sorted(path.name for path in (self.spool / "dumps").iterdir())


class Host(Installed):
    """A host's side of this machine, in a new directory of its own, for crashes that the kernel hands over."""

    def __init__(self, directory: Path, identity: Path, receivers: Sequence[Address]) -> None:
        directory.mkdir(mode=0o700)
        super().__init__(directory, identity, receivers)
        self._directory = directory

    def tee(self) -> tuple[Path, Path, Path]:
        """Return a script for core_pattern in front of the handler, where it keeps the core, and where it writes its facts."""
        return write_tee(self._directory, self.handler)

    def wait_for_receipts(self, count: int, deadline_s: float = 60) -> list[dict[str, object]]:
        """Return the receipts once there are *count*; fails when they do not come."""
        return wait_until(lambda: self.receipts() if len(self.receipts()) >= count else None, deadline_s)


def write_tee(directory: Path, handler: Path) -> tuple[Path, Path, Path]:
    """Write a script for core_pattern in front of *handler*; return it, where it keeps the core, and where it writes its facts."""
    script, copy, facts = (directory / name for name in ("tee", "core", "facts.json"))
    write_script(script, _TEE.format(python=sys.executable, handler=str(handler), copy=str(copy), facts=str(facts)))
    return script, copy, facts


def kernel_arguments() -> list[str]:
    """Return what the kernel would tell a handler if this very process had crashed."""
    own = [os.getpid(), os.getpid(), os.getuid(), os.getgid(), int(signal.SIGSEGV), int(time.time()), (1 << 64) - 1, 1]
    return [str(number) for number in own]


def wait_until(find: Callable[[], Found | None], deadline_s: float = 60) -> Found:
    """Return what *find* finds, asking again until it is not None; fails the test when the deadline is over."""
    deadline = time.monotonic() + deadline_s
    while (found := find()) is None:
        if time.monotonic() > deadline:
            pytest.fail(f"waited {deadline_s} s in vain")
        time.sleep(0.01)
    return found


def before_handler(script: str, program: str) -> str:
    """Return a handler's script that runs *program* before it loads the handler, with the path that it finds it by."""
    first, found, rest = script.partition("try:\n    from securecore.sender.handler import main\n")
    assert found
    return f"{first}{program}\n{found}{rest}"


def write_script(path: Path, text: str) -> None:
    """Write an executable script."""
    path.write_text(text)
    path.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)


@contextmanager
def crashing_into(program: Path, *words: str) -> Iterator[None]:
    """Have the kernel start *program* for each crash while the block runs, with *words* before its own arguments.

    Waits for its turn where others borrow the pattern.
    """
    with core_pattern.borrowed(f"|{' '.join([str(program), *words])} {SPECIFIERS}", patience_s=120):
        yield


def build_crasher(source: Path, directory: Path) -> Path:
    """Compile one of scripts/crashers; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = directory / source.stem
    if not program.exists():
        subprocess.run([compiler, "-g", "-O1", "-pthread", "-o", str(program), str(source)], check=True)
    return program


def start_crash(
    arguments: Sequence[str | bytes],
    cwd: Path,
    user: int | None = None,
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """Start a program that will crash, with an unlimited RLIMIT_CORE; as *user*, and that group, when one is given."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        return subprocess.Popen(
            arguments, cwd=cwd, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL,
            user=user, group=user, extra_groups=None if user is None else [],
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
