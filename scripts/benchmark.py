"""What scripts/bench runs: each row is a ratio of medians, measured in turn with what it is compared to, on one machine in one run.

Absolute times mean little on a shared machine; pairs that are measured back to back drift together.
"""

import argparse
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import crowd
import long_logs
import many_dumps

from securecore import limits, tls
from securecore.cli import core_pattern
from securecore.cli.machine.interpreter import find_interpreter
from securecore.merkle import EMPTY_ROOT
from securecore.names import Address, HostName, StoreId
from securecore.pki import creation, issue
from securecore.sender import privileges
from securecore.sender.admission import Admission, StormLimit
from securecore.sender.kernel_arguments import SPECIFIERS
from securecore.sender.settings import Settings
from securecore.sender.spool import create_spool
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import Accept, Data, Open, Ready
from securecore.wire.states import End

NOBODY = 65534
UNLIMITED = Admission(program=StormLimit(0, 1), user=StormLimit(0, 1), host=StormLimit(0, 1))
"""One program crashes here more often than on a host."""
ROOT = Path(__file__).resolve().parent


class Row(NamedTuple):
    """One line of the table."""

    what: str
    measured: str
    compared: str
    ratio: float
    budget: str
    holds: bool


class Machine:
    """Identities, a receiver and a handler in a directory of this run's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        now = datetime.now(UTC)
        pki = creation.create_pki(directory / "pki", "Bench", "hosts.bench.example", None, now)
        issue.issue_host(pki, HostName("web-1.hosts.bench.example"), directory / "host", _no_passphrase, now)
        address = [issue.parse_address("127.0.0.1")]
        issue.issue_receiver(pki, HostName("collector.bench.example"), address, directory / "receiver", _no_passphrase, now)
        self._count = 0

    def handler(self, receiver: Address) -> tuple[Path, Path]:
        """Return a handler script that sends to *receiver*, and its spool."""
        self._count += 1
        own = self.directory / f"handler-{self._count}"
        own.mkdir()
        spool, settings, script = own / "spool", own / "handler.json", own / "handler"
        create_spool(str(spool), os.urandom(16), (NOBODY, NOBODY))
        told = Settings((receiver,), str(self.directory / "host"), str(spool), NOBODY, NOBODY, admission=UNLIMITED)
        settings.write_bytes(told.encode())
        script.write_bytes(find_interpreter().handler_script(str(settings)))
        script.chmod(0o755)
        return script, spool

    @contextmanager
    def receiver(self, store: Path) -> Iterator[Address]:
        """Run a receiver as a process of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "securecore.cli.main", "receive", "--listen", "127.0.0.1:0", "--store", str(store),
             "--identity", str(self.directory / "receiver")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield Address(process.stdout.readline().split()[2])
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def kernel_arguments() -> list[str]:
    """Return arguments as the kernel would give them, for this process."""
    return [str(os.getpid()), str(os.getpid()), "0", "0", "11", str(int(time.time())), str((1 << 64) - 1), "1"]


class FirstByteServer:
    """Speaks just enough of the receiver's part to see when the first payload byte of a dump arrives."""

    def __init__(self, identity: Path) -> None:
        self._context = tls.receiver_context(str(identity))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.arrived = 0.0

    def serve_one(self) -> None:
        """Take one connection, note when the first DATA is here, and hang up."""
        plain, _ = self._listener.accept()
        with tls.secure(self._context, plain, deadline_s=10) as secured:
            connection = Connection(End.RECEIVER)
            secured.sendall(connection.send(Ready(StoreId.make(os.urandom(16)), limits.MAX_FRAMES)))
            while True:
                while (message := connection.next_message()) is NEED_DATA:
                    connection.receive(secured.recv(65536))
                if isinstance(message, Open):
                    secured.sendall(connection.send(Accept(0, EMPTY_ROOT)))
                if isinstance(message, Data):
                    self.arrived = time.perf_counter()
                    return


def bench_start(machine: Machine, core: Path, runs: int) -> Row:
    """Handler start to first payload byte over mTLS, against the bare interpreter."""
    server = FirstByteServer(machine.directory / "receiver")
    script, spool = machine.handler(server.address)
    bare, first = [], []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
        bare.append(time.perf_counter() - started)
        thread = threading.Thread(target=server.serve_one)
        thread.start()
        with core.open("rb") as source:
            started = time.perf_counter()
            handler = subprocess.Popen([str(script), *kernel_arguments()], stdin=source, env={}, cwd="/")
            thread.join()
            first.append(server.arrived - started)
            handler.wait()
        shutil.rmtree(spool / "dumps")
        (spool / "dumps").mkdir(mode=0o700)
        os.chown(spool / "dumps", NOBODY, NOBODY)
    ratio = statistics.median(first) / statistics.median(bare)
    return Row("start to first payload byte", _ms(first), f"{_ms(bare)} bare interpreter", ratio, "<= 3.5", ratio <= 3.5)


def bench_memory(machine: Machine, core: Path) -> Row:
    """The handler's largest resident size for a large core, in MiB."""
    with machine.receiver(machine.directory / "store-memory") as address:
        script, _ = machine.handler(address)
        with subprocess.Popen(["cat", str(core)], stdout=subprocess.PIPE) as cat:
            handler = os.fork()
            if handler == 0:
                assert cat.stdout is not None
                os.dup2(cat.stdout.fileno(), 0)
                os.execve(  # noqa: S606  # the program is ours; wait4 needs a child of our own making
                    script,
                    [str(script), *kernel_arguments()],
                    {},
                )
            assert cat.stdout is not None
            cat.stdout.close()
            _, status, usage = os.wait4(handler, 0)
    if status != 0:
        raise SystemExit(f"the handler left with {os.waitstatus_to_exitcode(status)}")
    mib = usage.ru_maxrss / 1024
    size = core.stat().st_size / limits.MIB
    return Row("handler memory", f"{mib:.0f} MiB", f"{size:.0f} MiB core", mib / 64, "<= 64 MiB", mib <= 64)


def bench_hold(machine: Machine, program: Path, mib: int, runs: int) -> list[Row]:
    """Crash to reaped for a managed heap, against what a user would take instead and against a handler that discards."""
    discard = machine.directory / "discard"
    discard.write_text(f"#!{sys.executable} -I\nimport os\nwhile os.read(0, 1 << 20):\n    pass\n")
    discard.chmod(0o755)
    ours, pipeline, nothing = [], [], []
    store = machine.directory / "store-hold"
    with machine.receiver(store) as address, openssl_side(machine.directory) as competitor:
        script, _ = machine.handler(address)
        for _ in range(runs):
            nothing.append(hold(discard, program, mib))
            ours.append(hold(script, program, mib))
            pipeline.append(hold(competitor, program, mib))
            for host in (store / "hosts").glob("*/*"):
                shutil.rmtree(host)
    by_pipeline = statistics.median(ours) / statistics.median(pipeline)
    by_nothing = statistics.median(ours) / statistics.median(nothing)
    what = f"hold, {mib} MiB managed heap"
    return [
        Row(what, _s(ours), f"{_s(pipeline)} zstd -1 -T2 to openssl s_client", by_pipeline, "<= 0.70", by_pipeline <= 0.70),
        Row(what, _s(ours), f"{_s(nothing)} discarding handler", by_nothing, "toward 2.0", by_nothing <= 2.5),
    ]


def bench_crowd(machine: Machine, number: int, runs: int) -> Row:
    """An honest sender's dump to its receipt, beside connections that say nothing, against the same alone."""
    core = crowd.make_core(machine.directory / "core-crowd", 64)
    with machine.receiver(machine.directory / "store-crowd") as address:
        alone, beside = crowd.measure(address, machine.directory / "host", core, number, runs)
    ratio = statistics.median(beside) / statistics.median(alone)
    what = f"64 MiB to its receipt, beside {number} idle connections"
    return Row(what, _ms(beside), f"{_ms(alone)} alone", ratio, "<= 1.5", ratio <= 1.5)


def bench_scale(count: int, runs: int) -> list[Row]:
    """What looking at a store of so many dumps of one host costs, against one of 1000."""
    rows = []
    for pair in many_dumps.compare(1000, count, runs):
        ratio = statistics.median(pair.large) / statistics.median(pair.small)
        compared = f"{_fine_ms(pair.small)} with 1000 dumps"
        what = f"{pair.what}, {count} dumps"
        rows.append(Row(what, _fine_ms(pair.large), compared, ratio, f"<= {pair.most:.0f}", ratio <= pair.most))
    return rows


def bench_log(entries: int, runs: int) -> list[Row]:
    """What a log of so many entries costs to append to, to verify and to prove, against one of 1000."""
    rows = []
    for pair in long_logs.compare(1000, entries, runs):
        short, long = statistics.median(pair.short), statistics.median(pair.long)
        ratio, what = long / short, f"{pair.what}, {entries} entries"
        measured, compared = (f"{value:.3g} {pair.unit}".strip() for value in (long, short))
        rows.append(Row(what, measured, f"{compared} with 1000 entries", ratio, f"<= {pair.most:.3g}", ratio <= pair.most))
    return rows


def hold(handler: Path, program: Path, mib: int) -> float:
    """Return the seconds from a crash until its process is reaped."""
    with core_pattern.borrowed(f"|{handler} {SPECIFIERS}", patience_s=120):
        crasher = subprocess.Popen([str(program), str(mib)], stdout=subprocess.PIPE, cwd=handler.parent)
        assert crasher.stdout is not None
        crasher.stdout.read(1)
        started = time.perf_counter()
        crasher.wait()
        held = time.perf_counter() - started
        crasher.stdout.close()
        # What the handler still does must not run into the next measurement.
        while _is_handler_running():
            time.sleep(0.05)
    return held


def _is_handler_running() -> bool:
    listing = subprocess.run(
        ["pgrep", "-f", f"{tempfile.gettempdir()}/securecore-bench-.*/(handler-|keep|pipeline$)"], capture_output=True, check=False
    )
    return bool(listing.stdout.strip())


@contextmanager
def openssl_side(directory: Path) -> Iterator[Path]:
    """Run the receiving half of the pipeline (it writes and fsyncs each dump); yield the core_pattern program of the other."""
    port = _free_port()
    receiver, host = directory / "receiver", directory / "host"
    script, server = directory / "pipeline", directory / "pipeline-server"
    script.write_text(
        "#!/bin/sh\nexec >/dev/null 2>&1\n"
        f"zstd -1 -T2 -q -c | openssl s_client -quiet -connect 127.0.0.1:{port} -CAfile {host}/ca.pem -cert {host}/cert.pem"
        f" -key {host}/key.pem -cert_chain {host}/cert.pem -verify_return_error -nocommands -no_ign_eof\n"
    )
    server.write_text(
        "#!/bin/sh\nwhile :; do\n"
        f"  openssl s_server -quiet -naccept 1 -accept 127.0.0.1:{port} -CAfile {receiver}/ca.pem -cert {receiver}/cert.pem"
        f" -key {receiver}/key.pem -cert_chain {receiver}/cert.pem -Verify 3 -tls1_3 2>/dev/null"
        f" | dd of={directory}/pipeline.out bs=1M iflag=fullblock conv=fsync status=none\ndone\n"
    )
    for path in (script, server):
        path.chmod(0o755)
    # s_server ends with its standard input, so it gets one that stays open.
    process = subprocess.Popen([str(server)], start_new_session=True, stdin=subprocess.PIPE)
    time.sleep(0.5)
    try:
        yield script
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure securecore against its budgets, as root, with cc, zstd and openssl.")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each kind; medians are quoted (default 5)")
    parser.add_argument("--mib", type=int, default=1024, help="size of the large core (default 1024)")
    parser.add_argument("--dumps", type=int, help="measure instead what quotas cost where a host has so many dumps; needs no root")
    parser.add_argument("--scale", type=int, metavar="DUMPS", help="measure instead such a store against one of 1000; no root")
    parser.add_argument("--crowd", type=int, metavar="N", help="measure instead a sender beside so many idle connections; no root")
    parser.add_argument("--report", type=int, metavar="ENTRIES", help="measure instead a report on a log of so many; no root")
    parser.add_argument("--log", type=int, metavar="ENTRIES", help="measure instead a log of so many against one of 1000; no root")
    arguments = parser.parse_args()
    if arguments.dumps is not None:
        print_figures(many_dumps.measure(arguments.dumps))
        return
    if arguments.scale is not None:
        print_rows(bench_scale(arguments.scale, arguments.runs))
        return
    if arguments.log is not None:
        print_rows(bench_log(arguments.log, arguments.runs))
        return
    if arguments.report is not None:
        print_figures(long_logs.measure(arguments.report))
        return
    if arguments.crowd is not None:
        with tempfile.TemporaryDirectory(prefix="securecore-bench-") as place:
            print_rows([bench_crowd(Machine(Path(place)), arguments.crowd, arguments.runs)])
        return
    if not core_pattern.is_borrowable():
        raise SystemExit("bench needs root and a writable core_pattern")
    for program in ("cc", "zstd", "openssl", "pgrep"):
        if shutil.which(program) is None:
            raise SystemExit(f"bench needs {program}")
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    directory = Path(tempfile.mkdtemp(prefix="securecore-bench-"))
    try:
        print_rows(measure(Machine(directory), arguments.runs, arguments.mib))
    finally:
        shutil.rmtree(directory)


def measure(machine: Machine, runs: int, mib: int) -> list[Row]:
    """Return all rows."""
    program = machine.directory / "large-heap"
    subprocess.run(["cc", "-O1", "-o", str(program), str(ROOT / "crashers/large-heap.c")], check=True)
    small, large = (make_core(machine, program, size) for size in (10, mib))
    rows = [bench_start(machine, small, max(runs, 15))]
    rows += bench_hold(machine, program, mib, runs)
    rows.append(bench_memory(machine, large))
    return rows


def make_core(machine: Machine, program: Path, mib: int) -> Path:
    """Return a core of the managed heap as a file."""
    keep = machine.directory / f"keep-{mib}"
    core = machine.directory / f"core-{mib}"
    keep.write_text(
        f"#!{sys.executable} -I\nimport os, shutil\nwith open({str(core)!r}, 'wb') as out:\n"
        "    while data := os.read(0, 1 << 20):\n        out.write(data)\n"
    )
    keep.chmod(0o755)
    hold(keep, program, mib)
    return core


def print_rows(rows: list[Row]) -> None:
    """Print a Markdown table."""
    python = sys.version.split()[0]
    print(f"Measured {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, Linux {os.uname().release}, Python {python}.\n")
    if not privileges.can_others_import([str(ROOT.parent), *sys.path]):
        print("This installation can be read by root only, so the handler loads everything at its start: figures are worse.\n")
    print("| what | measured | compared to | ratio | budget | |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        mark = "holds" if row.holds else "missed"
        print(f"| {row.what} | {row.measured} | {row.compared} | {row.ratio:.2f} | {row.budget} | {mark} |")


def print_figures(figures: list[many_dumps.Figure]) -> None:
    """Print a Markdown table of times."""
    print("| what | took |")
    print("|---|---|")
    for figure in figures:
        print(f"| {figure.what} | {figure.took} |")


def _ms(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f} ms ({min(seconds) * 1000:.0f}-{max(seconds) * 1000:.0f})"


def _fine_ms(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.2f} ms"


def _s(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _no_passphrase() -> bytes:
    raise SystemExit("the bench's CA keys have no passphrase")


if __name__ == "__main__":
    main()
