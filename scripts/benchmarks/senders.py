"""Many senders at one receiver at once, as rows."""

import resource
import statistics
from typing import Final

import fleet
from reception_parts import measure_parts

from benchmarks.figures import BenchError, text_of
from benchmarks.plan import Run
from benchmarks.table import Findings, Grid, Row

_PROMISED: Final = 64
"""For so many at once there is a budget."""
_MIB: Final = 32
"""The plaintext of each dump: 256 of them are 8 GiB, 4 GiB stored."""
_SLOWEST: Final = 2.0
_CONNECTION_MIB: Final = 1.0
_CPU: Final = 1.3


def measure(run: Run) -> Findings:
    """Send from 1 to 256 hosts at once, in turns; a dump that is lost ends the measurement."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return _measure(run)
    except SystemExit as error:
        raise BenchError(str(error.code)) from error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _measure(run: Run) -> Findings:
    place = run.machine.fresh("fleet")
    place.mkdir()
    hosts = fleet.Fleet(place, max(run.plan.senders), _MIB)
    parts: list[float] = []
    found: dict[int, list[fleet.Figures]] = {senders: [] for senders in run.plan.senders}
    held: list[float] = []
    for turn in range(run.plan.runs):
        alone = measure_parts(hosts.frames, hosts.identity(0), hosts.receiver_identity, hosts.directory)
        parts.append(alone.all * 1e9)
        for senders in run.plan.senders:
            run.tell(f"senders: {senders}, {turn + 1} of {run.plan.runs}")
            found[senders].append(fleet.measure(hosts, senders, senders))
        held.append(fleet.measure_held(hosts, _most(run), _most(run))[0] / (1 << 20))
    return Findings(_rows(run, found[_most(run)], parts, held), (_grid(found),))


def _most(run: Run) -> int:
    return _PROMISED if _PROMISED in run.plan.senders else max(run.plan.senders)


def _rows(run: Run, figures: list[fleet.Figures], parts: list[float], held: list[float]) -> tuple[Row, ...]:
    what = f"{_most(run)} senders of {_MIB} MiB at once"
    slowest, usual = tuple(max(each.seconds) for each in figures), tuple(statistics.median(each.seconds) for each in figures)
    cpu_s = tuple(each.cpu_s / each.stored_bytes * 1e9 for each in figures)
    return (
        Row(f"{what}, the slowest", slowest, "s", "the median", usual, _SLOWEST),
        Row(f"{what}, receiver's CPU per GB stored", cpu_s, "s", "TLS, SHA-256 and write alone", tuple(parts), _CPU),
        Row(f"{what}, memory of a connection", tuple(held), "MiB", "allowed", (_CONNECTION_MIB,), 1.0),
    )


def _grid(found: dict[int, list[fleet.Figures]]) -> Grid:
    cells = []
    for senders, figures in found.items():
        rates = [each.stored_bytes / each.elapsed_s / 1e6 for each in figures]
        cpus = [each.cpu_s / each.stored_bytes * 1e9 for each in figures]
        fair = [max(each.seconds) / statistics.median(each.seconds) for each in figures]
        cells.append((str(senders), text_of(rates, "MB/s"), text_of(cpus, "s"), text_of(fair, "")))
    heads = ("senders", "stored", "receiver's CPU per GB stored", "slowest to the median")
    return Grid("Senders at once", heads, tuple(cells), f"Each sends a dump of {_MIB} MiB, of which half does not compress.")
