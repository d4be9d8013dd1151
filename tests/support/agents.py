"""The agent as a process of its own, and real crashes that the kernel hands to its socket; or a root who only pretends to."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from securecore.cli import core_pattern
from securecore.names import Address
from securecore.sender import agent_limits
from securecore.sender.admission import StormLimit
from securecore.store.catalogue import open_catalogue
from securecore.store.layout import open_store
from tests.support.kernel import Installed, build_crasher, start_crash, wait_until

NO_CHORES = ("--no-chores",)
CORE_MODES = Path("/proc/sys/kernel/core_modes")

CRASHERS = Path(__file__).parents[2] / "scripts" / "crashers"
FREE = StormLimit(0, 1)
NOWHERE = Address("127.0.0.1:9")
NOISY = """
#include <stdint.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    size_t count = (size_t)atoi(argv[1]) << 18;
    uint32_t *heap = malloc(4 * count), word = 1;
    for (size_t at = 0; at < count; at++) heap[at] = word = word * 1664525 + 1013904223;
    abort();
}
"""
"""Its memory hardly becomes smaller by compression, and anybody can say what it must be."""
SLOW = "import time\nfrom securecore.sender import agent, crash\nsend = crash.send\n"
"""The beginning of what has an agent's children do something first."""


def has_coredump_sockets() -> bool:
    """Return whether this kernel can write cores to a socket."""
    return CORE_MODES.exists() and "socket" in CORE_MODES.read_text().split()


needs_coredump_socket = pytest.mark.skipif(
    not has_coredump_sockets(), reason="this kernel has no coredump sockets: kernel.core_modes lacks `socket`"
)


class RunningAgent:
    """An agent that listens at a socket of its own, with the settings of an installed handler."""

    def __init__(
        self, installed: Installed, directory: Path, beginning: str, options: Sequence[str], group: int | None
    ) -> None:
        """*beginning* is run in its process before it starts, to change what it goes by."""
        self.installed = installed
        self.socket = directory / "agent" / "coredump.sock"
        command = ["agent", "--settings", str(installed.settings), "--socket", str(self.socket), *options]
        code = f"import sys\nfrom securecore.cli.main import main\n{beginning}\nmain({command!r})\n"
        self.output = directory / "agent.output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", code], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                group=group, extra_groups=None if group is None else [],
            )  # fmt: skip
        wait_until(lambda: True if self.listens() or self.process.poll() is not None else None)

    def listens(self) -> bool:
        """Return whether its socket is there, and in use by now."""
        try:
            return f" {self.socket}\n" in Path("/proc/net/unix").read_text() and self.socket.exists()
        except OSError:
            return False

    def children(self) -> list[int]:
        """Return the processes that it has started and not reaped."""
        return [int(word) for word in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    def wait_until_idle(self) -> None:
        """Wait until it has no child any more."""
        wait_until(lambda: None if self.children() else True)

    def stop(self) -> int:
        """End it in good order, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(agent_limits.STOP_S + agent_limits.STOP_GRACE_S + 30)

    def kill(self) -> None:
        """End it, and its children, at once."""
        if self.process.poll() is None:
            # Stopped, it reaps none of its children: the numbers stay theirs.
            os.kill(self.process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            for pid in [*self.children(), self.process.pid]:
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running_agent(
    installed: Installed,
    directory: Path,
    beginning: str = "",
    options: Sequence[str] = NO_CHORES,
    group: int | None = None,
) -> Iterator[RunningAgent]:
    """Run an agent while the block runs; whatever happens, nothing is left of it."""
    agent = RunningAgent(installed, directory, beginning, options, group)
    try:
        yield agent
    finally:
        agent.kill()


@contextmanager
def crashing_into_socket(socket: Path, prefix: str = "@@") -> Iterator[None]:
    """Have the kernel hand each crash to the socket while the block runs; waits for its turn where others borrow the pattern."""
    with core_pattern.borrowed(f"{prefix}{socket}", patience_s=120):
        yield


def noisy(programs: Path, mib: int) -> list[str]:
    """Return a command that crashes with so much memory that cannot be compressed."""
    source = programs / "noisy.c"
    source.write_text(NOISY)
    return [str(build_crasher(source, programs)), str(mib)]


def stored_reports(store: Path) -> list[dict[str, Any]]:
    """Return the reports of the dumps in a store, each with its state."""
    with open_store(str(store)) as opened, open_catalogue(opened) as catalogue:
        catalogue.reconcile()
        rows = catalogue.rows()
    found = {path.parent.name: json.loads(path.read_bytes()) for path in store.glob("hosts/*/*/report.json")}
    return [found[row.id] | {"state": row.state} for row in rows]


def crash(command: Sequence[str], cwd: Path, user: int | None = None) -> int:
    """Have a program crash and return how it ended, as wait(2) has it: with the bit that says whether a core was dumped."""
    process = start_crash(command, cwd, user)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return status
