"""What scripts/bench runs: each row is a ratio, measured in turn with what it is compared to, on one machine in one run.

Absolute times mean little on a shared machine; pairs that are measured back to back drift together.
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

import long_logs
import many_dumps
from benchmarks import (
    chart,
    conditions,
    corpora,
    holding,
    profile,
    scale,
    senders,
    shares,
    sizes,
    stalling,
    starting,
    table,
    takers,
)
from benchmarks.figures import BenchError
from benchmarks.machine import Machine
from benchmarks.plan import FULL, QUICK, Plan, Run, quiet

from securecore.cli import core_pattern
from securecore.errors import SecurecoreError

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs/performance.md"
PICTURE: Final = ROOT / "docs/performance.svg"

PARTS: Final[dict[str, Callable[[Run], table.Findings]]] = {
    "start": starting.measure,
    "hold": holding.measure,
    "agent": holding.measure_kinds,
    "stall": stalling.measure,
    "shares": shares.measure,
    "profile": profile.measure,
    "memory": sizes.measure_memory,
    "stored": sizes.measure_stored,
    "senders": senders.measure,
    "listing": scale.measure_listing,
    "log": scale.measure_log,
}
"""What can be asked for by name, in the order in which it is measured."""

NEEDS_CRASHES: Final = frozenset(PARTS) - {"senders", "listing", "log"}
"""What crashes for real, as root."""

PROGRAMS: Final = ("cc", "zstd", "openssl")
"""What nothing can be measured without; without gzip, socat or perf some rows say so."""


def main() -> None:
    """Measure and print."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    if arguments.dumps is not None:
        print_figures(many_dumps.measure(arguments.dumps))
    elif arguments.report is not None:
        print_figures(long_logs.measure(arguments.report))
    else:
        try:
            sys.exit(_run(arguments))
        except Ended as end:
            sys.exit(f"bench: ended by {end}, with nothing measured")


def _run(arguments: argparse.Namespace) -> int:
    """Measure what was asked for and show it; return 1 where something could not be measured."""
    plan = QUICK if arguments.quick else FULL
    plan = plan._replace(runs=arguments.runs or plan.runs, mib=arguments.mib or plan.mib)
    work = _asked_for(arguments, plan)
    begun = conditions.Moment.now()
    directory = Path(tempfile.mkdtemp(prefix="securecore-bench-"))
    try:
        # The handler's user looks for its script and its settings here.
        directory.chmod(0o755)
        findings, has_failed, is_whole = measure_all(Run(Machine(directory), plan), work)
    finally:
        quiet()
        # A handler that the kernel has started may still write there, where a run was ended in the middle of it.
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            print(f"bench: something is left in {directory}", file=sys.stderr)
    known = conditions.conditions(begun, conditions.Moment.now(), " ".join(sys.argv[1:]))
    if arguments.json:
        print(table.document(known, findings))
    else:
        print(f"{conditions.sentence(known)}\n\n{table.markdown(findings)}", end="")
    if arguments.write and is_whole:
        write(known, findings, plan)
    return 1 if has_failed else 0


def _asked_for(arguments: argparse.Namespace, plan: Plan) -> dict[str, Callable[[Run], table.Findings]]:
    """Return what is to be measured; leaves with a word where this machine cannot."""
    if arguments.scale is not None:
        return {"listing": lambda run: scale.listing(arguments.scale, plan.runs)}
    if arguments.lists is not None:
        return {"lists": lambda run: scale.lists(arguments.lists, plan.runs)}
    if arguments.senders is not None:
        return {"senders": lambda run: senders.measure(run._replace(plan=plan._replace(senders=(arguments.senders,))))}
    if arguments.log is not None:
        return {"log": lambda run: scale.log(arguments.log, plan.runs)}
    if arguments.crowd is not None:
        return {"crowd": lambda run: scale.beside_crowd(run.machine, arguments.crowd, plan.runs)}
    names = [name for name in PARTS if name in (arguments.rows or PARTS)]
    if NEEDS_CRASHES & set(names):
        if not core_pattern.is_borrowable():
            raise SystemExit("bench: needs root and a writable core_pattern; without: --rows senders listing log")
        for program in PROGRAMS:
            if shutil.which(program) is None:
                raise SystemExit(f"bench: needs {program}")
        _check_room(plan)
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {name: PARTS[name] for name in names}


def _check_room(plan: Plan) -> None:
    """Leave with a word where the disk or the memory would not do: what was measured while either runs out says nothing."""
    largest = max(plan.mib, max(plan.sizes_mib) // 8)
    needed, free = 8 * plan.mib * corpora.MIB, shutil.disk_usage(tempfile.gettempdir()).free
    if free < needed:
        raise SystemExit(
            f"bench: needs {needed >> 20} MiB in {tempfile.gettempdir()} (TMPDIR), {free >> 20} are free; or a smaller --mib"
        )
    pages = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(pages["MemAvailable"].split()[0]) >> 10
    if available < 2 * largest:
        raise SystemExit(f"bench: needs {2 * largest} MiB of memory, {available} are available; or a smaller --mib")


class Ended(Exception):
    """A signal asks the run to end: what was measured is shown, and nothing is left behind."""


def measure_all(run: Run, work: dict[str, Callable[[Run], table.Findings]]) -> tuple[table.Findings, bool, bool]:
    """Return what was found, whether a part of it failed, and whether the run came to its end.

    A part that fails is said in a row, and the others are measured all the same; when the run is ended from outside, those that are
    not measured are said too.
    """
    findings, has_failed = table.Findings(), False
    for name, measure in work.items():
        try:
            findings += measure(run)
        except (Ended, KeyboardInterrupt):
            left = list(work)[list(work).index(name) :]
            return findings + table.Findings(tuple(table.Row.skipped(each, "the run was ended") for each in left)), True, False
        except (BenchError, SecurecoreError, OSError, subprocess.SubprocessError) as error:
            has_failed = True
            findings += table.Findings((table.Row.skipped(name, f"failed: {error}"),))
    return findings, has_failed, True


def write(known: dict[str, object], findings: table.Findings, plan: Plan, page: Path = PAGE, picture: Path = PICTURE) -> None:
    """Put the tables between their markers on the page, and the chart beside it; each file is there whole or as it was."""
    text = f"{conditions.sentence(known)}\n\n{table.markdown(findings)}"
    drawing = chart.draw(findings.bars, f"{plan.mib} MiB", (takers.OURS, takers.EVEN))
    for path, new in ((page, table.placed(page.read_text("utf-8"), text)), (picture, drawing)):
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(new, "utf-8")
        os.replace(draft, path)


def print_figures(figures: Sequence[many_dumps.Figure]) -> None:
    """Print a Markdown table of times."""
    print("| what | took |")
    print("|---|---|")
    for figure in figures:
        print(f"| {figure.what} | {figure.took} |")


def _leave(number: int, frame: object) -> NoReturn:
    # As an exception, so that core_pattern and the directory are put back on the way out.
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Ended(f"signal {number}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure securecore against its budgets, as root, with cc, zstd and openssl; gzip, socat and perf if found.",
    )
    parser.add_argument("--rows", nargs="+", choices=PARTS, metavar="NAME", help=f"measure only some of: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small cores, once: a minute, to see that all works")
    parser.add_argument(
        "--runs", type=_positive, help=f"measurements of each kind (default {FULL.runs}, with --quick {QUICK.runs})"
    )
    parser.add_argument("--mib", type=_positive, help=f"size of the large core (default {FULL.mib}, with --quick {QUICK.mib})")
    parser.add_argument("--json", action="store_true", help="print one JSON document, with every figure")
    parser.add_argument("--write", action="store_true", help="put tables and chart into docs/performance.md and .svg as well")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--dumps", type=_positive, help="measure instead what quotas cost where a host has so many dumps; no root")
    alone.add_argument("--scale", type=_positive, metavar="DUMPS", help="measure instead such a store against one of 1000; no root")
    alone.add_argument(
        "--crowd", type=_positive, metavar="N", help="measure instead a sender beside so many idle connections; no root"
    )
    alone.add_argument("--lists", type=_positive, metavar="DUMPS", help="measure instead lists of so many against 1000; no root")
    alone.add_argument("--senders", type=_positive, metavar="N", help="measure instead so many hosts that send at once; no root")
    alone.add_argument("--report", type=_positive, metavar="ENTRIES", help="measure instead a report on a log of so many; no root")
    alone.add_argument(
        "--log", type=_positive, metavar="ENTRIES", help="measure instead a log of so many against one of 1000; no root"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    main()
