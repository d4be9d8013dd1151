"""One connection after its TLS handshake: judge, greet, take dumps. The thread that runs it owns the socket."""

import logging
import math
import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Final

from securecore import limits
from securecore.certs.judge import Judgement
from securecore.certs.judge import Refusal as Untrusted
from securecore.dump.frames import ZERO_PIECE_FRAME, check_frame
from securecore.errors import SecurecoreError, StorageError, UnreachableError
from securecore.names import DumpId, HostName
from securecore.receiver.commit import check_signer, read_signed
from securecore.receiver.intake import let_go
from securecore.receiver.observer import Observer, quoted
from securecore.receiver.presence import Wakeup
from securecore.receiver.refusals import ON_RECORD, NotAdmitted, Rejection, refuse
from securecore.receiver.service import Service
from securecore.report import parse_report
from securecore.store.account import Amount
from securecore.store.writer import AlreadyStored, IncomingDump
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import (
    REST_FEATURE,
    Accept,
    Ack,
    Data,
    End,
    Gone,
    Kind,
    Message,
    Open,
    Ready,
    Receipt,
    Refusal,
    Rest,
    Zero,
)
from securecore.wire.states import End as WireEnd

_LINGER_BYTES: Final = 256 * limits.KIB
_LINGER_S: Final = 2.0
"""How long a refused peer may take to read why, while what it still sends is thrown away."""


class _Interrupted(Rejection):
    """Another thread wants this session to end."""


class _OverTime(_Interrupted, NotAdmitted):
    """The policy lets no connection last so long: it ends like an interrupted one, and is on record like a refused one."""


class Session:
    """One authenticated-to-be connection."""

    def __init__(
        self,
        secured: ssl.SSLSocket,
        peer: str,
        service: Service,
        observer: Observer,
        identify: Callable[[HostName], None],
        unknown: Callable[[str], None],
    ) -> None:
        """*identify* is told which host the peer is, before it hears READY, and raises what it is refused with.

        *unknown* takes the log's line about a peer that has not proved which host it is.
        """
        self._identify, self._unknown = identify, unknown
        self._socket = secured
        self._peer = peer
        self._service = service
        self._observer = observer
        self._connection = Connection(WireEnd.RECEIVER, lends_frames=True)
        self._dump: DumpId | None = None
        self._is_kept = False
        """Whether anything of the core of the dump that was opened last stays here."""
        self._interruption: _Interrupted | None = None
        self._wakeup = Wakeup()
        self._poll = select.poll()
        self._poll.register(secured, select.POLLIN)
        self._poll.register(self._wakeup.fd, select.POLLIN)
        self._cut: OSError | None = None
        """What has ended the connection behind the bytes that were read last."""
        self._unsynced = 0
        """Bytes of frames that are not acknowledged."""
        self._ack_due = math.inf
        """When they must be, at the latest."""
        self._leaf = secured.getpeercert(binary_form=True) or b""
        self._most_s = service.policy.doors.session_s or math.inf
        self._began_at = time.monotonic()  # And as much later as we took to walk what was held.

    @property
    def is_idle(self) -> bool:
        """Whether no dump is under way, its receipt included: such a session may be interrupted without loss of work."""
        return self._dump is None

    def interrupt(self, code: Refusal, words: str) -> None:
        """Make the session's thread end the session at its next read, and tell the peer why; for other threads."""
        self._interruption = _Interrupted(code, words)
        self._wakeup.ring()

    def _supersede(self) -> None:
        self.interrupt(Refusal.SUPERSEDED, "a newer connection of this host has taken the dump over")

    def run(self) -> None:
        """Serve the connection to its end; every way that it can end is logged, none is raised."""
        host = None
        try:
            material, now = self._service.material, self._service.clock()
            judgement = material.judge_host(self._leaf, now)
            host = judgement.name
            material.revocation.check(judgement, now)
            self._service.admission.check_host(host)
            self._identify(host)
            self._send(Ready(self._service.store.store_id, limits.MAX_FRAMES, REST_FEATURE))
            self._observer.admitted(host, self._socket.version(), (self._socket.cipher() or ("",))[0], self._leaf)
            self._serve(judgement)
        except SecurecoreError as error:
            self._end_badly(error, host)
        finally:
            self._wakeup.close()
            self._socket.close()

    def _serve(self, judgement: Judgement) -> None:
        while (message := self._receive()) is not None:
            if isinstance(message, Open):
                self._dump, self._is_kept = message.dump, False
                service, of = self._service, (judgement.name, message.dump)
                with service.presence.claim(*of, self._supersede), service.admission.receiving(*of):
                    self._take_dump(message, judgement)

    def _take_dump(self, opening: Open, judgement: Judgement) -> None:
        host, started = judgement.name, time.monotonic()
        report = parse_report(opening.report)
        tell = partial(self._service.lines.tell, host)
        tell(logging.INFO, f"started host={host} dump={opening.dump} program={quoted(report.program)} peer={self._peer}")
        if (tombstone := self._service.committer.find_tombstone(host, opening.dump)) is not None:
            self._send(Gone(tombstone.words, tombstone.receipt, *self._log_key_of(tombstone.receipt)))
            self._dump = None
            tell(logging.INFO, f"gone host={host} dump={opening.dump}")
            return
        self._service.admission.check_opening(host, opening.dump, opening.predicted_size)
        try:
            dump = self._service.intake.open(host, opening.dump, opening.report, self._leaf, self._check_interruption)
        except AlreadyStored as stored:
            self._conclude(opening.dump, stored.receipt)
            tell(logging.INFO, f"complete host={host} dump={opening.dump} already=yes")
            return
        except _Interrupted:
            raise  # Whoever has taken it over opens it.
        except SecurecoreError:
            self._service.admission.not_opened(host, opening.dump)
            raise
        # To walk what is held is our work: it must not use up the time that a peer has to bring the rest.
        self._began_at += time.monotonic() - started
        try:
            if dump.has_manifest:
                receipt = self._service.committer.commit(dump)
            else:
                self._service.admission.opened(dump, opening.predicted_size)
                torn = dump.torn()
                self._send(Accept(dump.frames, dump.root, len(torn), sha256(torn).digest() if torn else b""))
                self._observer.opened(opening.dump, report.program, opening.predicted_size, dump)
                receipt = self._commit(self._take_frames(dump), dump, opening.report)
        except (UnreachableError, _Interrupted):
            # The sender may never come back: what is here is kept as far as it goes, acknowledged or not.
            if not dump.has_manifest:
                dump.sync()
                self._keep_partial_frame(dump)
            raise
        except (NotAdmitted, Untrusted):
            if dump.has_report:
                dump.sync()
            raise
        finally:
            self._is_kept = dump.durable_frames > 0 or dump.has_manifest
            let_go(dump)
        self._conclude(opening.dump, receipt)
        figures = f"size={dump.plain_bytes} stored={dump.stored_bytes} seconds={time.monotonic() - started:.3f}"
        tell(logging.INFO, f"complete host={host} dump={opening.dump} {figures}")

    def _take_frames(self, dump: IncomingDump) -> bytes:
        """Store frames until the manifest comes, and return it."""
        self._note_acknowledged()
        while True:
            message = self._receive(dump)
            if message is None:
                raise UnreachableError("connection ended before END")
            if isinstance(message, End):
                self._note_acknowledged()  # The receipt will say it of all frames.
                self._observer.ended(dump)
                return message.manifest
            if isinstance(message, Data):
                self._append(dump, message.frame)
            elif isinstance(message, Rest):
                self._append(dump, dump.torn() + message.rest)
            elif isinstance(message, Zero):
                stored = message.pieces * len(ZERO_PIECE_FRAME)
                self._check_growth(dump, Amount(stored, message.pieces * limits.PIECE_BYTES))
                dump.append_zero_pieces(message.pieces)
                self._note_stored(dump, stored)

    def _append(self, dump: IncomingDump, frame: bytes | memoryview) -> None:
        plain = check_frame(frame)
        self._check_growth(dump, Amount(len(frame), plain))
        dump.append(frame, plain)
        self._note_stored(dump, len(frame))

    def _check_growth(self, dump: IncomingDump, more: Amount) -> None:
        """Check that there is room for more of a dump; if not, acknowledge what is here, so that its sender keeps the rest only."""
        try:
            self._service.admission.check_growth(dump, more)
        except NotAdmitted:
            if self._unsynced:
                self._acknowledge(dump)
            raise

    def _keep_partial_frame(self, dump: IncomingDump) -> None:
        """Keep what has come of a frame that was cut in its middle, if the disk takes it: it might never come in one piece."""
        if (partial := self._connection.find_partial_frame()) is None:
            return
        kind, part = partial
        try:
            dump.keep_torn(dump.torn() + part if kind is Kind.REST else part)
        except StorageError as error:
            line = f"torn frame not kept dump={dump.dump_id} error={quoted(error.message)}"
            self._service.lines.tell(dump.host, logging.WARNING, line)

    def _note_stored(self, dump: IncomingDump, stored: int) -> None:
        """Acknowledge what was stored once it is enough, and see that it does not wait for long otherwise."""
        self._observer.grew(dump)
        if self._unsynced == 0:
            self._ack_due = time.monotonic() + limits.ACK_EVERY_S
        self._unsynced += stored
        if self._unsynced >= limits.ACK_EVERY_BYTES:
            self._acknowledge(dump)

    def _acknowledge(self, dump: IncomingDump) -> None:
        """Make everything that was stored durable, and say so."""
        dump.sync()
        self._note_acknowledged()
        self._send(Ack(dump.frames))
        self._observer.acknowledged(dump.frames)

    def _note_acknowledged(self) -> None:
        self._unsynced, self._ack_due = 0, math.inf

    def _commit(self, manifest: bytes, dump: IncomingDump, report: bytes) -> bytes:
        # A long transfer may outlive its certificate: it is judged again, by today's lists, those of receiver.toml included.
        material, now = self._service.material, self._service.clock()
        material.revocation.check(material.judge_host(self._leaf, now), now)
        self._service.admission.check_host(dump.host)
        signed = read_signed(manifest)
        check_signer(signed, material.identity.anchors, now)
        return self._service.committer.finish(dump, signed, report, self._leaf, material.crl)

    def _conclude(self, dump: DumpId, receipt: bytes) -> None:
        """Send the receipt; the dump is no longer under way."""
        self._send(Receipt(receipt, *self._log_key_of(receipt)))
        self._observer.receipted(dump)
        self._dump = None

    def _log_key_of(self, receipt: bytes) -> tuple[bytes, bytes]:
        """Return what goes with a receipt: the statement of the key that has signed it, and the successions."""
        material = self._service.material
        return material.statement_for(receipt, self._service.clock()), material.log_keys.successions

    def _send(self, message: Message) -> None:
        data = self._connection.send(message)
        self._socket.settimeout(limits.PROGRESS_DEADLINE_S + len(data) / limits.MIN_RATE_BYTES_PER_S)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise UnreachableError(f"connection was lost: {error.strerror or error}") from error
        finally:
            self._socket.settimeout(0)

    def _receive(self, dump: IncomingDump | None = None) -> Message | None:
        """Return the peer's next message, None when it ended the connection between two dumps.

        It has IDLE_DEADLINE_S to begin; from its first byte on it has as long again to become whole, however it trickles in, and
        what its length takes at MIN_RATE_BYTES_PER_S. Frames of *dump* that must be acknowledged meanwhile are.
        """
        begun_at = time.monotonic()
        has_begun = self._connection.holds_partial_message
        while (message := self._connection.next_message()) is NEED_DATA:
            self._wait_for_bytes(begun_at, dump)
            with self._service.turns:
                count = self._read()
            if count is None:
                continue
            if not count:
                if self._is_between_dumps:
                    return None
                raise UnreachableError("connection was ended by the peer")
            if not has_begun:
                begun_at, has_begun = time.monotonic(), True
        return message

    def _read(self) -> int | None:
        """Take in what has come, and return how many bytes, 0 at the connection's end, None while a TLS record is not whole.

        Never waits: READY was sent, and ``_send`` leaves the socket so, however it ends. A peer may die in the middle of a record,
        and others must be able to end this session all the same.
        """
        space, filled = self._connection.space(), 0
        is_rest = self._connection.find_begun() is not None
        try:
            if self._cut is not None:
                raise self._cut
            # Each call brings one record of 16 KiB at most (SSL_read(3)): to look at everything else between two of them would cost
            # as much as a record. But nothing is read behind a message: OpenSSL does not write once it has read that a wire was
            # cut, and a peer that has said END may still hear its receipt.
            while filled < len(space) and (count := self._socket.recv_into(space[filled:])):
                filled += count
                if not is_rest:
                    break
        except ssl.SSLWantReadError:
            if not filled:
                return None
        except OSError as error:
            if filled:
                self._cut = error  # What came before it comes first.
            elif not isinstance(error, ssl.SSLError):
                raise UnreachableError(f"connection was lost: {error.strerror or error}") from error
            elif not self._is_between_dumps:  # There senders close without a TLS farewell, and nothing can be lost by that.
                raise UnreachableError("connection was cut") from error
        self._connection.received(filled)
        return filled

    @property
    def _is_between_dumps(self) -> bool:
        return self._dump is None and not self._connection.holds_partial_message

    def _wait_for_bytes(self, begun_at: float, dump: IncomingDump | None) -> None:
        """Return when the peer has sent something; raises when it is silent for too long, or another thread ends the session."""
        deadline = begun_at + limits.IDLE_DEADLINE_S
        while not self._is_readable_within(min(deadline, self._ack_due if dump is not None else math.inf)):
            now = time.monotonic()
            if dump is not None and now >= self._ack_due:
                self._acknowledge(dump)
            elif now >= (deadline := begun_at + self._patience_s()):
                words = "message was not whole after" if self._connection.holds_partial_message else "peer was silent for"
                raise UnreachableError(f"{words} {self._patience_s():.0f} s")
        self._check_interruption()
        if time.monotonic() - self._began_at > self._most_s:
            raise _OverTime(Refusal.BUSY, f"a connection may last {self._most_s:.0f} s here; go on with a new one")

    def _check_interruption(self) -> None:
        if self._interruption is not None:
            raise self._interruption

    def _is_readable_within(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        return self._socket.pending() > 0 or bool(self._poll.poll(left * 1000))

    def _patience_s(self) -> float:
        """Return how long the peer has for the message that is under way, in seconds from when it began."""
        _, length = self._connection.find_begun() or (None, 0)
        return limits.IDLE_DEADLINE_S + length / limits.MIN_RATE_BYTES_PER_S

    def _end_badly(self, error: SecurecoreError, host: HostName | None) -> None:
        """Log why, tell the peer when it still listens, and put it on record where it is a refusal."""
        if host is None and isinstance(error, Untrusted):
            host = self._service.material.find_host(self._leaf, error)
        line = f"failed host={host or '-'} dump={self._dump or '-'} peer={self._peer} error={quoted(error.message)}"
        if host is not None:
            self._service.lines.tell(host, logging.WARNING, line)
        else:
            self._unknown(line)
        if isinstance(error, UnreachableError):
            return
        with suppress(SecurecoreError):
            self._send(refuse(error)._replace(kept=self._is_kept and self._dump is not None))
        if isinstance(error, ON_RECORD) and host is not None:
            self._service.refusals.note(host, self._dump, error)
        with suppress(OSError):
            self._linger()

    def _linger(self) -> None:
        """Wait for the peer to go: closing with unread data in the buffer would reset the connection, and our words with it."""
        socket.socket.shutdown(self._socket, socket.SHUT_WR)
        deadline, poll = time.monotonic() + _LINGER_S, select.poll()
        poll.register(self._socket, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
            # Below TLS: nothing that comes now is looked at.
            if not os.read(self._socket.fileno(), _LINGER_BYTES):
                break
