"""A receiver that says what a test wants it to say, over real TLS with a real receiver's identity, to a real sender."""

import ctypes
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from securecore import limits, tls
from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.entry import Value, parse_entry, received_entry
from securecore.audit.entry import encode as encode_entry
from securecore.audit.proof import TlogProof
from securecore.certs import jws
from securecore.certs.identity_directory import load_log_key
from securecore.dump.manifest import parse_manifest
from securecore.merkle import EMPTY_ROOT, leaf_hash
from securecore.names import Address, HostName, StoreId
from securecore.wire.messages import Accept, Data, End, Message, Open, Ready, Receipt, Rest, Zero, encode
from securecore.wire.states import State
from tests.support.certificates import RECEIVER_NAME
from tests.support.dumps import NOW
from tests.support.hands import PATIENCE_S, first_message

_SO_ATTACH_FILTER: Final = 26
"""Of asm-generic/socket.h, which Python's socket module has no name for."""

STORE: Final = StoreId.make(bytes(16))


class Peer:
    """The scripted end of one connection."""

    def __init__(self, secured: socket.socket, leaving: threading.Event) -> None:
        self.socket = secured
        self._leaving = leaving
        self._heard = bytearray()
        self.opened: Open | None = None
        self.frames = 0
        self.manifest = b""
        self.dripped = 0
        self.before_end: Callable[[], None] = lambda: None
        """Called before the end of the core is waited for: a test that holds its source back lets it go on."""

    def say(self, *said: Message | bytes) -> None:
        """Send messages, or any bytes, each in TLS records of its own."""
        for one in said:
            self.socket.sendall(one if isinstance(one, bytes) else encode(one))

    def hear(self) -> Message:
        """Return the sender's next message, and remember what it tells of the dump; raises EOFError when the sender has gone."""
        while (whole := first_message(self._heard)) is None:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._heard += data
        message, length = whole
        del self._heard[:length]
        if isinstance(message, Open):
            self.opened = message
        elif isinstance(message, (Data, Rest, Zero)):
            self.frames += message.pieces if isinstance(message, Zero) else 1
        elif isinstance(message, End):
            self.manifest = message.manifest
        return message

    def hear_end(self) -> bytes:
        """Take frames until the manifest comes, and return it."""
        self.before_end()
        while not isinstance(message := self.hear(), End):
            pass
        return message.manifest

    def reach(self, state: State) -> None:
        """Talk as an honest receiver does until the sender stands in *state*; STREAMING is after its first frame."""
        if state is State.GREETING:
            return
        self.say(Ready(STORE, 1 << 24))
        if state is State.IDLE:
            return
        self.hear()
        if state is State.OPENING:
            return
        self.say(Accept(0, EMPTY_ROOT))
        self.hear()
        if state is State.ENDING:
            self.hear_end()

    def stay(self) -> None:
        """Say nothing more until the sender has gone; what it sends is read and thrown away."""
        while self.socket.recv(65536):
            pass

    def go_dark(self, *said: Message) -> None:
        """Be cut off by the network until the test has what it wants: nothing that is sent to us arrives, and nobody is told.

        *said* still goes out.
        """
        # A socket filter of one instruction, BPF_RET with 0 bytes to keep (linux/filter.h), drops packets before TCP sees them.
        nothing = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
        program = struct.pack("@HP", 1, ctypes.addressof(nothing))
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        self.say(*said)
        self.wait_unread()
        self.reset()

    def wait_unread(self) -> None:
        """Read nothing and say nothing until the test has what it wants."""
        self._leaving.wait(PATIENCE_S)

    def drip(self, said: Sequence[Message | bytes], every_s: float, *, until: int = select.POLLIN) -> None:
        """Send *said* one by one, waiting before each, and count them in ``dripped``, until the sender says something or goes.

        With *until* POLLRDHUP only its going ends it; a sender that was reset ends the script.
        """
        poll = select.poll()
        poll.register(self.socket, until)
        for one in said:
            if poll.poll(every_s * 1000):
                return
            self.say(one)
            self.dripped += 1

    def reset(self) -> None:
        """End the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Script = Callable[[Peer], None]


class Scripted:
    """A listener that plays one script on every connection."""

    def __init__(self, identity: Path, script: Script) -> None:
        self._context = tls.receiver_context(str(identity))
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.connections = 0
        self.leaving = threading.Event()

    def serve(self) -> None:
        """Accept until the listener is closed, one connection after the other."""
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                with tls.secure(self._context, plain, deadline_s=PATIENCE_S) as secured:
                    self._play(Peer(secured, self.leaving))
            except (OSError, EOFError):
                pass  # The sender has gone, as it may at any time.

    def _play(self, peer: Peer) -> None:
        """Play the script, then end our direction and let the sender go first, so that no word of the script is lost in a reset."""
        peer.socket.settimeout(PATIENCE_S)
        self._script(peer)
        if peer.socket.fileno() >= 0:
            socket.socket.shutdown(peer.socket, socket.SHUT_WR)
            while socket.socket.recv(peer.socket, 65536):
                pass

    def close(self) -> None:
        """Stop accepting, and let a script that waits for it end."""
        self.leaving.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def scripted_receiver(identity: Path, script: Script) -> Iterator[Scripted]:
    """Run a scripted receiver while the block runs."""
    scripted = Scripted(identity, script)
    thread = threading.Thread(target=scripted.serve)
    thread.start()
    try:
        yield scripted
    finally:
        scripted.close()
        thread.join()


def forge_receipt(
    identity: Path, manifest: bytes, *, signer: LogSigner | None = None, origin_host: HostName | None = None, **changes: Value
) -> Receipt:
    """Return the receipt that the receiver of *identity* would give for *manifest*, with *changes* to the entry.

    The entry is the only one of its log, which is signed with the receiver's own log key or by *signer*.
    """
    key, statement = load_log_key(identity)
    name = f"{RECEIVER_NAME}/securecore"
    stated = parse_manifest(jws.parse(manifest, limits.MAX_MANIFEST_BYTES).payload)
    honest = parse_entry(received_entry(NOW, stated, manifest, stored_bytes=1, certificate="00" * 32))
    line = encode_entry(honest | changes)
    checkpoint = (signer or LogSigner(name, key)).sign(origin_of(name, origin_host or stated.host), 1, leaf_hash(line))
    return Receipt(TlogProof(0, (), checkpoint, line).encode(), statement)
