"""A store of many small dumps, made by writing its files, and what a receiver's checks of a quota cost with it."""

import base64
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from securecore import limits, units
from securecore.audit.checkpoint import LogSigner
from securecore.audit.entry import Held, incomplete_entry
from securecore.audit.log import HostLogs
from securecore.audit.log_files import ENTRIES
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.frames import ZERO_PIECE_FRAME, ZERO_PIECE_LEAF
from securecore.names import DumpId, HostName
from securecore.receiver.admission import Admission
from securecore.receiver.policy import Floor, Policy, Quota
from securecore.store.account import Amount
from securecore.store.catalogue import open_catalogue
from securecore.store.layout import Store, create_store
from securecore.store.retention import Retention, select
from securecore.store.usage import Usage
from securecore.store.writer import IncomingDump

HOST: Final = HostName("web-1.hosts.bench.example")
_CORE: Final = ZERO_PIECE_FRAME + seek_table([FrameEntry(len(ZERO_PIECE_FRAME), limits.PIECE_BYTES)])
_REPORT: Final = b'{"program":"crasher","signal":11}'
_MONTH_MS: Final = 30 * 24 * 3600 * 1000
_SIGNER: Final = LogSigner("collector.bench.example/securecore", Ed25519PrivateKey.generate())


class Figure(NamedTuple):
    """What was measured, and how long it took."""

    what: str
    took: str


def make_dumps(store: Store, count: int, host: HostName = HOST) -> None:
    """Publish so many dumps of one host, a piece of zeroes each, over a month, with their log.

    As if given up, so that no host has to sign them. Their receipts carry the entry and prove nothing; the log is not signed yet.
    """
    place = Path(store.path) / "hosts" / str(host)
    place.mkdir(mode=0o700)
    entries = os.fdopen(_make_log(store, host), "ab")
    held = Held(1, limits.PIECE_BYTES, ZERO_PIECE_LEAF, sha256(_REPORT).digest(), len(_CORE))
    first_ms = time.time_ns() // 1_000_000 - _MONTH_MS
    with entries:
        for number in range(count):
            at_ms = first_ms + number * _MONTH_MS // count
            dump_id, moment = DumpId.make(at_ms, number.to_bytes(10, "big")), datetime.fromtimestamp(at_ms / 1000, UTC)
            entry = incomplete_entry(moment, dump_id, host, store.store_id, held, last_at=moment, program="crasher", signal=11)
            entries.write(entry + b"\n")
            receipt = b"c2sp.org/tlog-proof@v1\nextra " + base64.b64encode(entry) + b"\n"
            path = place / str(dump_id)
            path.mkdir(mode=0o700)
            for name, data in (("core.zst", _CORE), ("report.json", _REPORT), ("receipt", receipt)):
                file = path / name
                file.write_bytes(data)
                os.utime(file, (at_ms / 1000,) * 2)


def measure(count: int) -> list[Figure]:
    """Return what the checks cost where one host has so many dumps; the store is made and removed."""
    directory = Path(tempfile.mkdtemp(prefix="securecore-bench-"))
    try:
        with create_store(str(directory / "store")) as store:
            make_dumps(store, count)
            return [*_measure_start(store), *_measure_checks(store)]
    finally:
        shutil.rmtree(directory)


class Pair(NamedTuple):
    """What was measured in a small store and in a large one, in turns, in seconds."""

    what: str
    small: list[float]
    large: list[float]
    most: float
    """The ratio that it may have: 1, and room for noise, where no dump is looked at; else that of the numbers of dumps, four times
    because a small store fits into the processor's caches.
    """


def compare(small: int, large: int, runs: int) -> list[Pair]:
    """Return what looking at a store costs, by its number of dumps; the stores are made and removed."""
    directory = Path(tempfile.mkdtemp(prefix="securecore-bench-"))
    try:
        works = []
        with ExitStack() as stack:
            for count in (small, large):
                store = stack.enter_context(create_store(str(directory / f"store-{count}")))
                make_dumps(store, count)
                works.append(_look(store, stack))
            pairs = [Pair(what, [], [], 3.0 if what in _CONSTANT else large / small * 4) for what in works[0]]
            for _ in range(runs):
                for pair in pairs:
                    pair.small.append(_time(works[0][pair.what]))
                    pair.large.append(_time(works[1][pair.what]))
        return pairs
    finally:
        shutil.rmtree(directory)


_CONSTANT: Final = ("100 checks at OPEN", "100 checks of a frame", "beginning a dump and removing it")


def _look(store: Store, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Return what is done with a store, by its name, once its catalogue and counts are made."""
    catalogue = stack.enter_context(open_catalogue(store))
    catalogue.reconcile()
    usage = Usage(store)
    usage.follow()
    usage.of(HOST)
    policy = Policy(quota=Quota(1 << 60, 1 << 60, 1 << 40, 1 << 40), floor=Floor(share=0.0, free_bytes=1))
    admission, dump_id = Admission(store, usage, lambda: policy), DumpId.make(1, bytes(10))
    keep = Retention(max_age=timedelta(days=15), min_age=timedelta(days=1))

    def list_day() -> None:
        catalogue.reconcile()
        catalogue.rows(since=datetime.now(UTC) - timedelta(days=1))

    def list_all() -> None:
        catalogue.reconcile()
        catalogue.rows()

    def select_due() -> None:
        catalogue.reconcile()
        select(catalogue.held(), keep, datetime.now(UTC), catalogue.coming_in())

    def offer() -> None:
        for _ in range(100):
            with admission.receiving(HOST, dump_id):
                admission.check_opening(HOST, dump_id, limits.GIB)

    dump = IncomingDump.begin(store, HOST, dump_id, _REPORT)
    stack.callback(dump.close)

    def grow() -> None:
        for _ in range(100):
            admission.check_growth(dump, Amount(1, 1))

    return {
        "list, all": list_all,
        "list, the last day": list_day,
        "vacuum, half of it to go, to the choice": select_due,
        "count after a start": lambda: Usage(store).of(HOST),
        "100 checks at OPEN": offer,
        "100 checks of a frame": grow,
        "beginning a dump and removing it": lambda: _begin_and_discard(store),
    }


def _make_log(store: Store, host: HostName) -> int:
    logs = HostLogs(_SIGNER, lambda owner: store.audit_directory(owner, create=True))
    with logs.using(host):
        pass
    logs.close()
    return os.open(f"{store.path}/audit/{host}/{ENTRIES}", os.O_WRONLY | os.O_APPEND)


def _measure_start(store: Store) -> list[Figure]:
    """What the first dump of a host waits for after a start."""
    logs = HostLogs(_SIGNER, lambda owner: store.audit_directory(owner, create=True))

    def open_log() -> None:
        with logs.using(HOST):
            pass

    log_s, count_s = _time(open_log), _time(lambda: Usage(store).of(HOST))
    logs.close()
    return [Figure("reading its log, once", f"{log_s:.2f} s"), Figure("counting what it has, once", f"{count_s:.2f} s")]


def _measure_checks(store: Store) -> list[Figure]:
    usage = Usage(store)
    usage.follow()
    has = usage.of(HOST)
    policy = Policy(quota=Quota(1 << 60, 1 << 60, 1 << 40, 1 << 40), floor=Floor(share=0.0, free_bytes=1))
    admission, dump_id = Admission(store, usage, lambda: policy), DumpId.make(1, bytes(10))

    def offer() -> None:
        with admission.receiving(HOST, dump_id):
            admission.check_opening(HOST, dump_id, limits.GIB)

    open_us = _median_us(offer)
    dump = IncomingDump.begin(store, HOST, dump_id, _REPORT)
    frame_us = _median_us(lambda: admission.check_growth(dump, Amount(1, 1)))
    dump.close()
    begin_us = _median_us(lambda: _begin_and_discard(store))
    return [
        Figure("what it has", f"{has.dumps} dumps, {units.size(has.plain_bytes)} as {units.size(has.stored_bytes)}"),
        Figure("check at OPEN", f"{open_us:.0f} us"),
        Figure("check of a frame", f"{frame_us:.1f} us"),
        Figure("beginning a dump and removing it, counted", f"{begin_us:.0f} us"),
    ]


def _begin_and_discard(store: Store) -> None:
    IncomingDump.begin(store, HOST, DumpId.make(2, bytes(10)), _REPORT).discard()


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _median_us(work: Callable[[], object], runs: int = 1000) -> float:
    return statistics.median(_time(work) for _ in range(runs)) * 1e6
