"""A program that does one part of a sender's or a receiver's work alone, and prints the processor seconds that it took.

`parts.py compress CORE`, `parts.py digest FILE`, `parts.py write FILE TO`, `parts.py serve IDENTITY`, which prints its port first,
and `parts.py send FILE IDENTITY PORT`.
"""

import hashlib
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import zstandard

from securecore import tls

_MIB: Final = 1 << 20
_SERVER_NAME: Final = "collector.bench.example"


def compress(core: str) -> float:
    """Return what `zstd -1` of a whole file takes, as one frame, without the reading of it."""
    worker = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj(size=os.stat(core).st_size)
    return _timed(_pieces(core), worker.compress)


def digest(file: str) -> float:
    """Return what SHA-256 of a file takes, without the reading of it."""
    return _timed(_pieces(file), hashlib.sha256().update)


def write(file: str, to: str) -> float:
    """Return what it takes to write a file's bytes to another, durably."""
    fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        taken = _timed(_pieces(file), lambda piece: os.write(fd, piece))
        started = time.process_time()
        os.fsync(fd)
        return taken + time.process_time() - started
    finally:
        os.close(fd)


def serve(identity: str) -> float:
    """Return what it takes to receive over TLS what one client sends; the port is printed first."""
    context = tls.receiver_context(identity)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        plain, _ = listener.accept()
    with context.wrap_socket(plain, server_side=True) as secured:
        buffer, started = bytearray(_MIB), time.process_time()
        try:
            while secured.recv_into(buffer):
                pass
        except ssl.SSLEOFError:
            # The client is done; how it says so costs nothing that is measured here.
            pass
        return time.process_time() - started


def send(file: str, identity: str, port: str) -> float:
    """Return what it takes to send a file's bytes over TLS, without the reading of it."""
    context = tls.sender_context(identity)
    with (
        socket.create_connection(("127.0.0.1", int(port))) as plain,
        context.wrap_socket(plain, server_hostname=_SERVER_NAME) as secured,
    ):
        return _timed(_pieces(file), secured.sendall)


def _pieces(path: str) -> Iterator[memoryview]:
    buffer = bytearray(_MIB)
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            yield memoryview(buffer)[:got]


def _timed(pieces: Iterator[memoryview], work: Callable[[memoryview], object]) -> float:
    taken = 0.0
    for piece in pieces:
        started = time.process_time()
        work(piece)
        taken += time.process_time() - started
    return taken


_PARTS: Final[dict[str, Callable[..., float]]] = {
    "compress": compress, "digest": digest, "write": write, "serve": serve, "send": send
}  # fmt: skip

if __name__ == "__main__":
    print(_PARTS[sys.argv[1]](*sys.argv[2:]))
