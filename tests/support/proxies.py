"""A TCP proxy that fails in a chosen way: the network between a sender and a receiver."""

import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from securecore.names import Address


class Cut(NamedTuple):
    """Where and how the connection ends: after so many bytes in one direction."""

    after_bytes: int
    from_sender: bool
    is_reset: bool = False
    """RST instead of FIN."""


NEVER = Cut(1 << 62, True)
"""A connection that is passed to its own end."""


class CuttingProxy:
    """Passes bytes both ways until the cut, *chunk* at a time; only the first connection is cut."""

    def __init__(self, target: Address, cut: Cut, chunk: int = 65536) -> None:
        self._target = target
        self._cut: Cut | None = cut
        self._chunk = chunk
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Accepted sockets inherit it: the kernel then takes little more than one chunk from a sender before it has to wait.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, chunk)
        self.address = Address(f"127.0.0.1:{self._listener.getsockname()[1]}")
        self._threads: list[threading.Thread] = []
        self.was_cut = False

    def serve(self) -> None:
        """Accept until the listener is closed."""
        while True:
            try:
                sender, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._pass, args=(sender, self._cut))
            self._cut = None
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Stop accepting and wait for what is under way."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _pass(self, sender: socket.socket, cut: Cut | None) -> None:
        receiver = socket.create_connection((self._target.host, self._target.port))
        passed = {sender: 0, receiver: 0}
        with sender, receiver:
            while True:
                for source in select.select([sender, receiver], [], [])[0]:
                    try:
                        data = source.recv(self._chunk)
                    except OSError:
                        return
                    if cut is not None and (source is sender) == cut.from_sender:
                        data = data[: cut.after_bytes - passed[source]]
                    target = receiver if source is sender else sender
                    try:
                        target.sendall(data)
                    except OSError:
                        return
                    passed[source] += len(data)
                    is_over = cut is not None and (source is sender) == cut.from_sender and passed[source] >= cut.after_bytes
                    if is_over and cut is not None and cut.is_reset:
                        for end in (sender, receiver):
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    if is_over or not data:
                        self.was_cut = is_over
                        return


@contextmanager
def cutting(target: Address, cut: Cut, chunk: int = 65536) -> Iterator[CuttingProxy]:
    """Run a proxy while the block runs."""
    proxy = CuttingProxy(target, cut, chunk)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
