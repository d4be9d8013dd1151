"""Many senders at one receiver, each a process of its own: who waits for whom, and what the receiver spends.

A sender here has its frames in memory, made before, and does the rest as a handler does: handshake, frames, manifest, receipt. So
it costs little beside the receiver, and it is the receiver that is measured.
"""

import gc
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from securecore import limits, tls
from securecore.dump.compression import Compressor
from securecore.dump.container import seek_table_bytes
from securecore.dump.manifest import COMPLETE
from securecore.errors import BusyError, UnreachableError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import Address, DumpId, HostName
from securecore.pki import creation, issue
from securecore.report import CrashReport
from securecore.sender import evidence
from securecore.sender.credentials import read_credentials
from securecore.sender.delivery import connect
from securecore.sender.spool_entry import EntryEnd
from securecore.wire.messages import Accept, Open

DOMAIN: Final = "hosts.bench.example"
_DISTINCT: Final = 16
"""Frames that are made; dumps go round them."""
_RETRY_S: Final = 0.2
_RESULT: Final = struct.Struct("<dQ")
"""Seconds until the receipt, and how often it was tried."""
_REPORT: Final = CrashReport(sender="bench", program="crasher", signal=11, pid=1).encode()


class Figures(NamedTuple):
    """What a run has shown."""

    seconds: list[float]
    """Of each sender, from before its handshake until its receipt."""
    retries: int
    elapsed_s: float
    cpu_s: float
    """The receiver's, user and system."""
    stored_bytes: int
    peak_bytes: int
    """The most that the receiver had resident of its own, beyond what it had before."""


class Receiver:
    """A receiver in a process of its own, and what the kernel says of it."""

    def __init__(self, process: "subprocess.Popen[str]", address: Address, store: Path) -> None:
        self._process = process
        self.address = address
        self.store = store

    def cpu_s(self) -> float:
        """Return the processor time that it has used, of threads that have ended too."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def own_bytes(self) -> int:
        """Return what is resident of its memory and of no file."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * limits.KIB for line in lines if line.startswith("RssAnon"))


class Fleet:
    """Hosts with identities, and the dump that all of them send."""

    def __init__(self, directory: Path, hosts: int, mib: int) -> None:
        """*mib* is the plaintext of each dump; half of it compresses, as of a heap."""
        self.directory = directory
        self.receiver_identity = directory / "receiver"
        now = datetime.now(UTC)
        pki = creation.create_pki(directory / "pki", "Bench", DOMAIN, None, now)
        address = [issue.parse_address("127.0.0.1")]
        issue.issue_receiver(pki, HostName("collector.bench.example"), address, self.receiver_identity, no_passphrase, now)
        for number in range(hosts):
            issue.issue_host(pki, HostName(f"web-{number}.{DOMAIN}"), self.identity(number), no_passphrase, now)
        compressor = Compressor()
        half = limits.PIECE_BYTES // 2
        self._made = [compressor.frame(os.urandom(half) + bytes(half)) for _ in range(min(_DISTINCT, mib))]
        self.frames = [self._made[number % len(self._made)] for number in range(mib)]
        self.stored_bytes = sum(map(len, self.frames)) + seek_table_bytes(mib)

    def identity(self, number: int) -> Path:
        """Return the identity directory of a host."""
        return self.directory / f"host-{number}"

    def send(
        self, number: int, receiver: Address, held: Callable[[], None] | None = None, mib: int | None = None
    ) -> tuple[float, int]:
        """Send a dump as a host, and return the seconds that it took until the receipt, and how often it was tried again.

        *held* is called when all frames are at the receiver and durable, before END. Only the first *mib* where they are given.
        """
        frames, tree = self.frames[:mib], Frontier()
        tree.extend(map(leaf_hash, frames))
        identity, now_ms, retries, started = str(self.identity(number)), time.time_ns() // 1_000_000, 0, time.monotonic()
        context, credentials, dump = tls.sender_context(identity), read_credentials(identity), DumpId.make(now_ms, os.urandom(10))
        while True:
            try:
                delivery = connect([receiver], context)
                break
            except (BusyError, UnreachableError):
                retries += 1
                time.sleep(_RETRY_S)
        size, durable = len(frames) * limits.PIECE_BYTES, 0

        def note(frames: int) -> None:
            nonlocal durable
            durable = frames

        if not isinstance(delivery.open(Open(dump, _REPORT, size), note), Accept):
            raise SystemExit("the receiver has a dump that was never sent")
        for sent, frame in enumerate(frames):
            while sum(map(len, frames[durable:sent])) > limits.RING_BYTES:
                delivery.wait_for_ack(delivery.waiting())
            delivery.send_frame(frame)
        if held is not None:
            while durable < len(frames):
                delivery.wait_for_ack(delivery.waiting())
            held()
        end = EntryEnd(size, size, COMPLETE, now_ms)
        delivery.end(evidence.sign_manifest(credentials, dump, delivery.store, end, tree, _REPORT, now_ms))
        took_s = time.monotonic() - started
        delivery.close()
        return took_s, retries

    @contextmanager
    def receiver(self, name: str) -> Iterator[Receiver]:
        """Run a receiver with a new store, and take it away."""
        store, configuration = self.directory / f"store-{name}", self.directory / f"receiver-{name}.toml"
        many = 4096
        configuration.write_text(
            f'version = 1\nlisten = ["127.0.0.1:0"]\nstore = "{store}"\nidentity = "{self.receiver_identity}"\n'
            f"[connections]\ntotal = {many}\nstrangers = {many}\nstrangers_per_address = {many}\nper_host = {many}\n"
            f"[quota]\nat_once = {many}\n",
            encoding="ascii",
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "securecore.cli.main", "receive", "--config", str(configuration)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield Receiver(process, Address(process.stdout.readline().split()[2]), store)
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()
            subprocess.run(["rm", "-rf", str(store)], check=True)


class Crew:
    """Sender processes that begin together, wait for each other before END where they are told to, and report one by one."""

    def __init__(
        self, fleet: Fleet, receiver: Address, numbers: Sequence[int], *, holds: bool = False, mib: int | None = None
    ) -> None:
        """*numbers* are the hosts that they are, *mib* is what they send at most."""
        self._reports, report = os.pipe()
        self._marks, mark = os.pipe()
        begin, self._begin = os.pipe()
        end, self._end = os.pipe()
        gc.freeze()  # What is shared with the children is not to be copied by a collection.
        self._pids = []
        for number in numbers:
            pid = os.fork()
            if pid == 0:
                os.close(self._begin)
                os.close(self._end)
                held = partial(_meet, mark, end) if holds else None
                _be_sender(partial(fleet.send, number, receiver, held, mib), begin, report)
            self._pids.append(pid)
        for fd in (begin, end, report, mark):
            os.close(fd)
        gc.unfreeze()

    def begin(self) -> None:
        """Let them begin."""
        os.close(self._begin)

    def wait_until_held(self) -> None:
        """Return once all of them have their frames at the receiver."""
        for _ in self._pids:
            _read(self._marks, 1)

    def end(self) -> None:
        """Let those that wait before END go on."""
        os.close(self._end)

    def results(self) -> Iterator[tuple[float, int]]:
        """Yield what each has to say, as they come to their ends, and wait for them."""
        for _ in self._pids:
            yield _RESULT.unpack(_read(self._reports, _RESULT.size))
        for pid in self._pids:
            os.waitpid(pid, 0)
        for fd in (self._reports, self._marks):
            os.close(fd)


def _be_sender(send: Callable[[], tuple[float, int]], begin: int, report: int) -> None:
    code = 1
    try:
        os.read(begin, 1)
        os.write(report, _RESULT.pack(*send()))
        code = 0
    finally:
        os._exit(code)


def _meet(mark: int, end: int) -> None:
    os.write(mark, b".")
    os.read(end, 1)


def _read(fd: int, length: int) -> bytes:
    told = os.read(fd, length)
    if len(told) != length:
        raise SystemExit("a sender has failed: its dump has no receipt")
    return told


def measure(fleet: Fleet, senders: int, hosts: int) -> Figures:
    """Have so many senders, of so many hosts, send at once, and return what came of it; the store must have each dump."""
    with fleet.receiver(f"{senders}-{time.monotonic_ns()}") as receiver:
        _meet_hosts(fleet, receiver, hosts)
        crew = Crew(fleet, receiver.address, [number % hosts for number in range(senders)])
        own, cpu_s, started = receiver.own_bytes(), receiver.cpu_s(), time.monotonic()
        crew.begin()
        with _watching(receiver) as seen:
            results = list(crew.results())
        elapsed_s, cpu_s = time.monotonic() - started, receiver.cpu_s() - cpu_s
        found = len(list(receiver.store.glob("hosts/*/*/receipt")))
        if found != senders + hosts:
            raise SystemExit(f"{senders} senders have receipts, the store has {found - hosts} dumps")
    seconds, retries = [took_s for took_s, _ in results], sum(again for _, again in results)
    return Figures(seconds, retries, elapsed_s, cpu_s, senders * fleet.stored_bytes, max(seen) - own)


def measure_held(fleet: Fleet, senders: int, hosts: int) -> tuple[float, float]:
    """Return what a receiver has resident for each of so many connections in the middle of a dump, no frame on its way (bytes).

    And the seconds that it takes from there until all of them, which say END together, have their receipts.
    """
    with fleet.receiver(f"held-{senders}-{time.monotonic_ns()}") as receiver:
        _meet_hosts(fleet, receiver, hosts)
        crew = Crew(fleet, receiver.address, [number % hosts for number in range(senders)], holds=True)
        own = receiver.own_bytes()
        crew.begin()
        crew.wait_until_held()
        each, started = (receiver.own_bytes() - own) / senders, time.monotonic()
        crew.end()
        for _ in crew.results():
            pass
        return each, time.monotonic() - started


def _meet_hosts(fleet: Fleet, receiver: Receiver, hosts: int) -> None:
    """Have each host send a small dump before: a host's first one makes its directories and its log."""
    crew = Crew(fleet, receiver.address, range(hosts), mib=1)
    crew.begin()
    for _ in crew.results():
        pass


@contextmanager
def _watching(receiver: Receiver) -> Iterator[list[int]]:
    """Note, ten times a second, what a receiver has resident."""
    seen, is_over = [receiver.own_bytes()], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.1):
            seen.append(receiver.own_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def no_passphrase() -> bytes:
    """Say that nobody is to be asked: the keys of a bench's CAs have no passphrase."""
    raise SystemExit("the bench's CA keys have no passphrase")
