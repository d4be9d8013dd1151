"""Fuzzing, from the outside: starts the process that fuzzes, reads what libFuzzer said, prints a table. Behind ``scripts/fuzz``."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = "tests.fuzz.table"

_EXECUTED: Final = re.compile(r"^stat::number_of_executed_units: +(\d+)$", re.MULTILINE)
_PROGRESS: Final = re.compile(r"^#(\d+)\t.* cov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)
_ROW: Final = "{:<16} {:>12} {:>9} {:>9} {:>7}  {}"


class Outcome(NamedTuple):
    """What came of fuzzing one target."""

    target: str
    executions: int
    coverage: int
    """Places in the instrumented code that were reached: edges of its control flow, and outcomes of its comparisons."""
    features: int
    """The same, told apart by how often they were reached in one execution."""
    corpus: int
    """Inputs that each reach something that no other does."""
    finding: Path | None
    """The input that broke the property."""
    exit_code: int
    log: Path

    @property
    def is_good(self) -> bool:
        """Whether libFuzzer ran to its end and found nothing."""
        return self.exit_code == 0 and self.finding is None and self.executions > 0


def fuzz(names: Sequence[str], directory: Path, arguments: Sequence[str], *, table: str = TABLE) -> Iterator[Outcome]:
    """Fuzz targets one after the other with libFuzzer's *arguments*; yield each one's outcome when it is done.

    Corpora, logs and findings stand in *directory*, and corpora that stand there already are gone on with.
    """
    command = [sys.executable, "-m", "tests.fuzz.process", table, str(directory), *names, "--", *arguments]
    # Some targets write a handful of small files for each input; a disk would be most of the cost.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as temporary:
        environment = os.environ | {"TMPDIR": temporary}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                name, code = line.split()
                yield _read_outcome(name, directory / name, int(code))
    if process.returncode != 0:
        raise SystemExit(f"the fuzzing process ended with {process.returncode}")


def _read_outcome(name: str, place: Path, exit_code: int) -> Outcome:
    text = (place / "log").read_text("utf-8", "replace")
    progress = _PROGRESS.findall(text)
    done, coverage, features, corpus = map(int, progress[-1]) if progress else (0, 0, 0, 0)
    executed = _EXECUTED.search(text)
    artifact = re.search(r"^artifact_prefix=.* Test unit written to (.*)$", text, re.MULTILINE)
    finding = Path(artifact[1]) if artifact else None
    return Outcome(name, int(executed[1]) if executed else done, coverage, features, corpus, finding, exit_code, place / "log")


def main() -> int:
    """Run what the command line asks for; return 1 when there was a finding."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not here; it has wheels for CPython 3.11 to 3.13 on Linux x86-64, with glibc", file=sys.stderr)
        return 3
    from tests.fuzz.table import TARGETS

    words = "Attack the parsers with inputs that coverage guides. Exit code 1 says that something was found."
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=words)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all of them by default: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=10, help="for each target and round (10)")
    parser.add_argument("--rounds", type=int, default=1, help="how often to go through all targets (1)")
    parser.add_argument("--directory", type=Path, default=ROOT / ".fuzz", help="corpora, logs and findings (.fuzz)")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no such target: {unknown[0]}")
    return _run(names, options.directory.absolute(), options.seconds, options.rounds)


def _run(names: list[str], directory: Path, seconds: int, rounds: int) -> int:
    print(_ROW.format("target", "executions", "coverage", "features", "corpus", "finding"), flush=True)
    findings = 0
    for _ in range(rounds):
        for outcome in fuzz(names, directory, [f"-max_total_time={seconds}"]):
            findings += not outcome.is_good
            found = "-" if outcome.is_good else str(outcome.finding or f"exit code {outcome.exit_code}, see {outcome.log}")
            print(_ROW.format(*outcome[:5], found), flush=True)
    cpu = os.times().children_user + os.times().children_system
    print(f"{findings} findings; {cpu / 3600:.2f} hours of CPU; corpora and logs are in {directory}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
