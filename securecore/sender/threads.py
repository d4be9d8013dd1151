"""Starting a thread where there may be no memory for it."""

from threading import Thread

from securecore import limits
from securecore.declarations import Final
from securecore.errors import StorageError

ROOM_BYTES: Final = 9 * limits.MIB
"""For its stack, the 8 MiB that RLIMIT_STACK gives what the kernel starts, and its first steps. Where there is a stack and nothing
beyond it, CPython 3.11 never ends: what handles an exception takes a few bytes, gets none, and begins again (seen at a bound of 24
MiB on all memory: a thread at its first steps, and who had started it waited for its first word)."""


def start(thread: Thread) -> None:
    """Start *thread*; raises StorageError when there is no memory for its stack and first steps, or no process is left for it."""
    try:
        bytes(ROOM_BYTES)  # Zeroes that nobody touches cost no memory, but count against the bound.
        thread.start()
    except (MemoryError, RuntimeError) as error:
        raise StorageError("a thread could not be started: out of memory, or of processes") from error
