"""Enrolment under attack, over real TLS on loopback: replays, servers that are none, look-alikes, races and floods."""

import json
import socket
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from securecore import tls
from securecore.certs.profiles import ENROLLER, HOSTS_CA
from securecore.errors import PkiError, UntrustedError
from securecore.identity import host_from_operator
from securecore.names import Address, HostName, NameRefused
from securecore.pki import channel
from securecore.pki.enrolling import enroll
from securecore.pki.enrolment import ALPN, Answer, Denied, Request, encode_answer, encode_request
from securecore.pki.issue import issue_host
from tests.support.certificates import DOMAIN, HOST_NAME, Made, mint, no_passphrase
from tests.support.enrolment import Place, asking, csr, impostor, talk
from tests.support.identities import write_identity
from tests.support.processes import PATIENCE_S


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A PKI with an enroller."""
    return Place(tmp_path)


def talk_from(source: str, address: Address, line: bytes) -> dict[str, str]:
    """Say a line from an address of loopback, and return what is answered."""
    plain = socket.create_connection((address.host, address.port), PATIENCE_S, source_address=(source, 0))
    context = tls.enrolment_context(ALPN, None)
    with tls.secure(context, plain, server_name=address.host, deadline_s=PATIENCE_S, alpn=ALPN) as secured:
        channel.send(secured, line, PATIENCE_S)
        found = json.loads(channel.read_line(secured, 1 << 20, PATIENCE_S, "the enroller"))
    assert isinstance(found, dict)
    return found


def test_a_request_that_is_replayed_gives_nothing_new(place: Place) -> None:
    """On another connection, from another address, with another host's certificate shown: the host's own certificate once more."""
    secret, made = place.token()
    other = place.directory / "other"
    issue_host(place.pki, HostName(f"db-2.{DOMAIN}"), other, no_passphrase, place.now)
    line = encode_request(asking(secret, csr(), place.server_der))
    with place.serving() as address:
        first = talk(address, line)
        assert "reply" in json.loads(first)
        assert talk(address, line, identity=other) == first
        assert talk_from("127.0.0.9", address, line) == json.loads(first)
        place.now += timedelta(hours=1, seconds=1)
        assert json.loads(talk(address, line))["error"] == "token-used"
    assert place.hosts().count(HOST_NAME) == 1
    assert place.pki.ledger.read().tokens[made.id].state(place.now) == "used"


def test_a_request_is_of_no_use_where_the_servers_certificate_is_another(place: Place) -> None:
    """What was heard before the enroller renewed its own certificate vouches for nothing after it, with the token open still."""
    secret, made = place.token()
    line = encode_request(asking(secret, csr(), place.server_der))
    with place.serving(place.another_enroller()) as address:
        assert json.loads(talk(address, line))["error"] == "bad-token"
    assert place.pki.ledger.read().tokens[made.id].state(place.now) == "open"


def test_a_host_is_no_enroller(place: Place) -> None:
    """Whoever has a host's key stands in the enroller's place: he hears nothing but the question that anybody may hear."""
    web, secret = place.directory / "web-2", place.token()[0]
    issue_host(place.pki, HostName(f"localhost.{DOMAIN}"), web, no_passphrase, place.now)
    roots = encode_answer(Answer(ca=place.pki.ca_path.read_text()))
    with impostor(web, lambda _: roots) as thief, pytest.raises(UntrustedError):
        enroll(thief.address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
    assert thief.heard == [encode_request(Request("roots"))[:-1]]
    assert not (place.directory / "web-1").exists()


def test_a_root_that_rides_along_is_not_believed(place: Place, tmp_path: Path) -> None:
    """A man in the middle gives the true root and, beside it, his own with all that it signed: he is told nothing."""
    (tmp_path / "others").mkdir()
    others, secret = Place(tmp_path / "others"), place.token()[0]
    for ca in (
        place.pki.ca_path.read_text() + others.pki.ca_path.read_text(),
        others.pki.ca_path.read_text() + place.pki.ca_path.read_text(),
    ):
        with impostor(others.identity, lambda _, ca=ca: encode_answer(Answer(ca=ca))) as man, pytest.raises(UntrustedError):
            enroll(man.address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
        assert man.heard == [encode_request(Request("roots"))[:-1]]
    assert not (place.directory / "web-1").exists()


@pytest.mark.parametrize(
    "name",
    [
        f"WEB-1.{DOMAIN}", f"web-1.{DOMAIN}.", f"web-l.{DOMAIN}", f"web\u20101.{DOMAIN}", f"\uff57eb-1.{DOMAIN}",
        f"web-1.{DOMAIN}\0", f" web-1.{DOMAIN}", f"web-1.{DOMAIN}.evil.example", f"xn--web-1.{DOMAIN}", f"web-1.x.{DOMAIN}",
        "web-1", "",
    ],
)  # fmt: skip
def test_a_name_that_only_looks_like_a_hosts_is_another(name: str, place: Place) -> None:
    """As the machine's own name it does not get the token used up; and a token is made for it only where it is another host."""
    secret, made = place.token()
    with pytest.raises(Denied) as caught:
        place.enroller().answer(asking(secret, csr(), place.server_der, name), None, place.server_der)
    assert caught.value.code == "wrong-name"
    assert caught.value.message.isprintable()
    assert place.pki.ledger.read().tokens[made.id].state(place.now) == "open"
    try:
        _, other = place.token(str(HostName(name)))
    except (NameRefused, PkiError):
        return
    assert other.name == name != HOST_NAME


def test_what_a_person_types_for_a_token_is_one_host(place: Place) -> None:
    """Capitals are the same host's, in one spelling; letters that a terminal shows alike, and a final dot, are refused."""
    for typed in ("web-1", "WEB-1", f"Web-1.{DOMAIN}"):
        assert host_from_operator(typed, place.pki.domain) == HostName(HOST_NAME)
    for typed in ("w\u0435b-1", "web\u20101", "\uff57eb-1", "web-1\u200b", f"web-1.{DOMAIN}."):
        with pytest.raises((NameRefused, PkiError)):
            host_from_operator(typed, place.pki.domain)


@pytest.mark.slow
def test_a_race_for_a_token_has_one_winner(place: Place) -> None:
    """Thirty-two connections from four addresses, each with a key of its own: one certificate, and thirty-one are told why not."""
    secret, _ = place.token()
    lines = [encode_request(asking(secret, csr(), place.server_der)) for _ in range(32)]
    together, answers = threading.Barrier(len(lines)), []
    with place.serving() as address:

        def come(number: int) -> None:
            together.wait()
            answers.append(talk_from(f"127.0.0.{2 + number % 4}", address, lines[number]))

        threads = [threading.Thread(target=come, args=(number,)) for number in range(len(lines))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE_S)
    assert sorted(answer.get("error", "reply") for answer in answers) == ["reply", *["token-used"] * 31]
    assert place.hosts() == [HOST_NAME]


def test_who_drips_from_some_addresses_shuts_nobody_else_out(place: Place) -> None:
    """Forty-eight connections that say half a line and stay; a host from elsewhere enrols meanwhile."""
    secret, _ = place.token()
    line = encode_request(asking(secret, csr(), place.server_der))
    context = tls.enrolment_context(ALPN, None)
    with place.serving() as address, ExitStack() as held:
        for number in range(48):
            source = (f"127.0.0.{2 + number % 3}", 0)
            plain = socket.create_connection((address.host, address.port), PATIENCE_S, source_address=source)
            if number < 12:
                # Some behind the handshake; all of them would take longer than the first is patient with.
                plain = tls.secure(context, plain, server_name=address.host, deadline_s=PATIENCE_S, alpn=ALPN)
            held.enter_context(plain).sendall(b'{"csr":')
        assert "reply" in talk_from("127.0.0.9", address, line)
    assert place.hosts() == [HOST_NAME]


def test_the_hosts_ca_makes_no_enroller(place: Place) -> None:
    """Whoever has its key makes hosts: an enroller that it signs, with a good profile, name and address, is told nothing."""
    authority = place.pki.authority(HOSTS_CA.name, no_passphrase)
    hosts = Made(authority.certificate, authority.key, (place.pki.certificate("root-ca"),))
    forged = mint(ENROLLER, issuer=hosts, ips=["127.0.0.1"], now=place.now)
    identity = write_identity(place.directory / "forged", forged, place.pki.ca_path.read_bytes())
    roots, secret = encode_answer(Answer(ca=place.pki.ca_path.read_text())), place.token()[0]
    with impostor(identity, lambda _: roots) as thief, pytest.raises(UntrustedError):
        enroll(thief.address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
    assert thief.heard == [encode_request(Request("roots"))[:-1]]
    assert not (place.directory / "web-1").exists()
