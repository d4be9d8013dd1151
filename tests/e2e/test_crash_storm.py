"""A storm of real crashes: limits hold, nothing admitted is lost, and what was admitted, suppressed and skipped adds up."""

import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender import storm_limits
from securecore.sender.admission import Admission, StormLimit
from securecore.sender.buckets import State, Untaken
from tests.support.certificates import Fleet
from tests.support.kernel import NOBODY, Host, build_crasher, crashing_into, needs_kernel, start_crash, wait_until, write_script

pytestmark = [needs_kernel, pytest.mark.root, pytest.mark.slow]

CRASHER = """
#include <stdlib.h>
#include <unistd.h>
int main(void) { char byte; while (read(0, &byte, 1) > 0); abort(); }
"""
"""Crashes when its input ends."""
CRASHES = 200
BURST = 5
"""Of the limit that is tried: below the handlers that are there at once, so that it is met however many the kernel skips."""
FREE = StormLimit(0, 1)
KERNEL_WINDOW_S = 5.1
"""The kernel tells of ten skipped crashes in five seconds at most, and of how many it did not with the first one after them."""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory in which every user may start programs, as no directory of pytest's is."""
    directory = Path(tempfile.mkdtemp(prefix="securecore-storm-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def _kernel_has_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the kernel holds back of other tests' crashes is told before these tests count theirs."""
    directory = tmp_path_factory.mktemp("before")
    wait_for_kernel()
    crash_one_too_many(build(directory), directory)


def build(directory: Path) -> Path:
    """Return the program that crashes."""
    source = directory / "storming.c"
    source.write_text(CRASHER)
    return build_crasher(source, directory)


def wait_for_kernel() -> None:
    """Wait until the kernel would tell of skipped crashes that it holds back."""
    begun_s, log = -KERNEL_WINDOW_S, os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            record = os.read(log, 8192)
            told_s = int(record.split(b",")[2]) / 1e6
            if b"over core_pipe_limit" in record and told_s >= begun_s + KERNEL_WINDOW_S - 0.1:
                begun_s = told_s
    os.close(log)
    wait_until(lambda: True if time.monotonic() > begun_s + KERNEL_WINDOW_S else None)


def processes_of(program: Path) -> list[int]:
    """Return the processes that run a script, by what their interpreter was told."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(program).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # It has ended between our look and this one.
    return found


def wait_for_look(host: Host) -> None:
    """Wait until the next handler looks at the kernel's log again."""
    wait_until(lambda: True if time.time() > host.state.read_at + limits.KERNEL_LOG_EVERY_S + 1 else None)


def crash_alone(host: Host, program: Path, cwd: Path) -> None:
    """Have a program crash into the host's handler, and wait until that has ended."""
    with crashing_into(host.handler):
        assert start_crash([str(program)], cwd).wait() == -signal.SIGABRT
        wait_until(lambda: True if not processes_of(host.handler) else None)


def crash_in_a_storm(host: Host, programs: Sequence[Path], cwd: Path, users: Sequence[int | None]) -> None:
    """Have the programs crash, all at once, and wait until the last handler has ended and the kernel would tell of the rest.

    As many as there are users run as one each, over and over.
    """
    with crashing_into(host.handler):
        reading, writing = os.pipe()
        pairs = zip(programs, itertools.cycle(users), strict=False)
        crashes = [start_crash([str(program)], cwd, user, stdin=reading) for program, user in pairs]
        os.close(reading)
        os.close(writing)
        assert {crash.wait() for crash in crashes} == {-signal.SIGABRT}
        wait_until(lambda: True if not processes_of(host.handler) else None)
    wait_for_kernel()


def crash_one_too_many(program: Path, cwd: Path) -> None:
    """Have the kernel skip exactly one crash, while as many as it handles at once are held; then let them go."""
    directory = Path(tempfile.mkdtemp(dir=cwd))
    fifo, holder = directory / "fifo", directory / "holder"
    os.mkfifo(fifo)
    write_script(holder, f"#!/bin/sh\nexec cat {fifo} >/dev/null 2>&1\n")
    with crashing_into(holder):
        held = [start_crash([str(program)], cwd) for _ in range(limits.CORE_PIPE_LIMIT)]
        wait_until(lambda: True if len(processes_of(fifo)) == len(held) else None)
        assert start_crash([str(program)], cwd).wait() == -signal.SIGABRT

        def let_go() -> bool | None:
            # They hold the pipe from the kernel as their input and read the FIFO: who opens it for writing and closes it lets go
            # all that have opened it by then. Without a reader it cannot be opened.
            with suppress(OSError):
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            return True if all(crash.poll() is not None for crash in held) else None

        wait_until(let_go)


def reports_of(host: Host, store: Path) -> list[dict[str, Any]]:
    """Return the reports of all dumps, those that a receiver has and those that wait."""
    return [json.loads(path.read_bytes()) for path in store.glob("hosts/*/*/report.json")] + host.spooled_reports()


def total(reports: Sequence[dict[str, Any]], state: State) -> Counter[str]:
    """Return what was counted, in reports and for the next one."""
    names = Untaken._fields[:-1]
    found = Counter({name: sum(report.get(name, 0) for report in reports) for name in names})
    found["suppressed"] += sum(bucket.suppressed for bucket in state.programs.values())
    found["suppressed_of_user"] += sum(bucket.suppressed for bucket in state.users.values())
    found["suppressed_of_host"] += state.host.suppressed
    found["suppressed_of_others"] += state.others
    # Not those that want no core: the pattern is the whole machine's, and such a process of another test may end meanwhile.
    found["lost"] += state.lost
    found["skipped_by_kernel"] += state.skipped
    return found


@pytest.mark.usefixtures("_kernel_has_told")
def test_a_storm_of_one_program_adds_up(fleet: Fleet, receiver: Receiver, tmp_path: Path, public: Path) -> None:
    """200 crashes in a second: no more than the burst is taken, all of that arrives, and the rest is counted to the last one."""
    host = Host(tmp_path / "web-1", fleet.hosts["web-1"], receiver.addresses)
    host.change(admission=Admission(program=StormLimit(BURST, 3600), user=FREE))
    storming, other = build(public), public / "other"
    shutil.copy(storming, other)
    crash_alone(host, other, public)
    crash_in_a_storm(host, [storming] * CRASHES, public, [None])
    crash_one_too_many(other, public)
    wait_for_look(host)
    crash_alone(host, other, public)
    reports = reports_of(host, tmp_path / "store")
    admitted = [report for report in reports if report["program"] == "storming"]
    counted = total(reports, host.state)

    assert len(admitted) == BURST
    assert len(reports) == BURST + 2
    assert counted["suppressed"] > 0
    assert counted["suppressed_of_user"] == counted["suppressed_of_others"] == 0
    assert len(admitted) + counted["suppressed"] + counted["skipped_by_kernel"] == CRASHES + 1


@pytest.mark.usefixtures("_kernel_has_told")
def test_a_storm_of_copies_under_one_uid_adds_up(fleet: Fleet, tmp_path: Path, public: Path) -> None:
    """Each is another file, and their user's limit holds; with no receiver, all that was admitted is in the spool."""
    host = Host(tmp_path / "web-1", fleet.hosts["web-1"], [Address("127.0.0.1:9")])
    host.change(admission=Admission(program=FREE, user=StormLimit(BURST, 3600)))
    program = build(public)
    copies = [Path(shutil.copy(program, public / f"copy-{number}")) for number in range(CRASHES)]
    crash_alone(host, program, public)
    crash_in_a_storm(host, copies, public, [NOBODY])
    crash_one_too_many(program, public)
    wait_for_look(host)
    crash_alone(host, program, public)
    reports = host.spooled_reports()
    admitted = [report for report in reports if report["program"].startswith("copy-")]
    state = host.state
    counted = total(reports, state)

    assert len(admitted) == BURST
    assert counted["suppressed_of_user"] > 0
    assert counted["suppressed"] == counted["suppressed_of_others"] == 0
    assert len(admitted) + counted["suppressed_of_user"] + counted["skipped_by_kernel"] == CRASHES + 1
    assert len(state.programs) == BURST + 1
    for name in host.spooled():
        end = json.loads((host.spool / "dumps" / name / "end.json").read_bytes())
        assert (end["outcome"], end["size"]) == ("complete", end["predicted_size"])


@pytest.mark.usefixtures("_kernel_has_told")
def test_a_storm_of_many_uids_adds_up(fleet: Fleet, tmp_path: Path, public: Path) -> None:
    """More users than are remembered, each with a limit of his own that he does not reach: the host's limit holds."""
    host = Host(tmp_path / "web-1", fleet.hosts["web-1"], [Address("127.0.0.1:9")])
    host.change(admission=Admission(host=StormLimit(BURST + 1, 3600)))
    program, users = build(public), range(200_000, 200_000 + CRASHES)
    assert len(users) > storm_limits.MAX_STORM_USERS
    crash_alone(host, program, public)
    crash_in_a_storm(host, [program] * CRASHES, public, users)
    host.change(admission=Admission(host=FREE))
    crash_one_too_many(program, public)
    wait_for_look(host)
    crash_alone(host, program, public)
    _, *admitted, last = host.spooled_reports()
    state = host.state
    counted = total([*admitted, last], state)

    assert len(admitted) == BURST
    assert {report["uid"] for report in admitted} <= set(users)
    assert last["suppressed_of_host"] == counted["suppressed_of_host"] > 0
    assert counted["suppressed"] == counted["suppressed_of_user"] == counted["suppressed_of_others"] == 0
    assert len(admitted) + counted["suppressed_of_host"] + counted["skipped_by_kernel"] == CRASHES + 1
