"""A core's way from a pipe to the store over real TLS, and who is not let in."""

import logging
import random
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from securecore import limits, tls
from securecore.errors import PeerError, RefusedError, UnreachableError, UntrustedError
from securecore.names import Address, HostName
from securecore.pki.revocation import revoke_name
from securecore.receiver.server import Receiver
from securecore.sender.delivery import connect
from securecore.sender.flush import flush
from securecore.sender.spool import create_spool, open_spool
from tests.support.certificates import DOMAIN, Fleet, make_fleet, no_passphrase
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.stores import stored_cores

CORES = {
    "empty": b"",
    "one byte": b"x",
    "one piece exactly": random.Random(1).randbytes(limits.PIECE_BYTES),
    "a byte more than a piece": random.Random(2).randbytes(limits.PIECE_BYTES + 1),
    "zeroes": bytes(5 * limits.PIECE_BYTES + 17),
    "zeroes between": b"a" * 100 + bytes(4 * limits.PIECE_BYTES) + b"z",
    "incompressible": random.Random(3).randbytes(20 * limits.MIB),
}


@pytest.mark.parametrize("name", CORES)
def test_a_core_is_stored_byte_for_byte_and_its_receipt_checks(name: str, fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """Whatever the core's length and content, the store gives back exactly these bytes, and the receipt proves the entry."""
    outcome = send_bytes(CORES[name], papers_of(fleet.host), receiver.addresses)

    assert outcome.failure is None
    assert outcome.receipt is not None
    assert list(stored_cores(tmp_path / "store").values()) == [CORES[name]]
    assert outcome.receipt["index"] == 1


def test_a_dump_that_is_offered_again_gets_its_stored_receipt(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """A sender that missed the receipt and comes back with the same id is not stored twice."""
    dump, core, papers = new_dump_id(), random.Random(5).randbytes(3 * limits.MIB), papers_of(fleet.host)
    spool_path = tmp_path / "spool"
    create_spool(str(spool_path), bytes(16))
    spool = open_spool(str(spool_path))
    nowhere = [Address("127.0.0.1:9")]
    assert send_bytes(core, papers, receiver.addresses, dump=dump).receipt is not None

    kept = send_bytes(core, papers, nowhere, spool=spool, dump=dump)
    flushed = list(flush(spool, receiver.addresses, papers))

    assert kept.spooled
    assert [(result.failure, result.sent_frames) for result in flushed] == [(None, 0)]
    assert list(stored_cores(tmp_path / "store")) == [str(dump)]
    assert spool.dump_ids() == []


def test_without_a_receiver_the_core_goes_to_the_spool_and_later_arrives_whole(fleet: Fleet, tmp_path: Path) -> None:
    """No receiver: everything is kept; a flush delivers it byte for byte, keeps the receipt and empties the spool."""
    core, papers = random.Random(6).randbytes(9 * limits.MIB) + bytes(3 * limits.MIB), papers_of(fleet.host)
    create_spool(str(tmp_path / "spool"), bytes(16))
    spool = open_spool(str(tmp_path / "spool"))

    outcome = send_bytes(core, papers, [Address("127.0.0.1:9")], spool=spool)
    with running_receiver(fleet.receiver, tmp_path / "store") as running:
        flushed = list(flush(spool, running.addresses, papers))

    assert isinstance(outcome.failure, UnreachableError)
    assert outcome.spooled
    assert [result.failure for result in flushed] == [None]
    assert list(stored_cores(tmp_path / "store").values()) == [core]
    assert spool.dump_ids() == []
    assert len(list(spool.receipts())) == 1


class Refused(NamedTuple):
    """Somebody who is not let in: how its identity is made from the fleet's, and what is read at both ends."""

    make_context: Callable[[Fleet, Path], ssl.SSLContext]
    sender_reads: str
    log_says: str


def without_certificate(fleet: Fleet, tmp_path: Path) -> ssl.SSLContext:
    """Return the context of a client that trusts our receiver and shows nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(fleet.host / "ca.pem")
    context.set_alpn_protocols([tls.ALPN])
    return context


def of_another_ca(fleet: Fleet, tmp_path: Path) -> ssl.SSLContext:
    """Return the context of a host of the same name and another root, which trusts our receiver."""
    impostor = make_fleet(tmp_path / "impostor").host
    shutil.copyfile(fleet.host / "ca.pem", impostor / "ca.pem")
    return tls.sender_context(str(impostor))


def revoked(fleet: Fleet, tmp_path: Path) -> ssl.SSLContext:
    """Return the context of the fleet's first host, which is revoked; the receiver has the new list, as an operator gives it."""
    revoke_name(fleet.pki, HostName(f"{fleet.host.name}.{DOMAIN}"), "keyCompromise", no_passphrase, datetime.now(UTC))
    shutil.copyfile(fleet.pki.path / "crl.pem", fleet.receiver / "crl.pem")
    return tls.sender_context(str(fleet.host))


def of_a_receiver(fleet: Fleet, tmp_path: Path) -> ssl.SSLContext:
    """Return the context of somebody who sends with the receiver's own identity."""
    return tls.sender_context(str(fleet.receiver))


REVOKED = "this host's certificate was revoked on 20[0-9-]{8} \\(keyCompromise\\)"
REFUSED = {
    "no certificate": Refused(
        without_certificate,
        "it demands a client certificate and this host sent none",
        "failed host=- peer=127.0.0.1:[0-9]+ error='client sent no certificate'",
    ),
    "another CA": Refused(
        of_another_ca,
        "this host's certificate does not lead to a root that it trusts",
        "failed host=- peer=127.0.0.1:[0-9]+ error='client certificate refused by TLS: unable to get local issuer certificate'",
    ),
    "revoked": Refused(revoked, REVOKED, f'failed host=web-1.{DOMAIN} dump=- peer=127.0.0.1:[0-9]+ error="{REVOKED}"'),
    "a receiver's certificate": Refused(
        of_a_receiver,
        "this host's certificate is not a host's",
        # OpenSSL 3.3 and later say "unsuitable", earlier ones "unsupported".
        "failed host=- peer=127.0.0.1:[0-9]+ error='client certificate refused by TLS: uns[a-z]+ certificate purpose'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_who_is_not_let_in_is_told_why_at_both_ends(
    case: str, own_fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before READY, the sender reads why in words, the receiver's log says it once, and nothing is stored."""
    refused = REFUSED[case]
    context = refused.make_context(own_fleet, tmp_path)
    with running_receiver(own_fleet.receiver, tmp_path / "store") as running:
        with pytest.raises(RefusedError) as caught:
            connect(running.addresses, context)
        (address,) = running.addresses
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    assert re.fullmatch(f"refused by {address}: {refused.sender_reads}", caught.value.message)
    assert len(logged) == 1
    assert re.fullmatch(refused.log_says, logged[0])
    assert stored_cores(tmp_path / "store") == {}


def test_a_receiver_of_another_ca_gets_nothing(own_fleet: Fleet, receiver: Receiver) -> None:
    """A sender shows no certificate and says no word to a receiver that another root vouches for."""
    with pytest.raises(UntrustedError, match="does not lead to our root"):
        connect(receiver.addresses, papers_of(own_fleet.host).context)


def test_a_host_certificate_cannot_pose_as_a_receiver(fleet: Fleet) -> None:
    """A stolen host key, used to listen, is refused by every sender before a byte is sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet.host / "cert.pem", fleet.host / "key.pem")
    context.set_alpn_protocols([tls.ALPN])

    def serve() -> None:
        plain, _ = listener.accept()
        with plain, pytest.raises(OSError):
            context.wrap_socket(plain, server_side=True).recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(UntrustedError):
        connect([Address(f"127.0.0.1:{listener.getsockname()[1]}")], papers_of(fleet.host).context)
    thread.join()
    listener.close()


def test_a_receiver_under_another_name_is_refused(fleet: Fleet, receiver: Receiver) -> None:
    """The certificate must be for the name that was dialled, not just from our CA."""
    port = receiver.addresses[0].port
    with pytest.raises(UntrustedError, match="another name"):
        connect([Address(f"localhost:{port}")], papers_of(fleet.host).context)


def test_a_plaintext_listener_is_refused_in_words(fleet: Fleet) -> None:
    """A collector of the old kind, plain TCP, gets no byte of a core."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        plain, _ = listener.accept()
        with plain:
            plain.sendall(b"220 welcome\r\n")
            plain.recv(4096)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(PeerError, match="does not speak"):
        connect([Address(f"127.0.0.1:{listener.getsockname()[1]}")], papers_of(fleet.host).context)
    thread.join()
    listener.close()
