"""Turns: so many at once and no more, given back whatever happens.

That nobody keeps one who waits for its peer is in test_slow_sender.py (half a record of many connections).
"""

from queue import SimpleQueue
from threading import Semaphore, Thread

import pytest

from securecore.errors import BrokenError
from securecore.receiver import turns as turns_module
from securecore.receiver.turns import Turns
from tests.support.hands import PATIENCE_S


def test_as_many_as_there_are_turns_go_on_at_once_and_the_next_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither fewer nor more: whoever comes then goes on when the first has left."""
    told: SimpleQueue[str] = SimpleQueue()
    leave = Semaphore(0)

    class Watched(SimpleQueue[None]):
        def get(self, block: bool = True, timeout: float | None = None) -> None:
            if self.empty():
                told.put("waits")
            return super().get(block, timeout)

    def take() -> None:
        with turns:
            told.put("is in")
            leave.acquire(timeout=PATIENCE_S)

    monkeypatch.setattr(turns_module, "SimpleQueue", Watched)
    turns, threads = Turns(2), [Thread(target=take) for _ in range(3)]
    try:
        heard = []
        for thread in threads:
            thread.start()
            heard.append(told.get(timeout=PATIENCE_S))
        assert heard == ["is in", "is in", "waits"]
        assert told.empty()
        leave.release()
        assert told.get(timeout=PATIENCE_S) == "is in"
    finally:
        leave.release(len(threads))
        for thread in threads:
            thread.join(PATIENCE_S)


def test_a_turn_that_ends_by_an_error_is_given_back() -> None:
    """A session that fails while it reads holds up nobody else."""
    turns = Turns(1)

    def fail() -> None:
        with pytest.raises(BrokenError), turns:
            raise BrokenError("cut")

    for _ in range(2):
        thread = Thread(target=fail, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
