"""Enrolment for tests: a PKI with an enroller, requests as a host makes them, and a server that runs while a block does."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from securecore import tls
from securecore.certs.chain import load_pem_certificates
from securecore.errors import SecurecoreError
from securecore.names import Address, HostName
from securecore.pki import channel
from securecore.pki.creation import create_pki
from securecore.pki.directory import PkiDirectory
from securecore.pki.enroller import Enroller
from securecore.pki.enrolment import ALPN, Request
from securecore.pki.issue import issue_enroller, parse_address
from securecore.pki.keys import make_key
from securecore.pki.ledger import Token
from securecore.pki.limits import MAX_ANSWER_BYTES
from securecore.pki.serving import Server
from securecore.pki.signing_request import make_request, request_der
from securecore.pki.tokens import Secret, make_mac, make_token, parse_token
from securecore.receiver.listeners import bound_address, listen
from tests.support.certificates import DOMAIN, ENROLLER_NAME, HOST_NAME, no_passphrase
from tests.support.processes import PATIENCE_S

HOUR: Final = timedelta(hours=1)


class Place:
    """A PKI with an enroller's identity, and a clock that a test turns; OpenSSL goes by the right one."""

    def __init__(self, directory: Path, *, ago: timedelta = timedelta()) -> None:
        self.directory = directory
        self.now = datetime.now(UTC).replace(microsecond=0) - ago
        self.pki: PkiDirectory = create_pki(directory / "pki", "Test", DOMAIN, None, self.now)
        self.identity = self.another_enroller("enroller")
        self.server_der = leaf_of(self.identity).public_bytes(Encoding.DER)
        self.told: list[str] = []

    @property
    def root_fingerprint(self) -> str:
        """The SHA-256 fingerprint of the root."""
        return str(self.pki.ledger.read().issued[self.pki.certificate("root-ca").serial_number].fingerprint)

    def another_enroller(self, name: str = "enroller-2") -> Path:
        """Return a new identity directory of an enroller at 127.0.0.1, from now on."""
        path, addresses = self.directory / name, [parse_address("127.0.0.1")]
        issue_enroller(self.pki, HostName(ENROLLER_NAME), addresses, path, no_passphrase, self.now)
        return path

    def take_keys_away(self) -> None:
        """Leave the hosts CA's key alone here."""
        for folder in ("root", "receivers"):
            (self.pki.path / folder / "key.pem").rename(self.directory / f"{folder}-key.pem")

    def enroller(self) -> Enroller:
        """Return a new enroller, as after a restart."""
        return Enroller(self.pki, no_passphrase, lambda: self.now)

    def token(self, name: str = HOST_NAME) -> tuple[Secret, Token]:
        """Return a new token for a host, for an hour."""
        text, made = make_token(self.pki, HostName(name), HOUR, self.now)
        return parse_token(text), made

    def token_text(self) -> str:
        """Return a new token for the usual host as a person is given it."""
        return make_token(self.pki, HostName(HOST_NAME), HOUR, self.now)[0]

    def hosts(self) -> list[str]:
        """Return the names of the hosts' certificates in the ledger, in order."""
        return [one.names[0] for one in self.pki.ledger.read().issued.values() if one.profile == "host"]

    @contextmanager
    def serving(self, identity: Path | None = None) -> Iterator[Address]:
        """Run a server on loopback, and stop it."""
        listeners = listen(Address("127.0.0.1:0"))
        server = Server(listeners, self.enroller(), identity or self.identity, self.told.append, lambda: self.now)
        address = bound_address(listeners[0])
        with running(server.serve, server.stop):
            yield address


@contextmanager
def running(serve: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Run something in a thread while the block runs, and have it ended."""
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(60)
        assert not thread.is_alive()


def csr() -> bytes:
    """Return a request for a new key, as DER."""
    return request_der(make_request(make_key()))


def asking(secret: Secret, csr_der: bytes, server_der: bytes, host: str | None = None) -> Request:
    """Return the request of a token's holder."""
    return Request("enroll", secret.id, csr_der, make_mac(secret.key, csr_der, server_der), host)


def leaf_of(identity: Path) -> x509.Certificate:
    """Return the leaf of an identity directory."""
    return load_pem_certificates((identity / "cert.pem").read_bytes())[0]


class Impostor:
    """Somebody in the enroller's place: shows an identity's certificate, keeps what it is told, and answers what a test wants."""

    def __init__(self, identity: Path, answer: Callable[[bytes], bytes]) -> None:
        self._context = tls.enroller_context(str(identity), ALPN)
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = bound_address(self._listener)
        self.heard: list[bytes] = []
        """The lines of those who went through with the handshake."""

    def serve(self) -> None:
        """Answer until ``stop``."""
        while True:
            plain, _ = self._listener.accept()
            try:
                with tls.secure(self._context, plain, deadline_s=PATIENCE_S, alpn=ALPN) as secured:
                    line = channel.read_line(secured, MAX_ANSWER_BYTES, PATIENCE_S, "the client")
                    self.heard.append(line)
                    channel.send(secured, self._answer(line), PATIENCE_S)
            except (OSError, SecurecoreError):
                pass
            finally:
                plain.close()
            if self._is_stopping:
                return

    _is_stopping = False

    def stop(self) -> None:
        """End ``serve``."""
        self._is_stopping = True
        socket.create_connection((self.address.host, self.address.port)).close()


@contextmanager
def impostor(identity: Path, answer: Callable[[bytes], bytes]) -> Iterator[Impostor]:
    """Run an impostor while the block runs."""
    made = Impostor(identity, answer)
    with running(made.serve, made.stop):
        yield made
    made._listener.close()


def talk(address: Address, data: bytes, *, identity: Path | None = None, ends: bool = True) -> bytes:
    """Say any bytes to an enroller, *ends* the connection's half then, and return all that it says until it hangs up."""
    context = tls.enrolment_context(ALPN, None, None if identity is None else str(identity))
    with channel.connect(address, context, PATIENCE_S) as secured:
        heard = b""
        try:
            secured.sendall(data)
            if ends:
                # Below TLS, as when a wire is cut.
                socket.socket.shutdown(secured, socket.SHUT_WR)
            while chunk := secured.recv(65536):
                heard += chunk
        except TimeoutError:
            raise
        except OSError:
            pass
    return heard


def answered(data: bytes) -> dict[str, object]:
    """Return what one line of an answer says."""
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    found = json.loads(data)
    assert isinstance(found, dict)
    return found


def contents(identity: Path) -> dict[str, bytes]:
    """Return the files of an identity directory."""
    return {path.name: path.read_bytes() for path in identity.iterdir()}
