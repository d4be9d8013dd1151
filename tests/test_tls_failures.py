"""How a handshake fails, over real connections: receivers that are not ours, hosts that are refused, peers that speak no TLS."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from securecore import tls
from securecore.certs.profiles import HOST, RECEIVER, RECEIVERS_CA
from securecore.errors import ClockError, PeerError, RefusedError, SecurecoreError, UnreachableError, UntrustedError
from tests.support.certificates import RECEIVER_NAME, Fleet, Hierarchy, Made, make_hierarchy, mint
from tests.support.tls_ends import DEADLINE_S, NOW, Side, World, failure_of, meet, read, told, wrap


@pytest.fixture
def world(hierarchy: Hierarchy, tmp_path: Path) -> World:
    """Identities of the session's hierarchy."""
    return World(tmp_path, hierarchy)


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
                RECEIVERS_CA,
                issuer=hierarchy.root,
                subject="receivers CA",
                not_before=NOW - timedelta(days=9),
                not_after=NOW - timedelta(days=1),
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
