"""Spools, their entries, and how much room they have."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.merkle import Frontier
from securecore.sender.spool import Spool, create_spool, open_spool
from securecore.sender.spool_entry import EntryEnd, EntryStart
from securecore.sender.spool_limits import UNBOUND, SpoolLimits
from tests.support.receivers import new_dump_id

REPORT = b'{"program":"crasher"}'
FRAMES = [Compressor().frame(bytes([number]) * limits.PIECE_BYTES) for number in range(1, 4)]
END = EntryEnd(3 * limits.PIECE_BYTES, None, "complete", 5)


def start_of_new() -> EntryStart:
    """Return the start of a dump of which no receiver has anything."""
    return EntryStart(new_dump_id(), 1, None, Frontier())


def make_spool(place: Path, bounds: SpoolLimits = UNBOUND) -> Spool:
    """Return a spool in *place*."""
    create_spool(str(place / "spool"), bytes(16))
    return open_spool(str(place / "spool"), bounds)


def free_bytes(place: Path) -> int:
    """Return what a disk has free."""
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def names(place: Path) -> list[str]:
    """Return whatever stands among the spool's dumps, under any name."""
    return os.listdir(place / "spool/dumps")


def all_at_once(steps: list[Callable[[], None]]) -> None:
    """Run *steps* in threads that begin together."""
    barrier = threading.Barrier(len(steps))

    def run(step: Callable[[], None]) -> None:
        barrier.wait(60)
        step()

    threads = [threading.Thread(target=run, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ends_in(spool: Spool) -> list[str | None]:
    """Return the outcome that each entry states."""
    found: list[str | None] = []
    for dump in spool.dump_ids():
        entry = spool.entry(dump)
        assert entry is not None
        end = entry.end()
        found.append(end.outcome if end is not None else None)
        entry.close()
    return found
