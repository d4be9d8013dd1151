"""The agent against the pipe's handler, in pairs: how long a crash holds its process, and when the first byte of the core is out.

``compare`` and ``compare_first_byte`` are for a bench that has a receiver and a handler already; run by itself this makes its own:
``.venv/bin/python scripts/agent_hold.py --runs 20``, as root, on Linux 6.17 or later.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from securecore.cli import core_pattern
from securecore.sender.kernel_arguments import SPECIFIERS

ROOT = Path(__file__).resolve().parent


class Pairs(NamedTuple):
    """Seconds, one of each in every pair."""

    agent: list[float]
    pipe: list[float]

    @property
    def ratio(self) -> float:
        """The agent's median by the pipe's."""
        return statistics.median(self.agent) / statistics.median(self.pipe)

    @property
    def pair_ratio(self) -> float:
        """The median of each pair's ratio: what the machine does beside it both of a pair have met."""
        return statistics.median(agent / pipe for agent, pipe in zip(self.agent, self.pipe, strict=True))


class FirstByteServer(Protocol):
    """A receiver of one dump that notes when its first frame is here."""

    arrived: float

    def serve_one(self) -> None:
        """Take one connection."""


class Sides:
    """Both ways of a crash on one host: a handler's script, and an agent with the same settings."""

    def __init__(self, handler: Path, socket: Path, agent: int, program: Path, mib: int) -> None:
        self._patterns = {"agent": f"@@{socket}", "pipe": f"|{handler} {SPECIFIERS}"}
        self._handler, self._agent, self._program, self._mib = handler, agent, program, mib

    def crash(self, side: str) -> tuple[float, float]:
        """Have the program crash; return when that began, and the seconds until it was reaped. Nothing of it runs on then."""
        with core_pattern.borrowed(self._patterns[side], patience_s=300):
            crasher = subprocess.Popen([str(self._program), str(self._mib)], stdout=subprocess.PIPE, cwd=self._program.parent)
            assert crasher.stdout is not None
            crasher.stdout.read(1)
            began = time.perf_counter()
            crasher.wait()
            held = time.perf_counter() - began
            crasher.stdout.close()
            while self._is_running():
                time.sleep(0.02)
        return began, held

    def _is_running(self) -> bool:
        children = Path(f"/proc/{self._agent}/task/{self._agent}/children").read_text().split()
        return bool(children) or any(_runs(Path(entry), self._handler) for entry in Path("/proc").glob("[0-9]*"))


def _runs(process: Path, script: Path) -> bool:
    try:
        return str(script).encode() in (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


@contextmanager
def sides(handler: Path, settings: Path, program: Path, mib: int) -> Iterator[Sides]:
    """Run an agent with *settings*, those of *handler*, while the block runs; *program* crashes with so much memory."""
    directory = Path(tempfile.mkdtemp(prefix="securecore-agent-"))
    socket = directory / "run" / "coredump.sock"
    command = [sys.executable, "-I", "-m", "securecore.cli.main", "agent", "--settings", str(settings), "--socket", str(socket)]
    agent = subprocess.Popen([*command, "--no-chores"])
    try:
        while not socket.exists():
            if agent.poll() is not None:
                raise SystemExit("the agent has ended")
            time.sleep(0.05)
        yield Sides(handler, socket, agent.pid, program, mib)
    finally:
        agent.terminate()
        agent.wait()
        shutil.rmtree(directory)


def compare(handler: Path, settings: Path, program: Path, mib: int, runs: int) -> Pairs:
    """Return how long the process was held, from its crash until it was reaped."""
    with sides(handler, settings, program, mib) as both:
        both.crash("agent"), both.crash("pipe")
        return _pairs(runs, lambda side: both.crash(side)[1])


def compare_first_byte(handler: Path, settings: Path, program: Path, runs: int, server: FirstByteServer) -> Pairs:
    """Return the seconds from a crash until the first byte of its core is at the receiver, which *server* is."""

    def measure(side: str) -> float:
        thread = threading.Thread(target=server.serve_one)
        thread.start()
        began, _ = both.crash(side)
        thread.join()
        return server.arrived - began

    with sides(handler, settings, program, 10) as both:
        return _pairs(runs, measure)


def _pairs(runs: int, measure: Callable[[str], float]) -> Pairs:
    """Measure pairs, of which each side comes first in turn."""
    found = Pairs([], [])
    for number in range(runs):
        for side in ("agent", "pipe") if number % 2 else ("pipe", "agent"):
            getattr(found, side).append(measure(side))
    return found


def main() -> None:
    """Measure with a receiver and a host of this run's own, and print."""
    from benchmark import FirstByteServer as Server
    from benchmark import Machine

    parser = argparse.ArgumentParser(description="Measure the agent against the pipe's handler, as root, with cc.")
    parser.add_argument("--runs", type=int, default=20, help="pairs (default 20)")
    parser.add_argument("--mib", type=int, default=10, help="size of the core (default 10)")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory(prefix="securecore-bench-") as place:
        machine, program = Machine(Path(place)), Path(place) / "large-heap"
        subprocess.run(["cc", "-O1", "-o", str(program), str(ROOT / "crashers/large-heap.c")], check=True)
        with machine.receiver(Path(place) / "store") as address:
            handler, _ = machine.handler(address)
            show("held", compare(handler, handler.parent / "handler.json", program, arguments.mib, arguments.runs))
        server = Server(machine.directory / "receiver")
        handler, _ = machine.handler(server.address)
        show("to the first byte", compare_first_byte(handler, handler.parent / "handler.json", program, arguments.runs, server))


def show(what: str, pairs: Pairs) -> None:
    """Print medians and ratios."""
    agent, pipe = (f"{statistics.median(side) * 1000:.1f} ms ({min(side) * 1000:.1f}-{max(side) * 1000:.1f})" for side in pairs)
    print(f"{what}: agent {agent}, pipe {pipe}; medians {pairs.ratio:.2f}, pairs {pairs.pair_ratio:.2f}", flush=True)


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("only root can set core_pattern")
    main()
