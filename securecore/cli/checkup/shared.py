"""What is looked at alike on both ends: how long a certificate lasts, and how much room there is."""

import os
from datetime import datetime
from typing import Final

from securecore import limits
from securecore.certs.judge import Judgement
from securecore.cli import terminal
from securecore.cli.checkup.findings import Finding, ok, warning, wrong
from securecore.errors import StorageError

LOW_BYTES: Final = 4 * limits.GIB
"""Room for the core of a process with 4 GiB of memory that does not compress."""

FULL_BYTES: Final = 64 * limits.MIB
"""Less than the core of a small server with its libraries."""


def certificate_finding(name: str, own: Judgement, now: datetime, remedy: str) -> Finding:
    """Return how long a certificate that our judge believes still lasts; a warning in the last third of its life."""
    left = own.not_after - now
    words = f"{own.name}, certificate valid until {own.not_after:%Y-%m-%d} ({terminal.count(left.days, 'day')} left)"
    return warning(name, words, remedy) if left < (own.not_after - own.not_before) / 3 else ok(name, words)


def room_finding(name: str, path: str) -> Finding:
    """Return how much room there is where *path* is; raises StorageError."""
    try:
        status = os.statvfs(path)
    except OSError as error:
        raise StorageError(f"{path}: {(error.strerror or '').lower()}") from error
    free, whole = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    words = f"{terminal.size(free)} free of {terminal.size(whole)}"
    remedy = f"make room on the file system of {path}"
    if free < FULL_BYTES:
        return wrong(name, f"{words}: full", remedy)
    return warning(name, f"{words}: little for large cores", remedy) if free < LOW_BYTES else ok(name, words)
