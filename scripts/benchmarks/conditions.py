"""What to know of the machine that figures come from, at the begin of a run and at its end."""

import os
import platform
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from securecore import __version__
from securecore.sender import privileges


class Moment(NamedTuple):
    """The time, the load, and the jiffies of all CPUs that other machines on the same hardware have taken, and all there were."""

    at: datetime
    load: float
    stolen: int
    jiffies: int

    @classmethod
    def now(cls) -> "Moment":
        """Return what is so now."""
        # The first line of proc_stat(5): user nice system idle iowait irq softirq steal; guest time is in user already.
        times = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return cls(datetime.now(UTC), os.getloadavg()[0], times[7], sum(times))


def conditions(begun: Moment, ended: Moment, words: str) -> dict[str, Any]:
    """Return what a reader has to know, *words* being how the run was asked for."""
    jiffies = max(1, ended.jiffies - begun.jiffies)
    return {
        "command": f"scripts/bench {words}".strip(),
        "begun": f"{begun.at:%Y-%m-%d %H:%M} UTC",
        "minutes": round((ended.at - begun.at).total_seconds() / 60, 1),
        "version": __version__,
        "cpus": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)),
        "kernel": os.uname().release,
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "load_at_begin": round(begun.load, 1),
        "load_at_end": round(ended.load, 1),
        "stolen": f"{(ended.stolen - begun.stolen) / jiffies:.1%}",
        "readable_by_handler": privileges.can_others_import([str(Path(__file__).resolve().parents[2]), *sys.path]),
    }


def sentence(known: dict[str, Any]) -> str:
    """Return the conditions in words."""
    load = f"load {known['load_at_begin']} at the begin, {known['load_at_end']} at the end"
    text = (
        f"`{known['command']}`, begun {known['begun']}, {known['minutes']} minutes: {known['cpus']} CPUs ({known['processor']}),"
        f" which receiver, rivals and all else on the machine share, {known['memory_gib']} GiB, Linux {known['kernel']},"
        f" {known['python']}, securecore {known['version']}; {load}; other machines took {known['stolen']} of the CPUs' time."
        " Figures are medians (smallest-largest); ratios are those of measurements made one behind the other."
    )
    if not known["readable_by_handler"]:
        text += " This installation can be read by root only, so the handler loads everything at its start: figures are worse."
    return textwrap.fill(text, 130)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
