"""How long a crash is held when the receiver stands still in mid-dump, and for ever."""

import os
import time
from contextlib import closing
from typing import Final

from benchmarks import corpora
from benchmarks.crashes import Crash, hold
from benchmarks.figures import BenchError, number, spread, text_of
from benchmarks.machine import Machine
from benchmarks.peers import FirstByteServer
from benchmarks.plan import Run
from benchmarks.table import Findings, Grid, Row
from benchmarks.takers import PipeHandler, Settled, doubt_of

_BUDGET: Final = 1.5
_PROBE_MIB: Final = 256


class _Stalled(PipeHandler):
    """Our handler, whose receiver takes the first frame and then reads no more."""

    def __init__(self, machine: Machine) -> None:
        self._server = FirstByteServer(machine.directory / "receiver")
        super().__init__(machine, self._server.address)

    def arm(self) -> None:
        """Wait for the handler's connection."""
        super().arm()
        self._server.expect(stall=True)

    def settle(self) -> Settled:
        """Hang up, now that the crashed process is gone, so that the handler ends; all that it read is in the spool."""
        self._server.finish()
        if self._server.arrived is None:
            raise BenchError("the stalled receiver was never reached")
        return super().settle()

    def close(self) -> None:
        """Listen no more."""
        self._server.close()


def measure(run: Run) -> Findings:
    """Hold the managed heap with a healthy receiver and with a stalled one, in turns, and time the spool's disk beside them."""
    plan = run.plan
    crash = Crash(run.machine.corpus(corpora.HEAP, plan.mib), plan.mib)
    healthy, stalled, rates, needed, settled = [], [], [], [], []
    with closing(PipeHandler(run.machine)) as well, closing(_Stalled(run.machine)) as unwell:
        for turn in range(plan.runs):
            run.tell(f"stall: {turn + 1} of {plan.runs}")
            held = hold(run.machine, well, crash)
            healthy.append(held.hold_s)
            settled.append(held.settled)
            needed.append(held.settled.stored / 1e6 / held.hold_s)
            stalled.append(hold(run.machine, unwell, crash).hold_s)
            rates.append(_disk_rate(run.machine))
    slow = spread(rates).median < spread(needed).median
    trouble = (
        f"the disk is slower than the {number(spread(needed).median)} MB/s that the healthy hold compresses to" if slow else ""
    )
    trouble = trouble or doubt_of(settled)
    what = f"hold, {plan.mib} MiB managed heap, receiver stalled"
    cells = (("the spool's disk, written and fsynced", text_of(rates, "MB/s")), ("the compressed stream", text_of(needed, "MB/s")))
    grid = Grid("The spool's disk beside a stalled receiver", ("what", "rate"), cells)
    return Findings((Row(what, tuple(stalled), "s", "receiver healthy", tuple(healthy), _BUDGET, trouble),), (grid,))


def _disk_rate(machine: Machine) -> float:
    """Return at how many MB/s the disk of the spool takes bytes that nothing makes smaller, fsync included."""
    path, piece = machine.fresh("probe"), os.urandom(corpora.MIB)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        started = time.perf_counter()
        for _ in range(_PROBE_MIB):
            os.write(fd, piece)
        os.fsync(fd)
        return _PROBE_MIB * corpora.MIB / 1e6 / (time.perf_counter() - started)
    finally:
        os.close(fd)
        path.unlink()
