"""TLS programs that are not ours, as pipes: what docs/wire.md says must be enough for them."""

import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore import tls
from securecore.names import Address
from securecore.wire import messages
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import Message
from securecore.wire.states import End as WireEnd

PATIENCE_S: Final = 20.0
"""How long a test waits for what takes milliseconds, before it calls it missing."""


def needs(program: str) -> pytest.MarkDecorator:
    """Return the mark of a test that another program judges: skipped, visibly, where it is not installed."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


class Foreign:
    """A foreign program that carries bytes between its pipes and a TLS connection; *ours* is the end that it stands for."""

    def __init__(self, popen: subprocess.Popen[bytes], ours: WireEnd) -> None:
        assert popen.stdin is not None
        assert popen.stdout is not None
        self.popen, self._input, self._output = popen, popen.stdin, popen.stdout
        self._connection = Connection(ours)

    def say(self, message: Message) -> None:
        """Send one message."""
        self._connection.send(message)
        self.say_bytes(messages.encode(message))

    def say_bytes(self, data: bytes) -> None:
        """Send any bytes."""
        self._input.write(data)
        self._input.flush()

    def hear(self) -> Message:
        """Return the other end's next message."""
        while (message := self._connection.next_message()) is NEED_DATA:
            data = self.hear_bytes()
            assert data, f"ended with {self.popen.wait(PATIENCE_S)}"
            self._connection.receive(data)
        return message

    def hear_bytes(self) -> bytes:
        """Return what the other end says next, empty when it has ended; fails when nothing comes."""
        ready, _, _ = select.select([self._output], [], [], PATIENCE_S)
        assert ready, "silence"
        return os.read(self._output.fileno(), 65536)

    def await_words(self, words: bytes) -> None:
        """Wait until the program says *words* of itself; only of one that was run with a *stderr* to read."""
        assert self.popen.stderr is not None
        said, deadline = b"", time.monotonic() + PATIENCE_S
        while words not in said:
            ready, _, _ = select.select([self.popen.stderr], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"never said {words!r}: {said!r}"
            data = os.read(self.popen.stderr.fileno(), 65536)
            assert data, f"ended without {words!r}: {said!r}"
            said += data

    def hear_out(self) -> bytes:
        """Return all that the other end says until it ends."""
        heard = bytearray()
        while data := self.hear_bytes():
            heard += data
        return bytes(heard)


@contextmanager
def running(arguments: Sequence[str], ours: WireEnd, stderr: int = subprocess.DEVNULL) -> Iterator[Foreign]:
    """Run a foreign program while the block runs."""
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0) as popen:
        try:
            yield Foreign(popen, ours)
        finally:
            popen.kill()


class Client(NamedTuple):
    """What a client is told on its command line."""

    address: Address
    root: Path
    """Certificates that it trusts."""
    log: Path
    """Where to say what is not the other end's."""
    identity: Path | None = None
    """Whose certificate and chain it shows, if any."""
    alpn: str | None = tls.ALPN


def s_client(client: Client, *options: str) -> list[str]:
    """Return OpenSSL's client."""
    address, root, _log, identity, alpn = client
    arguments = ["openssl", "s_client", "-quiet", "-nocommands", "-verify_quiet", "-connect", str(address)]
    arguments += ["-CAfile", str(root), "-verify_return_error", "-verify_ip", address.host]
    if identity is not None:
        files = {"-cert": "cert.pem", "-key": "key.pem", "-cert_chain": "cert.pem"}
        arguments += [part for option, name in files.items() for part in (option, str(identity / name))]
    return [*arguments, *(["-alpn", alpn] if alpn else []), *options]


def gnutls_cli(client: Client, *options: str) -> list[str]:
    """Return GnuTLS's client."""
    address, root, log, identity, alpn = client
    arguments = ["gnutls-cli", "--logfile", str(log), "--x509cafile", str(root), "--port", str(address.port)]
    if identity is not None:
        arguments += ["--x509certfile", str(identity / "cert.pem"), "--x509keyfile", str(identity / "key.pem")]
    return [*arguments, *(["--alpn", alpn] if alpn else []), *options, address.host]


def s_server(root: Path, identity: Path, *options: str, alpn: str | None = tls.ALPN) -> list[str]:
    """Return OpenSSL's server for one connection on loopback, which demands a certificate that leads to *root*."""
    arguments = ["openssl", "s_server", "-quiet", "-accept", "127.0.0.1:0", "-naccept", "1", "-verify_quiet", "-Verify", "2"]
    files = {"-cert": "cert.pem", "-key": "key.pem", "-cert_chain": "cert.pem"}
    arguments += [part for option, name in files.items() for part in (option, str(identity / name))]
    return [*arguments, "-CAfile", str(root), "-verify_return_error", *(["-alpn", alpn] if alpn else []), *options]


def listening_at(pid: int) -> Address:
    """Wait until a process listens on a port of 127.0.0.1, and return that: OpenSSL's quiet server does not tell its own."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        inodes = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            # proc_net_tcp(5): 0100007F:PORT is the local address, 0A is LISTEN, the tenth column the inode.
            fields = line.split()
            if fields[3] == "0A" and fields[1].startswith("0100007F:") and f"socket:[{fields[9]}]" in inodes:
                return Address(f"127.0.0.1:{int(fields[1].partition(':')[2], 16)}")
        time.sleep(0.005)
    raise AssertionError(f"process {pid} does not listen")
