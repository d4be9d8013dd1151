"""Where the handler spends its processor time, by the library or kernel that runs, as perf(1) samples it."""

import re
import shutil
import subprocess
from collections import Counter
from contextlib import closing
from typing import Final

from benchmarks import corpora
from benchmarks.crashes import Crash, hold
from benchmarks.figures import BenchError
from benchmarks.machine import Machine
from benchmarks.plan import Run
from benchmarks.table import Findings, Grid, Row
from benchmarks.takers import PipeHandler, write_program

_WHAT: Final = "profile of the handler"
_KINDS: Final = (
    ("compression (zstd)", r"zstd|backend_c"),
    ("TLS and SHA-256 (OpenSSL)", r"libcrypto|libssl|_ssl|_hashlib"),
    ("the kernel: pipe, sockets, files, page faults", r"^\[kernel|\[unknown\]|^\[vdso"),
    ("the interpreter and its own modules", r"python|\.so"),
)
"""What a shared object is called in the table: the first that its name matches."""
_HERTZ: Final = 499


class _Profiled(PipeHandler):
    """Our handler under perf(1)."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.samples = machine.fresh("samples")
        script = self.program
        program = script.with_name("perf")
        perf = shutil.which("perf")
        words = f"record -q -e cpu-clock -F {_HERTZ} -o {self.samples} -- {script}"
        write_program(program, f'#!/bin/sh\nexec {perf} {words} "$@" 2>/dev/null >/dev/null\n')
        self.watch(program)


def measure(run: Run) -> Findings:
    """Return the shares for a managed heap, of one crash."""
    if shutil.which("perf") is None:
        return Findings((Row.skipped(_WHAT, "no perf here"),))
    run.tell("profile")
    with closing(_Profiled(run.machine)) as taker:
        hold(run.machine, taker, Crash(run.machine.corpus(corpora.HEAP, run.plan.mib), run.plan.mib))
        report = subprocess.run(
            ["perf", "report", "--stdio", "-q", "--sort", "dso", "-i", str(taker.samples)],
            capture_output=True,
            text=True,
            check=False,
        )
    shares = parse_report(report.stdout)
    if report.returncode != 0 or not shares:
        return Findings((Row.skipped(_WHAT, "perf could not sample here"),))
    cells = tuple((name, f"{share:.0f} %") for name, share in shares.most_common())
    words = f"Samples of perf(1), cpu-clock at {_HERTZ} Hz, of one crash of {run.plan.mib} MiB of managed heap."
    return Findings(grids=(Grid("Where the handler's processor time goes", ("what runs", "share"), cells, words),))


def parse_report(text: str) -> Counter[str]:
    """Return the per cent of each of _KINDS in what `perf report --sort dso` prints; raises BenchError on any other line."""
    shares: Counter[str] = Counter()
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"\s*(\d+\.\d+)%\s+(\S.*?)\s*", line)
        if found is None:
            raise BenchError(f"perf report says {line!r}")
        name = next((name for name, pattern in _KINDS if re.search(pattern, found[2])), "everything else")
        shares[name] += float(found[1])  # type: ignore[assignment]  # a Counter of per cents
    return shares
