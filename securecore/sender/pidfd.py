"""What a pidfd tells of a process, whatever has its number by now: who it is, and whether the kernel dumps it.

``ioctl(pidfd, PIDFD_GET_INFO)`` of include/uapi/linux/pidfd.h. The structure has grown: 72 bytes in Linux 6.16, 80 in 6.19, 88 in
7.1; a kernel fills what it knows of the size that it is asked for and leaves the rest 0, and ``mask`` says what it has filled
(measured with 88 on Linux 6.18).
"""

import fcntl
import struct
from typing import Final, NamedTuple

_INFO: Final = struct.Struct("=QQ11IiIIQII")
"""mask, cgroupid; pid, tgid, ppid, then real, effective, saved and file-system uid and gid; exit_code; coredump_mask and
coredump_signal; supported_mask; coredump_code and padding."""
_GET_INFO: Final = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
"""_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info) of asm-generic/ioctl.h, for a structure of our size."""
_PID, _CREDS, _COREDUMP, _COREDUMP_SIGNAL = 0x01, 0x02, 0x10, 0x40
_COREDUMPED, _AS_USER, _AS_ROOT = 0x01, 0x04, 0x08
"""PIDFD_COREDUMPED, PIDFD_COREDUMP_USER, PIDFD_COREDUMP_ROOT: bits of coredump_mask."""


class PidfdInfo(NamedTuple):
    """A process that lives, or is dumped. Its ids are those of the reader's namespaces, as in %P, %u and %g of core_pattern."""

    pid: int
    parent_pid: int
    uid: int
    """Real, as %u is."""
    gid: int
    is_dumped: bool
    """Whether the kernel has begun to dump it; for a process that lives without a crash it says no."""
    dump_mode: int | None
    """What %d would be: 1 for an ordinary process, 2 for one that changed its privileges; None where the kernel does not say."""
    signal: int | None
    """The one that ends it; None before Linux 6.19."""


def find_info(pidfd: int) -> PidfdInfo | None:
    """Return what the kernel tells of the process behind a pidfd; None once it was reaped, and where a kernel tells nothing."""
    asked = _PID | _CREDS | _COREDUMP | _COREDUMP_SIGNAL
    try:
        return parse_info(fcntl.ioctl(pidfd, _GET_INFO, struct.pack("=Q", asked).ljust(_INFO.size, b"\0")))
    except OSError:
        return None


def parse_info(data: bytes) -> PidfdInfo | None:
    """Return what a ``struct pidfd_info`` of 88 bytes says; None when it does not say whose it is. Not checked: the length."""
    mask, _, _, tgid, parent, uid, gid, *_, dumps, signal, _, _, _ = _INFO.unpack(data)
    if mask & (_PID | _CREDS) != _PID | _CREDS or not tgid:
        return None
    bits = dumps if mask & _COREDUMP else 0
    mode = 2 if bits & _AS_ROOT else 1 if bits & _AS_USER else None
    return PidfdInfo(tgid, parent, uid, gid, bool(bits & _COREDUMPED), mode, signal if mask & _COREDUMP_SIGNAL else None)
