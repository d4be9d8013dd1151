"""Our handler, by how the kernel reaches it: a process for each crash behind a pipe, or the agent behind a coredump socket."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.figures import BenchError
from benchmarks.machine import Machine, processor_s, seconds_until
from benchmarks.takers import PipeHandler, Settled, Taker, Weight

_STARTING_S: Final = 60
_SETTLING_S: Final = 600
_CORE_MODES: Final = Path("/proc/sys/kernel/core_modes")


class AgentHandler(PipeHandler):
    """The agent, with the settings of the handler that it stands for, and a receiver of its own."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.name = "securecore agent"
        own = self.program.parent
        socket = own / "agent/coredump.sock"
        # The log is what a failure is found by; nobody reads it otherwise.
        with (own / "agent.log").open("wb") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-I", "-m", "securecore.cli.main", "agent", "--settings", str(own / "handler.json"),
                 "--socket", str(socket), "--no-chores"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.pattern = f"@@{socket}"
        try:
            seconds_until(lambda: self._has_ended() or _listens(socket), _STARTING_S, "the agent to listen")
            if self._has_ended():
                raise BenchError(f"the agent did not start: {(own / 'agent.log').read_text()[-200:].strip()}")
        except BenchError:
            self.close()
            raise

    def arm(self) -> None:
        """Note what the agent and its children have taken so far."""
        super().arm()
        self._agent_before = processor_s(self._agent.pid, with_children=True)

    def settle(self) -> Settled:
        """Wait until the agent has reaped its child, then for the receipt as ever."""
        seconds_until(lambda: self._has_ended() or not self._children(), _SETTLING_S, "the agent's child to end")
        cpu_s = processor_s(self._agent.pid, with_children=True) - self._agent_before
        return self._settled(Weight(cpu_s, 0.0, 0.0))

    def close(self) -> None:
        """End the agent and the receiver."""
        self._agent.terminate()
        self._agent.wait()
        super().close()

    def _has_ended(self) -> bool:
        return self._agent.poll() is not None

    def _children(self) -> list[str]:
        return Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split()


KINDS: Final[dict[str, Callable[[Machine], Taker]]] = {"pipe": PipeHandler, "agent": AgentHandler}
"""The first is what the others are compared to."""


def find_lack(kind: str) -> str | None:
    """Return why a kind cannot be measured here."""
    if kind != "agent":
        return None
    if not _CORE_MODES.exists() or "socket" not in _CORE_MODES.read_text().split():
        return "this kernel has no coredump sockets"
    return None


def _listens(socket: Path) -> bool:
    return f" {socket}\n" in Path("/proc/net/unix").read_text()
