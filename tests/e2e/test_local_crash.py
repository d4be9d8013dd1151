"""A program crashes, the kernel starts our handler, and the core stays on this machine: on the real kernel."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.cli.main import run
from securecore.sender.admission import Admission, StormLimit
from tests.e2e.test_real_crash import CRASHERS, core_pid
from tests.support.kernel import build_crasher, crashing_into, needs_kernel, start_crash, wait_until, write_tee
from tests.support.local_files import KINDS, filter_through, small_disk
from tests.support.local_handlers import LocalHost, is_well_named

pytestmark = [needs_kernel, pytest.mark.root, pytest.mark.slow]

BURST: Final = 200
AT_ONCE: Final = 8
"""Crashes that run at the same time: half of what core_pipe_limit lets through, more of which the kernel would skip."""


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path, because all of it must fit into core_pattern."""
    directory = Path(tempfile.mkdtemp(prefix="sc-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def host(short: Path) -> LocalHost:
    """A machine in local mode."""
    return LocalHost(short)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_kernel_sent_is_what_is_kept(kind: str, host: LocalHost, short: Path, tmp_path: Path) -> None:
    """Byte for byte, by our own reader and by a standard program; the report is proved by the pidfd where the kernel has it."""
    program = build_crasher(CRASHERS / "large-heap.c", tmp_path)
    tee, copy, facts_path = write_tee(short, host.handler)
    with crashing_into(tee, *host.words("--format", kind)):
        crash = start_crash([str(program), "24"], tmp_path)
        assert crash.wait() == -signal.SIGABRT
        facts = json.loads(wait_until(lambda: facts_path.read_text() if facts_path.exists() else None))
    ((stem, report),) = host.reports().items()
    sent, kept = copy.read_bytes(), host.cores / f"{stem}.{kind}"
    reader = {"zst": ["zstd", "-dcq"], "gz": ["gzip", "-dc"], "zlib": ["pigz", "-dcz"]}[kind]

    assert facts["code"] == 0
    assert facts["max_resident_kib"] < 64 * limits.KIB
    assert stem.endswith(f"Z-large-heap-{crash.pid}")
    assert (report["signal"], report["local"]["outcome"], report["local"]["size"]) == (signal.SIGABRT, "complete", len(sent))
    assert report["metadata"] == ("verified" if os.path.exists("/proc/sys/kernel/core_modes") else "unverified")
    assert run(["decompress", str(kept), "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == sent
    assert filter_through(reader, kept.read_bytes()) == sent


def crash_often(count: int, arguments: list[str], cwd: Path) -> list[int]:
    """Run a crasher so often, some of them at once, and return the pids; all have dumped core when this returns."""
    pids = []
    for first in range(0, count, AT_ONCE):
        crashes = [start_crash(arguments, cwd) for _ in range(min(AT_ONCE, count - first))]
        assert {crash.wait() for crash in crashes} == {-signal.SIGABRT}
        pids += [crash.pid for crash in crashes]
    return pids


def test_a_burst_is_kept_to_the_last_core(host: LocalHost, tmp_path: Path) -> None:
    """gzCoredump made one file of the crashes of a second: here each has its own, whole and of its own process."""
    program = build_crasher(CRASHERS / "abort.c", tmp_path)
    with crashing_into(host.handler, *host.words("--format", "gz")):
        pids = crash_often(BURST // 5, [str(program)], tmp_path)
        host.wait_until_idle()
    kept = host.cores_kept()

    assert len(kept) == len(pids)
    assert sorted(host.names()) == sorted([*kept, *(name.replace(".gz", ".json") for name in kept)])
    for name in kept:
        (tmp_path / name).write_bytes(host.plain(name))
        assert f"Z-abort-{core_pid(tmp_path / name)}" in name
    assert sorted(core_pid(tmp_path / name) for name in kept) == sorted(pids)


def test_a_burst_leaves_the_newest_and_nothing_else(host: LocalHost, tmp_path: Path) -> None:
    """200 crashes with --keep 10: the last ten, as whole pairs, and what was in the directory before.

    Those that ran at the same time have no order: all of the last ones are there, and the others are of the ones before.
    """
    (host.cores / "20261124.gz").write_text("mine")
    program = build_crasher(CRASHERS / "abort.c", tmp_path)
    with crashing_into(host.handler, *host.words("--keep", "10")):
        pids = []
        for count in (BURST - 2 * AT_ONCE, AT_ONCE, AT_ONCE):
            pids += crash_often(count, [str(program)], tmp_path)
            # A process is let go before its core has a name; a late one would be newer than those that crashed after it.
            host.wait_until_idle()
    names = [name for name in host.names() if name != "20261124.gz"]
    reports = host.reports()

    assert (host.cores / "20261124.gz").read_text() == "mine"
    assert sorted(names) == sorted(f"{stem}.{ending}" for stem in reports for ending in ("zst", "json"))
    assert len(reports) == 10
    assert {report["local"]["outcome"] for report in reports.values()} == {"complete"}
    assert set(pids[-AT_ONCE:]) < {report["pid"] for report in reports.values()} < set(pids[-2 * AT_ONCE :])
    for stem in reports:
        assert len(host.plain(f"{stem}.zst")) == reports[stem]["local"]["size"]


def test_a_storm_is_limited_and_told(host: LocalHost, tmp_path: Path) -> None:
    """Two of a program are kept, and every other crash is counted: the next core that is kept tells how many there were."""
    program = build_crasher(CRASHERS / "abort.c", tmp_path)
    host.admit(Admission(program=StormLimit(2, 3600)))
    with crashing_into(host.handler, *host.words()):
        crash_often(AT_ONCE, [str(program)], tmp_path)
        host.wait_until_idle()
        kept = set(host.reports())
        host.admit(Admission(program=StormLimit(0, 3600)))
        crash_often(1, [str(program)], tmp_path)
        host.wait_until_idle()
    reports = host.reports()
    (last,) = reports.keys() - kept

    assert (len(kept), len(host.cores_kept())) == (2, 3)
    assert reports[last]["suppressed"] == AT_ONCE - 2
    assert reports[last]["local"]["outcome"] == "complete"


def test_a_full_disk_lets_the_process_go(short: Path, tmp_path: Path) -> None:
    """48 MiB into a disk of 1 MiB: the process dies as it would have, and its core is kept as far as it fitted, or not at all."""
    program = build_crasher(CRASHERS / "large-heap.c", tmp_path)
    with small_disk(short / "d", "1m") as small:
        host = LocalHost(small)
        with crashing_into(host.handler, *host.words("--format", "gz")):
            assert start_crash([str(program), "48"], tmp_path).wait() == -signal.SIGABRT
            host.wait_until_idle()
        ((stem, report),) = host.reports().items()

        assert set(host.names()) <= {f"{stem}.json", f"{stem}.truncated.gz"}
        assert report["local"]["outcome"] == ("cut" if host.cores_kept() else "not-kept")
        assert report["local"]["file"] == next(iter(host.cores_kept()), None)
        assert report["signal"] == signal.SIGABRT


HOSTILE: Final = [
    "-rf", ".hidden", "...", "a b", "$(id)", ";reboot", "x\n{}", "\x1b[31mred", "ünïcödé", "\u202eexe", "n" * 255, "core.truncated",
    "20261124T065359Z-nginx-4711.gz", "'\"", "%p%e",
]  # fmt: skip


def test_no_program_chooses_a_name(host: LocalHost, tmp_path: Path) -> None:
    """R12, R27: programs of any name crash into well-named files in the directory, and the report has their names as they are."""
    program = build_crasher(CRASHERS / "abort.c", tmp_path)
    (tmp_path / "bin").mkdir()
    with crashing_into(host.handler, *host.words("--format", "gz")):
        for name in HOSTILE:
            shutil.copy(program, tmp_path / "bin" / name)
            start_crash([str(tmp_path / "bin" / name)], tmp_path).wait()
        host.wait_until_idle()

    assert [name for name in host.names() if not is_well_named(name)] == []
    assert len(host.cores_kept()) == len(HOSTILE)
    assert sorted(report["program"] for report in host.reports().values()) == sorted(HOSTILE)
    assert sorted(path.name for path in host.cores.parent.iterdir()) == ["admission.json", "cores", "handler"]
