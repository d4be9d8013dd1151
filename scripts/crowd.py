"""An honest sender at a receiver's door, alone and beside a crowd of connections that say nothing."""

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from securecore import limits, tls
from securecore.names import Address, DumpId
from securecore.report import CrashReport
from securecore.sender.credentials import read_credentials
from securecore.sender.parcel import Papers, Parcel
from securecore.sender.transfer import carry

ADDRESSES: Final = 10
"""Of the crowd: as many as it takes for all places of strangers (MAX_STRANGERS), and some more."""


def make_core(path: Path, mib: int) -> Path:
    """Write a file of which half compresses, as a heap does; return it."""
    with path.open("wb") as core:
        for _ in range(mib):
            core.write(os.urandom(limits.MIB // 2) + bytes(limits.MIB // 2))
    return path


def measure(address: Address, host: Path, core: Path, crowd: int, runs: int) -> tuple[list[float], list[float]]:
    """Return the seconds from the first byte read to the receipt, alone and beside so many connections, in turns."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, soft + 2 * crowd), hard))
    papers = Papers(tls.sender_context(str(host)), read_credentials(str(host)))
    alone, beside = [], []
    for _ in range(runs):
        alone.append(_send(address, papers, core))
        with _crowd(address, crowd):
            beside.append(_send(address, papers, core))
    return alone, beside


@contextmanager
def _crowd(address: Address, number: int) -> Iterator[None]:
    """Hold so many connections that were just made while the block runs; those that are sent away stay away."""
    with ExitStack() as stack:
        for index in range(number):
            source = (f"127.0.0.{2 + index % ADDRESSES}", 0)
            stack.enter_context(socket.create_connection((address.host, address.port), timeout=20, source_address=source))
        yield


def _send(address: Address, papers: Papers, core: Path) -> float:
    now_ms = time.time_ns() // 1_000_000
    report = CrashReport(sender="bench", program="crasher", signal=11, pid=1).encode()
    source, started = os.open(core, os.O_RDONLY | os.O_CLOEXEC), time.perf_counter()
    outcome = carry(source, Parcel(DumpId.make(now_ms, os.urandom(10)), report, now_ms), [address], papers, None)
    if outcome.failure is not None:
        raise SystemExit(f"the honest sender was refused: {outcome.failure}")
    return time.perf_counter() - started
