"""Describing files that nobody vouches for."""

import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from securecore.certs.profiles import HOST
from securecore.errors import PkiError
from securecore.pki.inspection import MAX_FILE_BYTES, describe
from tests.support.certificates import DOMAIN, HOST_NAME, RECEIVER_NAME, Fleet, Hierarchy, make_crl, mint


def kinds(data: bytes) -> list[object]:
    """Return the kinds of what a file holds."""
    return [part["kind"] for part in describe(data, "file")]


def test_every_file_of_a_fleet_is_described(fleet: Fleet) -> None:
    """Nothing that we make is unknown to us."""
    found = {path.name: kinds(path.read_bytes()) for path in fleet.receiver.iterdir()}
    certificate, crl, key = "certificate", "crl", "private-key"
    assert found == {
        "ca.pem": [certificate] * 3,
        "cert.pem": [certificate] * 2,
        "key.pem": [key],
        "crl.pem": [crl] * 3,
        "log-key.pem": [key],
        "log-key.jws": ["signed-statement", certificate, certificate],
    }


def test_certificate_is_described(fleet: Fleet) -> None:
    """The facts that an operator asks for, in names that a program can use."""
    leaf, issuing = describe((fleet.host / "cert.pem").read_bytes(), "cert.pem")
    assert leaf["alternative_names"] == [f"dns:{HOST_NAME}"]
    assert (
        leaf["extended_key_usage"],
        leaf["key_usage"],
        leaf["key"],
        leaf["ca"],
    ) == (["clientAuth"], ["digitalSignature"], "ECDSA P-256", False)
    assert (issuing["ca"], issuing["permitted_names"]) == (True, [f"dns:{DOMAIN}"])


def test_private_key_is_never_shown(fleet: Fleet) -> None:
    """Only its type is."""
    expected = [{"kind": "private-key", "key": "ECDSA P-256", "locked": False}]
    assert describe((fleet.host / "key.pem").read_bytes(), "key.pem") == expected


def test_statement_is_described_with_its_signature(fleet: Fleet) -> None:
    """Whether the signature matches is said; a changed one is shown and said not to."""
    token = (fleet.receiver / "log-key.jws").read_bytes()
    statement = describe(token, "log-key.jws")[0]
    assert statement["signature_matches"] is True
    assert isinstance(statement["payload"], dict)
    assert statement["payload"]["name"] == f"{RECEIVER_NAME}/securecore"
    head, _, signature = token.rpartition(b".")
    other = b"B" if signature[:1] == b"A" else b"A"
    assert describe(head + b"." + other + signature[1:], "log-key.jws")[0]["signature_matches"] is False


def test_der_is_described_like_pem(hierarchy: Hierarchy) -> None:
    """Both encodings of a certificate and a CRL."""
    assert describe(hierarchy.root.der, "f") == describe(hierarchy.root.pem, "f")
    pem = make_crl(hierarchy.hosts, number=4)
    der = x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER)
    assert describe(der, "f") == describe(pem, "f")
    assert describe(der, "f")[0]["number"] == 4


@pytest.mark.parametrize("key_type", ["p384", "rsa2048", "ed25519"])
def test_foreign_certificates_are_described(key_type: str, hierarchy: Hierarchy) -> None:
    """Inspect is for what others made, too; anything goes into JSON."""
    made = mint(HOST, issuer=hierarchy.hosts, key_type=key_type, dns=["*.x", "\x1b[2J"], omit=["key_usage", "extended_key_usage"])
    assert json.dumps(describe(made.pem, "f"))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x30\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_unknown_file_is_refused(data: bytes) -> None:
    """One line that names the file."""
    with pytest.raises(PkiError, match=r"^some\.file: "):
        describe(data, "some.file")


def test_a_file_cut_at_every_offset_is_refused(fleet: Fleet, hierarchy: Hierarchy) -> None:
    """No beginning of a certificate or of a statement is described as the whole."""
    for whole, shortest in ((hierarchy.hosts.der, 1), (hierarchy.hosts.pem, 2), ((fleet.receiver / "log-key.jws").read_bytes(), 1)):
        for cut in range(len(whole.rstrip()) + 1 - shortest):
            with pytest.raises(PkiError):
                describe(whole[:cut], "x")
        assert describe(whole, "x")


def test_a_million_beginnings_are_counted_before_their_ends_are_looked_for() -> None:
    """To look for each would take days."""
    begin = b"-----BEGIN CERTIFICATE-----\n"
    with pytest.raises(PkiError, match="parts, at most 64 are shown"):
        describe(begin * (MAX_FILE_BYTES // len(begin)), "x")


@given(st.binary(max_size=400))
def test_any_bytes_are_described_or_refused(data: bytes) -> None:
    """Nothing but PkiError comes of any bytes."""
    with pytest.raises(PkiError):
        describe(data, "f")
