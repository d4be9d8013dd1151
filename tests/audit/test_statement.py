"""The log key's statement: believed when a receiver under our root signed it, and refused otherwise."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.audit.checkpoint import LogSigner
from securecore.audit.statement import encode_payload, verify_statement
from securecore.certs import chain, jws
from securecore.certs.judge import Reason, Refusal
from securecore.certs.profiles import HOST, RECEIVER
from securecore.errors import BrokenError
from tests.support.certificates import RECEIVER_NAME, Fleet, Hierarchy, Made, make_hierarchy, mint
from tests.support.dumps import LOG_NAME, NOW

KEY = bytes(range(32))
ISSUED = NOW.isoformat()
PAYLOAD = encode_payload(LOG_NAME, KEY, ISSUED)


def sign(made: Made, payload: bytes = PAYLOAD, typ: str = jws.LOG_KEY_TYP) -> bytes:
    above: Sequence[bytes] = [made.above[0].public_bytes(Encoding.DER)]
    return jws.sign(payload, made.key_pem, [made.der, *above], typ)


@pytest.fixture(scope="module")
def own() -> Hierarchy:
    """A hierarchy that is valid around NOW."""
    return make_hierarchy(now=NOW)


@pytest.fixture(scope="module")
def receiver(own: Hierarchy) -> Made:
    """The receiver's certificate."""
    return mint(RECEIVER, issuer=own.receivers, now=NOW)


def test_a_good_statement(own: Hierarchy, receiver: Made) -> None:
    """The key is handed out with the name and the receiver that vouches for it."""
    found = verify_statement(sign(receiver), own.anchors)
    assert (found.name, found.public_key, found.issued_at) == (LOG_NAME, KEY, NOW)
    assert found.receiver.fingerprint == chain.fingerprint(receiver.certificate)


def test_the_statement_that_issuing_writes(fleet: Fleet) -> None:
    """What `pki issue receiver` leaves in the identity directory verifies with its ca.pem and gives the key beside it."""
    anchors = chain.load_anchors((fleet.receiver / "ca.pem").read_bytes())
    found = verify_statement((fleet.receiver / "log-key.jws").read_bytes(), anchors)
    assert LogSigner.load(found.name, (fleet.receiver / "log-key.pem").read_bytes()).public_key == found.public_key
    assert found.name == LOG_NAME


def test_an_expired_certificate(own: Hierarchy, receiver: Made) -> None:
    """The certificate is judged at the statement's own time, or at the time that is asked for."""
    after = NOW + timedelta(days=4000)
    verify_statement(sign(receiver), own.anchors)
    with pytest.raises(Refusal) as raised:
        verify_statement(sign(receiver), own.anchors, after)
    assert raised.value.reason is Reason.EXPIRED


def test_a_host_cannot_state_a_log_key(own: Hierarchy) -> None:
    """A host's certificate, even of the receiver's name, is refused for its purpose."""
    host = mint(HOST, issuer=own.hosts, dns=["collector.hosts.test.example"], now=NOW)
    with pytest.raises(Refusal) as raised:
        verify_statement(sign(host), own.anchors)
    assert raised.value.reason is Reason.WRONG_PURPOSE


def test_another_root_is_refused(receiver: Made) -> None:
    """A receiver of another fleet is unknown."""
    with pytest.raises(Refusal) as raised:
        verify_statement(sign(receiver), make_hierarchy(now=NOW, suffix=" of others").anchors)
    assert raised.value.reason is Reason.UNKNOWN_ISSUER


def test_a_receiver_states_its_own_key_only(own: Hierarchy, receiver: Made) -> None:
    """The key's name must be the receiver's."""
    for name in ("elsewhere.example/securecore", f"{LOG_NAME}/x", ""):
        with pytest.raises(BrokenError, match="is signed by collector"):
            verify_statement(sign(receiver, encode_payload(name, KEY, ISSUED)), own.anchors)


def test_a_manifest_is_no_statement(own: Hierarchy, receiver: Made) -> None:
    """Another kind of signed statement is not taken for this one."""
    with pytest.raises(BrokenError, match="not the expected statement"):
        verify_statement(sign(receiver, typ="securecore-manifest+jws"), own.anchors)


FIELDS = json.loads(PAYLOAD)


@pytest.mark.parametrize(
    "payload",
    [
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 5000,
        json.dumps(FIELDS).encode(),
        encode_payload(LOG_NAME, KEY[:31], ISSUED),
        encode_payload(LOG_NAME, KEY, "yesterday"),
        encode_payload(LOG_NAME, KEY, "2026-11-22T09:14:22"),
        *(json.dumps({**FIELDS, **change}, sort_keys=True, separators=(",", ":")).encode()
          for change in ({"version": 2}, {"type": "x"}, {"more": 1}, {"public_key": 7}, {"name": None}, {"issued_at": 5})),
    ],
)  # fmt: skip
def test_malformed_payloads_are_refused(payload: bytes, own: Hierarchy, receiver: Made) -> None:
    """A payload has exactly the fields of its version, in one encoding."""
    with pytest.raises(BrokenError, match="malformed"):
        verify_statement(sign(receiver, payload), own.anchors)


def test_truncated_at_every_offset(own: Hierarchy, receiver: Made, tmp_path: Path) -> None:
    """No beginning of a statement is one."""
    token = sign(receiver)
    for length in range(0, len(token), 11):
        with pytest.raises(BrokenError):
            verify_statement(token[:length], own.anchors)


@pytest.mark.parametrize("dialled", [RECEIVER_NAME, RECEIVER_NAME.upper(), "192.0.2.7", "2001:db8::7", "2001:0DB8:0::7"])
def test_a_key_is_of_whom_its_certificate_names(own: Hierarchy, dialled: str) -> None:
    """By name in any case, or by address in any spelling."""
    made = mint(RECEIVER, issuer=own.receivers, now=NOW, ips=["192.0.2.7", "2001:db8::7"])

    assert verify_statement(sign(made), own.anchors).is_of(dialled)


@pytest.mark.parametrize("dialled", ["", "collector", f"x.{RECEIVER_NAME}", "192.0.2.8", "::7"])
def test_a_key_is_of_nobody_else(own: Hierarchy, receiver: Made, dialled: str) -> None:
    """Another name, a part of one, or an address that is not in the certificate."""
    assert not verify_statement(sign(receiver), own.anchors).is_of(dialled)
