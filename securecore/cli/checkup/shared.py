"""What is looked at alike on both ends: how long a certificate lasts, and how much room there is."""

import os
from datetime import datetime
from typing import Final

from securecore import limits
from securecore.certs.judge import Judgement
from securecore.cli import terminal
from securecore.cli.checkup.findings import Finding, ok, warning, wrong
from securecore.errors import StorageError
from securecore.sender.floor import Floor

LOW_BYTES: Final = 4 * limits.GIB
"""Room for the core of a process with 4 GiB of memory that does not compress."""

FULL_BYTES: Final = 64 * limits.MIB
"""Less than the core of a small server with its libraries."""


def certificate_finding(name: str, own: Judgement, now: datetime, remedy: str) -> Finding:
    """Return how long a certificate that our judge believes still lasts; a warning in the last third of its life."""
    left = own.not_after - now
    words = f"{own.name}, certificate valid until {own.not_after:%Y-%m-%d} ({terminal.count(left.days, 'day')} left)"
    return warning(name, words, remedy) if left < (own.not_after - own.not_before) / 3 else ok(name, words)


def statvfs(path: str) -> os.statvfs_result:
    """Return what the file system of *path* says of itself; raises StorageError."""
    try:
        return os.statvfs(path)
    except OSError as error:
        raise StorageError(f"{path}: {(error.strerror or '').lower()}") from error


def room_finding(name: str, path: str, floor: Floor, loss: str) -> Finding:
    """Return how much room for cores there is where *path* is: what is free above the *floor*; raises StorageError.

    *loss* is what becomes of a core that meets the floor.
    """
    status, remedy = statvfs(path), f"make room on the file system of {path}"
    free, whole = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    least, least_inodes = floor.least_free_bytes(whole), floor.least_free_inodes(status.f_files)
    room, words = free - least, f"{terminal.size(free)} free of {terminal.size(whole)}"
    if least:
        words += f", {terminal.size(least)} are to stay free"
    if status.f_favail < least_inodes:
        return wrong(name, f"{status.f_favail} inodes free of {status.f_files}, {least_inodes} are to stay free: {loss}", remedy)
    if least and room < limits.MAX_FRAME_BYTES:
        return wrong(name, f"{words}: at its floor, {loss}", remedy)
    if room < FULL_BYTES:
        return wrong(name, f"{words}: full", remedy)
    return warning(name, f"{words}: little for large cores", remedy) if room < LOW_BYTES else ok(name, words)
