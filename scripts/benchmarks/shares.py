"""Where the processor's time goes: what a dump takes on either side, beside its parts, each measured alone in the same run."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks import corpora, parts
from benchmarks.corpora import MIB
from benchmarks.crashes import Crash, hold
from benchmarks.figures import BenchError, Samples, spread, text_of
from benchmarks.machine import Machine
from benchmarks.plan import Run
from benchmarks.table import Findings, Grid, Row
from benchmarks.takers import Discarding, Keeping, PipeHandler, Settled, doubt_of

_READ: Final = "reading the pipe"
_COMPRESS: Final = "`zstd -1`"
_DIGEST: Final = "SHA-256 of the output"
_SEND: Final = "TLS of the output"
_RECEIVE: Final = "receiving by TLS"
_WRITE: Final = "writing and fsync"
_SENDER_PARTS: Final = (_READ, _COMPRESS, _DIGEST, _SEND)
_RECEIVER_PARTS: Final = (_RECEIVE, _DIGEST, _WRITE)
_BUDGET: Final = 1.3


def measure(run: Run) -> Findings:
    """Measure a managed heap, whole and in parts, in turns."""
    machine, plan = run.machine, run.plan
    crash = Crash(machine.corpus(corpora.HEAP, plan.mib), plan.mib)
    core, stored = kept(machine, crash), machine.fresh("stored")
    subprocess.run(["zstd", "-1", "-q", "-f", str(core), "-o", str(stored)], check=True)
    sender: list[float] = []
    receiver: list[float] = []
    ends: list[Settled] = []
    alone: dict[str, list[float]] = {part: [] for part in (*_SENDER_PARTS, _RECEIVE, _WRITE)}
    with ExitStack() as stack:
        ours, nothing = PipeHandler(machine), Discarding(machine)
        stack.callback(ours.close)
        for turn in range(plan.runs):
            run.tell(f"shares: {turn + 1} of {plan.runs}")
            settled = hold(machine, ours, crash).settled
            ends.append(settled)
            sender.append(settled.weight.cpu_s / (plan.mib * MIB) * 1e9)
            receiver.append((settled.receiver_cpu_s or 0.0) / settled.stored * 1e9)
            alone[_READ].append(hold(machine, nothing, crash).settled.weight.cpu_s)
            alone[_COMPRESS].append(_alone("compress", core))
            alone[_DIGEST].append(_alone("digest", stored))
            sent, received = _over_tls(machine, stored)
            alone[_SEND].append(sent)
            alone[_RECEIVE].append(received)
            alone[_WRITE].append(_written(machine, stored))
    core_gb, stored_gb = core.stat().st_size / 1e9, stored.stat().st_size / 1e9
    core.unlink()
    stored.unlink()
    doubt = doubt_of(ends)
    return _compared("sender, CPU per GB of the core", sender, _SENDER_PARTS, alone, core_gb, doubt) + _compared(
        "receiver, CPU per GB stored", receiver, _RECEIVER_PARTS, alone, stored_gb, doubt
    )


def kept(machine: Machine, crash: Crash) -> Path:
    """Return the core of a crash as a file."""
    keeping = Keeping(machine)
    hold(machine, keeping, crash)
    return keeping.core


def _compared(
    what: str, whole: list[float], names: tuple[str, ...], alone: dict[str, list[float]], gb: float, doubt: str
) -> Findings:
    """Return a row for the whole against the sum of its parts, and a grid of the parts."""
    each: dict[str, Samples] = {name: tuple(taken / gb for taken in alone[name]) for name in names}
    sums = tuple(sum(turn) for turn in zip(*each.values(), strict=True))
    total = spread(whole).median
    medians = {name: spread(samples).median for name, samples in each.items()}
    rest = total - sum(medians.values())
    cells = [(name, text_of(samples, "s"), f"{medians[name] / total:.0%}") for name, samples in each.items()]
    cells += [("everything else", f"{rest:.2f} s", f"{rest / total:.0%}"), ("all of it", text_of(whole, "s"), "")]
    words = "Each part alone, in the same run: everything else is what the whole takes beyond their sum."
    grid = Grid(f"{what[0].upper()}{what[1:]}, in its parts", ("part", "CPU per GB", "of all"), tuple(cells), words)
    return Findings((Row(what, tuple(whole), "s", "its parts alone", sums, _BUDGET, doubt),), (grid,))


def _alone(part: str, *words: str | Path) -> float:
    command = [sys.executable, str(parts.__file__), part, *map(str, words)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _over_tls(machine: Machine, stored: Path) -> tuple[float, float]:
    """Return what it takes to send and to receive a file by TLS."""
    command = [sys.executable, str(parts.__file__), "serve", str(machine.directory / "receiver")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            sent = _alone("send", stored, machine.directory / "host", server.stdout.readline().strip())
            received = server.stdout.readline()
        finally:
            server.terminate()
    if not received:
        raise BenchError("the end that receives by TLS said nothing")
    return sent, float(received)


def _written(machine: Machine, stored: Path) -> float:
    to = machine.fresh("written")
    try:
        return _alone("write", stored, to)
    finally:
        to.unlink(missing_ok=True)
