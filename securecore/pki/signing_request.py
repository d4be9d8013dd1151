"""Certificate signing requests (PKCS#10, RFC 2986): how a public key comes to the CA without its private key."""

from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from securecore.certs.chain import PARSE_ERRORS, one_line
from securecore.errors import PkiError
from securecore.limits import KIB

MAX_REQUEST_BYTES: Final = 16 * KIB
"""Ours takes 0.4 KiB; one with an RSA-4096 key and names of its own, which is then refused in words, 3 KiB."""

_BLOCK_BEGINS: Final = b"-----BEGIN "
_BRING: Final = "bring the request.pem that `securecore pki request` made"


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a request for *key* as PEM; it asks for no name, for whoever signs it says which name it gets."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(pem: bytes, *, what: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a request, whose sender has shown that the private key is his; *what* names the file in messages.

    Nothing else is taken from it: subject, alternative names and extensions that it asks for are not looked at. Raises PkiError
    when it is not one PEM request, alone in its text, its signature is not by its own key (RFC 2986 section 4.2), or the key is not
    ECDSA on P-256.
    """
    blocks = pem.count(_BLOCK_BEGINS)
    if blocks > 1:
        # The library would take the first, and whoever put another before it would have his own certified.
        raise PkiError(f"{what}: {blocks} PEM blocks, where one request is expected", hint=_BRING)
    return _key_of(x509.load_pem_x509_csr, pem, what)


def requested_key_of_der(der: bytes, *, what: str) -> ec.EllipticCurvePublicKey:
    """Return the same of a request in DER; raises as requested_key does."""
    return _key_of(x509.load_der_x509_csr, der, what)


def request_der(pem: bytes) -> bytes:
    """Return a request that make_request has made as DER."""
    return x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)


def _key_of(load: Callable[[bytes], x509.CertificateSigningRequest], data: bytes, what: str) -> ec.EllipticCurvePublicKey:
    try:
        request = load(data)
        is_signed, key = request.is_signature_valid, request.public_key()
    except (InvalidSignature, *PARSE_ERRORS) as error:
        raise PkiError(f"{what}: not a certificate signing request: {one_line(error)}", hint=_BRING) from error
    if not is_signed:
        raise PkiError(f"{what}: the request is not signed by its own key", hint="it was damaged or put together: ask for it anew")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PkiError(f"{what}: its key is not an ECDSA key on P-256", hint="`securecore pki request` makes such a key")
    return key
