"""A real receiver with a hostile sender before it, and what must be true of the receiver afterwards."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from securecore.names import DumpId
from securecore.receiver.server import Receiver
from securecore.store.layout import open_store
from securecore.wire.messages import Refusal
from tests.support.certificates import Fleet
from tests.support.hands import Hand
from tests.support.receivers import papers_of, send_bytes

_PATIENCE_S: Final = 20.0


class Stage:
    """A receiver, its store and its log."""

    def __init__(self, fleet: Fleet, receiver: Receiver, store: Path, log: pytest.LogCaptureFixture) -> None:
        self.fleet, self.receiver, self.store = fleet, receiver, store
        self._log = log
        self._hands: list[Hand] = []

    def hand(self, host: str = "web-1", *, receive_buffer: int | None = None) -> Hand:
        """Return a new sender whose messages the test chooses."""
        hand = Hand(self.fleet.hosts[host], self.receiver.addresses, receive_buffer)
        self._hands.append(hand)
        return hand

    def log_lines(self) -> list[str]:
        """Return what the receiver's log says of connections that failed."""
        return [record.getMessage() for record in self._log.records if record.levelno >= logging.WARNING]

    def forget_log(self) -> None:
        """Begin the log anew: what happened up to now was the way to the test's own subject."""
        self._log.clear()

    def published(self) -> list[DumpId]:
        """Return all published dumps."""
        with open_store(str(self.store)) as store:
            return [dump for host in store.host_names() for dump in store.dump_ids(host)]

    def refused(self, hand: Hand, code: Refusal, words: str) -> None:
        """Assert that the receiver says REFUSE with *code* and *words*, and everything that ``ended`` does."""
        refusal = hand.refusal()
        assert (refusal.code, words in refusal.words) == (code, True), refusal
        self.ended(hand, words)

    def ended(self, hand: Hand, words: str) -> None:
        """Assert that the session is over, is logged in one line, left nothing that looks whole, and that the next is served."""
        hand.close()
        self.wait_until(lambda: self.receiver.session_count == 0)
        assert len(self.log_lines()) == 1, self.log_lines()
        assert words in self.log_lines()[0]
        assert self.log_lines()[0].isprintable()
        assert self.published() == []
        names = {path.name for path in (self.store / "incoming").rglob("*")}
        assert not names & {"manifest.jws", "receipt"}
        self.serves_the_next()

    def serves_the_next(self, dump: DumpId | None = None) -> None:
        """Assert that an honest sender gets its receipt."""
        before = self.published()
        outcome = send_bytes(b"an honest core", papers_of(self.fleet.host), self.receiver.addresses, dump=dump)
        assert outcome.failure is None
        assert len(self.published()) == len(before) + 1

    def close(self) -> None:
        """Close all connections."""
        for hand in self._hands:
            hand.close()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; fails when it takes too long."""
        deadline = time.monotonic() + _PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.002)
