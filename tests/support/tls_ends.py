"""Two ends of a TLS connection, ours or strangers', that meet and say how it ended."""

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from securecore import tls
from securecore.certs.profiles import HOST, RECEIVER
from securecore.errors import SecurecoreError
from tests.support.certificates import RECEIVER_NAME, Hierarchy, Made, mint
from tests.support.identities import write_identity

Act = Callable[[ssl.SSLSocket], object]

NOW = datetime.now(UTC)
DEADLINE_S = 10.0


@dataclass
class Side:
    """One end of a connection: how it does its handshake, what it does then, and how that went."""

    context: ssl.SSLContext
    act: Act = lambda secured: None
    name: str | None = None
    result: object = None
    failure: Exception | None = None
    secure: Callable[..., ssl.SSLSocket] = field(default=tls.secure)

    def run(self, plain: socket.socket) -> None:
        """Do the handshake, act, close."""
        try:
            with plain, self.secure(self.context, plain, server_name=self.name, deadline_s=DEADLINE_S) as secured:
                self.result = self.act(secured)
        except (OSError, SecurecoreError) as error:
            self.failure = error


def meet(client: Side, server: Side) -> None:
    """Have two ends meet on loopback; both have ended when this returns."""
    client.name = client.name or RECEIVER_NAME
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = socket.create_connection(listener.getsockname())
        thread = threading.Thread(target=lambda: server.run(listener.accept()[0]))
        thread.start()
        client.run(plain)
        thread.join()


def wrap(context: ssl.SSLContext, plain: socket.socket, *, server_name: str | None, deadline_s: float) -> ssl.SSLSocket:
    """Stand in for tls.secure at an end that is not ours: asks for no protocol."""
    plain.settimeout(deadline_s)
    return context.wrap_socket(plain, server_side=server_name is None, server_hostname=server_name)


def read(secured: ssl.SSLSocket) -> bytes:
    """Wait for what the other end says."""
    return secured.recv(100)


def greet(secured: ssl.SSLSocket) -> None:
    """Say something, and wait for the other end to hang up."""
    secured.sendall(b"hello")
    secured.recv(100)


@dataclass
class World:
    """Identities of any kind under one root."""

    directory: Path
    hierarchy: Hierarchy
    count: int = 0

    def identity(self, made: Made) -> str:
        """Return an identity directory with that certificate, which trusts the root."""
        self.count += 1
        return str(write_identity(self.directory / str(self.count), made, self.hierarchy.root.pem))

    def sender(self, made: Made | None = None) -> ssl.SSLContext:
        """Return the sender's context, with a good certificate or another."""
        return tls.sender_context(self.identity(made or mint(HOST, issuer=self.hierarchy.hosts)))

    def receiver(self, made: Made | None = None) -> ssl.SSLContext:
        """Return the receiver's context, with a good certificate or another."""
        return tls.receiver_context(self.identity(made or mint(RECEIVER, issuer=self.hierarchy.receivers, ips=["127.0.0.1"])))

    def stranger(self, protocol: int, made: Made | None, *, alpn: str | None = tls.ALPN) -> ssl.SSLContext:
        """Return a context that is not ours: as much of it is set as is said here."""
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if made is not None:
            directory = self.identity(made)
            context.load_cert_chain(f"{directory}/cert.pem", f"{directory}/key.pem")
            context.load_verify_locations(f"{directory}/ca.pem")
        if alpn is not None:
            context.set_alpn_protocols([alpn])
        return context

    def strange_client(self, *, alpn: str | None = tls.ALPN, anonymous: bool = False) -> ssl.SSLContext:
        """Return the context of another program, with a host's certificate or without any."""
        made = None if anonymous else mint(HOST, issuer=self.hierarchy.hosts)
        return self.stranger(ssl.PROTOCOL_TLS_CLIENT, made, alpn=alpn)

    def strange_server(self, *, alpn: str | None = tls.ALPN) -> ssl.SSLContext:
        """Return the context of another program that has come by a receiver's certificate."""
        return self.stranger(ssl.PROTOCOL_TLS_SERVER, mint(RECEIVER, issuer=self.hierarchy.receivers), alpn=alpn)


def failure_of(side: Side) -> SecurecoreError:
    """Return what our words are for how an end failed."""
    if isinstance(side.failure, OSError):
        return tls.explain(side.failure, "peer:1")
    assert isinstance(side.failure, SecurecoreError)
    return side.failure


def told(error: SecurecoreError) -> tuple[type[SecurecoreError], str]:
    """Return class and words of an error."""
    return type(error), error.message
