"""Which session has which dump: the newest one wins.

A sender that lost its connection comes back before the receiver has noticed. The older session is interrupted, and the newer one
waits until its thread has let the dump go. The caretaker, which gives up dumps that nobody sends, takes only what no session has,
and makes way like an older session. A deletion takes only what nobody has, and goes on to its end.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock
from typing import Final, NamedTuple

from securecore.errors import BusyError
from securecore.names import DumpId, HostName

_PATIENCE_S: Final = 15.0
"""An interrupted session lets go after the disk write that it is in; a busy disk takes seconds for 8 MiB, not tens of them."""


class _Claim(NamedTuple):
    interrupt: Callable[[], None]


class Wakeup:
    """What one thread polls beside its socket, so that others can have its attention without touching that socket."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = Lock()

    def ring(self) -> None:
        """Make the descriptor readable, for good; for any thread, also after ``close``."""
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            os.close(self.fd)
            self.fd = -1


class Presence:
    """The dumps that are under way, for all sessions of a receiver."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._claims: dict[tuple[HostName, DumpId], _Claim] = {}

    @contextmanager
    def claim(self, host: HostName, dump: DumpId, interrupt: Callable[[], None]) -> Iterator[None]:
        """Hold a dump while the block runs; *interrupt* is called when a newer session wants it.

        Raises BusyError when an older session does not let go in time.
        """
        key, mine = (host, dump), _Claim(interrupt)
        with self._changed:
            while key in self._claims:
                older = self._claims[key]
                older.interrupt()
                if not self._wait_until_gone(key, older):
                    raise BusyError("an older session still writes this dump")
            self._claims[key] = mine
        with self._letting_go(key):
            yield

    @contextmanager
    def claim_idle(self, host: HostName, dump: DumpId, interrupt: Callable[[], None]) -> Iterator[None]:
        """Hold a dump while the block runs, *interrupt* as in claim; raises BusyError at once when a session has it."""
        key = (host, dump)
        with self._changed:
            if key in self._claims:
                raise BusyError("a session has this dump", hint="wait until its sender has finished, or has gone")
            self._claims[key] = _Claim(interrupt)
        with self._letting_go(key):
            yield

    @contextmanager
    def _letting_go(self, key: tuple[HostName, DumpId]) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                del self._claims[key]
                self._changed.notify_all()

    def _wait_until_gone(self, key: tuple[HostName, DumpId], claim: _Claim) -> bool:
        return self._changed.wait_for(lambda: self._claims.get(key) is not claim, timeout=_PATIENCE_S)
