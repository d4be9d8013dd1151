"""The TLS contexts against peers that do otherwise, over real connections: what both ends insist on."""

import ssl
from pathlib import Path

import pytest

from securecore.certs.profiles import HOST, RECEIVER
from securecore.errors import PeerError, RefusedError, UnreachableError
from tests.support.certificates import Hierarchy, mint
from tests.support.tls_ends import Side, World, failure_of, greet, meet, read, told, wrap


@pytest.fixture
def world(hierarchy: Hierarchy, tmp_path: Path) -> World:
    """Identities of the session's hierarchy."""
    return World(tmp_path, hierarchy)


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
