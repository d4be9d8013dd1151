"""One connection to a receiver: reach it, hear READY, open a dump, send frames, hear what is durable.

One thread owns the socket. Frames go out whole, but for one whose beginning the receiver has kept; between them, what the
receiver has said is read without waiting. Every wait ends (patience.py). All failures of the network and of the peer come out
as SecurecoreError: UnreachableError and BusyError when another try may succeed, others when not.
"""

import math
import select
import socket
import ssl
import time
from _queue import Empty, SimpleQueue  # as in pump.py: without the modules that queue loads first
from collections.abc import Callable, Sequence
from hashlib import sha256
from threading import Thread

from securecore import limits, tls
from securecore.declarations import Any, Final
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.errors import BusyError, ClockError, PeerError, RefusedError, SecurecoreError, UnreachableError
from securecore.names import Address, StoreId
from securecore.sender.patience import Most, Patience, Wait, count_acknowledged, keep_asking, quiet_s, usual_patience
from securecore.sender.threads import start
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import (
    Accept,
    Ack,
    Data,
    End,
    Gone,
    Message,
    Open,
    Ready,
    Receipt,
    Refusal,
    Refuse,
    Rest,
    Zero,
    is_final,
)
from securecore.wire.states import End as WireEnd

_RECEIVE_BYTES: Final = 64 * limits.KIB
_LAST_WORDS_S: Final = 1.0
"""How long a sender whose write has failed listens for the reason: it is on its way or here already, if there is one. Nobody may be
waiting for the sender meanwhile."""

Place = tuple[socket.AddressFamily, Any]
"""One of the addresses that a name stands for, as the socket module takes it."""


class OtherStoreError(BusyError):
    """A receiver would take a dump, but not the rest of one whose beginning another store holds."""

    is_missed = True
    """Whether that store did not answer: nobody else has said no, who may be its receiver."""


class Delivery:
    """A connection whose receiver has said READY."""

    def __init__(self, secured: ssl.SSLSocket, address: Address, ready: Ready, connection: Connection, progress_s: float) -> None:
        self.address = address
        self.store = ready.store
        self._socket = secured
        self._connection = connection
        self._progress_s = progress_s
        self._torn_hash = b""
        self._has_failed_to_send = False
        self._has_acknowledged = False
        self._may_keep = False
        """END was sent, or some of it, and no refusal has come since; or one that says that what came is kept."""
        self._poll = select.poll()
        self._poll.register(secured, select.POLLIN)
        self._on_ack: Callable[[int], None] = lambda frames: None

    @property
    def may_hold(self) -> bool:
        """Whether the receiver has acknowledged frames, has said that it keeps what came, or may have all of the dump."""
        return self._has_acknowledged or self._may_keep

    def open(
        self, message: Open, on_ack: Callable[[int], None], most_s: Most = math.inf, answer_s: float | None = None
    ) -> Accept | Receipt | Gone:
        """Name a dump and return the receiver's answer; *on_ack* is told of every durable count from now on.

        A receiver that holds a part of the dump reads it again before it answers. It has *answer_s* for that once it has heard the
        question, RECEIPT_DEADLINE_S where that is not given; all of it takes no longer than *most_s*.
        """
        self._on_ack = on_ack
        wait = self._wait_for_answer(limits.RECEIPT_DEADLINE_S if answer_s is None else answer_s, most_s)
        self._send(self._connection.send(message), wait)
        answer = self._receive(wait)
        if not isinstance(answer, (Accept, Receipt, Gone)):
            raise PeerError(f"{self.address} answered OPEN with {type(answer).__name__}")
        if isinstance(answer, Accept):
            self._torn_hash = answer.torn_hash
        return answer

    def send_frame(self, frame: bytes, most_s: Most = math.inf) -> None:
        """Send one frame, and read the acknowledgements that have come in meanwhile, within the wait that ``waiting`` returns.

        Where the receiver has kept the frame's beginning, only the rest is sent. Raises RefusedError when the receiver has said
        that it takes no dump of so many frames.
        """
        if self._connection.frames >= self._connection.max_frames:
            raise RefusedError(f"{self.address} takes at most {self._connection.max_frames} frames of a dump")
        wait = self.waiting(most_s)
        self._send(self._connection.send(self._message(frame)), wait)
        self._hear(wait)

    def waiting(self, most_s: Most = math.inf) -> Wait:
        """Return a wait that ends when nothing that was sent has moved for too long, and after *most_s* in any case."""
        return self._wait(self._progress_s, most_s)

    def wait_for_ack(self, wait: Wait) -> None:
        """Wait for the next acknowledgement; raises UnreachableError when none comes in time."""
        self._acknowledge(self._receive(wait))

    def end(self, manifest: bytes, most_s: Most = math.inf) -> Receipt:
        """Send the manifest and return the receipt.

        The receiver has RECEIPT_DEADLINE_S once it has all that was sent, and no more than *most_s* for it; frames may still be on
        their way before END.
        """
        self._may_keep = True
        self._send(self._connection.send(End(manifest)), self.waiting(most_s))
        wait = self._wait_for_answer(limits.RECEIPT_DEADLINE_S, most_s)
        while True:
            message = self._receive(wait)
            if isinstance(message, Receipt):
                return message
            self._acknowledge(message)

    def interrupt(self) -> None:
        """End every wait for the receiver, from any thread, as if it had closed the connection."""
        try:
            # Not by the TLS object's own method, which would take the session from under the thread that is using it.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            pass  # It is closed, or was never whole.

    def give_up(self) -> None:
        """Send nothing more; what the receiver has said, or is about to say, can still be heard."""
        try:
            # Below TLS: what was begun is not brought to an end, and the receiver sees a wire that was cut.
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
        except OSError:
            pass  # It has ended already.

    def last_words(self) -> SecurecoreError | None:
        """Return the receiver's own reason why a send has failed; None when it has given none within _LAST_WORDS_S, or none failed.

        A refusal is only learned by reading (RFC 8446 appendix E.1.6).
        """
        if not self._has_failed_to_send:
            return None
        wait = Wait(_LAST_WORDS_S)
        try:
            while True:
                self._receive(wait)
        except UnreachableError:
            return None
        except SecurecoreError as error:
            return error

    def close(self) -> None:
        """Close the connection; says nothing to the peer, for nothing is owed between dumps."""
        self._socket.close()

    def _wait(self, stock_s: float, most_s: Most = math.inf) -> Wait:
        return Wait(stock_s, most_s, lambda: count_acknowledged(self._socket))

    def _wait_for_answer(self, stock_s: float, most_s: Most = math.inf) -> Wait:
        """Return a wait for somebody who may be silent for long, as long as the network leads to them."""
        path_s = max(limits.PATH_DEADLINE_S, self._progress_s)
        return Wait(
            stock_s, most_s, lambda: count_acknowledged(self._socket), is_cut_off=lambda: quiet_s(self._socket) >= path_s
        )

    def _message(self, frame: bytes) -> Message:
        torn_bytes = self._connection.torn_bytes
        if frame == ZERO_PIECE_FRAME:
            return Zero(1)
        if 0 < torn_bytes < len(frame) and sha256(memoryview(frame)[:torn_bytes]).digest() == self._torn_hash:
            return Rest(frame[torn_bytes:])
        return Data(frame)

    def _acknowledge(self, message: Message) -> None:
        if not isinstance(message, Ack):
            raise PeerError(f"{self.address} said {type(message).__name__} while frames were on their way")
        self._on_ack(message.frames)

    def _hear(self, wait: Wait) -> None:
        """Take in the acknowledgements that are here."""
        while self._is_readable():
            self.wait_for_ack(wait)

    def _is_readable(self) -> bool:
        return bool(self._socket.pending() or self._poll.poll(0))

    def _send(self, data: bytes, wait: Wait) -> None:
        try:
            with memoryview(data) as view:
                sent = 0
                while sent < len(data):
                    sent += self._send_some(view[sent:], wait)
        except OSError as error:
            self._has_failed_to_send = True
            raise tls.explain(error, str(self.address)) from error

    def _send_some(self, view: memoryview, wait: Wait) -> int:
        """Return how many bytes the kernel has taken; raises TimeoutError once the wait is over.

        A call that timed out is made again with the same bytes: TLS has begun to send them (SSL_write(3)). Before that, what the
        receiver has said is heard: who refuses the rest may read nothing more.
        """
        while True:
            left = wait.left_s()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                return self._socket.send(view)
            except TimeoutError:
                self._hear(wait)

    def _receive(self, wait: Wait) -> Message:
        message = _next_message(self._socket, self._connection, self.address, wait)
        if isinstance(message, Refuse):
            # The code does not tell: a disk that refuses may have all of the dump, or nothing.
            self._may_keep = message.kept
            raise refusal(message, self.address)
        # No refusal takes back what was acknowledged.
        self._has_acknowledged |= isinstance(message, Ack)
        return message


def _next_message(secured: ssl.SSLSocket, connection: Connection, address: Address, wait: Wait) -> Message:
    """Return the receiver's next message before *wait* is over.

    Bytes that come in one by one do not renew the wait.
    """
    while (message := connection.next_message()) is NEED_DATA:
        left = wait.left_s()
        if wait.was_cut_off:
            raise UnreachableError(f"{address} was silent, and its host cannot be reached any more")
        if left <= 0:
            raise UnreachableError(f"{address} did not answer in time")
        secured.settimeout(left)
        try:
            data = secured.recv(_RECEIVE_BYTES)
        except TimeoutError:
            continue
        except OSError as error:
            raise tls.explain(error, str(address)) from error
        if not data:
            raise UnreachableError(f"{address} closed the connection")
        connection.receive(data)
    return message


def refusal(message: Refuse, address: Address) -> SecurecoreError:
    """Return the error that a REFUSE means to the sender."""
    words = "".join(character if character.isprintable() else "?" for character in message.words)
    text = f"refused by {address}: {words}"
    if message.code == Refusal.NOT_YET_VALID:
        return ClockError(text, hint="compare this machine's clock with the receiver's")
    if is_final(message.code):
        return RefusedError(text)
    wait = min(message.retry_after_s, limits.MAX_RETRY_AFTER_S)
    return BusyError(text, hint=f"come again in {wait} s" if wait else "come again later", retry_after_s=wait)


def connect(
    receivers: Sequence[Address],
    context: ssl.SSLContext,
    store: StoreId | None = None,
    deadline_s: float | None = None,
    patience: Patience | None = None,
    most_s: float = math.inf,
    on_silence: Callable[[Address], None] = lambda address: None,
) -> Delivery:
    """Return a Delivery to the first of *receivers*, tried in order, that says READY, with *store* if that is given.

    Each has *deadline_s*, or else what *patience* says, which is usual_patience where it is not given; all of them together take no
    longer than *most_s*. *on_silence* is told of each where nobody answered.

    Raises OtherStoreError when one of them said READY with another store, else the error of the last one that could be reached at
    all, else of the last: a refusal tells more than a dead address.
    """
    patience = patience or usual_patience()
    each_s = patience.connect_s if deadline_s is None else deadline_s
    ends = time.monotonic() + most_s
    failures: list[SecurecoreError] = []
    for address in receivers:
        left_s = max(0.0, ends - time.monotonic())
        if failures and not left_s:
            break
        try:
            delivery = _connect_one(address, context, min(each_s, left_s), patience.progress_s)
        except SecurecoreError as error:
            failures.append(error)
            if isinstance(error, UnreachableError):
                on_silence(address)
            continue
        if store is None or delivery.store == store:
            return delivery
        delivery.close()
        failures.append(OtherStoreError(f"{address} has another store than the one that holds the beginning, {store}"))
    raise _most_telling(failures)


def _most_telling(failures: Sequence[SecurecoreError]) -> SecurecoreError:
    """Return the one failure that is told of many, of which there is one at least: what somebody said before a silence."""
    elsewhere = [error for error in failures if isinstance(error, OtherStoreError)]
    spoken = [error for error in failures if not isinstance(error, UnreachableError)]
    told = (elsewhere or spoken or failures)[-1]
    if isinstance(told, OtherStoreError):
        told.is_missed = len(spoken) == len(elsewhere)
        told.retry_after_s = max(error.retry_after_s for error in spoken if isinstance(error, BusyError))
    return told


def _connect_one(address: Address, context: ssl.SSLContext, deadline_s: float, progress_s: float) -> Delivery:
    """Return a Delivery to the first of the places that *address* stands for which says READY.

    Each may take its share of the time that is left: one where nobody answers, or somebody who then says nothing, does not use up
    what the next one needs. Raises the most telling of their errors.
    """
    deadline = time.monotonic() + deadline_s
    failures: list[SecurecoreError] = []
    places = _resolve(address, deadline_s)
    for number, place in enumerate(places):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            return _greet(place, address, context, left / (len(places) - number), progress_s)
        except SecurecoreError as error:
            failures.append(error)
    raise _most_telling(failures or [UnreachableError(f"{address} did not answer in time")])


def _greet(place: Place, address: Address, context: ssl.SSLContext, deadline_s: float, progress_s: float) -> Delivery:
    """Return a Delivery to *place* once it has said READY, all within *deadline_s*."""
    deadline = time.monotonic() + deadline_s
    family, where = place
    plain = None
    try:
        plain = socket.socket(family, socket.SOCK_STREAM)
        plain.settimeout(deadline_s)
        plain.connect(where)
        keep_asking(plain)
        left = max(0.1, deadline - time.monotonic())
        secured = tls.secure(context, plain, server_name=address.host_without_zone, deadline_s=left, peer=str(address))
    except OSError as error:
        if plain is not None:
            plain.close()
        raise tls.explain(error, str(address)) from error
    connection = Connection(WireEnd.SENDER)
    try:
        ready = _next_message(secured, connection, address, Wait(max(0.1, deadline - time.monotonic())))
        if isinstance(ready, Refuse):
            raise refusal(ready, address)
        if not isinstance(ready, Ready):
            raise PeerError(f"{address} greeted with {type(ready).__name__}")
    except SecurecoreError:
        secured.close()
        raise
    return Delivery(secured, address, ready, connection, progress_s)


def _resolve(address: Address, deadline_s: float) -> list[Place]:
    """Return what *address* stands for, one place at least; raises UnreachableError when it is nothing, or no answer comes in time.

    The resolver keeps to no deadline but its own (resolv.conf(5): up to 30 s with three dead name servers), and frames that wait
    for a connection hold the crashed process. So it is asked in a thread of its own, which is left behind when it is too late.
    """
    answers: SimpleQueue[list[Place] | OSError] = SimpleQueue()

    def ask() -> None:
        try:
            # As bytes: for text, Python would load its IDNA tables first, at a crash handler's expense.
            found = socket.getaddrinfo(address.host.encode("ascii"), address.port, type=socket.SOCK_STREAM)
            answers.put([(family, where) for family, _, _, _, where in found])
        except OSError as error:
            answers.put(error)

    start(Thread(target=ask, daemon=True))
    try:
        answer = answers.get(timeout=deadline_s)
    except Empty as error:
        raise UnreachableError(f"{address}: its name could not be looked up in time", hint="see this machine's resolver") from error
    if isinstance(answer, OSError):
        raise tls.explain(answer, str(address)) from answer
    return answer
