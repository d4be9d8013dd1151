"""Compact JWS (RFC 7515) in the one form that securecore uses: ES256, the signer's chain in ``x5c``, canonical JSON in the header.

A token is ``header.payload.signature``, each part base64url without padding. The header is exactly
``{"alg":"ES256","typ":TYP,"x5c":[LEAF,...]}`` as canonical JSON, so every token has one encoding of header and payload and anything
else is refused; the signature is r and s, 32 bytes each (RFC 7518 section 3.4). Any JOSE library verifies such a token.
"""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from securecore import limits
from securecore.certs import chain
from securecore.errors import BrokenError, ConfigError

LOG_KEY_TYP: Final = "securecore-log-key+jws"
"""The receiver's statement of its log key."""

_BASE64URL: Final = re.compile(rb"[A-Za-z0-9_-]+\Z")
_NUMBER_BYTES: Final = 32


class Jws(NamedTuple):
    """A token's parts: *chain_der* is the signer's certificate and then its issuers; *signed* is what the signature covers."""

    typ: str
    chain_der: list[bytes]
    payload: bytes
    signature: bytes
    signed: bytes


def sign(payload: bytes, key_pem: bytes, chain_der: Sequence[bytes], typ: str) -> bytes:
    """Return the token over *payload*, signed with a P-256 private key in unencrypted PEM.

    *chain_der* begins with the certificate of that key. Raises ConfigError when the key is not such a key or not the certificate's.
    """
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
        certified = x509.load_der_x509_certificate(chain_der[0]).public_key()
    except (*chain.PARSE_ERRORS, IndexError) as error:
        raise ConfigError(f"the signing key or its certificate can't be read: {chain.one_line(error)}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("the signing key is not an ECDSA key on P-256")
    if key.public_key() != certified:
        raise ConfigError("the signing key does not belong to the certificate beside it")
    x5c = [base64.b64encode(der).decode("ascii") for der in chain_der]
    signed = _encode(_canonical({"alg": "ES256", "typ": typ, "x5c": x5c})) + b"." + _encode(payload)
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
    return signed + b"." + _encode(r.to_bytes(_NUMBER_BYTES, "big") + s.to_bytes(_NUMBER_BYTES, "big"))


def parse(token: bytes, max_bytes: int) -> Jws:
    """Return a token's parts; raises BrokenError on anything but the form described above, *max_bytes* included.

    Not checked: the signature, the certificates, and what the payload says.
    """
    if len(token) > max_bytes:
        raise BrokenError(f"not a signed statement: {len(token)} bytes, at most {max_bytes} are read")
    parts = token.split(b".")
    if len(parts) != 3:
        raise BrokenError(f"not a signed statement: expected three parts, found {len(parts)}")
    header_json, payload, signature = (_decode(part) for part in parts)
    try:
        header = json.loads(header_json)
    except (ValueError, RecursionError) as error:
        raise BrokenError("not a signed statement: its header is not JSON") from error
    if not isinstance(header, dict) or set(header) != {"alg", "typ", "x5c"} or _canonical(header) != header_json:
        raise BrokenError("not a signed statement: its header is not exactly alg, typ and x5c in canonical JSON")
    if header["alg"] != "ES256" or not isinstance(header["typ"], str):
        raise BrokenError("not a signed statement: it is not signed with ES256")
    if len(signature) != 2 * _NUMBER_BYTES:
        raise BrokenError(f"not a signed statement: a signature of {len(signature)} bytes, 64 are expected")
    return Jws(header["typ"], _certificates(header["x5c"]), payload, signature, b".".join(parts[:2]))


def verify(token: bytes, typ: str, max_bytes: int) -> Jws:
    """Return a token's parts after checking its type and that the key of ``x5c[0]`` signed it.

    Raises BrokenError. Not checked: the chain. Anybody can make a certificate and sign with it, so the caller judges *chain_der*
    before it believes a word of the payload.
    """
    jws = parse(token, max_bytes)
    if jws.typ != typ:
        raise BrokenError(f"not the expected statement: its type is {jws.typ[:100]!a}, expected {typ!r}")
    try:
        key = x509.load_der_x509_certificate(jws.chain_der[0]).public_key()
    except chain.PARSE_ERRORS as error:
        raise BrokenError(f"the signer's certificate can't be read: {chain.one_line(error)}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BrokenError("the signer's key is not an ECDSA key on P-256")
    r, s = (int.from_bytes(half, "big") for half in (jws.signature[:_NUMBER_BYTES], jws.signature[_NUMBER_BYTES:]))
    try:
        key.verify(encode_dss_signature(r, s), jws.signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise BrokenError("the signature does not match what was signed") from error
    return jws


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decode(part: bytes) -> bytes:
    """Return the bytes of base64url without padding; one spelling only, so unused bits must be zero."""
    if not _BASE64URL.match(part):
        raise BrokenError("not a signed statement: a part is not base64url without padding")
    try:
        data = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except binascii.Error as error:
        raise BrokenError("not a signed statement: a part is not base64url without padding") from error
    if _encode(data) != part:
        raise BrokenError("not a signed statement: a part is base64url with stray bits at its end")
    return data


def _certificates(x5c: object) -> list[bytes]:
    """Return the chain of a header's x5c: standard base64 with padding (RFC 7515 section 4.1.6), bounded in number and size."""
    if not isinstance(x5c, list) or not 1 <= len(x5c) <= limits.MAX_CHAIN:
        raise BrokenError(f"not a signed statement: x5c is not a list of 1 to {limits.MAX_CHAIN} certificates")
    chain_der: list[bytes] = []
    for text in x5c:
        try:
            der = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except ValueError as error:
            raise BrokenError("not a signed statement: a certificate in x5c is not base64") from error
        if not 0 < len(der) <= limits.MAX_CERTIFICATE_BYTES or base64.b64encode(der).decode("ascii") != text:
            raise BrokenError("not a signed statement: a certificate in x5c is empty, too large or not in canonical base64")
        chain_der.append(der)
    return chain_der
