"""Whose turn it is to take in bytes: two sessions at a time, however many have something to read.

Reading a record of 16 KiB lets go of the interpreter's lock and asks for it again. Where sixteen threads do that at once, each time
one of them is woken, finds the lock taken, and sleeps again: a quarter of the receiver's processor went there. A session that waits
for its turn sleeps once, and finds more to read at once when it has it.

Nothing is waited for within a turn, neither a peer nor a disk: it lasts as long as it takes to decrypt what has come, which is a
frame at most.

Those who wait come in in no order: a lock of the system's knows none. That is enough, for a turn takes milliseconds, whoever has
had one stores what it has read before it asks for the next, and no peer is called silent while something of it is there to read.
"""

from queue import SimpleQueue
from types import TracebackType
from typing import Final

_AT_ONCE: Final = 2
"""One decrypts while the other asks for the next record. A CPU decrypts 1 GB in 0.6 to 0.9 s: two bring more than one process
stores, whose threads share one interpreter (docs/performance.md)."""


class Turns:
    """A context manager for several threads: so many of them are within it at once, others wait."""

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        # A queue in C: threading.Semaphore is Python, and took back half of what is won.
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(at_once):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._free.put(None)
