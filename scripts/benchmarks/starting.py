"""From the start of the handler to the first payload byte at its receiver."""

import shutil
import subprocess
import sys
import time
from contextlib import closing
from typing import Final

from benchmarks import corpora
from benchmarks.crashes import Crash
from benchmarks.figures import BenchError
from benchmarks.machine import own_arguments
from benchmarks.peers import FirstByteServer
from benchmarks.plan import Run
from benchmarks.shares import kept
from benchmarks.table import Findings, Row

_BUDGET: Final = 3.5
_CORE_MIB: Final = 10
_PATIENCE_S: Final = 60


def measure(run: Run) -> Findings:
    """Start the handler as the kernel does, on a core in a file, against the interpreter of its first line doing nothing."""
    core = kept(run.machine, Crash(run.machine.corpus(corpora.HEAP, _CORE_MIB), _CORE_MIB))
    bare, first = [], []
    with closing(FirstByteServer(run.machine.directory / "receiver")) as server:
        script, spool = run.machine.handler(server.address)
        for turn in range(run.plan.starts):
            run.tell(f"start: {turn + 1} of {run.plan.starts}")
            started = time.perf_counter()
            subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
            bare.append(time.perf_counter() - started)
            server.expect(stall=False)
            with core.open("rb") as source:
                started = time.perf_counter()
                handler = subprocess.Popen([str(script), *own_arguments()], stdin=source, env={}, cwd="/")
            server.finish(_PATIENCE_S)
            handler.wait(_PATIENCE_S)
            if server.arrived is None:
                raise BenchError("no payload byte came")
            first.append(server.arrived - started)
            for dump in (spool / "dumps").iterdir():
                shutil.rmtree(dump)
    core.unlink()
    return Findings((Row("start to first payload byte", tuple(first), "s", "bare interpreter", tuple(bare), _BUDGET),))
