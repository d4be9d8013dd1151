"""A sender that says what a test wants it to say, to a real receiver."""

import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from securecore import limits
from securecore.certs import jws
from securecore.certs.chain import load_pem_certificates
from securecore.dump.compression import Compressor
from securecore.dump.manifest import MANIFEST_TYP, parse_manifest
from securecore.errors import UnreachableError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import Address, DumpId, StoreId
from securecore.sender import evidence
from securecore.sender.delivery import Delivery, connect
from securecore.sender.patience import Wait
from securecore.sender.spool_entry import EntryEnd
from securecore.wire import messages
from securecore.wire.messages import Accept, Message, Open, Receipt, Refuse
from tests.support.receivers import papers_of

REPORT = b'{"program":"crasher"}'
PATIENCE_S = 20.0
"""How long a test waits for what takes milliseconds, before it calls it missing."""


def first_message(data: bytes | bytearray) -> tuple[Message, int] | None:
    """Return the message that *data* begins with and its length in bytes; None while it is not whole."""
    if len(data) < messages.HEADER_BYTES:
        return None
    kind, length = messages.decode_header(data)
    end = messages.HEADER_BYTES + length
    return (messages.decode_body(kind, bytes(data[messages.HEADER_BYTES : end])), end) if len(data) >= end else None


class Hand:
    """A sender whose messages the test chooses."""

    def __init__(self, identity: Path, receivers: Sequence[Address], receive_buffer: int | None = None) -> None:
        self.papers = papers_of(identity)
        self.delivery: Delivery = connect(receivers, self.papers.context)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.tree = Frontier()
        self._heard = bytearray()
        self.size = 0
        self.stored_bytes = 0
        self.acknowledged = 0
        """Frames that the receiver has said are durable."""

    def open(self, dump: DumpId, report: bytes = REPORT) -> Accept | Receipt:
        """Open a dump and take over what the receiver says that it holds."""
        answer = self.delivery.open(Open(dump, report, None), self._note_ack)
        assert isinstance(answer, (Accept, Receipt))
        return answer

    def send(self, piece: bytes) -> None:
        """Send one piece as a frame."""
        frame = Compressor().frame(piece)
        self._heard_out(lambda: self.delivery.send_frame(frame))
        self.tree.append(leaf_hash(frame))
        self.size += len(piece)
        self.stored_bytes += len(frame)

    def wait_until_acknowledged(self) -> None:
        """Wait for the first acknowledgement, which may have come while the last frame was sent."""
        while not self.acknowledged:
            self.delivery.wait_for_ack(Wait(20))

    def say(self, message: Message) -> None:
        """Send any message past our own state table, and read the answer."""
        self._heard_out(lambda: self.delivery._send(messages.encode(message), Wait(10)))
        self.delivery._receive(Wait(10))

    def _heard_out(self, send: Callable[[], None]) -> None:
        """Send, and raise what the receiver says where it ends the wire meanwhile."""
        try:
            send()
        except UnreachableError as error:
            if (words := self.delivery.last_words()) is not None:
                raise words from error
            raise

    def put(self, data: bytes) -> None:
        """Send any bytes inside TLS; a receiver that has gone meanwhile is no error here."""
        self.socket.settimeout(PATIENCE_S)
        try:
            self.socket.sendall(data)
        except OSError:
            pass  # What it said before it went is still to be read.

    def answer(self) -> Message | None:
        """Return the receiver's next message, whatever our own state table thinks of it; None when it has closed."""
        self.socket.settimeout(PATIENCE_S)
        while (whole := first_message(self._heard)) is None:
            try:
                data = self.socket.recv(65536)
            except OSError:
                return None
            if not data:
                return None
            self._heard += data
        message, length = whole
        del self._heard[:length]
        return message

    def refusal(self) -> Refuse:
        """Return the REFUSE that the receiver ends the connection with, acknowledgements before it passed over."""
        while not isinstance(message := self.answer(), Refuse):
            assert message is not None, "closed without a word"
        assert self.answer() is None
        return message

    @property
    def socket(self) -> socket.socket:
        """The TLS socket, to be hurt below the protocol."""
        return self.delivery._socket

    def reset(self) -> None:
        """End the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.delivery.close()

    def end_writing(self) -> None:
        """Send FIN below TLS and keep reading."""
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def send_and_wait(self, frame: bytes) -> None:
        """Send any bytes as a frame and wait for what the receiver says to it."""
        self._heard_out(lambda: self.delivery.send_frame(frame))
        self.delivery.wait_for_ack(Wait(10))

    def manifest(self, dump: DumpId, *, store: StoreId | None = None, report: bytes = REPORT, **changes: object) -> bytes:
        """Return a signed manifest for what was sent, with *changes* to how the source ended."""
        end = EntryEnd(self.size, None, "complete", 1)._replace(**changes)  # type: ignore[arg-type]
        where = store or self.delivery.store
        return evidence.sign_manifest(self.papers.credentials, dump, where, end, self.tree, report, 1)

    def forged_manifest(self, dump: DumpId, **changes: object) -> bytes:
        """Return a manifest whose fields our own sender would not lie in, with the session's own good signature."""
        good = parse_manifest(jws.parse(self.manifest(dump), limits.MAX_MANIFEST_BYTES).payload)
        chain_der = [part.public_bytes(Encoding.DER) for part in load_pem_certificates(self.papers.credentials.certificate)]
        payload = good._replace(**changes).encode()  # type: ignore[arg-type]
        return jws.sign(payload, self.papers.credentials.key, chain_der, MANIFEST_TYP)

    def close(self) -> None:
        """End the connection without a word."""
        self.delivery.close()

    def _note_ack(self, frames: int) -> None:
        self.acknowledged = frames
