"""What a receiver cannot do without, each alone: TLS, SHA-256, and the write to the disk."""

import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from securecore import limits, tls

_LEAST_FRAMES: Final = 128
"""Fewer take too little time to be measured."""


class Parts(NamedTuple):
    """Processor seconds for each byte of what a receiver cannot do without."""

    tls: float
    sha256: float
    write: float

    @property
    def all(self) -> float:
        """Their sum."""
        return sum(self)


def measure_parts(some: Sequence[bytes], host: Path, receiver: Path, directory: Path) -> Parts:
    """Return what it takes to receive over TLS, to hash, and to write and make durable, each alone in this process.

    *host* and *receiver* are identity directories; a file is made in *directory*, and removed.
    """
    frames = [*some] * max(1, _LEAST_FRAMES // len(some))
    total = sum(map(len, frames))
    hashing = _cpu_s(lambda: [sha256(frame).digest() for frame in frames])
    path = directory / "parts"
    with path.open("wb", buffering=0) as file:

        def write() -> None:
            unsynced = 0
            for frame in frames:
                file.write(frame)
                unsynced += len(frame)
                if unsynced >= limits.ACK_EVERY_BYTES:
                    os.fdatasync(file.fileno())
                    unsynced = 0
            os.fdatasync(file.fileno())

        writing = _cpu_s(write)
    path.unlink()
    return Parts(_receive_cpu_s(host, receiver, frames) / total, hashing / total, writing / total)


def _receive_cpu_s(host: Path, receiver: Path, frames: Sequence[bytes]) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = os.fork()
        if pid == 0:
            try:
                plain = socket.create_connection(listener.getsockname())
                with tls.secure(tls.sender_context(str(host)), plain, server_name="127.0.0.1", deadline_s=10) as wire:
                    for frame in frames:
                        wire.sendall(frame)
                    wire.shutdown(socket.SHUT_WR)
            finally:
                os._exit(0)
        plain, _ = listener.accept()
        with tls.secure(tls.receiver_context(str(receiver)), plain, deadline_s=10) as wire:
            buffer = bytearray(256 * limits.KIB)

            def receive() -> None:
                try:
                    while wire.recv_into(buffer):
                        pass
                except ssl.SSLError:
                    pass  # Its end without a farewell.

            took_s = _cpu_s(receive)
        os.waitpid(pid, 0)
    return took_s


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
