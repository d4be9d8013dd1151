"""The enroller's door: listeners, one thread a connection, deadlines, and what is told of it.

A connection is one handshake, one line and one answer. Whoever comes too often is answered too, so that an honest host hears when
to come again, but costs no more than the handshake; who is one too many at once is hung up on.
"""

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from securecore import tls
from securecore.certs.chain import one_line
from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Judgement, Purpose, judge
from securecore.errors import PeerError, SecurecoreError, UnreachableError
from securecore.pki import channel
from securecore.pki.clients import THIS_MACHINE, Client, Clients, Tally, host, stranger, stranger_at
from securecore.pki.enroller import AFTER_A_RESTORE, Enroller
from securecore.pki.enrolment import ALPN, Denied, encode_denial, parse_request
from securecore.pki.limits import (
    ANSWER_DEADLINE_S,
    ANSWER_RATE_BYTES_PER_S,
    CHECK_EVERY_S,
    MAX_LINE_BYTES,
    REQUEST_DEADLINE_S,
)

_CLIENT: Final = "the client"
_STOP_DEADLINE_S: Final = REQUEST_DEADLINE_S
_WARN_DAYS: Final = 30
_WAKE_BYTES: Final = 4096


class Material(NamedTuple):
    """What a server shows of itself: context and leaf belong together, for the HMAC names the leaf."""

    context: ssl.SSLContext
    leaf_der: bytes
    own: Judgement


def load_material(identity: Path, now: datetime) -> Material:
    """Return what an identity directory holds of an enroller; raises as load_identity does, and Refusal when it is none."""
    loaded = load_identity(identity)
    own = judge(loaded.chain_der[0], loaded.chain_der[1:], loaded.anchors, Purpose.ENROLLER, now)
    return Material(tls.enroller_context(str(identity), ALPN), loaded.chain_der[0], own)


class Server:
    """An enroller that listens; *tell* is given a line for each thing that an operator should know."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        enroller: Enroller,
        identity: Path,
        tell: Callable[[str], None],
        clock: Callable[[], datetime],
    ) -> None:
        """Take over the listeners, which do not block; raises as load_material does."""
        self._listeners, self._enroller, self._identity = listeners, enroller, identity
        self._tell, self._clock = tell, clock
        self._material = load_material(identity, clock())
        self._clients = Clients(time.monotonic)
        self._tally = Tally(tell, clock)
        self._wakeup, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._is_stopping = False
        self._is_reload_asked = False
        self._is_checking = False

    def serve(self) -> None:
        """Answer until ``stop``; checks at the start, each hour, and when ``reload`` says so, beside that."""
        poll = select.poll()
        for one in (*self._listeners, self._wakeup):
            poll.register(one, select.POLLIN)
        by_fd = {listener.fileno(): listener for listener in self._listeners}
        checked, checker = -CHECK_EVERY_S, threading.Thread()
        while not self._is_stopping:
            is_due = self._is_reload_asked or time.monotonic() - checked >= CHECK_EVERY_S
            if is_due and not self._is_checking:
                checker, checked = self._start_check(), time.monotonic()
            for fd, _ in poll.poll(CHECK_EVERY_S * 1000):
                if fd in by_fd:
                    self._accept(by_fd[fd])
                else:
                    self._wakeup.recv(_WAKE_BYTES)
        for listener in self._listeners:
            listener.close()
        if not self._clients.wait_until_none(_STOP_DEADLINE_S):
            self._tell("stopped: some connections end with the process")
        if checker.is_alive():
            checker.join(_STOP_DEADLINE_S)
        self._look_for_loss()
        self._tally.summarise()
        self._wakeup.close()
        self._waker.close()

    def stop(self) -> None:
        """End ``serve``; for signal handlers and other threads."""
        self._is_stopping = True
        self._wake()

    def reload(self) -> None:
        """Have ``serve`` check now, and so take a renewed certificate; for signal handlers and other threads."""
        self._is_reload_asked = True
        self._wake()

    def check(self) -> None:
        """Take a renewed certificate, look for what was lost, sign what CRLs are due, say what was counted and what ends soon."""
        is_asked, self._is_reload_asked = self._is_reload_asked, False
        self._tally.summarise()
        # Before the CRLs, for which a lock may have to be waited for.
        self._take_material(is_asked=is_asked)
        self._look_for_loss()
        try:
            for crl in self._enroller.sign_crls():
                until = f"{crl.next_update:%Y-%m-%d}"
                self._tell(f"signed CRL {crl.number} of the {crl.authority}, {crl.revoked} revoked, valid until {until}")
        except (SecurecoreError, OSError) as error:
            self._tell(f"no CRL could be signed: {_words(error)}")
        days = (self._material.own.not_after - self._clock()).days
        if days < _WARN_DAYS:
            self._tell(f"the enroller's certificate expires in {days} days")

    def _take_material(self, *, is_asked: bool) -> None:
        """Load the identity into a context of its own, for connections from now on; bad material leaves what was there."""
        try:
            loaded = load_material(self._identity, self._clock())
        except (SecurecoreError, OSError) as error:
            self._tell(f"{self._identity} is not taken, what was loaded before stays: {_words(error)}")
            return
        is_new = loaded.leaf_der != self._material.leaf_der
        self._material = loaded
        if is_new or is_asked:
            self._tell(f"loaded certificate {loaded.own.serial:x}, valid until {loaded.own.not_after:%Y-%m-%d}")

    def _look_for_loss(self) -> None:
        """Say when an older copy of the PKI was put back, from which nobody is certified."""
        try:
            lost = self._enroller.find_lost()
        except (SecurecoreError, OSError) as error:
            self._tell(f"whether the PKI is an older copy can't be found out: {_words(error)}")
            return
        if lost is not None:
            self._tell(f"nobody is certified: {lost}; {AFTER_A_RESTORE}")

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # It has been woken already, or is closed.

    def _check_and_wake(self) -> None:
        """Check, and have ``serve`` look whether it was asked to again meanwhile."""
        try:
            self.check()
        finally:
            self._is_checking = False
            self._wake()

    def _start_check(self) -> threading.Thread:
        """Check in a thread: it waits for the PKI's lock, and for disks, and neither who comes nor ``stop`` should."""
        checker = threading.Thread(target=self._check_and_wake, daemon=True)
        self._is_checking = True
        try:
            checker.start()
        except RuntimeError as error:  # no memory or no process left for another thread
            self._is_checking = False
            self._tell(f"no check at present, the next is in an hour: {error}")
        return checker

    def _accept(self, listener: socket.socket) -> None:
        try:
            plain, where = listener.accept()
        except OSError as error:
            # Out of descriptors or memory: the connection stays in the backlog, and the loop must not spin on it.
            self._tally.refused("fault", f"accept failed: {error.strerror}", THIS_MACHINE)
            time.sleep(0.1)
            return
        client = self._clients.enter(where)
        if client is None:
            self._tally.refused("too-many", f"hung up on {_written(where)}: too many connections at once", stranger_at(where))
            plain.close()
            return
        try:
            threading.Thread(target=self._serve, args=(plain, client, _written(where)), daemon=True).start()
        except RuntimeError as error:  # no memory or no process left for another thread
            self._tally.refused("fault", f"hung up on {_written(where)}: {error}", THIS_MACHINE)
            plain.close()
            self._clients.leave(client)

    def _serve(self, plain: socket.socket, client: Client, peer: str) -> None:
        material = self._material
        try:
            with tls.secure(material.context, plain, deadline_s=REQUEST_DEADLINE_S, peer=_CLIENT, alpn=ALPN) as secured:
                data = self._answer(secured, client, peer, material.leaf_der)
                channel.send(secured, data, ANSWER_DEADLINE_S + len(data) / ANSWER_RATE_BYTES_PER_S)
        except (OSError, UnreachableError, PeerError) as error:
            self._tally.refused("failed", f"failed peer={peer} error={_words(error)!a}", stranger(client))
        finally:
            plain.close()
            self._clients.leave(client)

    def _answer(self, secured: ssl.SSLSocket, client: Client, peer: str, server_der: bytes) -> bytes:
        """Return the line that answers a client's; raises OSError, UnreachableError when there is nobody to answer."""
        op = "-"
        try:
            line = channel.read_line(secured, MAX_LINE_BYTES, REQUEST_DEADLINE_S, _CLIENT)
            if client.comes_too_often:
                raise Denied("busy", "too many connections from this address within a minute", retry_after_s=60)
            request = parse_request(line)
            op = request.op
            done = self._enroller.answer(request, secured.getpeercert(binary_form=True), server_der)
            if done.issued:
                self._tally.issued(f"{op} peer={peer} {done.issued}")
            else:
                self._tally.count(op)
            return done.line
        except Denied as denied:
            who, cause = ("", stranger(client)) if denied.host is None else (f" host={denied.host}", host(denied.host))
            told = f"refused op={op} peer={peer}{who} code={denied.code} words={denied.message!a}"
            self._tally.refused(denied.code, told, cause)
            return encode_denial(denied)
        except UnreachableError:
            raise
        except PeerError as error:
            told = f"refused op={op} peer={peer} code=bad-request words={error.message!a}"
            self._tally.refused("bad-request", told, stranger(client))
            return encode_denial(Denied("bad-request", error.message))
        except SecurecoreError as error:
            self._tally.refused("unavailable", f"fault op={op} peer={peer} error={error.message!a}", THIS_MACHINE)
            words = "the enroller can't do this at present; its log says why"
            return encode_denial(Denied("unavailable", words, retry_after_s=600))


def _written(where: tuple[Any, ...]) -> str:
    return f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"


def _words(error: SecurecoreError | OSError) -> str:
    return error.message if isinstance(error, SecurecoreError) else one_line(error)
