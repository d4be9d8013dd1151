"""A thread of the receiver that looks after something every so often, until it is stopped."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable


class Rounds(ABC):
    """Looks every so often once it is started, in a thread of its own; ``stop`` ends it."""

    def __init__(self, name: str, every_s: float, on_end: Callable[[], None], *, looks_at_once: bool) -> None:
        """*on_end* is told, by the thread, that it ends though nobody has stopped it."""
        self._every_s = every_s
        self._on_end = on_end
        self._looks_at_once = looks_at_once
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def look(self) -> None:
        """Do it once; what is met is logged."""

    def answer(self) -> None:
        """Do what somebody has woken it for: a look, where a class says nothing else."""
        self.look()

    def wake(self) -> None:
        """Have it ``answer`` soon, once for all who ask meanwhile; for any thread."""
        self._woken.set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end."""
        self._stopping.set()
        self._woken.set()

    def has_ended(self, timeout_s: float) -> bool:
        """Return whether the thread has ended, after waiting for it so long."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            if self._looks_at_once:
                self.look()
            next_at = time.monotonic() + self._every_s
            while not self._stopping.is_set():
                self._woken.wait(max(0.0, next_at - time.monotonic()))
                is_woken = self._woken.is_set()
                self._woken.clear()
                if self._stopping.is_set():
                    return
                if is_woken:
                    self.answer()
                if time.monotonic() >= next_at:
                    self.look()
                    next_at = time.monotonic() + self._every_s
        finally:
            # What comes here unasked is an error that nobody has thought of, and must not go unseen.
            if not self._stopping.is_set():
                self._on_end()
