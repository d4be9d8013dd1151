"""Stores and logs of many dumps against small ones, and a sender beside a crowd, as rows."""

from typing import Final

import crowd
import long_lists
import long_logs
import many_dumps

from benchmarks.machine import Machine
from benchmarks.plan import Run
from benchmarks.table import Findings, Row

_FEW: Final = 1000


def measure_listing(run: Run) -> Findings:
    """What looking at a store costs by its number of dumps."""
    run.tell(f"listing: {run.plan.dumps} dumps are made")
    return lists(run.plan.dumps, run.plan.runs) + listing(run.plan.dumps, run.plan.runs)


def measure_log(run: Run) -> Findings:
    """What a log costs by its number of entries."""
    run.tell(f"log: {run.plan.dumps} entries are made")
    return log(run.plan.dumps, run.plan.runs)


def listing(dumps: int, runs: int) -> Findings:
    """What looking at a store of so many dumps of one host costs, against one of 1000."""
    return Findings(
        tuple(
            Row(f"{pair.what}, {dumps} dumps", tuple(pair.large), "s", f"with {_FEW} dumps", tuple(pair.small), pair.most)
            for pair in many_dumps.compare(_FEW, dumps, runs)
        )
    )


def lists(dumps: int, runs: int) -> Findings:
    """What `securecore list` of so many dumps of one host costs as a process, against one of 1000."""
    return Findings(
        tuple(
            Row(f"{pair.what}, {dumps} dumps", tuple(pair.long), pair.unit, f"with {_FEW} dumps", tuple(pair.short), pair.most)
            for pair in long_lists.compare(_FEW, dumps, runs)
        )
    )


def log(entries: int, runs: int) -> Findings:
    """What a log of so many entries costs to append to, to verify and to prove, against one of 1000."""
    return Findings(
        tuple(
            Row(
                f"{pair.what}, {entries} entries", tuple(pair.long), pair.unit, f"with {_FEW} entries", tuple(pair.short), pair.most
            )
            for pair in long_logs.compare(_FEW, entries, runs)
        )
    )


def beside_crowd(machine: Machine, number: int, runs: int) -> Findings:
    """An honest sender's dump to its receipt, beside connections that say nothing, against the same alone."""
    core = crowd.make_core(machine.fresh("core"), 64)
    with machine.receiver(machine.fresh("store")) as address:
        alone, beside = crowd.measure(address, machine.directory / "host", core, number, runs)
    what = f"64 MiB to its receipt, beside {number} idle connections"
    return Findings((Row(what, tuple(beside), "s", "alone", tuple(alone), 1.5),))
