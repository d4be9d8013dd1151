"""A wait for a connection that looks up: the kernel, and a resolver, do not end theirs when a handler's time is up.

And one that is over sooner: the first receiver is dialled while the handler still loads what drains the core. A handshake is the
work of OpenSSL, of the network and of the receiver, and none of them needs the interpreter that loads.
"""

from _queue import Empty, SimpleQueue  # as in pump.py: without the modules that queue loads first
from collections.abc import Callable, Sequence
from ssl import SSLContext
from threading import Thread

from securecore.declarations import Final, NamedTuple
from securecore.errors import Bug, SecurecoreError, StorageError
from securecore.names import Address
from securecore.sender import delivery
from securecore.sender.delivery import Delivery
from securecore.sender.patience import Patience
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
    return _wait(_ask(call), check)


def _wait(answers: _Answers, check: Callable[[], object]) -> Delivery:
    try:
        return answers.wait(check)
    except BaseException:
        answers.leave()
        raise


class _Begun(NamedTuple):
    """A connection on its way, and what for."""

    answers: _Answers
    address: Address
    context: SSLContext


class Dialler:
    """Connects to receivers when they are asked for; one of them may have been dialled before that."""

    def __init__(self) -> None:
        self._begun: _Begun | None = None

    def begin(self, receivers: Sequence[Address], context: SSLContext, patience: Patience) -> None:
        """Dial the first of *receivers*, for its share of the time; without a thread to be had, all is left to ``connect``."""
        address, share_s = receivers[0], patience.connect_s / len(receivers)
        self.leave()
        try:
            answers = _ask(lambda: delivery.connect([address], context, deadline_s=share_s, patience=patience))
        except StorageError:
            return
        self._begun = _Begun(answers, address, context)

    def connect(
        self,
        address: Address,
        context: SSLContext,
        deadline_s: float,
        patience: Patience,
        check: Callable[[], object] = lambda: None,
    ) -> Delivery:
        """Return a Delivery, or raise, as delivery.connect does; *check* is as ``dial`` has it.

        What was begun for this receiver and context, if anything was, has the time that it was given then, and no other.
        """
        begun = self._begun
        if begun is not None and (address, context) == (begun.address, begun.context):
            self._begun = None
            return _wait(begun.answers, check)
        self.leave()
        return dial(lambda: delivery.connect([address], context, deadline_s=deadline_s, patience=patience), check)

    def leave(self) -> None:
        """Give up what was begun and nobody has asked for: a connection that comes still is closed."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.answers.leave()


def _ask(call: Callable[[], Delivery]) -> _Answers:
    """Have *call* made in a thread of its own; raises StorageError where none can be started."""
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
    return answers
