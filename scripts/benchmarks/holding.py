"""How long a crash is held, and how fast its core is taken: four corpora, our handler and what a user would take instead."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from benchmarks.corpora import CORPORA, HEAP, MIB
from benchmarks.crashes import Crash, Held, hold
from benchmarks.figures import spread, text_of
from benchmarks.kinds import KINDS, find_lack
from benchmarks.machine import Machine
from benchmarks.plan import Run
from benchmarks.table import Bar, Findings, Grid, Row
from benchmarks.takers import (
    DISCARDING,
    EVEN,
    GZIP,
    OURS,
    RIVALS,
    SOCAT,
    ZSTD,
    Discarding,
    PipeHandler,
    Taker,
    doubt_of,
    find_missing,
    rival,
)

_BUDGETS: Final[dict[tuple[str, str], float]] = {(HEAP, ZSTD): 0.70, (HEAP, DISCARDING): 2.0}
"""Of our hold to another's, by corpus: what is promised is that of the managed heap."""
_ORDER: Final = (DISCARDING, OURS, EVEN, ZSTD, GZIP, SOCAT)
HANDLER_MIB: Final = 64.0
"""What a handler may have resident, whatever the core."""
_AGENT_HOLD: Final = 0.5
"""Of a small core: no program is started for it, so its process is held for less than half as long as by the pipe's handler."""
_SMALL_MIB: Final = 10
_HEADS: Final = ("corpus", "taken by", "hold", "MB/s", "CPU, s per GB", "memory", "other end's CPU", "its memory", "stored")


def measure(run: Run) -> Findings:
    """Hold each corpus with each taker, in turns."""
    findings = Findings()
    with takers(run.machine) as (ready, missing):
        for corpus in CORPORA:
            crash = Crash(run.machine.corpus(corpus, run.plan.mib), run.plan.mib)
            helds: dict[str, list[Held]] = {name: [] for name in ready}
            for turn in range(run.plan.runs):
                for name, taker in ready.items():
                    run.tell(f"hold: {corpus}, {name}, {turn + 1} of {run.plan.runs}")
                    helds[name].append(hold(run.machine, taker, crash))
            findings += _found(corpus, run.plan.mib, helds, missing)
    return Findings(findings.rows, (_joined(findings.grids, run.plan.mib),), findings.bars)


def measure_kinds(run: Run) -> Findings:
    """Hold a core of 10 MiB with each kind of our handler, in turns: what counts here is how it is reached."""
    first, *others = KINDS
    lacks = {name: lack for name in others if (lack := find_lack(name)) is not None}
    what, rows = (
        f"{_SMALL_MIB} MiB managed heap, by the",
        [Row.skipped(f"hold, {_SMALL_MIB} MiB, by the {name}", lacks[name]) for name in lacks],
    )
    if len(lacks) == len(others):
        return Findings(tuple(rows))
    crash = Crash(run.machine.corpus(HEAP, _SMALL_MIB), _SMALL_MIB)
    with ExitStack() as stack:
        ready = {name: _open(stack, make, run.machine) for name, make in KINDS.items() if name not in lacks}
        helds: dict[str, list[Held]] = {name: [] for name in ready}
        for turn in range(run.plan.starts):
            run.tell(f"kinds of handler: {turn + 1} of {run.plan.starts}")
            for name, taker in ready.items():
                helds[name].append(hold(run.machine, taker, crash))
    holds = {name: tuple(held.hold_s for held in found) for name, found in helds.items()}
    cpus = {name: tuple(held.settled.weight.cpu_s for held in found) for name, found in helds.items()}
    for name in holds.keys() - {first}:
        rows.append(Row(f"hold, {what} {name}", holds[name], "s", f"by the {first}", holds[first], _AGENT_HOLD))
        rows.append(Row(f"CPU, {what} {name}", cpus[name], "s", f"by the {first}", cpus[first], None))
    return Findings(tuple(rows))


@contextmanager
def takers(machine: Machine) -> Iterator[tuple[dict[str, Taker], dict[str, str]]]:
    """Give all takers that this machine has the programs for, and of the others which program is missing."""
    makers: dict[str, Callable[[Machine], Taker]] = {
        OURS: PipeHandler,
        EVEN: partial(PipeHandler, nice=0),
        DISCARDING: Discarding,
    }
    missing = {name: program for name in RIVALS if (program := find_missing(name)) is not None}
    with ExitStack() as stack:
        ready: dict[str, Taker] = {}
        for name in _ORDER:
            if name in makers:
                ready[name] = _open(stack, makers[name], machine)
            elif name not in missing:
                ready[name] = _open(stack, partial(rival, name), machine)
        yield ready, missing


def _open(stack: ExitStack, make: Callable[[Machine], Taker], machine: Machine) -> Taker:
    taker = make(machine)
    stack.callback(taker.close)
    return taker


def _found(corpus: str, mib: int, helds: dict[str, list[Held]], missing: dict[str, str]) -> Findings:
    ours = tuple(held.hold_s for held in helds[OURS])
    rows, cells, bars = [], [], []
    for name in _ORDER:
        if name in missing:
            rows.append(Row.skipped(f"hold, {mib} MiB {corpus}", f"{name}: no {missing[name]} here"))
            bars.append(Bar(corpus, name, ()))
            continue
        holds = tuple(held.hold_s for held in helds[name])
        bars.append(Bar(corpus, name, holds))
        cells.append(_cells(corpus, name, mib, helds[name]))
        if name != OURS:
            doubt = doubt_of([held.settled for held in (*helds[OURS], *(helds[name] if name == EVEN else ()))])
            rows.append(Row(f"hold, {mib} MiB {corpus}", ours, "s", name, holds, _BUDGETS.get((corpus, name)), doubt))
    memory = tuple(held.settled.weight.mib for held in helds[OURS])
    rows.append(Row(f"handler memory, {mib} MiB {corpus}", memory, "MiB", "allowed", (HANDLER_MIB,), 1.0))
    return Findings(tuple(rows), (Grid("", _HEADS, tuple(cells)),), tuple(bars))


def _cells(corpus: str, name: str, mib: int, helds: list[Held]) -> tuple[str, ...]:
    size, holds = mib * MIB, tuple(held.hold_s for held in helds)
    cpus = tuple(held.settled.weight.cpu_s * 1e9 / size for held in helds)
    stored = spread([held.settled.stored for held in helds]).median / size
    largest = spread([held.settled.weight.mib for held in helds]).most
    share = "" if name == DISCARDING else f"{stored:.1%}" if stored >= 0.001 else "< 0.1%"
    speed = f"{size / 1e6 / spread(holds).median:.0f}"
    other = [held.settled.receiver_cpu_s * 1e9 / size for held in helds if held.settled.receiver_cpu_s is not None]
    memory = max((held.settled.receiver_mib for held in helds if held.settled.receiver_mib is not None), default=None)
    ends = (text_of(other, "") if other else "", f"{memory:.0f} MiB" if memory is not None else "")
    return (corpus, name, text_of(holds, "s"), speed, text_of(cpus, ""), f"{largest:.0f} MiB", *ends, share)


def _joined(grids: tuple[Grid, ...], mib: int) -> Grid:
    words = (
        "CPU seconds, for each GB of the core, are those of all processes that the kernel started for the crash, and of the"
        " other end with its fsync; the memory is that of the largest process."
    )
    return Grid(f"Holds of a core of {mib} MiB", _HEADS, tuple(row for grid in grids for row in grid.cells), words)
