"""A receiver and a sender in the test's own process, real but for this: each ends at any of its calls, and begins again."""

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.errors import Bug, SecurecoreError
from securecore.names import Address, DumpId
from securecore.receiver import server
from securecore.receiver.server import Receiver, open_receiver
from securecore.receiver.session import Session
from securecore.receiver.settings import ReceiverSettings
from securecore.sender import attempt, delivery
from securecore.sender.delivery import Delivery, connect
from securecore.sender.flush import Flushed, flush
from securecore.sender.parcel import Outcome
from securecore.sender.spool import create_spool, open_spool
from securecore.store.layout import create_store
from securecore.wire.messages import Accept, Ack, Message
from tests.support.power import End, Killed, Loss, Power, swallowing
from tests.support.receivers import papers_of, send_bytes, wait_until_idle

NOWHERE = Address("127.0.0.1:9")
"""Where nobody listens."""


def with_small_limits(patch: pytest.MonkeyPatch) -> None:
    """Have every frame acknowledged, and senders wait for that, so that a few pieces have as much to go wrong as a gigabyte."""
    patch.setattr(limits, "ACK_EVERY_BYTES", 1)
    patch.setattr(limits, "RING_BYTES", 3 * limits.MIB // 2)
    patch.setattr(threading, "excepthook", swallowing(Killed, threading.excepthook))


def noting_promises(patch: pytest.MonkeyPatch) -> "Counter[tuple[str, str]]":
    """Return how many frames receivers have said to be durable, by store and dump: ACCEPT and ACK are noted once they are sent."""
    promised: Counter[tuple[str, str]] = Counter()
    send = Session._send

    def send_and_note(session: Session, message: Message) -> None:
        send(session, message)
        frames = message.held if isinstance(message, Accept) else message.frames if isinstance(message, Ack) else 0
        key = (str(session._service.store.store_id), str(session._dump))
        promised[key] = max(promised[key], frames)

    patch.setattr(Session, "_send", send_and_note)
    return promised


class ReceiverLife:
    """A receiver on a store of its own."""

    def __init__(self, identity: Path, root: Path) -> None:
        create_store(str(root)).close()
        self.power = Power(root)
        self.clock_ahead = timedelta()
        """How far its clock has jumped since it started: by one that is too wrong it would not start."""
        self._identity = identity
        self._receiver: Receiver | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> Address:
        """Where it listens, if it does."""
        return self._receiver.addresses[0] if self._receiver is not None else NOWHERE

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._receiver is not None

    def start(self, end: End | None = None) -> None:
        """Start it, and have it end as *end* says while it does; then start it again."""
        self.power.end_within(end)
        self.clock_ahead = timedelta()
        self._receiver = self._open()
        if self._receiver is None:
            self.power.restart(end.loss if end is not None else Loss.KILLED)
            self.start()
            return
        self.power.end_within(None)
        self._thread = threading.Thread(target=self._receiver.serve, daemon=True)
        self._thread.start()

    def _open(self) -> Receiver | None:
        """Return a receiver that is about to serve; None when it was ended before."""
        settings = ReceiverSettings((Address("127.0.0.1:0"),), self.power.root, self._identity)
        made: list[Receiver] = []

        def make(*arguments: Any) -> Receiver:
            made.append(Receiver(*arguments))
            return made[-1]

        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setattr(server, "utc_now", lambda: datetime.now(UTC) + self.clock_ahead)
            patch.setattr(server, "Receiver", make)
            warnings.simplefilter("ignore", ResourceWarning)  # The system closes what a process that ends has open.
            try:
                return open_receiver(settings)
            except Killed:
                # What refers to itself is collected later, perhaps in another test, which must not be blamed.
                for receiver in made:
                    close_what_a_process_takes_along(receiver)
                return None

    def during(self, end: End | None, act: Callable[[], None]) -> None:
        """Act, while the receiver ends as *end* says; then start it again."""
        self.power.end_within(end)
        act()
        if self.power.is_off and end is not None:
            self.stop(end.loss)
            self.start()
        elif self._receiver is not None:
            wait_until_idle(self._receiver)
        self.power.end_within(None)

    def stop(self, loss: Loss) -> None:
        """End it, in whatever state it is."""
        if self._receiver is None or self._thread is None:
            return
        self.power.end_within(End(0, loss))
        self._receiver.stop()
        self._receiver.stop()
        self._thread.join()
        wait_until_idle(self._receiver)
        self.power.end_within(None)
        self.power.is_off = False
        close_what_a_process_takes_along(self._receiver)
        self._receiver = None
        self.power.restart(loss)


def close_what_a_process_takes_along(receiver: Receiver) -> None:
    """End the threads and close the sockets of a receiver whose process has ended."""
    receiver._control.close(10)
    receiver._keeper.stop()
    receiver._keeper.has_ended(10)
    receiver._service.admission.stop_counting(10)
    for left in (receiver._wakeup, receiver._waker):
        left.close()


class SenderLife:
    """Handlers and flushes of one host, on a spool of its own."""

    def __init__(self, identities: Sequence[Path], root: Path, patch: pytest.MonkeyPatch) -> None:
        """*identities* are this host's, each with another certificate."""
        create_spool(str(root), bytes(16))
        self.power = Power(root)
        self._papers = [papers_of(identity) for identity in identities]
        self._deliveries: list[Delivery] = []
        for module in (delivery, attempt):
            patch.setattr(module, "connect", self._connect)

    def _connect(self, *arguments: Any, **options: Any) -> Delivery:
        self._deliveries.append(connect(*arguments, **options))
        return self._deliveries[-1]

    def send(self, core: bytes, dump: DumpId, receivers: list[Address], end: End | None) -> Outcome | None:
        """Be a handler that is ended as *end* says; return its outcome, None when it came to that."""
        spool = open_spool(str(self.power.root))
        self.power.end_within(end)
        outcome = None
        try:
            outcome = send_bytes(core, self._papers[0], receivers, spool=spool, dump=dump)
        except Bug:
            assert self.power.is_off  # The transfer's thread was ended.
        spool.close()
        self._settle(end)
        return outcome

    def flush(self, receivers: list[Address], end: End | None = None, certificate: int = 0) -> list[Flushed]:
        """Be a flush that is ended as *end* says; return what became of each dump until then."""
        spool = open_spool(str(self.power.root))
        found: list[Flushed] = []
        self.power.end_within(end)
        try:
            for flushed in flush(spool, receivers, self._papers[certificate]):
                found.append(flushed)
        except Killed:
            pass
        spool.close()
        self._settle(end)
        return found

    def _settle(self, end: End | None) -> None:
        """Close what the system closes for a process, and go on with what it leaves."""
        for opened in self._deliveries:
            opened.close()
        self._deliveries.clear()
        if self.power.is_off and end is not None:
            self.power.restart(end.loss)
        self.power.end_within(None)

    def waiting(self) -> list[DumpId]:
        """Return the dumps in the spool."""
        spool = open_spool(str(self.power.root))
        try:
            return spool.dump_ids()
        finally:
            spool.close()

    def receipts(self) -> list[dict[str, Any]]:
        """Return the receipts that it has kept."""
        spool = open_spool(str(self.power.root))
        try:
            return list(spool.receipts())
        finally:
            spool.close()


def words_of(found: Sequence[Flushed]) -> list[str]:
    """Return why dumps stay in the spool."""
    failures: list[SecurecoreError] = [one.failure for one in found if one.failure is not None]
    return [failure.message for failure in failures]
