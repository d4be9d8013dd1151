"""A wait for a connection that looks up: the kernel, and a resolver, do not end theirs when a handler's time is up."""

from _queue import Empty, SimpleQueue  # as in pump.py: without the modules that queue loads first
from collections.abc import Callable
from threading import Thread

from securecore.declarations import Final
from securecore.errors import Bug, SecurecoreError
from securecore.sender.delivery import Delivery
from securecore.sender.threads import start

_LOOK_EVERY_S: Final = 0.2
"""Little beside TERMINATION_GRACE_S, which a handler has left that is told to end."""

_Answer = Delivery | SecurecoreError | MemoryError


class _Answers:
    """What comes of one call; nobody may be waiting for it any more."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Answer] = SimpleQueue()
        self._is_left = False

    def put(self, answer: _Answer) -> None:
        self._queue.put(answer)
        if self._is_left:
            self._close()

    def wait(self, check: Callable[[], object]) -> Delivery:
        while True:
            try:
                answer = self._queue.get(timeout=_LOOK_EVERY_S)
            except Empty:
                check()
                continue
            if isinstance(answer, Delivery):
                return answer
            raise answer

    def leave(self) -> None:
        self._is_left = True
        self._close()

    def _close(self) -> None:
        """Close the connection that nobody waits for: by whoever of the two threads finds it."""
        try:
            answer = self._queue.get_nowait()
        except Empty:
            return
        if isinstance(answer, Delivery):
            answer.close()


def dial(call: Callable[[], Delivery], check: Callable[[], object]) -> Delivery:
    """Return what *call* returns, which is made in a thread of its own, or raise what it raises.

    *check* is called again and again meanwhile, in the caller's thread. What it raises ends the wait: the other thread is left
    behind, and closes a connection that comes still. Raises StorageError where no thread can be started.
    """
    answers = _Answers()

    def ask() -> None:
        answer: _Answer = Bug("the dialling thread died")
        try:
            answer = call()
        except (SecurecoreError, MemoryError) as error:
            answer = error
        finally:
            answers.put(answer)

    start(Thread(target=ask, daemon=True))
    try:
        return answers.wait(check)
    except BaseException:
        answers.leave()
        raise
