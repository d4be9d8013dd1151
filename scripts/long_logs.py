"""A store with one long audit log, made by writing its lines: what it costs to verify it, to report on it and to prove a dump."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import log2
from pathlib import Path
from typing import Final, NamedTuple

from many_dumps import Figure

from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.entry import Held, deleted_entry, extracted_entry, incomplete_entry, refused_entry
from securecore.audit.log import HostLog, HostLogs
from securecore.audit.log_files import CHECKPOINT, ENTRIES, scan_lines
from securecore.audit.log_verification import verify_log
from securecore.audit.proof import parse_proof, verify_receipt
from securecore.certs.identity_directory import load_log_key
from securecore.dump.directory import replace_file
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId, HostName
from securecore.pki.creation import create_pki
from securecore.pki.issue import issue_receiver, parse_address
from securecore.store.layout import Store, create_store

HOST: Final = HostName("web-1.hosts.bench.example")
_RECEIVER: Final = HostName("collector.hosts.bench.example")
_PROGRAMS: Final = 1000
_NEW: Final = 100
"""Entries that come between two verifications."""
_MIB: Final = 1 << 20
_APPENDS: Final = 100


def measure(entries: int) -> list[Figure]:
    """Return what verifying and reporting cost where a host's log has so many entries; the store is made and removed.

    All its dumps have been deleted since, so that the log alone is measured. Each command runs in a process of its own.
    """
    directory = Path(tempfile.mkdtemp(prefix="securecore-bench-"))
    try:
        identity = _make_identity(directory)
        given = ["--store", str(directory / "store"), "--root", str(identity / "ca.pem")]
        verify = ["audit", "verify", *given, "--state", str(directory / "verified.json")]
        report = ["audit", "report", *given, "--identity", str(identity), "-o"]
        with create_store(str(directory / "store")) as store:
            _make_log(store, identity, entries - _NEW)
            first = _run(f"audit verify --state, {entries - _NEW} entries, for the first time", verify, directory / "first")
            _append(store, identity, entries - _NEW, entries)
        return [
            first,
            _run(f"audit verify --state, {_NEW} more entries", verify, directory / "continued"),
            _run("audit verify", ["audit", "verify", *given], directory / "verified"),
            _run("audit report", [*report, str(directory / "report.html")]),
            _run("audit report --json", [*report, str(directory / "report.json"), "--json"]),
            _run("audit report --csv", [*report, str(directory / "report.csv"), "--csv"]),
            *_measure_bundle(given, directory, identity),
        ]
    finally:
        shutil.rmtree(directory)


class Pair(NamedTuple):
    """What was measured of a short log and of a long one, in turns."""

    what: str
    unit: str
    short: list[float]
    long: list[float]
    most: float
    """The ratio that it may have."""


def compare(short: int, long: int, runs: int) -> list[Pair]:
    """Return what appending, verifying and proving cost, by the number of entries; the stores are made and removed."""
    directory = Path(tempfile.mkdtemp(prefix="securecore-bench-"))
    try:
        identity = _make_identity(directory)
        with ExitStack() as stack:
            logs = [_Log(stack, directory / f"store-{entries}", identity, entries, short) for entries in (short, long)]
            pairs = [Pair(what, unit, [], [], most(long / short)) for what, (unit, _, most) in _COMPARED.items()]
            for _ in range(runs):
                for pair in pairs:
                    measure_one = _COMPARED[pair.what][1]
                    pair.short.append(measure_one(logs[0]))
                    pair.long.append(measure_one(logs[1]))
        return pairs
    finally:
        shutil.rmtree(directory)


class _Log:
    """A log with so many entries, in a store of its own, open for appending; and another one, of no more dumps than *few* have."""

    def __init__(self, stack: ExitStack, path: Path, identity: Path, entries: int, few: int) -> None:
        self.store = stack.enter_context(create_store(str(path)))
        _make_log(self.store, identity, entries)
        self._root = ["--root", str(identity / "ca.pem")]
        self._of_few_dumps = path.with_name(f"{path.name}-of-few-dumps")
        with create_store(str(self._of_few_dumps)) as store:
            _make_log(store, identity, entries, of=few)
        key, _ = load_log_key(identity)
        self._signer = LogSigner(f"{_RECEIVER}/securecore", key)
        self._fd = self.store.audit_directory(HOST, create=False)
        stack.callback(os.close, self._fd)
        self._log = HostLog.open(self._fd, origin_of(self._signer.name, HOST), self._signer)
        stack.callback(self._log.close)

    def append(self) -> float:
        """Return the processor's ms for an append and its receipt: fsync takes what the disk takes, however long the log is."""
        entry = extracted_entry(datetime.now(UTC), DumpId.make(1 << 40, bytes(10)), HOST, uid=1000, user="anna")
        return _cpu_ms(lambda: self._log.append(entry), _APPENDS)

    def append_durably(self) -> float:
        """Return the ms until the receipt of an append is there, on this disk."""
        entry = extracted_entry(datetime.now(UTC), DumpId.make(1 << 40, bytes(10)), HOST, uid=1000, user="anna")
        started = time.perf_counter()
        for _ in range(_APPENDS):
            self._log.append(entry)
        return (time.perf_counter() - started) / _APPENDS * 1000

    def verify(self) -> float:
        """Return the processor's us for each entry of a verification."""
        started = time.process_time()
        found = verify_log(self._fd, self._log.origin, self._signer.public_key)
        if not found.ok:
            raise RuntimeError(f"the log does not hold: {found.checks}")
        return (time.process_time() - started) / found.size * 1e6

    def verify_memory(self) -> float:
        """Return the largest resident MiB of ``audit verify``, which keeps of each dump where it stands."""
        return _spawn(["audit", "verify", "--store", self.store.path, *self._root]).mib

    def verify_memory_of_few_dumps(self) -> float:
        """Return the same for the log of few dumps."""
        return _spawn(["audit", "verify", "--store", str(self._of_few_dumps), *self._root]).mib

    def prove(self) -> float:
        """Return the processor's ms for a new proof of an old entry, for which the log is read."""
        return _cpu_ms(lambda: self._log.receipt_for(0), 1)

    def hashes(self) -> float:
        """Return the number of hashes in a proof."""
        return len(parse_proof(self._log.receipt_for(0)).hashes)

    def check(self) -> float:
        """Return the processor's ms for checking a proof, signature and all."""
        receipt = self._log.receipt_for(0)
        return _cpu_ms(lambda: verify_receipt(receipt, self._log.origin, self._signer.public_key), 500)


def _flat(entries: float) -> float:
    """Return the ratio for what does not depend on how long a log is, and the room for noise that every row has."""
    return 1.5


_COMPARED: Final[dict[str, tuple[str, Callable[[_Log], float], Callable[[float], float]]]] = {
    "an append, processor": ("ms", _Log.append, _flat),
    "an append, to the disk": ("ms", _Log.append_durably, _flat),
    "verifying, processor for each entry": ("us", _Log.verify, _flat),
    "audit verify, resident memory, of the same dumps": ("MiB", _Log.verify_memory_of_few_dumps, lambda entries: 1.25),
    "audit verify, resident memory, of as many more dumps": ("MiB", _Log.verify_memory, lambda entries: 2.0),
    "hashes in a proof": ("", _Log.hashes, lambda entries: 1 + (log2(entries) + 1) / 10),
    "checking a proof, processor": ("ms", _Log.check, _flat),
    "a new proof of an old entry, processor": ("ms", _Log.prove, lambda entries: entries * 1.5),
}
"""What is measured: the unit, how, and the ratio that it may have by the ratio of the entries."""


def _cpu_ms(work: Callable[[], object], times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started) / times * 1000


def _measure_bundle(given: list[str], directory: Path, identity: Path) -> list[Figure]:
    """Return what it costs to prove the log's first dump, and to check that where there is no store."""
    bundle = directory / "bundle.tar"
    dump = str(DumpId.make(1 << 40, bytes(10)))
    made = _run("audit prove", ["audit", "prove", dump, *given, "-o", str(bundle)])
    checked = _run("audit check", ["audit", "check", str(bundle), "--root", str(identity / "ca.pem")])
    return [made, checked, Figure("a bundle", f"{bundle.stat().st_size} bytes")]


def _make_identity(directory: Path) -> Path:
    """Return the identity of a receiver of a new PKI."""
    identity, moment = directory / "collector", datetime.now(UTC)
    pki = create_pki(directory / "pki", "Bench", "hosts.bench.example", None, moment)
    issue_receiver(pki, _RECEIVER, [parse_address("127.0.0.1")], identity, lambda: b"", moment)
    return identity


def _make_log(store: Store, identity: Path, entries: int, of: int | None = None) -> None:
    """Write the lines, and sign them all with one checkpoint; with *of* they are of the dumps of so many entries."""
    key, statement = load_log_key(identity)
    store.put_log_key(statement, (identity / "ca.pem").read_bytes())
    logs = HostLogs(LogSigner(f"{_RECEIVER}/securecore", key), lambda owner: store.audit_directory(owner, create=True))
    with logs.using(HOST):
        pass
    logs.close()
    _append(store, identity, 0, entries, of)


def _append(store: Store, identity: Path, first: int, end: int, of: int | None = None) -> None:
    """Write the lines from *first* on, and sign all that are there with one checkpoint; *of* as in _make_log.

    The log is not opened for that: what says in a log that a dump was deleted, and is not signed, is cut off then.
    """
    key, _ = load_log_key(identity)
    begin = datetime.now(UTC) - timedelta(days=365)
    path = f"{store.path}/audit/{HOST}/{ENTRIES}"
    with open(path, "ab") as file:
        for number in range(first, end):
            file.write(_line(store, number, begin + timedelta(days=365) * number / end, of or end) + b"\n")
    tree, signer = Frontier(), LogSigner(f"{_RECEIVER}/securecore", key)
    with open(path, "rb") as file:
        tree.extend(leaf_hash(line.data) for line in scan_lines(file.fileno()))
    fd = store.audit_directory(HOST, create=False)
    try:
        replace_file(CHECKPOINT, fd, signer.sign(origin_of(signer.name, HOST), tree.size, tree.root()))
    finally:
        os.close(fd)


def _line(store: Store, number: int, moment: datetime, of: int) -> bytes:
    """Return an entry, of the dumps of *of* entries.

    Ten say of four dumps that they are given up, of one that it is extracted, of all that they are deleted, and of the host that it
    was refused once.
    """
    tenth, place = divmod(number, 10)
    dump = DumpId.make(1 << 40, (tenth % -(-of // 10) * 4 + place % 5 % 4).to_bytes(10, "big"))
    if place < 4:
        held = Held(1, _MIB, sha256(b"%d" % number).digest(), bytes(32), 100)
        program = f"program-{number * number % 9973 % _PROGRAMS}"
        return incomplete_entry(moment, dump, HOST, store.store_id, held, last_at=moment, program=program, signal=11)
    if place == 4:
        return extracted_entry(moment, dump, HOST, uid=1000, user="anna")
    if place < 9:
        return deleted_entry(moment, dump, HOST, uid=0, user="root", reason="older than 30 days (max_age)")
    return refused_entry(moment, None, HOST, code=205, reason="this host is over its quota", others=number % 7)


def _run(what: str, arguments: list[str], output: Path | None = None) -> Figure:
    """Run a command, its output to a file or to nobody."""
    cost = _spawn(arguments, output)
    return Figure(what, f"{cost.seconds:.1f} s, {cost.cpu:.1f} s of CPU, {cost.mib:.0f} MiB")


class _Cost(NamedTuple):
    """What a process took: seconds by the clock and of the CPU, and its largest resident size."""

    seconds: float
    cpu: float
    mib: float


_CHILD: Final = """
import sys
import time
from securecore.cli.main import run

code = run(sys.argv[2:])
with open("/proc/self/status") as status, open(sys.argv[1], "w") as told:
    told.write(f"{time.process_time()} {next(line for line in status if line.startswith('VmHWM:')).split()[1]}")
sys.exit(code)
"""
"""What runs a command and tells its seconds of CPU, and its largest resident size in KiB. What wait4(2) says of a child counts the
parent too, of which it was a copy before its exec."""


def _spawn(arguments: list[str], output: Path | None = None) -> _Cost:
    """Run a command, its output to a file or to nobody."""
    with tempfile.NamedTemporaryFile() as told, open(output or os.devnull, "wb") as sink:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", _CHILD, told.name, *arguments], stdout=sink, check=True)
        cpu, kib = told.read().split()
        return _Cost(time.perf_counter() - started, float(cpu), int(kib) / 1024)
