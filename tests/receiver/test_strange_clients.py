"""Clients that do not behave as ours do, at the door of a real receiver: other protocols, old TLS, no certificate, no patience."""

import random
import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore import limits, tls
from securecore.certs.profiles import HOST
from securecore.errors import UntrustedError
from securecore.sender.delivery import connect
from securecore.wire.connection import Connection
from securecore.wire.messages import Ready, Refusal, Refuse
from securecore.wire.states import End as WireEnd
from tests.support.certificates import make_hierarchy, mint
from tests.support.doors import Door, opened_door
from tests.support.identities import write_identity

DEADLINE_S: Final = 10.0


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """One receiver for the whole module: what a case does to it is what the next one finds."""
    with opened_door(tmp_path_factory.mktemp("door")) as opened:
        yield opened


def knock(door: Door, act: Callable[[socket.socket], object]) -> object:
    """Connect, act, close; return what was made of it, the error that ended it included."""
    with socket.create_connection((door.address.host, door.address.port), timeout=DEADLINE_S) as plain:
        try:
            return act(plain)
        except OSError as error:
            return error


# Those who speak no TLS.


def hear_out(plain: socket.socket) -> bytes:
    """Return all that the other end says before it hangs up, in whatever way."""
    heard = bytearray()
    with suppress(ConnectionResetError):
        while data := plain.recv(65536):
            heard += data
    return bytes(heard)


def saying(words: bytes) -> Callable[[socket.socket], bytes]:
    """Return what says these words and no more, and hears the receiver out."""

    def act(plain: socket.socket) -> bytes:
        with suppress(OSError):  # Who has heard enough may hang up before the end.
            plain.sendall(words)
            plain.shutdown(socket.SHUT_WR)
        return hear_out(plain)

    return act


def client_hello() -> bytes:
    """Return the first flight of an honest client."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([tls.ALPN])
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="collector").do_handshake()
    return outgoing.read()


GONE: Final = "client went away during the TLS handshake"
NO_TLS: Final = "client does not speak TLS"
HELLO: Final = client_hello()
PLAIN: Final = {
    "http": (b"GET / HTTP/1.1\r\nHost: collector\r\n\r\n", "client speaks plain HTTP and no TLS"),
    "proxy": (b"CONNECT collector:443 HTTP/1.1\r\n\r\n", "client speaks plain HTTP and no TLS"),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", NO_TLS),
    "a core": (b"\x7fELF\x02\x01\x01" + bytes(5000), NO_TLS),
    "zeroes": (bytes(300), NO_TLS),
    "noise": (b"\xff" * 3000, NO_TLS),
    "nothing": (b"", GONE),
    "half a hello": (HELLO[: len(HELLO) // 2], GONE),
    "a hello and no more": (HELLO, GONE),
    "a hello, then plain text": (HELLO + b"GET / HTTP/1.1\r\n\r\n", NO_TLS),
    "a hello twice": (HELLO + HELLO, "TLS handshake failed: [a-z0-9 ]+"),
    "an endless record": (b"\x16\x03\x01\xff\xff" + bytes(70_000), "TLS handshake failed: packet length too long"),
    "a hello of 16 MiB": (b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(16380), "TLS handshake failed: [a-z0-9 ]+"),
}


@pytest.mark.parametrize("case", PLAIN)
def test_who_speaks_no_tls_gets_nothing(case: str, door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Not a byte of ours but TLS's own, one line in the log with the reason, none of the client's bytes in it."""
    words, reason = PLAIN[case]

    heard = knock(door, saying(words))

    (line,) = door.lines(caplog)
    assert re.fullmatch(f"failed host=- peer=127.0.0.1 error='{reason}'", line)
    assert isinstance(heard, bytes)
    assert heard[:1] in (b"", b"\x15", b"\x16")  # an alert, or a ServerHello (RFC 8446 section 5.1)
    door.check_untouched()


def test_a_hello_that_is_cut_anywhere_gets_nothing(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Cut at every offset: one line for each, and the receiver goes on."""
    for length in range(len(HELLO)):
        knock(door, saying(HELLO[:length]))

    assert set(door.lines(caplog)) == {f"failed host=- peer=127.0.0.1 error='{GONE}'"}
    assert len(caplog.records) == len(range(len(HELLO)))
    door.check_untouched()


def test_a_hello_with_any_byte_changed_does_no_harm(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever OpenSSL makes of it, it is one line in the log, and nobody is let in."""
    chance = random.Random(1)
    for _ in range(40):
        changed = bytearray(HELLO)
        changed[chance.randrange(len(changed))] ^= chance.randrange(1, 256)
        knock(door, saying(bytes(changed)))

    lines = door.lines(caplog)
    assert len(lines) == 40
    assert [line for line in lines if not re.fullmatch("failed host=- peer=127.0.0.1 error='[a-zA-Z0-9.: ]+'", line)] == []
    door.check_untouched()


def test_a_reset_is_one_line(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """A port scanner leaves a trace and no more."""

    def reset(plain: socket.socket) -> None:
        plain.sendall(HELLO)
        plain.recv(1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    knock(door, reset)

    assert door.lines(caplog) == ["failed host=- peer=127.0.0.1 error='connection failed: Connection reset by peer'"]
    door.check_untouched()


@pytest.mark.parametrize("said", ["nothing", "half a hello", "a hello and no more"])
def test_who_stops_talking_is_hung_up_on(
    said: str, door: Door, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake has a deadline in all; no certificate, no patience."""
    monkeypatch.setattr(limits, "HANDSHAKE_DEADLINE_S", 0.1)

    def stall(plain: socket.socket) -> bytes:
        plain.sendall(PLAIN[said][0])
        return hear_out(plain)

    knock(door, stall)

    assert door.lines(caplog) == ["failed host=- peer=127.0.0.1 error='TLS handshake was not finished in time'"]
    monkeypatch.undo()
    door.check_untouched()


# Those who speak TLS in another way.


class Manner(NamedTuple):
    """A TLS client that is not ours: what is done to its context, what it hears, what the log says."""

    change: Callable[[ssl.SSLContext, Door], object]
    hears: str
    logged: str


def bare(context: ssl.SSLContext, door: Door) -> None:
    """Leave a context without a certificate."""


def with_host(change: Callable[[ssl.SSLContext], object]) -> Callable[[ssl.SSLContext, Door], object]:
    """Return what gives a context an honest host's certificate and then does *change*."""

    def make(context: ssl.SSLContext, door: Door) -> object:
        context.load_cert_chain(door.host / "cert.pem", door.host / "key.pem")
        return change(context)

    return make


def offering(*protocols: str) -> Callable[[ssl.SSLContext], object]:
    """Return what makes a context offer these protocols, or none."""
    return lambda context: context.set_alpn_protocols(list(protocols))


def no_newer_than(version: ssl.TLSVersion) -> Callable[[ssl.SSLContext], object]:
    """Return what makes a context stop at a version."""
    return lambda context: setattr(context, "maximum_version", version)


def proving_later(context: ssl.SSLContext, door: Door) -> None:
    """Have a context offer to show a certificate after the handshake (RFC 8446 section 4.6.2); it has one."""
    context.post_handshake_auth = True


WITHOUT_ALPN: Final = "the other end does not speak securecore/1"
MANNERS: Final = {
    "no certificate": Manner(bare, "TLSV13_ALERT_CERTIFICATE_REQUIRED", "client sent no certificate"),
    "a certificate later": Manner(proving_later, "TLSV13_ALERT_CERTIFICATE_REQUIRED", "client sent no certificate"),
    "TLS 1.2 only": Manner(
        with_host(no_newer_than(ssl.TLSVersion.TLSv1_2)), "TLSV1_ALERT_PROTOCOL_VERSION", "client does not speak TLS 1.3"
    ),
    "no ALPN": Manner(with_host(lambda context: None), "UNEXPECTED_EOF_WHILE_READING", WITHOUT_ALPN),
    "HTTP by ALPN": Manner(with_host(offering("h2", "http/1.1")), "UNEXPECTED_EOF_WHILE_READING", WITHOUT_ALPN),
    "a later version of ours": Manner(with_host(offering("securecore/2")), "UNEXPECTED_EOF_WHILE_READING", WITHOUT_ALPN),
    "our name in capitals": Manner(with_host(offering("SECURECORE/1")), "UNEXPECTED_EOF_WHILE_READING", WITHOUT_ALPN),
}
BY_DEFAULT: Final = {"no certificate", "a certificate later", "TLS 1.2 only"}
"""Those who offer our protocol all the same."""


def strange_context(door: Door) -> ssl.SSLContext:
    """Return a context that trusts anybody, as another program's might."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def secured(context: ssl.SSLContext, act: Callable[[ssl.SSLSocket], object]) -> Callable[[socket.socket], object]:
    """Return what does a handshake and then *act*."""

    def speak(plain: socket.socket) -> object:
        with context.wrap_socket(plain, suppress_ragged_eofs=False) as peer:
            return act(peer)

    return speak


@pytest.mark.parametrize("case", MANNERS)
def test_who_speaks_tls_in_another_way_gets_nothing(case: str, door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """No byte of ours reaches them, not even READY."""
    change, hears, logged = MANNERS[case]
    context = strange_context(door)
    if case in BY_DEFAULT:
        offering(tls.ALPN)(context)
    change(context, door)

    error = knock(door, secured(context, lambda peer: peer.recv(1)))

    assert isinstance(error, ssl.SSLError)
    assert error.reason == hears
    assert door.lines(caplog) == [f"failed host=- peer=127.0.0.1 error='{logged}'"]
    door.check_untouched()


def test_who_does_not_trust_the_receiver_says_so_in_its_log(door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sender of another fleet hangs up; the receiver's operator reads why."""
    made = mint(HOST, issuer=door.hierarchy.hosts)
    context = tls.sender_context(str(write_identity(tmp_path / "other", made, make_hierarchy(suffix=" of others").root.pem)))
    with pytest.raises(UntrustedError, match="does not lead to our root"):
        connect([door.address], context)

    assert door.lines(caplog) == ["failed host=- peer=127.0.0.1 error='client ended the TLS handshake with the alert unknown ca'"]
    door.check_untouched()


def test_our_protocol_among_others_is_enough(door: Door) -> None:
    """Who offers ours second is served: the control of the refusals above, by the same client."""
    context = strange_context(door)
    with_host(offering("h2", tls.ALPN))(context, door)

    greeting = knock(door, secured(context, first_message))

    assert isinstance(greeting, Ready)


def first_message(peer: ssl.SSLSocket) -> object:
    """Return the receiver's first message."""
    connection = Connection(WireEnd.SENDER)
    connection.receive(peer.recv(65536))
    return connection.next_message()


def test_a_leaf_without_its_issuer_is_enough(door: Door, tmp_path: Path) -> None:
    """The receiver's own ca.pem has the hosts CA: a host that shows its leaf alone is no stranger."""
    made = mint(HOST, issuer=door.hierarchy.hosts)
    identity = write_identity(tmp_path / "alone", made, door.hierarchy.root.pem)
    (identity / "cert.pem").write_bytes(made.pem)
    context = tls.sender_context(str(identity))
    context.check_hostname = False

    assert isinstance(knock(door, secured(context, first_message)), Ready)


def test_who_talks_without_listening_stores_nothing(door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A client that sends megabytes before it reads why it was refused: none of it is kept, and the reason is still there."""
    made = mint(HOST, issuer=door.hierarchy.hosts, omit=["extended_key_usage"])
    context = tls.sender_context(str(write_identity(tmp_path / "eager", made, door.hierarchy.root.pem)))
    context.check_hostname = False

    def talk(peer: ssl.SSLSocket) -> object:
        peer.sendall(bytes(4 * limits.MIB))
        return first_message(peer)

    refusal = knock(door, secured(context, talk))

    assert isinstance(refusal, Refuse)
    assert refusal.code == Refusal.WRONG_PURPOSE
    (line,) = door.lines(caplog)
    assert "does not say what it is for" in line
    door.check_untouched()
