"""What the handler's process may take of the machine: processor, disk, memory; and whom the kernel ends first when memory is short.

The kernel starts a handler in the root's control group: no limit of the service that crashed, and none of systemd's, holds for it.
So it sets its own, as root, before it reads anything but its settings:

* Processor: nice 5. The crashed process waits for the handler, so not the lowest; but sixteen handlers with two compressing threads
  each must leave a machine to those who did not crash.
* Disk: the lowest level of the usual class. Nobody waits for what it governs: the writes to the spool that a crashed process waits
  for go to memory first, and the fsync that ends them comes when it is gone. Not the idle class: behind a busy disk it may get no
  turn for ever, and a receipt or an entry's end must come.
* Memory: RLIMIT_DATA, which counts the private writable memory, thread stacks and all, and neither libraries nor the address space
  that allocators set aside (since Linux 4.7, setrlimit(2)); RLIMIT_AS would count both. Beyond it an allocation fails.
* Memory given back: what takes a MiB or more gets pages of its own, which go back when it is let go of (mallopt(3)). A compressor
  is given a MiB for each frame, and glibc, which learns from that, would leave holes of that size between the frames that wait.
* Out of memory: 500, as systemd gives its own handler. Ending a handler costs the least and frees the most: what it had spooled
  stays, and the crashed process, which keeps all of its memory while it is drained, goes with the pipe.
* Core size 1: the kernel's own mark of a handler, which it never hands to another (fs/coredump.c); set again in case that somebody
  else has started us.
"""

import ctypes
import os
import resource

from securecore import limits
from securecore.declarations import Callable, Final, NamedTuple

NORMAL: Final = "normal"
LOW: Final = "low"
IDLE: Final = "idle"
IO_PRIORITIES: Final = (NORMAL, LOW, IDLE)

_IO_WORDS: Final = {LOW: 2 << 13 | 7, IDLE: 3 << 13}
"""Class and level as in include/uapi/linux/ioprio.h: best-effort 7, idle. The normal one follows the nice value, and is not set."""
_WHO_PROCESS: Final = 1
_IOPRIO_SET: Final = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "loongarch64": 30,
    "armv7l": 314,
    "i686": 289,
    "ppc64le": 273,
    "s390x": 282,
}
"""ioprio_set(2) has no wrapper in the C library; its numbers are in asm/unistd.h. Elsewhere the priority stays as it is."""
_M_MMAP_THRESHOLD: Final = -3
"""Of mallopt(3), as in malloc.h of glibc. Set once, it does not grow by itself any more."""
_OOM_SCORE: Final = b"500"
_NO_CORE: Final = (1, 1)


class Confinement(NamedTuple):
    """The table ``[handler]`` of sender.toml."""

    nice: int = limits.HANDLER_NICE
    io_priority: str = LOW
    memory_bytes: int = limits.HANDLER_MEMORY_BYTES
    deadline_s: float = limits.HANDLER_DEADLINE_S
    """From the handler's start, until it gives the wire up (lifetime.py)."""
    source_deadline_s: float = limits.SOURCE_DEADLINE_S
    """For each MiB of the core to come."""


def is_confinement(found: Confinement) -> bool:
    """Return whether all values are of their types and within their bounds."""
    # Not by isinstance: to Python, true is a number. Infinity and NaN fail the comparison.
    return (
        type(found.nice) is int
        and 0 <= found.nice <= limits.MAX_NICE
        and found.io_priority in IO_PRIORITIES
        and type(found.memory_bytes) is int
        and limits.MIN_HANDLER_MEMORY_BYTES <= found.memory_bytes <= limits.MAX_HANDLER_MEMORY_BYTES
        and all(type(deadline_s) in (int, float) for deadline_s in (found.deadline_s, found.source_deadline_s))
        and all(0 < deadline_s <= limits.MAX_HANDLER_DEADLINE_S for deadline_s in (found.deadline_s, found.source_deadline_s))
    )


def confine(confinement: Confinement) -> None:
    """Take the place in the machine that *confinement* gives, for good; what cannot be had is left, for a core is worth more."""
    steps: tuple[Callable[[], object], ...] = (
        lambda: os.setpriority(os.PRIO_PROCESS, 0, confinement.nice),
        lambda: _set_io_priority(confinement.io_priority),
        lambda: resource.setrlimit(resource.RLIMIT_DATA, (confinement.memory_bytes, confinement.memory_bytes)),
        lambda: resource.setrlimit(resource.RLIMIT_CORE, _NO_CORE),
        _offer_to_oom_killer,
        _give_memory_back,
    )
    for step in steps:
        try:
            step()
        except (OSError, ValueError):  # ValueError: above a hard limit, says the resource module
            pass


def _set_io_priority(name: str) -> None:
    """Set that of the calling thread, which those that it starts inherit; see ioprio_set(2)."""
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, _WHO_PROCESS, 0, _IO_WORDS.get(name, 0))


def _offer_to_oom_killer() -> None:
    score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(score, _OOM_SCORE)
    finally:
        os.close(score)


def _give_memory_back() -> None:
    """Set that for this process; a C library without mallopt has no such habit."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, limits.PIECE_BYTES)
