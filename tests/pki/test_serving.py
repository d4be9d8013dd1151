"""An enroller at its door, over real TLS on loopback: who gets what, what hostile clients get, and what is told."""

import errno
import os
import re
import shutil
import socket
import ssl
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from securecore import tls
from securecore.certs.judge import Purpose, Refusal
from securecore.certs.profiles import ENROLLER
from securecore.errors import BusyError, NotFoundError, UnreachableError
from securecore.names import Address, HostName
from securecore.pki import channel, clients, enroller, serving
from securecore.pki.enrolling import enroll
from securecore.pki.enrolment import ALPN, Request, encode_request
from securecore.pki.install import install
from securecore.pki.issue import issue_host, issue_receiver, parse_address, server_subject
from securecore.pki.limits import MAX_LINE_BYTES
from securecore.pki.request import request
from securecore.pki.revocation import SignedCrl, revoke_name, sign_crls
from securecore.pki.serving import Server, load_material
from securecore.pki.signing import read_request, sign
from securecore.receiver.listeners import bound_address, listen
from tests.support.certificates import ENROLLER_NAME, HOST_NAME, RECEIVER_NAME, no_passphrase
from tests.support.enrolment import Place, answered, asking, csr, leaf_of, running, talk
from tests.support.kernel import wait_until
from tests.support.processes import PATIENCE_S


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A PKI with an enroller."""
    return Place(tmp_path)


def test_a_host_enrols_where_only_the_hosts_cas_key_is(place: Place) -> None:
    """From a token to an identity that is believed; no secret is told."""
    place.take_keys_away()
    secret, made = place.token()
    identity = place.directory / "web-1"
    with place.serving() as address:
        done = enroll(address, place.root_fingerprint, secret, identity, place.now)
    assert (done.judgement.name, done.is_new_key) == (HostName(HOST_NAME), False)
    assert (identity / "enroller").read_text() == f"{address}\n"
    assert place.hosts() == [HOST_NAME]
    assert any(f"host={HOST_NAME}" in line and f"token={made.id}" in line for line in place.told)
    told = "\n".join(place.told)
    assert secret.key.hex() not in told
    assert "PRIVATE" not in told


def test_an_enroller_whose_key_was_made_where_it_is_used_serves(place: Place) -> None:
    """Its key never left the machine; what it shows is what an issued one shows, and hosts believe it."""
    identity, reply = place.directory / "own-key", place.directory / "reply.pem"
    made = request(identity)
    subject = server_subject(ENROLLER, HostName(ENROLLER_NAME), [parse_address("127.0.0.1")])
    sign(place.pki, subject, read_request(made.path), reply, no_passphrase, place.now)
    assert install(identity, reply.read_bytes(), place.now).judgement.purpose is Purpose.ENROLLER
    assert sorted(path.name for path in identity.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    with place.serving(identity) as address:
        enroll(address, place.root_fingerprint, place.token()[0], place.directory / "web-1", place.now)


@pytest.mark.parametrize(
    "data",
    [
        b"\n", b"{}\n", b"null\n", b'{"op":"roots"}', b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b'{"op":"issue","name":"x"}\n',
        bytes(range(256)) + b"\n", b"[" * 20000 + b"\n", b"9" * 20000 + b"\n", b"x" * (MAX_LINE_BYTES + 2), b'{"op":"roots"}\n\n',
        b'{"op":"enroll","token":"\\u0000","csr":"MAA=","mac":"00"}\n', b'{"op":"renew","csr":"MAA="}\n',
    ],
    ids=lambda data: data[:24].decode("latin-1").encode("unicode_escape").decode(),
)  # fmt: skip
def test_hostile_lines_get_a_no_or_nothing(place: Place, data: bytes) -> None:
    """Each is counted and told in one line, nothing is issued, and the next client is served."""
    with place.serving() as address:
        heard = talk(address, data)
        assert heard == b"" or "error" in answered(heard)
        assert "ca" in answered(talk(address, encode_request(Request("roots"))))
    assert len([line for line in place.told if line.startswith(("refused", "failed"))]) == 1
    assert all(line.isprintable() for line in place.told)
    assert place.hosts() == []


@pytest.mark.slow
def test_a_request_that_is_cut_anywhere_does_nothing(place: Place) -> None:
    """At every offset: no answer, no certificate, the token is open still; the whole line is served then."""
    secret, made = place.token()
    line = encode_request(asking(secret, csr(), place.server_der))
    with place.serving() as address:
        for length in range(len(line)):
            assert talk(address, line[:length]) == b""
        assert place.pki.ledger.read().tokens[made.id].state(place.now) == "open"
    # A new one, for this client has come too often by now.
    with place.serving() as address:
        assert "reply" in answered(talk(address, line))


def test_a_line_that_comes_in_pieces_is_one_line(place: Place) -> None:
    """TLS records and TCP segments mean nothing."""
    context = tls.enrolment_context(ALPN, None)
    with place.serving() as address, socket.create_connection((address.host, address.port)) as plain:
        secured = tls.secure(context, plain, server_name=address.host, deadline_s=20, alpn=ALPN)
        for byte in encode_request(Request("roots")):
            secured.sendall(bytes([byte]))
        assert secured.recv(1) == b"{"
        secured.close()


def test_who_says_nothing_is_hung_up_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its handshake and after it; who drips bytes too."""
    monkeypatch.setattr(serving, "REQUEST_DEADLINE_S", 0.2)
    with place.serving() as address:
        # On a busy machine the handshake takes too long by itself.
        with suppress(UnreachableError):
            assert talk(address, b"{", ends=False) == b""
        with socket.create_connection((address.host, address.port), timeout=20) as plain:
            assert plain.recv(1) == b""
    assert len([line for line in place.told if line.startswith("failed")]) == 2


def heard_in(context: ssl.SSLContext, address: Address) -> bytes:
    """Return what an enroller says to a good request in TLS of a test's own making; nothing also where the handshake fails."""
    with socket.create_connection((address.host, address.port), timeout=20) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=address.host, suppress_ragged_eofs=False) as secured:
                secured.sendall(encode_request(Request("roots")))
                return secured.recv(1)
        except OSError:
            return b""


def test_who_speaks_tls_in_another_way_gets_nothing(place: Place) -> None:
    """TLS 1.2, no ALPN, the receivers' ALPN."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_alpn_protocols([ALPN])
    silent = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    silent.check_hostname, silent.verify_mode = False, ssl.CERT_NONE
    with place.serving() as address:
        for context in (old, silent, tls.enrolment_context(tls.ALPN, None)):
            assert heard_in(context, address) == b""
    assert place.hosts() == []


def test_who_comes_too_often_is_told_when_to_come_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy enroller is not one that refuses."""
    monkeypatch.setattr(clients, "CLIENTS_PER_MINUTE", 0)
    secret, _ = place.token()
    with place.serving() as address, pytest.raises(BusyError, match="too many connections from this address") as caught:
        enroll(address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
    assert caught.value.retry_after_s == 60
    assert not (place.directory / "web-1").exists()


def test_who_holds_all_places_of_an_address_keeps_only_himself_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is hung up on, and served when there is room again."""
    monkeypatch.setattr(clients, "MAX_CLIENTS_PER_NETWORK", 1)
    with place.serving() as address:
        place_of = (address.host, address.port)
        with socket.create_connection(place_of, timeout=20), socket.create_connection(place_of, timeout=20) as second:
            assert second.recv(1) == b""
        assert any("too many connections at once" in line for line in place.told)
        assert wait_until(lambda: heard_in(tls.enrolment_context(ALPN, None), address) or None) == b"{"


def test_a_known_host_is_told_of_though_strangers_flood(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revoked host's renewal, an expired one's, and the holder of a used token: in the log with the name, whoever else knocks."""
    monkeypatch.setattr(clients, "STRANGERS_LINES", 1)
    web, (secret, _) = place.directory / "web-1", place.token()
    issue_host(place.pki, HostName(HOST_NAME), web, no_passphrase, place.now)
    revoke_name(place.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, place.now)
    renewal = encode_request(Request("renew", csr=csr()))
    with place.serving() as address:
        for _ in range(4):
            assert answered(talk(address, b"junk\n"))["error"] == "bad-request"
        assert answered(talk(address, renewal, identity=web))["error"] == "revoked"
        for code in (None, "token-used"):
            request = asking(secret, csr(), place.server_der)
            assert answered(talk(address, encode_request(request))).get("error") == code
        place.now += timedelta(days=91)
        assert answered(talk(address, renewal, identity=web))["error"] == "expired"
    told = [line for line in place.told if line.startswith("refused")]
    found = [re.findall(r"(?:host=(\S+) )?code=(\S+)", line)[0] for line in told]
    assert found == [("", "bad-request"), (HOST_NAME, "revoked"), (HOST_NAME, "token-used"), (HOST_NAME, "expired")]


def test_a_broken_pki_is_its_operators_business(place: Place) -> None:
    """The client hears that it can't be done now, the log says why, and there is no traceback."""
    secret, _ = place.token()
    data = place.pki.ledger.path.read_bytes()
    with place.serving() as address:
        place.pki.ledger.path.write_bytes(data.replace(b"Test", b"Tset") + b"\n")
        said = answered(talk(address, encode_request(asking(secret, csr(), place.server_der))))
        place.pki.ledger.path.write_bytes(data)
        assert "reply" in answered(talk(address, encode_request(asking(secret, csr(), place.server_der))))
    assert (said["error"], "its log says why" in str(said["words"])) == ("unavailable", True)
    assert len([line for line in place.told if line.startswith("fault op=enroll") and "not what was written" in line]) == 1


def test_a_holder_of_the_lock_that_was_stopped_keeps_nobody_waiting_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is public is given, the rest is refused for now, that nothing could be signed is told, and the server ends."""
    monkeypatch.setattr(enroller, "ANSWER_DEADLINE_S", 0.2)
    secret, _ = place.token()
    asked = encode_request(asking(secret, csr(), place.server_der))
    with place.pki.lock():
        with place.serving() as address:
            for op in ("roots", "lists"):
                assert "ca" in answered(talk(address, encode_request(Request(op))))
            assert answered(talk(address, asked))["error"] == "unavailable"
        assert [line for line in place.told if line.startswith("fault op=enroll") and "held by others for 0.2 s" in line]
        assert [line for line in place.told if line.startswith("no CRL could be signed") and "held by others" in line]
    with place.serving() as address:
        assert "reply" in answered(talk(address, asked))


def test_what_is_checked_keeps_nobody_at_the_door(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a lock or a disk takes, who connects is answered, and the server ends."""
    over = threading.Event()
    monkeypatch.setattr(serving, "_STOP_DEADLINE_S", 0.2)

    def sign_slowly(_: enroller.Enroller) -> tuple[SignedCrl, ...]:
        over.wait(2 * PATIENCE_S)
        return ()

    monkeypatch.setattr(enroller.Enroller, "sign_crls", sign_slowly)
    try:
        with place.serving() as address:
            assert "ca" in answered(talk(address, encode_request(Request("roots"))))
        assert not over.is_set()
    finally:
        over.set()


def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(place: Place) -> None:
    """Without a restart; what was loaded before stays."""
    server = Server(listen(Address("127.0.0.1:0")), place.enroller(), place.identity, place.told.append, lambda: place.now)
    before = server._material
    shutil.move(place.identity / "cert.pem", place.identity / "kept")
    server.check()
    assert server._material is before
    assert any("what was loaded before stays" in line for line in place.told)
    shutil.move(place.identity / "kept", place.identity / "cert.pem")
    place.now += timedelta(days=70)
    server.check()
    assert "the enroller's certificate expires in 20 days" in place.told
    assert any(line.startswith("signed CRL 2 of the hosts-ca") for line in place.told)
    for one in (*server._listeners, server._wakeup, server._waker):
        one.close()


def test_a_server_that_is_told_to_reloads(place: Place) -> None:
    """What it shows from then on is the new certificate, in a context of its own; what is no identity leaves it as it is."""

    def shown(address: Address) -> bytes:
        with channel.connect(address, tls.enrolment_context(ALPN, None), PATIENCE_S) as secured:
            return secured.getpeercert(binary_form=True) or b""

    def told(words: str) -> bool | None:
        return any(words in line for line in place.told) or None

    renewed = place.another_enroller("renewed")
    serial = f"{leaf_of(renewed).serial_number:x}"
    listeners = listen(Address("127.0.0.1:0"))
    server = Server(listeners, place.enroller(), place.identity, place.told.append, lambda: place.now)
    address = bound_address(listeners[0])
    with running(server.serve, server.stop):
        assert shown(address) == place.server_der
        for name in ("cert.pem", "key.pem"):
            shutil.copyfile(renewed / name, place.identity / name)
        server.reload()
        assert wait_until(lambda: told(f"loaded certificate {serial}, valid until"))
        assert shown(address) == leaf_of(renewed).public_bytes(Encoding.DER)
        (place.identity / "key.pem").write_text("damaged")
        server.reload()
        assert wait_until(lambda: told("what was loaded before stays"))
        assert shown(address) == leaf_of(renewed).public_bytes(Encoding.DER)


def test_a_reload_that_is_asked_for_during_a_check_is_not_forgotten(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another check follows the one that is under way, without a wait for the hour."""
    may_end, checks = threading.Event(), []
    listeners = listen(Address("127.0.0.1:0"))
    server = Server(listeners, place.enroller(), place.identity, place.told.append, lambda: place.now)

    def sign_slowly() -> tuple[SignedCrl, ...]:
        checks.append("")
        may_end.wait(PATIENCE_S)
        return ()

    monkeypatch.setattr(server._enroller, "sign_crls", sign_slowly)
    with running(server.serve, server.stop):
        assert wait_until(lambda: checks or None)
        server.reload()
        may_end.set()
        assert wait_until(lambda: len(checks) == 2 or None)


def test_lists_are_written_once_for_all_who_ask(place: Place) -> None:
    """As long as the files are the same ones; another file is another answer, and one that is gone is none."""
    door = place.enroller()

    def line(op: str) -> bytes:
        return door.answer(Request(op), None, place.server_der).line

    first = {op: line(op) for op in ("roots", "lists")}
    assert all(line(op) is data for op, data in first.items())
    sign_crls(place.pki, no_passphrase, place.now, is_forced=True)
    assert line("roots") is first["roots"]
    assert answered(line("lists"))["crl"] == place.pki.crl_path.read_text() != answered(first["lists"])["crl"]
    place.pki.crl_path.unlink()
    with pytest.raises(NotFoundError, match="no such file"):
        line("lists")
    assert line("roots") is first["roots"]


def test_a_directory_that_its_user_may_not_read_ends_no_server(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """No CRL is signed, the log says which path it is, and the server goes on; so too whatever else the disk says."""
    server = Server(listen(Address("127.0.0.1:0")), place.enroller(), place.identity, place.told.append, lambda: place.now)
    key, real = place.pki.path / "receivers" / "key.pem", os.stat

    def denied(path: str | Path, *more: object, **options: object) -> os.stat_result:
        if str(path) == str(key):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *more, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", denied)
        server.check()
    assert f"no CRL could be signed: {key}: Permission denied" in place.told

    def failing() -> tuple[()]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(server._enroller, "sign_crls", failing)
    server.check()
    assert any(line.startswith("no CRL could be signed:") and "Input/output error" in line for line in place.told)
    for one in (*server._listeners, server._wakeup, server._waker):
        one.close()


def test_an_old_copy_that_is_put_back_is_told_and_hosts_are_to_come_again(place: Place) -> None:
    """Their token is not lost by it; the log names the runbook."""
    root, before, (secret, _) = place.root_fingerprint, place.pki.ledger.path.read_bytes(), place.token()
    server = Server(listen(Address("127.0.0.1:0")), place.enroller(), place.identity, place.told.append, lambda: place.now)
    sign_crls(place.pki, no_passphrase, place.now, is_forced=True)
    newer = place.pki.ledger.path.read_bytes()
    place.pki.ledger.path.write_bytes(before)
    with running(server.serve, server.stop):
        address, words = bound_address(server._listeners[0]), r"nobody is certified: .* is an older copy now.*after-a-restore\.md"
        wait_until(lambda: any(re.match(words, line) for line in place.told) or None)
        with pytest.raises(BusyError, match="can't do this at present"):
            enroll(address, root, secret, place.directory / "web-1", place.now)
        place.pki.ledger.path.write_bytes(newer)
        enroll(address, root, secret, place.directory / "web-1", place.now)


def test_nobody_but_an_enroller_serves(place: Place) -> None:
    """A receiver's or a host's identity is refused at the start, with the reason."""
    issue_receiver(place.pki, HostName(RECEIVER_NAME), [], place.directory / "r", no_passphrase, place.now)
    issue_host(place.pki, HostName(HOST_NAME), place.directory / "h", no_passphrase, place.now)
    for name in ("r", "h"):
        with pytest.raises(Refusal, match="exactly serverAuth securecoreEnroller"):
            load_material(place.directory / name, place.now)
