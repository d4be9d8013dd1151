"""Everybody who must not get a core, where a sender looks for its receiver: no payload byte is sent, and the spool keeps the core.

Each case listens on a real port and does a real handshake with a real transfer. The certificates are the receivers' of
pki/refusals.md and those of strangers.
"""

import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from cryptography.hazmat.primitives import hashes

from securecore import limits, tls
from securecore.certs.profiles import HOST, HOSTS_CA, RECEIVER, RECEIVERS_CA
from securecore.errors import (
    BusyError,
    ClockError,
    ConfigError,
    PeerError,
    RefusedError,
    SecurecoreError,
    UnreachableError,
    UntrustedError,
)
from securecore.receiver.material import load_material
from securecore.sender.delivery import connect
from securecore.sender.parcel import Papers
from securecore.sender.spool import Spool
from securecore.wire import messages
from securecore.wire.messages import Kind, Ready, Refusal, Refuse
from tests.support import hostile
from tests.support.certificates import DOMAIN, RECEIVER_NAME, Hierarchy, Made, make_hierarchy, make_key, mint
from tests.support.identities import write_identity, write_receiver_identity
from tests.support.impostors import GREETING, Impostor, listening, server_context
from tests.support.receivers import papers_of, send_bytes
from tests.support.wire import SAMPLES, STORE

CORE: Final = b"a secret of the crashed process" * 1000
ADDRESS: Final = "127.0.0.1"


@pytest.fixture
def papers(hierarchy: Hierarchy, tmp_path: Path) -> Papers:
    """What an honest host shows."""
    return papers_of(write_identity(tmp_path / "host", mint(HOST, issuer=hierarchy.hosts), hierarchy.root.pem))


def at_this_address(issuer: Made, **overrides: object) -> Made:
    """Return a receiver's certificate that is for the address that the tests dial, unless it is to be for something else."""
    if not {"ips", "san_der"} & set(overrides):
        overrides["ips"] = [ADDRESS]
    return mint(RECEIVER, issuer=issuer, **overrides)  # type: ignore[arg-type]


def offer(impostor: Impostor, papers: Papers, spool: Spool) -> SecurecoreError:
    """Send a core to whoever listens; it must not leave, and be whole in the spool. Return why it was not sent."""
    outcome = send_bytes(CORE, papers, [impostor.address], spool=spool)
    assert (outcome.receipt, outcome.spooled, outcome.spool_failure) == (None, True, None)
    assert outcome.size == len(CORE)
    assert outcome.failure is not None
    return outcome.failure


def offer_to(made: Made, papers: Papers, spool: Spool, directory: Path, roots: bytes) -> tuple[SecurecoreError, bytes]:
    """Have somebody listen with a certificate; return why the sender did not send, without the port, and what was heard."""
    with listening(server_context(write_identity(directory / "impostor", made, roots))) as impostor:
        error = offer(impostor, papers, spool)
    error.message = error.message.replace(str(impostor.address), "receiver")
    return error, impostor.heard


# Certificates.

NOT_A_RECEIVER: Final = "its certificate is not a receiver's"
NO_WAY: Final = "its certificate does not lead to our root"
NO_CA: Final = "it was signed by somebody who is no CA"
ELSEWHERE: Final = "its certificate is for another address"
BY_TLS: Final = {
    "client-auth-only": NOT_A_RECEIVER,
    "any-extended-key-usage": NOT_A_RECEIVER,
    "no-subject-alternative-name": ELSEWHERE,
    "uri": ELSEWHERE,
    "address-of-five-bytes": ELSEWHERE,
    "expired": "a certificate in its chain has expired by the clock here",
    "key-cert-sign": "Key usage keyCertSign invalid for non-CA cert",
    "unknown-critical-extension": "unhandled critical extension",
}
"""What OpenSSL refuses by itself."""
BY_FORM: Final = {
    "no-extended-key-usage": "its extended key usage is not serverAuth alone",
    "client-and-server-auth": "its extended key usage is not serverAuth alone",
    "an-enroller": "its extended key usage is not serverAuth alone",
    "ca-as-leaf": "it does not say that its holder is no CA",
    "wildcard": "it is for a wildcard name",
    "no-key-usage": "its key usage is not digitalSignature alone",
    "ed25519-key": "its key is not an ECDSA key on P-256",
}
"""What OpenSSL takes, and our look at the certificate's form refuses."""
BY_THE_JUDGE_ALONE: Final = ("address-only", "slash-in-second-name", "thirty-three-names", "ten-years")
"""What a sender greets; pki/refusals.md says why that does no harm."""


@pytest.mark.parametrize("case", [name for name in hostile.RECEIVERS if name not in BY_THE_JUDGE_ALONE])
def test_a_hostile_receiver_certificate_gets_no_byte(
    case: str, hierarchy: Hierarchy, papers: Papers, spool: Spool, tmp_path: Path
) -> None:
    """A certificate that our own receivers CA signed, with one thing wrong."""
    made = at_this_address(hierarchy.receivers, **hostile.RECEIVERS[case].overrides)

    error, heard = offer_to(made, papers, spool, tmp_path, hierarchy.root.pem)

    assert heard == b""
    if case == "not-yet-valid":
        assert (type(error), error.message) == (ClockError, "receiver: a certificate in its chain is not yet valid")
    elif case in BY_TLS:
        assert (type(error), error.message) == (UntrustedError, f"receiver is not the receiver that we trust: {BY_TLS[case]}")
    else:
        words = f"receiver is not the receiver that we trust: its certificate is not as its profile wants it: {BY_FORM[case]}"
        assert (type(error), error.message) == (UntrustedError, words)


class Stranger(NamedTuple):
    """Somebody else's certificate, and why it is refused."""

    make: Callable[[Hierarchy], Made]
    words: str


def below(issuer: Made) -> Made:
    """Return a CA of the receivers' profile below another CA."""
    return mint(RECEIVERS_CA, issuer=issuer, subject="below")


def without_use(issuer: Made) -> Made:
    """Return a certificate without extended key usage: good for anything, if only its CA were."""
    return at_this_address(issuer, omit=["extended_key_usage"])


STRANGERS: Final = {
    "other-root": Stranger(lambda _: at_this_address(make_hierarchy(suffix=" of others").receivers), NO_WAY),
    "same-name-impostor": Stranger(lambda _: at_this_address(make_hierarchy().receivers), NO_WAY),
    "our-ca-another-key": Stranger(lambda ours: at_this_address(Made(ours.receivers.certificate, make_key())), NO_WAY),
    "self-signed": Stranger(lambda _: mint(RECEIVER, ips=[ADDRESS]), "its certificate is self-signed"),
    "a-host": Stranger(lambda ours: mint(HOST, issuer=ours.hosts), NOT_A_RECEIVER),
    "a-host-at-this-address": Stranger(lambda ours: mint(HOST, issuer=ours.hosts, ips=[ADDRESS]), NOT_A_RECEIVER),
    "a-host-of-the-receivers-ca": Stranger(lambda ours: mint(HOST, issuer=ours.receivers, ips=[ADDRESS]), NOT_A_RECEIVER),
    "wrong-branch": Stranger(lambda ours: at_this_address(ours.hosts), NOT_A_RECEIVER),
    "wrong-branch-without-use": Stranger(lambda ours: without_use(ours.hosts), NOT_A_RECEIVER),
    "leaf-signed-by-leaf": Stranger(lambda ours: at_this_address(at_this_address(ours.receivers)), NO_CA),
    "leaf-signed-by-host": Stranger(lambda ours: at_this_address(mint(HOST, issuer=ours.hosts)), NO_CA),
    "below-the-receivers-ca": Stranger(lambda ours: at_this_address(below(ours.receivers)), "it was signed by a CA below ours"),
    "below-the-hosts-ca": Stranger(lambda ours: at_this_address(below(ours.hosts)), NOT_A_RECEIVER),
    "the-receivers-ca-itself": Stranger(lambda ours: ours.receivers, NOT_A_RECEIVER),
    "missing-intermediate": Stranger(lambda ours: alone(at_this_address(ours.receivers)), NO_WAY),
    "any-use-of-its-ca": Stranger(
        lambda ours: at_this_address(mint(RECEIVERS_CA, issuer=ours.root, subject="any", eku=[hostile.ANY])), NOT_A_RECEIVER
    ),
    "hosts-ca-of-our-root": Stranger(
        lambda ours: at_this_address(mint(HOSTS_CA, issuer=ours.root, subject="another"), dns=[RECEIVER_NAME]), NOT_A_RECEIVER
    ),
    "other-address": Stranger(lambda ours: at_this_address(ours.receivers, ips=["192.0.2.7"]), ELSEWHERE),
    "names-only": Stranger(lambda ours: at_this_address(ours.receivers, ips=[]), ELSEWHERE),
    "address-as-dns-name": Stranger(lambda ours: at_this_address(ours.receivers, ips=[], dns=[ADDRESS]), ELSEWHERE),
    "address-in-the-subject": Stranger(
        lambda ours: at_this_address(ours.receivers, ips=[], subject=ADDRESS, omit=["subject_alternative_name"]), ELSEWHERE
    ),
    "address-in-the-subject-beside-names": Stranger(
        lambda ours: at_this_address(ours.receivers, ips=[], subject=ADDRESS), ELSEWHERE
    ),
}


def alone(made: Made) -> Made:
    """Return a certificate that its holder shows without its issuer's."""
    return Made(made.certificate, made.key)


@pytest.mark.parametrize("case", STRANGERS)
def test_a_stranger_gets_no_byte(case: str, hierarchy: Hierarchy, papers: Papers, spool: Spool, tmp_path: Path) -> None:
    """Whoever our receivers CA has not signed, or not for this address."""
    make, words = STRANGERS[case]

    error, heard = offer_to(make(hierarchy), papers, spool, tmp_path, hierarchy.root.pem)

    assert heard == b""
    assert (type(error), error.message) == (UntrustedError, f"receiver is not the receiver that we trust: {words}")


FORMS: Final = {
    "rsa-key": ({"key_type": "rsa2048"}, "its key is not an ECDSA key on P-256"),
    "p384-key": ({"key_type": "p384"}, "its key is not an ECDSA key on P-256"),
    "key-encipherment-too": ({"ku": ["digitalSignature", "keyEncipherment"]}, "its key usage is not digitalSignature alone"),
    "key-usage-not-critical": ({"critical": {"key_usage": False}}, "its key usage is not digitalSignature alone"),
    "no-basic-constraints": ({"omit": ["basic_constraints"]}, "it does not say that its holder is no CA"),
    "server-auth-twice": ({"eku": [hostile.SERVER, hostile.SERVER]}, "its extended key usage is not serverAuth alone"),
    "wildcard-beside-a-name": ({"dns": [RECEIVER_NAME, f"*.{DOMAIN}"]}, "it is for a wildcard name"),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_certificate_of_another_form_gets_no_byte(
    case: str, hierarchy: Hierarchy, papers: Papers, spool: Spool, tmp_path: Path
) -> None:
    """What OpenSSL is content with is held against the fixed parts of the receiver's profile."""
    overrides, words = FORMS[case]

    error, heard = offer_to(at_this_address(hierarchy.receivers, **overrides), papers, spool, tmp_path, hierarchy.root.pem)

    assert heard == b""
    assert isinstance(error, UntrustedError)
    assert error.message.endswith(f": {words}")


def hostile_receiver(case: str) -> Callable[[Hierarchy], Made]:
    """Return what makes a case of the table."""
    return lambda ours: at_this_address(ours.receivers, **hostile.RECEIVERS[case].overrides)


GREETED: Final[dict[str, Callable[[Hierarchy], Made]]] = {
    **{case: hostile_receiver(case) for case in BY_THE_JUDGE_ALONE},
    "signed-by-the-root": lambda ours: at_this_address(ours.root),
    "sha512-signature": lambda ours: at_this_address(ours.receivers, hash_algorithm=hashes.SHA512()),
    "below-a-ca-of-any-use": lambda ours: at_this_address(
        mint(RECEIVERS_CA, issuer=ours.root, subject="sloppy", omit=["extended_key_usage"])
    ),
}
"""What a sender greets, though the judge would not: only whoever could make a perfect certificate can make these."""


@pytest.mark.parametrize("case", GREETED)
def test_what_only_the_judge_refuses_makes_no_receiver_of_ours(
    case: str, hierarchy: Hierarchy, papers: Papers, tmp_path: Path
) -> None:
    """Our receiver does not start with it; and a receipt needs a statement that a perfect certificate has signed."""
    sloppy = write_identity(tmp_path / "sloppy", GREETED[case](hierarchy), hierarchy.root.pem)
    with listening(server_context(sloppy)) as impostor:
        connect([impostor.address], papers.context).close()
    receiver = write_receiver_identity(tmp_path / "receiver", hierarchy)
    for name in ("cert.pem", "key.pem"):
        (receiver / name).write_bytes((sloppy / name).read_bytes())

    with pytest.raises(ConfigError) as caught:
        load_material(receiver, hostile.NOW)

    assert re.search("names|not a host name|profile|signed by the root|does not say what it is for", caught.value.message)
    assert impostor.heard == b""


# Those whose certificate is good, or who show none.


class Manner(NamedTuple):
    """How somebody with a receiver's certificate behaves, and what the sender makes of it."""

    greeting: bytes
    error: type[SecurecoreError]
    words: str
    alpn: str | None = tls.ALPN
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3


OTHER_PROTOCOL: Final = "receiver does not speak securecore/1"
MANNERS: Final = {
    "no ALPN": Manner(GREETING, PeerError, OTHER_PROTOCOL, alpn=None),
    "HTTP by ALPN": Manner(GREETING, PeerError, OTHER_PROTOCOL, alpn="http/1.1"),
    "a later version of ours": Manner(GREETING, PeerError, OTHER_PROTOCOL, alpn="securecore/2"),
    "TLS 1.2 only": Manner(GREETING, PeerError, "receiver does not speak securecore/1 over TLS 1.3", newest=ssl.TLSVersion.TLSv1_2),
    "HTTP inside TLS": Manner(b"HTTP/1.1 200 OK\r\n\r\n", PeerError, "message kind 47 is unknown"),
    "nothing": Manner(b"", UnreachableError, "receiver did not answer in time"),
    "half of READY": Manner(GREETING[:-1], UnreachableError, "receiver did not answer in time"),
    "READY with a field that is critical and unknown": Manner(
        (len(GREETING)).to_bytes(4, "big") + GREETING[4:] + b"\x03\x00\x00\x00\x00",
        PeerError,
        "READY: field 3 is unknown and critical",
    ),
    "READY of no store": Manner(
        messages.encode(Ready(STORE, limits.MAX_FRAMES)).replace(bytes(STORE), bytes(16)), PeerError, "READY: store: "
    ),
    "a READY that is longer than any": Manner(b"\x00\xff\xff\xff\x01", PeerError, "READY is 16777215 bytes long"),
    "REFUSE for ever": Manner(messages.encode(Refuse(Refusal.BAD_NAME, "no")), RefusedError, "refused by receiver: no"),
    "REFUSE for now": Manner(messages.encode(Refuse(Refusal.BUSY, "later", 10)), BusyError, "refused by receiver: later"),
    "REFUSE for the clock": Manner(messages.encode(Refuse(Refusal.NOT_YET_VALID, "a")), ClockError, "refused by receiver: a"),
} | {
    f"{kind.name} instead of READY": Manner(
        messages.encode(message), PeerError, f"{kind.name} from the receiver is not allowed in state greeting"
    )
    for kind, message in SAMPLES.items()
    if kind not in (Kind.READY, Kind.REFUSE)
}


@pytest.mark.parametrize("case", MANNERS)
def test_a_good_certificate_alone_gets_no_byte(
    case: str, hierarchy: Hierarchy, papers: Papers, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before READY, of our protocol, over TLS 1.3, there is nothing."""
    manner = MANNERS[case]
    if manner.error is UnreachableError:
        monkeypatch.setattr(limits, "CONNECT_DEADLINE_S", 0.2)
    made = at_this_address(hierarchy.receivers)
    context = server_context(write_identity(tmp_path / "receiver", made, hierarchy.root.pem), manner.alpn)
    context.maximum_version = manner.newest
    with listening(context, manner.greeting) as impostor:
        error = offer(impostor, papers, spool)

    assert impostor.heard == b""
    assert type(error) is manner.error
    assert manner.words in error.message.replace(str(impostor.address), "receiver")


def test_a_server_without_a_certificate_gets_no_byte(papers: Papers, spool: Spool) -> None:
    """It cannot even finish a handshake."""
    with listening(server_context(None)) as impostor:
        error = offer(impostor, papers, spool)

    assert impostor.heard == b""
    assert isinstance(error, PeerError)


@pytest.mark.parametrize(
    "words", [b"220 welcome\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", GREETING], ids=["smtp", "http", "ready"]
)
def test_a_plaintext_listener_gets_no_byte_of_the_core(words: bytes, papers: Papers, spool: Spool) -> None:
    """Not even one that says READY in plain text: all that it hears is a ClientHello and an alert."""
    with listening(None, words) as impostor:
        error = offer(impostor, papers, spool)

    assert isinstance(error, PeerError)
    assert impostor.heard.startswith(b"\x16\x03\x01")
    assert CORE[:31] not in impostor.heard
    assert len(impostor.heard) < 2000


def test_an_honest_receiver_of_this_form_is_greeted(hierarchy: Hierarchy, papers: Papers, tmp_path: Path) -> None:
    """The control: nothing in these tests but what is wrong keeps a sender from going on."""
    made = at_this_address(hierarchy.receivers, dns=[RECEIVER_NAME, "other.example.net"], ips=[ADDRESS, "::1"])
    with listening(server_context(write_identity(tmp_path / "receiver", made, hierarchy.root.pem))) as impostor:
        delivery = connect([impostor.address], papers.context)
        delivery.close()

    assert delivery.store == STORE
    assert impostor.heard == b""
