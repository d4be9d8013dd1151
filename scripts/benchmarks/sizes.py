"""What grows with a core, and what must not: the handler's memory, and what is stored."""

import subprocess
from contextlib import closing
from typing import Final

from benchmarks import corpora
from benchmarks.corpora import MIB
from benchmarks.crashes import Crash, Held, hold
from benchmarks.figures import text_of
from benchmarks.holding import HANDLER_MIB
from benchmarks.plan import Run
from benchmarks.shares import kept
from benchmarks.table import Findings, Grid, Row
from benchmarks.takers import PipeHandler

_FLAT: Final = 1.1
"""The largest core to the one of 256 MiB, which already fills all buffers: room for what an allocator does from run to run."""
_FILLED: Final = 8
"""A core is filled to the eighth part, its rest was never touched: 8 GiB need 1 GiB of memory, and the kernel writes them all."""
_STORED: Final = 1.02
_STORED_MIB: Final = 256


def measure_memory(run: Run) -> Findings:
    """The handler's largest resident size by the size of the core."""
    plan, helds = run.plan, dict[int, list[Held]]()
    corpus = run.machine.corpus(corpora.HEAP, max(plan.sizes_mib) // _FILLED)
    with closing(PipeHandler(run.machine)) as taker:
        for turn in range(plan.runs):
            for mib in plan.sizes_mib:
                run.tell(f"memory: {mib} MiB, {turn + 1} of {plan.runs}")
                helds.setdefault(mib, []).append(hold(run.machine, taker, Crash(corpus, mib, mib // _FILLED)))
    memory = {mib: tuple(held.settled.weight.mib for held in found) for mib, found in helds.items()}
    largest, middle = max(memory), next((mib for mib in memory if mib >= 256), max(memory))
    rows = (
        Row(f"handler memory, {largest} MiB core", memory[largest], "MiB", "allowed", (HANDLER_MIB,), 1.0),
        Row(f"handler memory, {largest} MiB core", memory[largest], "MiB", f"{middle} MiB core", memory[middle], _FLAT),
    )
    cells = []
    for mib, found in helds.items():
        holds = tuple(held.hold_s for held in found)
        cpus = tuple(held.settled.weight.cpu_s for held in found)
        stored = f"{found[-1].settled.stored / MIB:.1f} MiB"
        cells.append((f"{mib} MiB", text_of(memory[mib], "MiB"), text_of(holds, "s"), text_of(cpus, "s"), stored))
    words = "An eighth of each core is a managed heap, the rest memory that was never touched, which the kernel writes as zeros."
    return Findings(
        rows, (Grid("Cores by size", ("core", "handler's memory", "hold", "handler's CPU", "stored"), tuple(cells), words),)
    )


def measure_stored(run: Run) -> Findings:
    """What is stored of each corpus, against `zstd -1` of a whole core: that of the next crash, its like but for some addresses."""
    mib, rows = min(_STORED_MIB, run.plan.mib), []
    with closing(PipeHandler(run.machine)) as taker:
        for corpus in corpora.CORPORA:
            run.tell(f"stored: {corpus}")
            crash = Crash(run.machine.corpus(corpus, mib), mib)
            stored = hold(run.machine, taker, crash).settled.stored
            core = kept(run.machine, crash)
            packed = core.with_suffix(".zst")
            try:
                subprocess.run(["zstd", "-1", "-T1", "-q", "-f", str(core), "-o", str(packed)], check=True)
                compared = packed.stat().st_size
            finally:
                core.unlink()
                packed.unlink(missing_ok=True)
            rows.append(Row(f"stored, {mib} MiB {corpus}", (stored / MIB,), "MiB", "`zstd -1`", (compared / MIB,), _STORED))
    return Findings(tuple(rows))
