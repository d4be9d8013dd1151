"""Compact JWS: one form, one encoding, any change is noticed."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.certs import jws
from securecore.certs.profiles import HOST
from securecore.errors import BrokenError, ConfigError
from tests.support.certificates import Made, make_hierarchy, make_key, mint

TYP = "securecore-test+jws"
HIERARCHY = make_hierarchy()
SIGNER = mint(HOST, issuer=HIERARCHY.hosts)
CHAIN = [SIGNER.der, HIERARCHY.hosts.der]
PAYLOAD = b'{"a":1}'
TOKEN = jws.sign(PAYLOAD, SIGNER.key_pem, CHAIN, TYP)
MAX = limits.MAX_MANIFEST_BYTES


def encode(data: bytes) -> bytes:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def with_header(**changes: object) -> bytes:
    """Return the token with changes in its header, signed anew so that only the form can be refused."""
    header = {"alg": "ES256", "typ": TYP, "x5c": [base64.b64encode(der).decode() for der in CHAIN], **changes}
    text = json.dumps({key: value for key, value in header.items() if value is not None}, sort_keys=True, separators=(",", ":"))
    return encode(text.encode()) + b"." + b".".join(TOKEN.split(b".")[1:])


def test_signed_token_verifies() -> None:
    """What was signed comes back, with the chain."""
    found = jws.verify(TOKEN, TYP, MAX)
    assert (found.typ, found.chain_der, found.payload) == (TYP, CHAIN, PAYLOAD)
    assert len(found.signature) == 64


def test_header_is_canonical_json() -> None:
    """The header is what the module's first lines promise, byte for byte."""
    header = base64.urlsafe_b64decode(TOKEN.split(b".")[0] + b"==")
    x5c = ",".join(f'"{base64.b64encode(der).decode()}"' for der in CHAIN)
    assert header == f'{{"alg":"ES256","typ":"{TYP}","x5c":[{x5c}]}}'.encode()


def test_wrong_type_is_refused() -> None:
    """A token for one purpose is not taken for another."""
    with pytest.raises(BrokenError, match="its type is"):
        jws.verify(TOKEN, "securecore-other+jws", MAX)


@given(st.integers(0, len(TOKEN) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(offset: int, mask: int) -> None:
    """No byte of a token can be changed."""
    changed = TOKEN[:offset] + bytes([TOKEN[offset] ^ mask]) + TOKEN[offset + 1 :]
    with pytest.raises(BrokenError):
        jws.verify(changed, TYP, MAX)


def test_truncated_token_is_refused_at_every_length() -> None:
    """No prefix of a token is a token."""
    for length in range(len(TOKEN)):
        with pytest.raises(BrokenError):
            jws.verify(TOKEN[:length], TYP, MAX)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_broken(data: bytes) -> None:
    """Nothing but BrokenError comes of bytes that are no token."""
    with pytest.raises(BrokenError):
        jws.parse(data, MAX)


@pytest.mark.parametrize(
    "token",
    [
        TOKEN + b"\n",
        TOKEN + b".",
        b"." + TOKEN,
        TOKEN.replace(b".", b"=.", 1),
        with_header(alg="none"),
        with_header(alg="HS256"),
        with_header(alg=None),
        with_header(typ=7),
        with_header(x5c=[]),
        with_header(x5c="AAAA"),
        with_header(x5c=[7]),
        with_header(x5c=[""]),
        with_header(x5c=["AB=="]),
        with_header(x5c=["AA"]),
        with_header(x5c=[base64.b64encode(SIGNER.der).decode()] * (limits.MAX_CHAIN + 1)),
        with_header(x5c=[base64.b64encode(b"x" * (limits.MAX_CERTIFICATE_BYTES + 1)).decode()]),
        with_header(crit=["b64"]),
        with_header(kid="key-1"),
        encode(b'{"alg": "ES256","typ":"a","x5c":["AAAA"]}') + b".AAAA.AAAA",
        encode(b"[]") + b".AAAA.AAAA",
        encode(b"\xff") + b".AAAA.AAAA",
        TOKEN.rpartition(b".")[0] + b"." + encode(b"s" * 63),
    ],
)
def test_other_forms_are_refused(token: bytes) -> None:
    """Every other encoding, algorithm or header member is refused before anything is verified."""
    with pytest.raises(BrokenError, match="not a signed statement"):
        jws.parse(token, MAX)


def test_token_above_the_bound_is_refused() -> None:
    """The size is checked first."""
    with pytest.raises(BrokenError, match="at most 10"):
        jws.parse(TOKEN, 10)


def test_signature_of_another_certificate_is_refused() -> None:
    """x5c[0] must be the signer's."""
    other = mint(HOST, issuer=HIERARCHY.hosts)
    with pytest.raises(BrokenError, match="does not match"):
        jws.verify(with_header(x5c=[base64.b64encode(other.der).decode()]), TYP, MAX)


def test_zero_signature_is_refused() -> None:
    """r = s = 0 (CVE-2022-21449) is no signature."""
    with pytest.raises(BrokenError, match="does not match"):
        jws.verify(TOKEN.rpartition(b".")[0] + b"." + encode(b"\x00" * 64), TYP, MAX)


@pytest.mark.parametrize("key_type", ["p384", "rsa2048", "ed25519"])
def test_other_keys_neither_sign_nor_verify(key_type: str) -> None:
    """ES256 is P-256."""
    other = mint(HOST, issuer=HIERARCHY.hosts, key_type=key_type)
    with pytest.raises(ConfigError, match="P-256"):
        jws.sign(PAYLOAD, other.key_pem, [other.der], TYP)
    with pytest.raises(BrokenError, match="P-256"):
        jws.verify(with_header(x5c=[base64.b64encode(other.der).decode()]), TYP, MAX)


def test_key_of_another_certificate_does_not_sign() -> None:
    """A mixed-up identity is noticed when it signs, not when somebody verifies."""
    with pytest.raises(ConfigError, match="does not belong"):
        jws.sign(PAYLOAD, Made(SIGNER.certificate, make_key()).key_pem, CHAIN, TYP)
    with pytest.raises(ConfigError, match="can't be read"):
        jws.sign(PAYLOAD, b"nonsense", CHAIN, TYP)
    with pytest.raises(ConfigError, match="can't be read"):
        jws.sign(PAYLOAD, SIGNER.key_pem, [], TYP)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program as an independent verifier")
def test_openssl_verifies_the_signature(tmp_path: Path) -> None:
    """An independent implementation accepts the signature over header.payload with the certificate's key."""
    signed, _, signature = TOKEN.rpartition(b".")
    raw = base64.urlsafe_b64decode(signature + b"==")
    (tmp_path / "signed").write_bytes(signed)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    (tmp_path / "signature").write_bytes(der)
    (tmp_path / "leaf.pem").write_bytes(SIGNER.pem)
    key = subprocess.run(["openssl", "x509", "-in", "leaf.pem", "-pubkey", "-noout"], cwd=tmp_path, capture_output=True, check=True)
    (tmp_path / "key.pub").write_bytes(key.stdout)
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "signature", "signed"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).stdout == b"Verified OK\n"
