"""How full a sender's spool is against its limits: for people, and for what watches a fleet."""

import os
from typing import Any, NamedTuple

from securecore.cli import terminal
from securecore.dump import directory as files
from securecore.sender.spool import Spool
from securecore.sender.spool_limits import SpoolLimits


class Fullness(NamedTuple):
    """What a spool holds and may hold; None stands for no limit."""

    dumps: int
    max_dumps: int | None
    taken_bytes: int
    """On the disk, of its cores, with what is kept for those that are being written."""
    max_bytes: int | None
    free_bytes: int
    """On its disk, for who is not root."""
    floor_bytes: int
    """Of these, what the spool leaves free; 0 for nothing."""

    def words(self) -> str:
        """Return it in a line: ``3 of 200 dumps, 1.2 GiB of 20.0 GiB; 60.1 GiB free, 12.6 GiB of it to stay so``."""
        told = terminal.fullness(self.dumps, self.taken_bytes, self.max_dumps, self.max_bytes)
        floor = f"; {terminal.size(self.free_bytes)} free, {terminal.size(self.floor_bytes)} of it to stay so"
        return told + (floor if self.floor_bytes else "")

    def document(self) -> dict[str, Any]:
        """Return it for a program."""
        return self._asdict()


def find_fullness(spool: Spool, bounds: SpoolLimits) -> Fullness:
    """Return how full *spool* is; raises StorageError when its disk does not say."""
    usage = spool.usage()
    try:
        disk = os.fstatvfs(spool.fd)
    except OSError as error:
        raise files.disk_refused(error, "cannot look at the spool's disk") from error
    free, floor = disk.f_bavail * disk.f_frsize, bounds.floor.least_free_bytes(disk.f_blocks * disk.f_frsize)
    return Fullness(usage.dumps, bounds.max_dumps, usage.taken_bytes, bounds.max_bytes, free, floor)
