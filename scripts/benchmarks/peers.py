"""Receivers that speak just enough: one notes when the first payload byte comes, and hangs up or never reads again."""

import os
import socket
import ssl
import threading
import time
from pathlib import Path

from securecore import limits, tls
from securecore.errors import SecurecoreError
from securecore.merkle import EMPTY_ROOT
from securecore.names import Address, StoreId
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import Accept, Data, Open, Ready
from securecore.wire.states import End


class FirstByteServer:
    """Takes one connection at a time, each in a thread of its own."""

    def __init__(self, identity: Path) -> None:
        self._context = tls.receiver_context(str(identity))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.arrived: float | None = None
        """When the first payload byte of the last connection was here, by time.perf_counter()."""
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def expect(self, *, stall: bool) -> None:
        """Take the next connection; with *stall* keep it open, unread, until ``finish``."""
        self.arrived = None
        self._over.clear()
        self._thread = threading.Thread(target=self._serve, args=(stall,), daemon=True)
        self._thread.start()

    def finish(self, patience_s: float = 0) -> None:
        """Wait so long for the first payload byte, then hang up."""
        if self._thread is None:
            return
        self._thread.join(patience_s)
        self._over.set()
        self._thread.join(limits.HANDSHAKE_DEADLINE_S * 2)

    def close(self) -> None:
        """Hang up, and listen no more."""
        self._over.set()
        self._listener.close()

    def _serve(self, stall: bool) -> None:
        # Whoever waits sees that nothing has arrived; a thread has nobody else to tell.
        try:
            plain, _ = self._listener.accept()
            with tls.secure(self._context, plain, deadline_s=limits.HANDSHAKE_DEADLINE_S) as secured:
                self._take(secured)
                if stall:
                    self._over.wait()
        except (OSError, SecurecoreError):
            return

    def _take(self, secured: ssl.SSLSocket) -> None:
        connection = Connection(End.RECEIVER)
        secured.sendall(connection.send(Ready(StoreId.make(os.urandom(16)), limits.MAX_FRAMES)))
        while True:
            while (message := connection.next_message()) is NEED_DATA:
                connection.receive(secured.recv(65536))
                # Of a frame the first byte counts; the rest of it takes a few milliseconds more.
                if connection.find_partial_frame() is not None:
                    self.arrived = time.perf_counter()
                    return
            if isinstance(message, Open):
                secured.sendall(connection.send(Accept(0, EMPTY_ROOT)))
            if isinstance(message, Data):
                self.arrived = time.perf_counter()
                return
