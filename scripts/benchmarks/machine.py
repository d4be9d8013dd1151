"""What a run works with: identities, receivers, handlers, corpora and a compiled crasher, in a directory of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import corpora
from benchmarks.figures import BenchError
from securecore import limits
from securecore.cli.machine.interpreter import find_interpreter
from securecore.names import Address, HostName
from securecore.pki import creation, issue
from securecore.sender.admission import Admission, StormLimit
from securecore.sender.confinement import Confinement
from securecore.sender.settings import Settings
from securecore.sender.spool import create_spool

NOBODY: Final = 65534
_SCRIPTS: Final = Path(__file__).resolve().parents[1]
_UNLIMITED: Final = Admission(program=StormLimit(0, 1), user=StormLimit(0, 1), host=StormLimit(0, 1))
"""One program crashes here more often than on a host."""


class Receiver:
    """A receiver, a process of its own."""

    def __init__(self, store: Path, identity: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "securecore.cli.main", "receive", "--listen", "127.0.0.1:0", "--store", str(store),
             "--identity", str(identity)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        said = self._process.stdout.readline().split()
        if len(said) < 3:
            self.end()
            raise BenchError("the receiver did not start")
        self.address = Address(said[2])
        self.pid = self._process.pid

    def end(self) -> None:
        """Have it end as an operator does, and wait for it."""
        self._process.terminate()
        self._process.communicate()


class Machine:
    """Identities, and whatever else is made from them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        now = datetime.now(UTC)
        pki = creation.create_pki(directory / "pki", "Bench", "hosts.bench.example", None, now)
        issue.issue_host(pki, HostName("web-1.hosts.bench.example"), directory / "host", _no_passphrase, now)
        address = [issue.parse_address("127.0.0.1")]
        issue.issue_receiver(pki, HostName("collector.bench.example"), address, directory / "receiver", _no_passphrase, now)
        self._count = 0
        self._corpora: dict[tuple[str, int], Path] = {}

    @property
    def weigher(self) -> Path:
        """The program that stands between the kernel and a handler."""
        return self._compiled("w", _SCRIPTS / "benchmarks/weigh.c")

    @property
    def crasher(self) -> Path:
        """The program that crashes with what it was told to fill its memory with."""
        return self._compiled("filled", _SCRIPTS / "crashers/filled.c")

    def fresh(self, name: str) -> Path:
        """Return a path that nothing has; short, because core_pattern is."""
        self._count += 1
        return self.directory / f"{name}-{self._count}"

    def corpus(self, name: str, mib: int) -> Path:
        """Return a file of so many MiB of a corpus, made at the first call; a larger one that is there serves as well."""
        for (made, size), path in self._corpora.items():
            if made == name and size >= mib:
                return path
        path = corpora.make(name, self.fresh("corpus"), mib)
        self._corpora[name, mib] = path
        return path

    def drop_corpus(self, name: str) -> None:
        """Remove the files of a corpus."""
        for key in [key for key in self._corpora if key[0] == name]:
            self._corpora.pop(key).unlink()

    def handler(self, receiver: Address, nice: int = limits.HANDLER_NICE) -> tuple[Path, Path]:
        """Return a handler script that sends to *receiver*, and its spool."""
        own = self.fresh("h")
        own.mkdir()
        spool, settings, script = own / "spool", own / "handler.json", own / "run"
        create_spool(str(spool), os.urandom(16), (NOBODY, NOBODY))
        told = Settings(
            (receiver,), str(self.directory / "host"), str(spool), NOBODY, NOBODY,
            admission=_UNLIMITED, confinement=Confinement(nice=nice),
        )  # fmt: skip
        settings.write_bytes(told.encode())
        script.write_bytes(find_interpreter().handler_script(str(settings)))
        script.chmod(0o755)
        return script, spool

    def start_receiver(self, store: Path) -> Receiver:
        """Start a receiver; the caller ends it."""
        return Receiver(store, self.directory / "receiver")

    @contextmanager
    def receiver(self, store: Path) -> Iterator[Address]:
        """Run a receiver while the block does."""
        receiver = self.start_receiver(store)
        try:
            yield receiver.address
        finally:
            receiver.end()

    def _compiled(self, name: str, source: Path) -> Path:
        program = self.directory / name
        if not program.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None:
                raise BenchError("no C compiler")
            subprocess.run([compiler, "-O1", "-o", str(program), str(source)], check=True)
        return program


def seconds_until(is_so: Callable[[], bool], patience_s: float, what: str) -> float:
    """Return the seconds until something is so, asking again and again; raises BenchError when that takes too long."""
    started = time.monotonic()
    while not is_so():
        if time.monotonic() - started > patience_s:
            raise BenchError(f"waited {patience_s:.0f} s for {what}")
        time.sleep(0.02)
    return time.monotonic() - started


def own_arguments() -> list[str]:
    """Return arguments as the kernel would give them to a handler, for this process."""
    return [str(os.getpid()), str(os.getpid()), "0", "0", "11", str(int(time.time())), str((1 << 64) - 1), "1"]


def processor_s(pid: int, *, with_children: bool = False) -> float:
    """Return the user and system seconds that a process has taken so far, and the children it has reaped (proc_pid_stat(5))."""
    # The name of the program, in brackets, may hold spaces.
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11 : 15 if with_children else 13])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return the largest resident size that a process has had so far, VmHWM of proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def _no_passphrase() -> bytes:
    raise BenchError("the bench's CA keys have no passphrase")
