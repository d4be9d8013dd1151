"""The TLS contexts against peers that do otherwise, over real connections, and the words for each way in which one fails."""

import os
import shutil
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from securecore import tls
from securecore.certs.profiles import HOST, RECEIVER, RECEIVERS_CA
from securecore.errors import (
    ClockError,
    ConfigError,
    PeerError,
    RefusedError,
    SecurecoreError,
    UnreachableError,
    UntrustedError,
)
from tests.support.certificates import RECEIVER_NAME, Fleet, Hierarchy, Made, make_hierarchy, mint
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


@pytest.fixture
def world(hierarchy: Hierarchy, tmp_path: Path) -> World:
    """Identities of the session's hierarchy."""
    return World(tmp_path, hierarchy)


def failure_of(side: Side) -> SecurecoreError:
    """Return what our words are for how an end failed."""
    if isinstance(side.failure, OSError):
        return tls.explain(side.failure, "peer:1")
    assert isinstance(side.failure, SecurecoreError)
    return side.failure


def told(error: SecurecoreError) -> tuple[type[SecurecoreError], str]:
    """Return class and words of an error."""
    return type(error), error.message


# What both ends insist on.


def test_two_of_ours_understand_each_other(world: World) -> None:
    """TLS 1.3, our protocol, and both have shown a certificate."""

    def facts(secured: ssl.SSLSocket) -> object:
        return secured.version(), secured.selected_alpn_protocol(), secured.getpeercert(True) is not None

    client, server = Side(world.sender(), facts), Side(world.receiver(), facts)

    meet(client, server)

    assert (client.failure, server.failure) == (None, None)
    assert client.result == server.result == ("TLSv1.3", "securecore/1", True)


def test_neither_end_speaks_an_older_tls(world: World) -> None:
    """A peer that stops at TLS 1.2 is turned away by both, and the sender says why."""
    old_client, old_server = world.strange_client(), world.strange_server()
    for context in (old_client, old_server):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    client, server = Side(world.sender()), Side(world.receiver())

    meet(Side(old_client, secure=wrap), server)
    meet(client, Side(old_server, secure=wrap))

    assert isinstance(server.failure, ssl.SSLError)
    assert told(failure_of(client)) == (PeerError, "peer:1 does not speak securecore/1 over TLS 1.3")


def test_a_client_gets_no_ticket_to_come_back_with(world: World) -> None:
    """A resumed session would skip the judgement of the certificate; the control is a server as OpenSSL makes it."""

    def has_ticket(secured: ssl.SSLSocket) -> object:
        return secured.recv(100), secured.session is not None and secured.session.has_ticket

    ours, control = Side(world.strange_client(), has_ticket), Side(world.strange_client(), has_ticket)

    meet(ours, Side(world.receiver(), greet))
    meet(control, Side(world.strange_server(), greet))

    assert ours.result == (b"hello", False)
    assert control.result == (b"hello", True)


@pytest.mark.parametrize("reader", ["sender", "receiver"])
def test_a_connection_that_ends_without_a_word_is_no_clean_end(reader: str, world: World) -> None:
    """A FIN without close_notify could be anybody's; only the other end itself can say that it has finished."""
    ends = {"sender": Side(world.sender(), read), "receiver": Side(world.receiver(), read)}
    other = next(side for name, side in ends.items() if name != reader)
    other.act = lambda secured: None  # which is followed by a close, and Python's says nothing

    meet(ends["sender"], ends["receiver"])

    assert isinstance(ends[reader].failure, ssl.SSLEOFError)
    assert told(failure_of(ends[reader])) == (UnreachableError, "peer:1 closed the connection")


def test_a_close_notify_is_a_clean_end(world: World) -> None:
    """What the test above tells from a cut."""
    client, server = Side(world.sender(), lambda secured: secured.unwrap()), Side(world.receiver(), read)

    meet(client, server)

    assert (server.result, server.failure) == (b"", None)


@pytest.mark.parametrize("alpn", [None, "http/1.1", "securecore/2"])
def test_both_ends_insist_on_the_protocol(alpn: str | None, world: World) -> None:
    """Python goes on with whoever asks for nothing, or for something else; we do not."""
    client, server = Side(world.sender(), read), Side(world.receiver(), read)

    meet(Side(world.strange_client(alpn=alpn), read, secure=wrap), server)
    meet(client, Side(world.strange_server(alpn=alpn), read, secure=wrap))

    for side in (client, server):
        assert told(failure_of(side)) == (PeerError, "the other end does not speak securecore/1")


def test_a_client_without_a_certificate_is_told_so(world: World) -> None:
    """The receiver ends the handshake; TLS 1.3 lets the client learn of it only when it reads."""
    client, server = Side(world.strange_client(anonymous=True), read), Side(world.receiver(), read)

    meet(client, server)

    assert isinstance(server.failure, ssl.SSLError)
    assert server.failure.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    assert told(failure_of(client)) == (RefusedError, "refused by peer:1: it demands a client certificate and this host sent none")


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_certificates_are_held_to_the_letter(end: str, world: World) -> None:
    """Without its key identifiers a certificate is not what RFC 5280 asks for, and only OpenSSL's strict mode minds."""
    omit = ["authority_key_identifier"]
    host = mint(HOST, issuer=world.hierarchy.hosts, omit=omit if end == "receiver" else [])
    receiver = mint(RECEIVER, issuer=world.hierarchy.receivers, omit=omit if end == "sender" else [])
    ends = {"sender": Side(world.sender(host), read), "receiver": Side(world.receiver(receiver))}

    meet(ends["sender"], ends["receiver"])

    failure = ends[end].failure
    assert isinstance(failure, ssl.SSLCertVerificationError)
    assert failure.verify_message == "Missing Authority Key Identifier"


def test_the_system_s_own_authorities_are_not_trusted(world: World) -> None:
    """The one root of ca.pem and nothing else: no path that OpenSSL was built with, no variable of the environment."""
    for context in (world.sender(), world.receiver()):
        assert context.cert_store_stats()["x509_ca"] == 1
        assert [dict(one[0] for one in certificate["subject"])["commonName"] for certificate in context.get_ca_certs()] == ["root"]


# How a handshake fails at the sender.


def receiver_with(**changes: object) -> Callable[[Hierarchy], Made]:
    """Return what mints a receiver's certificate with something wrong in it."""
    return lambda hierarchy: mint(RECEIVER, issuer=hierarchy.receivers, **changes)  # type: ignore[arg-type]


BAD_RECEIVERS: dict[str, tuple[Callable[[Hierarchy], Made], str]] = {
    "expired": (
        receiver_with(not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=1)),
        "a certificate in its chain has expired by the clock here",
    ),
    "below an expired CA": (
        lambda hierarchy: mint(
            RECEIVER,
            issuer=mint(
                RECEIVERS_CA, issuer=hierarchy.root, subject="receivers CA",
                not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=1),
            ),
        ),
        "a certificate in its chain has expired by the clock here",
    ),
    "another CA": (
        lambda _: mint(RECEIVER, issuer=make_hierarchy(suffix=" of others").receivers),
        "its certificate does not lead to our root",
    ),
    "a CA of the same name": (
        lambda _: mint(RECEIVER, issuer=make_hierarchy().receivers),
        "its certificate does not lead to our root",
    ),
    "self-signed": (lambda _: mint(RECEIVER), "its certificate is self-signed"),
    "a host": (lambda hierarchy: mint(HOST, issuer=hierarchy.hosts), "its certificate is not a receiver's"),
    "another name": (receiver_with(dns=["elsewhere.test.example"]), "its certificate is for another name"),
    "a name in the subject alone": (receiver_with(dns=[], ips=["127.0.0.1"]), "its certificate is for another name"),
}


WHICH = "`securecore pki inspect` at the receiver shows which certificate it is"
CLOCK_HINT = f"compare this machine's clock; if it is right, {WHICH}"


@pytest.mark.parametrize("case", BAD_RECEIVERS)
def test_a_receiver_that_is_not_ours_is_untrusted(case: str, world: World) -> None:
    """Whatever is wrong with its certificate, the words say what, and the sender goes no further."""
    make, words = BAD_RECEIVERS[case]
    client = Side(world.sender(), read)

    meet(client, Side(world.receiver(make(world.hierarchy))))

    assert told(failure_of(client)) == (UntrustedError, f"peer:1 is not the receiver that we trust: {words}")
    is_expired = "expired" in case
    assert failure_of(client).hint == (CLOCK_HINT if is_expired else "check --to and the identity's ca.pem")


def test_a_receiver_at_another_address_is_untrusted(world: World) -> None:
    """Senders that dial a number compare it with the numbers in the certificate."""
    client = Side(world.sender(), name="127.0.0.1")

    meet(client, Side(world.receiver(mint(RECEIVER, issuer=world.hierarchy.receivers, ips=["192.0.2.7"]))))

    assert told(failure_of(client)) == (
        UntrustedError,
        "peer:1 is not the receiver that we trust: its certificate is for another address",
    )


def test_a_receiver_is_known_by_its_address(world: World) -> None:
    """And when the number is there, that is enough."""
    client, server = Side(world.sender(), name="127.0.0.1"), Side(world.receiver())

    meet(client, server)

    assert (client.failure, server.failure) == (None, None)


def test_a_wildcard_is_not_the_name_that_was_dialled(world: World) -> None:
    """OpenSSL would take it for any receiver of the domain; the control is a client of Python's own."""
    made = mint(RECEIVER, issuer=world.hierarchy.receivers, dns=[f"*.{RECEIVER_NAME.partition('.')[2]}"])
    client, control = Side(world.sender(), read), Side(world.sender(), read, secure=wrap)

    meet(client, Side(world.receiver(made)))
    meet(control, Side(world.receiver(made), lambda secured: secured.sendall(b"in")))

    assert control.result == b"in"
    assert told(failure_of(client))[0] is UntrustedError
    assert told(failure_of(client))[1].endswith(": it is for a wildcard name")


@pytest.mark.parametrize("words", [words for words, _ in tls._RECEIVER_PARTS])
def test_the_fixed_parts_are_those_of_the_profile(words: str, fleet: Fleet) -> None:
    """Each is in a certificate that the real issuer has made, once, and the judge's own profile asks for it."""
    part = dict(tls._RECEIVER_PARTS)[words]
    der = ssl.PEM_cert_to_DER_cert((fleet.receiver / "cert.pem").read_text().partition("-----END")[0] + ssl.PEM_FOOTER)
    assert der.count(part) == 1


@pytest.mark.parametrize("is_ca", [False, True])
def test_a_certificate_from_the_future_points_at_the_clock(is_ca: bool, world: World) -> None:
    """Most often it is not the certificate that is wrong, the receiver's or its CA's; the exit code says so too."""
    tomorrow = NOW + timedelta(days=1)
    made = mint(RECEIVER, issuer=world.hierarchy.receivers, not_before=tomorrow)
    if is_ca:
        made = mint(RECEIVER, issuer=mint(RECEIVERS_CA, issuer=world.hierarchy.root, subject="receivers CA", not_before=tomorrow))
    client = Side(world.sender(), read)

    meet(client, Side(world.receiver(made)))

    error = failure_of(client)
    assert told(error) == (ClockError, "peer:1: a certificate in its chain is not yet valid")
    assert (error.exit_code, error.hint) == (15, f"compare this machine's clock; {WHICH}")


BAD_HOSTS: dict[str, tuple[Callable[[Hierarchy], Made], str]] = {
    "another CA": (
        lambda _: mint(HOST, issuer=make_hierarchy(suffix=" of others").hosts),
        "this host's certificate does not lead to a root that it trusts",
    ),
    "a receiver": (lambda hierarchy: mint(RECEIVER, issuer=hierarchy.receivers), "this host's certificate is not a host's"),
}


@pytest.mark.parametrize("case", BAD_HOSTS)
def test_a_host_that_is_refused_in_the_handshake_learns_why(case: str, world: World) -> None:
    """The alert is all that the receiver's TLS says; the sender puts it into words."""
    make, words = BAD_HOSTS[case]
    client = Side(world.sender(make(world.hierarchy)), read)

    meet(client, Side(world.receiver(), read))

    assert told(failure_of(client)) == (RefusedError, f"refused by peer:1: {words}")


@pytest.mark.parametrize("offset_days", [-40, 40])
def test_the_dates_of_a_host_are_left_to_the_judge(offset_days: int, world: World) -> None:
    """An alert has no words for clocks; the receiver's REFUSE has. (The judge's part: tests/receiver/test_hostile_clients.py.)"""
    begin = NOW + timedelta(days=offset_days)
    made = mint(HOST, issuer=world.hierarchy.hosts, not_before=begin, not_after=begin + timedelta(days=30))
    client, server = Side(world.sender(made)), Side(world.receiver())

    meet(client, server)

    assert (client.failure, server.failure) == (None, None)


def dial(context: ssl.SSLContext, serve: Callable[[socket.socket], object], deadline_s: float = DEADLINE_S) -> SecurecoreError:
    """Connect to a peer that is no TLS server but *serve*; return what the sender makes of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = socket.create_connection(listener.getsockname())

        def answer() -> None:
            with listener.accept()[0] as accepted, suppress(OSError):
                accepted.settimeout(DEADLINE_S / 2)
                serve(accepted)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with plain, pytest.raises(OSError) as raised:
                tls.secure(context, plain, server_name=RECEIVER_NAME, deadline_s=deadline_s)
        finally:
            thread.join()
    return tls.explain(raised.value, "peer:1")


def say(words: bytes) -> Callable[[socket.socket], object]:
    """Return a peer that says these words, hears whatever is said and hangs up."""

    def serve(plain: socket.socket) -> None:
        plain.sendall(words)
        while plain.recv(65536):
            pass

    return serve


PLAIN = {
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "smtp": b"220 mail.example.org ESMTP\r\n",
    "zeroes": bytes(64),
}


@pytest.mark.parametrize("service", PLAIN)
def test_a_peer_that_speaks_no_tls_is_named_as_such(service: str, world: World) -> None:
    """The port of another service, by what it says first."""
    assert told(dial(world.sender(), say(PLAIN[service]))) == (PeerError, "peer:1 does not speak TLS 1.3")


def test_silence_is_a_time_out(world: World) -> None:
    """A peer that takes the connection and says nothing costs the deadline and no more."""
    error = dial(world.sender(), say(b""), deadline_s=0.2)

    assert told(error) == (UnreachableError, "peer:1 did not answer in time")


def reset(plain: socket.socket) -> None:
    """Hear the sender out and hang up with a RST."""
    plain.recv(65536)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_connection_that_is_lost_in_the_handshake_is_worth_another_try(world: World) -> None:
    """Hung up on or reset: neither is the sender's fault nor a stranger's."""
    assert told(dial(world.sender(), lambda plain: plain.recv(65536))) == (UnreachableError, "peer:1 closed the connection")
    assert told(dial(world.sender(), reset)) == (UnreachableError, "peer:1: connection reset by peer")


def test_a_closed_port_is_unreachable() -> None:
    """The system's words, and what to look at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(OSError) as raised:
        socket.create_connection(address)

    error = tls.explain(raised.value, "peer:1")
    assert told(error) == (UnreachableError, "peer:1: connection refused")
    assert error.hint == "see that the receiver runs, and that the address is right"


# The tables in full, for what cannot be made to happen here.


def verification_error(code: int) -> ssl.SSLCertVerificationError:
    """Return what Python raises for one of OpenSSL's verify codes."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "what OpenSSL says"
    return error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (10, "a certificate in its chain has expired by the clock here"),
        (18, "its certificate is self-signed"),
        (19, "its certificate does not lead to our root"),
        (20, "its certificate does not lead to our root"),
        (21, "its certificate does not lead to our root"),
        (25, "it was signed by a CA below ours"),
        (26, "its certificate is not a receiver's"),
        (62, "its certificate is for another name"),
        (64, "its certificate is for another address"),
        (79, "it was signed by somebody who is no CA"),
        (7, "what OpenSSL says"),
    ],
)
def test_words_for_verify_codes(code: int, words: str) -> None:
    """X509_V_ERR_... of x509_vfy.h; what we have no better words for is said in OpenSSL's."""
    error = tls.explain(verification_error(code), "peer:1")
    assert told(error) == (UntrustedError, f"peer:1 is not the receiver that we trust: {words}")


def test_a_verify_code_for_the_clock() -> None:
    """X509_V_ERR_CERT_NOT_YET_VALID is the one code that is not about trust."""
    assert told(tls.explain(verification_error(9), "peer:1")) == (ClockError, "peer:1: a certificate in its chain is not yet valid")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "it demands a client certificate and this host sent none"),
        ("TLSV1_ALERT_UNKNOWN_CA", "this host's certificate does not lead to a root that it trusts"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "this host's certificate has expired"),
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", "this host's certificate was revoked"),
        ("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "this host's certificate is not a host's"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "this host's certificate breaks a rule that the receiver's log names"),
        ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", "this host's certificate breaks a rule that the receiver's log names"),
        ("TLSV1_ALERT_ACCESS_DENIED", "access denied"),
    ],
)
def test_words_for_alerts_about_our_certificate(reason: str, words: str) -> None:
    """RFC 8446 section 6.2: the receiver has said no, and asking again unchanged will not help."""
    error = tls.explain(ssl_error(reason), "peer:1")
    assert told(error) == (RefusedError, f"refused by peer:1: {words}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[SSL] tlsv1 alert no application protocol (_ssl.c:1006)", "TLSV1_ALERT_NO_APPLICATION_PROTOCOL"),
        ("[X509] unknown certificate type (_ssl.c:4171)", "UNKNOWN_CERTIFICATE_TYPE"),
        ("unknown error (_ssl.c:3102)", "UNKNOWN_ERROR"),
        ("", ""),
    ],
)
def test_a_reason_that_python_has_no_name_for_is_read_from_the_text(text: str, reason: str) -> None:
    """Which names are missing depends on the Python and the OpenSSL."""
    error = ssl.SSLError(1, text)
    error.reason = None  # type: ignore[assignment]  # as Python's own have it, whatever its stubs say

    assert tls.reason_of(error) == reason


@pytest.mark.parametrize(
    ("reason", "kind", "words"),
    [
        ("TLSV1_ALERT_NO_APPLICATION_PROTOCOL", PeerError, "peer:1 does not speak securecore/1 over TLS 1.3"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", PeerError, "peer:1 does not speak securecore/1 over TLS 1.3"),
        ("UNSUPPORTED_PROTOCOL", PeerError, "peer:1 does not speak securecore/1 over TLS 1.3"),
        ("BAD_SIGNATURE", PeerError, "peer:1: TLS failed: bad signature"),
        ("NO_PROTOCOLS_AVAILABLE", PeerError, "peer:1 does not speak securecore/1 over TLS 1.3"),
        ("WRONG_VERSION_NUMBER", PeerError, "peer:1 does not speak TLS 1.3"),
        ("HTTP_REQUEST", PeerError, "peer:1 does not speak TLS 1.3"),
        ("UNEXPECTED_MESSAGE", PeerError, "peer:1 does not speak TLS 1.3"),
        ("RECORD_LAYER_FAILURE", PeerError, "peer:1 does not speak TLS 1.3"),
        ("UNEXPECTED_EOF_WHILE_READING", UnreachableError, "peer:1 closed the connection"),
        ("TLSV1_ALERT_INTERNAL_ERROR", PeerError, "peer:1: TLS failed: tlsv1 alert internal error"),
    ],
)
def test_words_for_other_failures_of_tls(reason: str, kind: type[SecurecoreError], words: str) -> None:
    """Another protocol, a cut, and whatever else OpenSSL calls by a name."""
    assert told(tls.explain(ssl_error(reason), "peer:1")) == (kind, words)


def ssl_error(reason: str) -> ssl.SSLError:
    """Return what Python raises for one of OpenSSL's reasons."""
    error = ssl.SSLError(1, "what OpenSSL says")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "peer:1: name or service not known"),
        (OSError(113, "No route to host"), "peer:1: no route to host"),
        (TimeoutError("timed out"), "peer:1 did not answer in time"),
        (OSError("no number"), "peer:1: no number"),
    ],
)
def test_words_for_failures_of_the_network(error: OSError, words: str) -> None:
    """All of them are worth another try."""
    assert told(tls.explain(error, "peer:1")) == (UnreachableError, words)


# Identities that do not fit.


@pytest.fixture
def identity(fleet: Fleet, tmp_path: Path) -> Path:
    """A host's identity that may be broken."""
    return Path(shutil.copytree(fleet.host, tmp_path / "identity"))


MAKERS = pytest.mark.parametrize("make", [tls.sender_context, tls.receiver_context])


def refused(make: Callable[[str], ssl.SSLContext], identity: Path) -> ConfigError:
    """Return the error that an identity is refused with, of one line."""
    with pytest.raises(ConfigError) as raised:
        make(str(identity))
    assert "\n" not in raised.value.message
    return raised.value


@MAKERS
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o610, 0o602])
def test_a_key_that_others_may_touch_is_refused(make: Callable[[str], ssl.SSLContext], mode: int, identity: Path) -> None:
    """With the command to run; any bit for others counts."""
    (identity / "key.pem").chmod(mode)

    error = refused(make, identity)

    assert error.message == f"{identity}/key.pem: mode is {mode:04o}, others may read the key"
    assert error.hint == f"chmod 600 {identity}/key.pem"


@MAKERS
def test_an_encrypted_key_is_refused_without_a_question(make: Callable[[str], ssl.SSLContext], identity: Path) -> None:
    """OpenSSL would ask at the terminal, which a handler and a daemon do not have."""
    made = mint(HOST)
    locked = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (identity / "key.pem").write_bytes(locked)

    assert refused(make, identity).message == "identity's key.pem is encrypted"


@MAKERS
def test_a_key_of_another_certificate_is_refused(make: Callable[[str], ssl.SSLContext], identity: Path) -> None:
    """Half an identity was put back after a repair."""
    (identity / "key.pem").write_bytes(mint(HOST).key_pem)

    error = refused(make, identity)

    assert error.message == f"identity {identity}: key values mismatch"
    assert error.hint == "issue the identity again, or restore its files"


GARBAGE = {
    "empty": b"",
    "text": b"not a certificate\n" * 9,
    "noise": os.urandom(3000),
    "cut": b"-----BEGIN CERTIFICATE-----\nMIIB\n",
    "hollow": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
}


@MAKERS
@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_is_refused(make: Callable[[str], ssl.SSLContext], name: str, content: str, identity: Path) -> None:
    """Any of the three files, in any state of decay."""
    (identity / name).write_bytes(GARBAGE[content])

    assert refused(make, identity).message.startswith(f"identity {identity}: ")


@MAKERS
@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
@pytest.mark.parametrize("instead", ["nothing", "a directory"])
def test_what_is_no_file_is_refused(make: Callable[[str], ssl.SSLContext], name: str, instead: str, identity: Path) -> None:
    """Gone, or a mistake of whoever copied it."""
    (identity / name).unlink()
    if instead == "a directory":
        (identity / name).mkdir(mode=0o700)

    assert str(identity) in refused(make, identity).message
