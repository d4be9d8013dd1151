"""Who listens where a receiver should, and remembers every byte that a sender was willing to say."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from securecore import limits, tls
from securecore.names import Address
from securecore.wire import messages
from securecore.wire.messages import Ready
from tests.support.wire import STORE

GREETING = messages.encode(Ready(STORE, limits.MAX_FRAMES))
"""What a receiver says first."""


class Impostor:
    """A listener that serves one connection: a handshake, if it has a context, a greeting, and a long ear."""

    def __init__(self, context: ssl.SSLContext | None, greeting: bytes) -> None:
        self._context = context
        self._greeting = greeting
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.heard = b""
        """What the sender has said inside TLS; without a context, all that it has said."""
        self.failure: OSError | None = None
        """Why the handshake or the connection ended badly, as this end learned it."""

    def serve(self) -> None:
        """Serve the one connection to its end."""
        try:
            with self._listener, self._listener.accept()[0] as plain:
                plain.settimeout(10)
                peer = plain if self._context is None else self._context.wrap_socket(plain, server_side=True)
                with peer:
                    peer.sendall(self._greeting)
                    while data := peer.recv(65536):
                        self.heard += data
        except OSError as error:
            self.failure = error

    def hang_up(self) -> None:
        """End the wait for a connection that never came."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def listening(context: ssl.SSLContext | None, greeting: bytes = GREETING) -> Iterator[Impostor]:
    """Run an impostor while the block runs; what it has heard is whole once the block has ended."""
    impostor = Impostor(context, greeting)
    thread = threading.Thread(target=impostor.serve)
    thread.start()
    try:
        yield impostor
    finally:
        impostor.hang_up()
        thread.join()


def server_context(identity: Path | None, alpn: str | None = tls.ALPN) -> ssl.SSLContext:
    """Return the context of a server that is not ours: it shows what it has, asks whoever comes for a certificate and takes any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if identity is not None:
        context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
        context.load_verify_locations(identity / "ca.pem")
        context.verify_mode = ssl.CERT_OPTIONAL
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context
