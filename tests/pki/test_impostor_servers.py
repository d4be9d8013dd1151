"""Somebody else in the enroller's place, and answers that are none: a host is told nothing and believes nothing."""

import json
from pathlib import Path

import pytest

from securecore.errors import BusyError, ConfigError, PeerError, PkiError, SecurecoreError, UnreachableError, UntrustedError
from securecore.names import HostName
from securecore.pki.enrolling import enroll
from securecore.pki.enrolment import Answer, Denied, Request, encode_answer, encode_denial, encode_request
from securecore.pki.issue import issue_enroller, issue_host, issue_receiver, parse_address
from securecore.pki.request import request
from securecore.pki.signing_request import request_der
from tests.support.certificates import DOMAIN, HOST_NAME, RECEIVER_NAME, no_passphrase
from tests.support.enrolment import Place, answered, asking, csr, impostor, leaf_of, talk


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A PKI with an enroller."""
    return Place(tmp_path)


def roots_only(place: Place) -> bytes:
    """Return the line that gives the fleet's CAs, which anybody can give."""
    return encode_answer(Answer(ca=place.pki.ca_path.read_text()))


def test_a_receiver_is_no_enroller(place: Place) -> None:
    """A good receiver's certificate, for the address that was dialled: it hears nothing but the question that anybody may hear."""
    receiver = place.directory / "collector"
    issue_receiver(place.pki, HostName(RECEIVER_NAME), [parse_address("127.0.0.1")], receiver, no_passphrase, place.now)
    secret, _ = place.token()
    words = r"is not an enroller that we trust: .* is for serverAuth: exactly"
    with impostor(receiver, lambda _: roots_only(place)) as other, pytest.raises(UntrustedError, match=words):
        enroll(other.address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
    assert other.heard == [encode_request(Request("roots"))[:-1]]
    assert not (place.directory / "web-1").exists()


def test_an_enroller_of_another_name_or_another_fleet_is_told_nothing(place: Place, tmp_path: Path) -> None:
    """Though it gives the right roots."""
    elsewhere = place.directory / "elsewhere"
    issue_enroller(place.pki, HostName(f"other.{DOMAIN}"), [], elsewhere, no_passphrase, place.now)
    (tmp_path / "others").mkdir()
    others = Place(tmp_path / "others")
    secret, _ = place.token()
    for identity in (elsewhere, others.identity):
        with impostor(identity, lambda _: roots_only(place)) as other, pytest.raises(UntrustedError):
            enroll(other.address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
        assert other.heard == [encode_request(Request("roots"))[:-1]]
    with others.serving() as address, pytest.raises(UntrustedError, match="does not belong to the fleet"):
        enroll(address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
    assert not (place.directory / "web-1").exists()


def test_what_a_server_harvests_is_of_no_use_at_the_real_one(place: Place) -> None:
    """Another enroller of the fleet, in a thief's hand: what it hears the real one does not take, and the host's token remains."""
    second = place.directory / "second"
    issue_enroller(place.pki, HostName(f"second.{DOMAIN}"), [parse_address("127.0.0.1")], second, no_passphrase, place.now)
    secret, made = place.token()
    no = encode_denial(Denied("busy", "later"))
    with impostor(second, lambda line: roots_only(place) if b"roots" in line else no) as thief, pytest.raises(BusyError):
        enroll(thief.address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
    harvested = thief.heard[-1]
    assert b'"op":"enroll"' in harvested
    assert secret.key.hex().encode() not in harvested
    with place.serving() as address:
        assert answered(talk(address, harvested + b"\n"))["error"] == "bad-token"
        assert place.pki.ledger.read().tokens[made.id].state(place.now) == "open"
        enroll(address, place.root_fingerprint, secret, place.directory / "web-1", place.now)


def test_whoever_stole_the_real_ones_key_gets_no_key_certified(place: Place) -> None:
    """He may pass on what he hears: what is certified is the host's own key, and with another one he has nothing."""
    secret, _ = place.token()
    identity = place.directory / "web-1"
    no = encode_denial(Denied("busy", "later"))
    with impostor(place.identity, lambda line: roots_only(place) if b"roots" in line else no) as thief, pytest.raises(BusyError):
        enroll(thief.address, place.root_fingerprint, secret, identity, place.now)
    heard = json.loads(thief.heard[-1])
    own = encode_request(Request("enroll", heard["token"], csr(), bytes.fromhex(heard["mac"])))
    with place.serving() as address:
        assert answered(talk(address, own))["error"] == "bad-token"
        assert "reply" in answered(talk(address, thief.heard[-1] + b"\n"))
        done = enroll(address, place.root_fingerprint, secret, identity, place.now)
    assert place.hosts() == [HOST_NAME]
    assert done.judgement.chain[0] == leaf_of(identity)


@pytest.mark.slow
def test_an_answer_that_is_cut_is_no_certificate(place: Place) -> None:
    """At offsets all over it: the host has a key and no certificate, and goes on with both when it comes again."""
    secret, _ = place.token()
    identity = place.directory / "web-1"
    made = request(identity)
    whole = (
        place.enroller()
        .answer(asking(secret, request_der(made.path.read_bytes()), place.server_der), None, place.server_der)
        .answer
    )
    line = encode_answer(whole)
    cuts = iter([*range(0, len(line), 97), len(line) - 1])
    with impostor(place.identity, lambda asked: roots_only(place) if b"roots" in asked else line[: next(cuts)]) as broken:
        for _ in range(len(range(0, len(line), 97)) + 1):
            with pytest.raises(UnreachableError, match="closed the connection"):
                enroll(broken.address, place.root_fingerprint, secret, identity, place.now)
            assert sorted(path.name for path in identity.iterdir()) == ["key.pem", "request.pem"]
    with place.serving() as address:
        enroll(address, place.root_fingerprint, secret, identity, place.now)
    assert leaf_of(identity).public_key() == made.public_key
    assert place.hosts() == [HOST_NAME]


def test_an_answer_that_is_none_is_said_to_be_so(place: Place) -> None:
    """Junk, an answer to another question, another host's certificate, more than one line."""
    secret, _ = place.token()
    other = place.directory / "other"
    issue_host(place.pki, HostName(HOST_NAME), other, no_passphrase, place.now)
    reply = (other / "cert.pem").read_text() + place.pki.ca_path.read_text()
    answers = [b"\n", b"{}\n", b"\xff\n", b'{"reply":1}\n', encode_answer(Answer(reply=reply)), b"{}\n{}\n", b'{"reply":"x"}\n']
    for answer in answers:
        script = [roots_only(place), answer]
        with impostor(place.identity, lambda _, left=script: left.pop(0)) as strange, pytest.raises(SecurecoreError) as caught:
            enroll(strange.address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
        assert isinstance(caught.value, (PeerError, PkiError, ConfigError)), caught.value
        assert not (place.directory / "web-1" / "cert.pem").exists()
