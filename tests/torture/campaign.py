"""Random kills of the real programs, run after run, and what came of them. Behind ``scripts/torture``."""

import argparse
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.support.certificates import Fleet, make_fleet
from tests.torture.judgement import Verdict, judge
from tests.torture.plan import Program, make_plan
from tests.torture.run import Durations, Ran, Run, calibrate

SEEDS: Final = 1 << 32


class Campaign:
    """What many runs have come to."""

    def __init__(self, directory: Path, planted: str = "") -> None:
        """*directory* is empty; *planted* is a bug for the senders to have."""
        self._directory = directory
        self._planted = planted
        directory.chmod(0o755)
        self.fleet: Fleet = make_fleet(directory / "fleet")
        (directory / "calibration").mkdir()
        self.durations: Durations = calibrate(self.fleet, directory / "calibration")
        self.runs = 0
        self.kills: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.cuts = 0
        self.problems: dict[int, list[str]] = {}
        """What must not be, by the seed of its run; the run's directory is kept."""

    def run(self, seed: int) -> None:
        """Carry out and judge the plan of one seed."""
        place = self._directory / f"run-{seed}"
        place.mkdir()
        ran = Run(make_plan(seed), self.fleet, place, self.durations, self._planted)()
        verdict = judge(ran, self.fleet)
        self._count(ran, verdict)
        if not verdict.problems:
            shutil.rmtree(place)

    def _count(self, ran: Ran, verdict: Verdict) -> None:
        self.runs += 1
        self.outcomes += verdict.outcomes
        self.cuts += ran.cuts
        for one in ran.sent:
            if one.was_killed:
                self.kills[f"{one.source.program.value}, {one.moment}"] += 1
        self.kills[Program.FLUSH.value] += sum(code < 0 for code in ran.flush_codes)
        for busy in ran.receiver_kills:
            self.kills[f"{Program.RECEIVER.value}, {'with cores on their way' if busy else 'idle'}"] += 1
        if verdict.problems:
            self.problems[ran.plan.seed] = verdict.problems

    def table(self) -> str:
        """Return the figures as docs/reliability.md has them."""
        lines = [f"| runs | {self.runs:,} |"]
        lines += [f"| killed: {name} | {count:,} |" for name, count in sorted(self.kills.items()) if count]
        lines += [f"| wires cut | {self.cuts:,} |"]
        lines += [f"| cores: {name} | {count:,} |" for name, count in sorted(self.outcomes.items())]
        lines += [f"| losses | {sum(map(len, self.problems.values())):,} |"]
        return "\n".join(["| What | How many |", "| --- | --- |", *lines])


def main() -> int:
    """Run what the command line asks for; return 1 when anything was lost or false."""
    words = "Kill the real programs at random, run after run, and check that nothing is lost. Exit code 1 says that something was."
    parser = argparse.ArgumentParser(prog="scripts/torture", description=words)
    parser.add_argument("--runs", type=int, default=100, help="how many (100)")
    parser.add_argument("--seed", type=int, help="the first run's; the next ones count on (at random)")
    parser.add_argument("--directory", type=Path, help="an empty one, which stays (a temporary one, kept when something is lost)")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    directory = options.directory or Path(tempfile.mkdtemp(prefix="securecore-torture-"))
    directory.mkdir(exist_ok=True)
    if any(directory.iterdir()):
        parser.error(f"{directory} is not empty")
    seed = random.SystemRandom().randrange(SEEDS) if options.seed is None else options.seed
    campaign = _torture(directory, range(seed, seed + options.runs), _progress())
    if not campaign.problems and options.directory is None:
        shutil.rmtree(directory)
    return 1 if campaign.problems else 0


def _torture(directory: Path, seeds: range, progress: Callable[[str], None]) -> Campaign:
    campaign, began = Campaign(directory), time.monotonic()
    print(f"seeds {seeds.start} to {seeds.stop - 1}; undisturbed: {campaign.durations}", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # A shell starts what is in its background deaf to the first.
    try:
        for seed in seeds:
            campaign.run(seed)
            kills, bad = sum(campaign.kills.values()), len(campaign.problems)
            progress(f"{campaign.runs} of {len(seeds)} runs, {kills} kills, {bad} bad runs")
            for problem in campaign.problems.get(seed, ()):
                print(f"\nseed {seed}: {problem}; see {directory / f'run-{seed}'}", flush=True)
    except KeyboardInterrupt:
        print("\ninterrupted")
    progress("")
    print(campaign.table())
    seconds = time.monotonic() - began
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.release()}, {seconds / max(campaign.runs, 1):.2f} s a run")
    return campaign


def _progress() -> Callable[[str], None]:
    """Return what shows one line in place of the last one, on a terminal only."""
    if not sys.stderr.isatty():
        return lambda line: None
    return lambda line: print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
