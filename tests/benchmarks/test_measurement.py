"""The parts of scripts/bench that decide: what one run does when a part of it fails, corpora, profiles, and what a run is told."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import benchmark
import long_lists
import pytest
from benchmarks import corpora, kinds, machine, plan, profile, table, takers
from benchmarks.figures import BenchError
from benchmarks.table import BEGIN, END, HOLDS, SKIPPED, Findings, Row

from securecore.errors import BusyError
from securecore.names import Address
from securecore.sender.settings import load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> plan.Run:
    """A run in a directory of its own."""
    return plan.Run(machine.Machine(tmp_path), plan.QUICK)


def test_a_part_that_fails_is_said_and_does_not_end_the_run(run: plan.Run) -> None:
    """Its row says why, the others are measured all the same, and the caller knows."""

    def fail(error: Exception) -> Callable[[plan.Run], Findings]:
        def measure(_: plan.Run) -> Findings:
            raise error

        return measure

    good = Findings((Row("start", (1.0,), "s", "bare", (1.0,), 2.0),))
    work = {
        "a": fail(BenchError("no dump")),
        "b": fail(BusyError("taken")),
        "c": fail(OSError(28, "disk full")),
        "d": lambda _: good,
    }
    findings, has_failed, is_whole = benchmark.measure_all(run, work)

    assert has_failed
    assert is_whole
    assert [row.verdict for row in findings.rows] == [SKIPPED, SKIPPED, SKIPPED, HOLDS]
    assert [row.trouble for row in findings.rows[:2]] == ["failed: no dump", "failed: taken"]
    assert "disk full" in findings.rows[2].trouble
    assert benchmark.measure_all(run, {"d": lambda _: good}) == (good, False, True)


@pytest.mark.parametrize("end", [benchmark.Ended("signal 15"), KeyboardInterrupt()])
def test_a_run_that_is_ended_shows_what_it_has(run: plan.Run, end: BaseException) -> None:
    """What took half an hour is not lost to an impatient key; what is missing is named, and the page is left as it was."""
    good = Findings((Row("start", (1.0,), "s", "bare", (1.0,), 2.0),))

    def be_ended(_: plan.Run) -> Findings:
        raise end

    findings, has_failed, is_whole = benchmark.measure_all(run, {"a": lambda _: good, "b": be_ended, "c": lambda _: good})

    assert [(row.what, row.verdict) for row in findings.rows] == [("start", HOLDS), ("b", SKIPPED), ("c", SKIPPED)]
    assert (has_failed, is_whole) == (True, False)


def test_what_is_written_is_the_page_and_the_chart(tmp_path: Path) -> None:
    """Both whole, nothing beside them, and of the page only what stands between the markers."""
    page, picture = tmp_path / "page.md", tmp_path / "page.svg"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    moment = benchmark.conditions.Moment.now()
    known = benchmark.conditions.conditions(moment, moment, "--write")
    findings = Findings((Row("start", (1.0,), "s", "bare", (1.0,), 2.0),), bars=(table.Bar("zeros", takers.OURS, (1.0,)),))
    benchmark.write(known, findings, plan.QUICK, page, picture)

    assert page.read_text().startswith(f"before\n{BEGIN}\n\n`scripts/bench --write`, begun ")
    assert page.read_text().endswith(f"| holds |\n\n{END}\nafter\n")
    assert picture.read_text().startswith("<svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.md", "page.svg"]


def test_the_page_has_its_place_for_the_figures() -> None:
    """`--write` finds its markers, and people find the chart."""
    page = (ROOT / "docs/performance.md").read_text()

    assert "after" in table.placed(page, "after")
    assert "](performance.svg)" in page


@pytest.mark.parametrize("name", corpora.CORPORA)
@pytest.mark.slow
def test_a_corpus_is_what_it_is_called(name: str, tmp_path: Path) -> None:
    """As long as was asked for, and as compressible as its name says, by a judge of its own."""
    path = corpora.make(name, tmp_path / "corpus", 8)
    packed = subprocess.run(["gzip", "-1", "-c", str(path)], capture_output=True, check=True).stdout
    share = len(packed) / path.stat().st_size

    assert path.stat().st_size == 8 << 20
    least, most = {"zeros": (0, 0.01), corpora.HEAP: (0.01, 0.6), "program text": (0.3, 0.8), "incompressible": (0.99, 1.01)}[name]
    assert least < share < most


def test_a_corpus_that_this_machine_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one would be measured as if it were whole."""
    monkeypatch.setitem(corpora.CORPORA, "zeros", lambda path, mib: path.touch())

    with pytest.raises(BenchError, match="0 bytes instead of 8 MiB"):
        corpora.make("zeros", tmp_path / "corpus", 8)


def test_a_corpus_is_made_once(run: plan.Run) -> None:
    """A larger one serves for less, for a crasher reads what it needs; a smaller one does not for more."""
    small = run.machine.corpus("zeros", 2)

    assert run.machine.corpus("zeros", 1) == small
    assert run.machine.corpus("zeros", 3) != small


REPORT = """
    52.30%  _cffi.cpython-311-x86_64-linux-gnu.so
# a comment
    20.00%  libzstd.so.1.5.4
    10.50%  backend_c.cpython-311-x86_64-linux-gnu.so
     9.50%  [kernel.kallsyms]
     5.20%  libcrypto.so.3
     2.50%  something

"""


def test_a_profile_is_summed_by_what_runs() -> None:
    """Shared objects are grouped by what they do."""
    shares = profile.parse_report(REPORT)

    assert {name.partition(" (")[0]: round(share, 1) for name, share in shares.items()} == {
        "compression": 30.5,
        "TLS and SHA-256": 5.2,
        "the kernel: pipe, sockets, files, page faults": 9.5,
        "the interpreter and its own modules": 52.3,
        "everything else": 2.5,
    }


@pytest.mark.parametrize("text", ["no per cent", "12%", "x 12.00% lib"])
def test_a_profile_in_another_form_is_refused(text: str) -> None:
    """Half a profile would be shown as a whole one."""
    with pytest.raises(BenchError):
        profile.parse_report(text)


def weigh(run: plan.Run, program: Path) -> takers.Taker:
    """Run *program* as the kernel would start a taker's, and return the taker."""
    taker = takers.Taker("it", run.machine, program)
    taker.arm()
    subprocess.run([str(run.machine.weigher), str(program), "one", "two"], stdin=subprocess.DEVNULL, check=True)
    return taker


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@needs_compiler
@pytest.mark.slow
def test_a_handler_is_weighed_with_all_that_it_waits_for(run: plan.Run) -> None:
    """Processor time and memory of a grandchild count; those of whoever weighs do not."""
    program, heavy = run.machine.fresh("weighed"), "list(range(2_000_000)); sum(i * i for i in range(2_000_000))"
    takers.write_program(program, f'#!/bin/sh\ntest "$*" = "one two" || exit 9\n{sys.executable} -I -c "{heavy}"\n')
    weight = weigh(run, program).settle().weight

    assert weight.mib > 60
    assert weight.cpu_s > 0
    takers.write_program(program, "#!/bin/sh\n")
    assert weigh(run, program).settle().weight.mib < 30


@needs_compiler
@pytest.mark.parametrize(("words", "code"), [("exit 3", "3"), ("kill -9 $$", f"-{int(signal.SIGKILL)}")])
def test_a_handler_that_fails_is_no_figure(run: plan.Run, words: str, code: str) -> None:
    """One that gives up early would be the fastest of all."""
    program = run.machine.fresh("failing")
    takers.write_program(program, f"#!/bin/sh\n{words}\n")

    with pytest.raises(BenchError, match=f"it left with {code}"):
        weigh(run, program).settle()


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the handler's spool has a user of its own")
def test_what_went_to_the_spool_is_delivered_and_said(run: plan.Run, tmp_path: Path) -> None:
    """Where a receiver is slower than the core, the crash was held, and all of it arrives: a figure, though not one to judge."""
    core = corpora.make("program text", tmp_path / "core", 2)
    taker = takers.PipeHandler(run.machine)
    handler, program, settings = taker.program, run.machine.fresh("slow"), taker.program.with_name("handler.json")
    try:
        takers.write_program(program, f'#!/bin/sh\n{handler} "$@"\nexit {BusyError.exit_code}\n')
        taker.watch(program)
        taker.arm()
        as_set_up = settings.read_bytes()
        settings.write_bytes(load_settings(str(settings))._replace(receivers=(Address("127.0.0.1:1"),)).encode())
        with core.open("rb") as source:
            subprocess.run([str(run.machine.weigher), str(program), *machine.own_arguments()], stdin=source, check=True)
        settings.write_bytes(as_set_up)
        settled = taker.settle()
    finally:
        taker.close()

    assert settled.was_spooled
    assert settled.stored > 0
    assert takers.doubt_of([settled, settled._replace(was_spooled=False)]).startswith("in 1 of 2 the receiver was too slow")
    assert takers.doubt_of([settled._replace(was_spooled=False)]) == ""


@needs_compiler
def test_whoever_weighs_does_not_hold_the_pipe(run: plan.Run) -> None:
    """The crashed process is let go when the handler lets go of its core, and not when the handler ends."""
    program, reading_ends = run.machine.fresh("closing"), run.machine.fresh("fifo")
    os.mkfifo(reading_ends)
    takers.write_program(program, f"#!/bin/sh\nexec 0<&-\ncat {reading_ends}\n")
    reading, writing = os.pipe()
    with subprocess.Popen([str(run.machine.weigher), str(program)], stdin=reading, stdout=subprocess.DEVNULL) as weigher:
        os.close(reading)
        # Opened for writing only once cat has it open: the handler has closed its standard input by then.
        with open(reading_ends, "wb"):
            machine.seconds_until(lambda: is_unread(writing), 30, "the pipe to have no reader")
    os.close(writing)
    assert weigher.returncode == 0


def is_unread(writing: int) -> bool:
    """Return whether a pipe has lost its last reader."""
    try:
        os.write(writing, b".")
    except BrokenPipeError:
        return True
    return False


@pytest.mark.skipif(takers.find_missing(takers.ZSTD) is not None, reason="no zstd or no openssl")
@needs_compiler
@pytest.mark.slow
def test_a_pipeline_carries_what_it_is_given(run: plan.Run, tmp_path: Path) -> None:
    """The rival does the job that it is compared for: what its other end writes is the core, by mutual TLS."""
    core = corpora.make("program text", tmp_path / "core", 2)
    taker = takers.Pipeline(
        takers.ZSTD, run.machine, takers.RIVALS[takers.ZSTD][1], takers.RIVALS[takers.ZSTD][2] + " | tee " + str(tmp_path / "got")
    )
    taker.arm()
    with core.open("rb") as source:
        subprocess.run([str(run.machine.weigher), str(taker.program)], stdin=source, check=True)
    settled = taker.settle()

    assert settled.stored == (tmp_path / "got").stat().st_size
    assert subprocess.run(["zstd", "-dqc", str(tmp_path / "got")], capture_output=True, check=True).stdout == core.read_bytes()
    assert settled.receiver_cpu_s is not None


@pytest.mark.slow
def test_a_list_that_fails_is_no_figure_and_does_not_end_the_run(tmp_path: Path) -> None:
    """Its row says why; what was measured before is shown all the same."""
    with pytest.raises(BenchError, match=r"list has failed: .*nothing"):
        long_lists._list(tmp_path / "nothing", [])


@pytest.mark.parametrize("words", [["--rows", "nothing"], ["--runs", "0"], ["--mib", "x"], ["--scale", "1", "--log", "1"]])
def test_a_wrong_option_is_told_at_once(words: list[str]) -> None:
    """Before anything is made or measured."""
    done = subprocess.run([sys.executable, str(ROOT / "scripts/benchmark.py"), *words], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "usage: scripts/bench" in done.stderr


def test_a_kind_of_handler_that_cannot_be_here_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel without coredump sockets is a row that says so; every kernel has the pipe."""
    modes = tmp_path / "core_modes"
    modes.write_text("file\npipe\n")
    monkeypatch.setattr(kinds, "_CORE_MODES", modes)
    assert kinds.find_lack("pipe") is None
    assert kinds.find_lack("agent") == "this kernel has no coredump sockets"
    modes.write_text("file\npipe\nsocket\n")
    assert kinds.find_lack("agent") is None
