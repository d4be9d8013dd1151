"""Private keys: making them, writing them as PEM, and locking a CA's with a passphrase.

The cryptography library's own encryption of a private key derives the key with 2,048 rounds of PBKDF2, which makes a stolen file
cheap to guess at. Here the PKCS#8 EncryptedPrivateKeyInfo is written by hand, with PBES2 over PBKDF2-HMAC-SHA-256 and AES-256-CBC
(RFC 8018 section 6.2, RFC 5958 section 3), and many more rounds; openssl and the cryptography library both open it.
"""

import base64
import hashlib
import secrets
import textwrap
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from securecore.certs.chain import PARSE_ERRORS, one_line
from securecore.errors import ConfigError, PkiError

PBKDF2_ROUNDS: Final = 1_000_000
"""OWASP asks for 600,000 rounds of PBKDF2-HMAC-SHA-256 (password storage advice, 2023); these take about a third of a second."""

MIN_PASSPHRASE: Final = 8
"""Bytes: the least that NIST SP 800-63B section 5.1.1.2 lets a verifier accept; the message that refuses less asks for more."""

AskPassphrase = Callable[[], bytes]
"""How a passphrase is obtained; called only when a key turns out to be locked."""

_PBES2: Final = (1, 2, 840, 113549, 1, 5, 13)
_PBKDF2: Final = (1, 2, 840, 113549, 1, 5, 12)
_HMAC_SHA256: Final = (1, 2, 840, 113549, 2, 9)
_AES_256_CBC: Final = (2, 16, 840, 1, 101, 3, 4, 1, 42)
_SALT_BYTES: Final = 16
_ENCRYPTED: Final = "ENCRYPTED PRIVATE KEY"


def make_key() -> ec.EllipticCurvePrivateKey:
    """Return a new ECDSA key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def make_log_key() -> ed25519.Ed25519PrivateKey:
    """Return a new Ed25519 key, which signs checkpoints only."""
    return ed25519.Ed25519PrivateKey.generate()


def private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return a private key as PKCS#8 PEM, locked when a passphrase is given."""
    plain = serialization.NoEncryption()
    if passphrase is None:
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, plain)
    return _pem(_ENCRYPTED, _encrypt(der, passphrase))


def load_ca_key(pem: bytes, ask_passphrase: AskPassphrase, *, what: str) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in a PEM, asking for the passphrase when it is locked; *what* names the file in messages.

    Raises PkiError for a wrong passphrase, ConfigError when the PEM is not such a key, and what *ask_passphrase* raises.
    """
    is_locked = f"-----BEGIN {_ENCRYPTED}-----".encode("ascii") in pem
    try:
        key = serialization.load_pem_private_key(pem, ask_passphrase() if is_locked else None)
    except PARSE_ERRORS as error:
        if is_locked:
            raise PkiError(f"{what}: the passphrase does not open this key") from error
        raise ConfigError(f"{what}: not a readable private key: {one_line(error)}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{what}: not an ECDSA key on P-256")
    return key


def check_passphrase(passphrase: bytes) -> None:
    """Raise PkiError when a new passphrase is shorter than MIN_PASSPHRASE bytes."""
    if len(passphrase) < MIN_PASSPHRASE:
        words = f"the passphrase is {len(passphrase)} bytes long, at least {MIN_PASSPHRASE} are needed"
        raise PkiError(words, hint="four or five random words are easy to keep and hard to guess")


def _encrypt(der: bytes, passphrase: bytes) -> bytes:
    """Return EncryptedPrivateKeyInfo over a PrivateKeyInfo."""
    salt, vector = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(16)
    secret = hashlib.pbkdf2_hmac("sha256", passphrase, salt, PBKDF2_ROUNDS, 32)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES256(secret), modes.CBC(vector)).encryptor()
    encrypted = encryptor.update(padder.update(der) + padder.finalize()) + encryptor.finalize()
    pseudo_random = _sequence(_object_identifier(_HMAC_SHA256), b"\x05\x00")
    derivation = _sequence(_object_identifier(_PBKDF2), _sequence(_octets(salt), _integer(PBKDF2_ROUNDS), pseudo_random))
    scheme = _sequence(_object_identifier(_AES_256_CBC), _octets(vector))
    algorithm = _sequence(_object_identifier(_PBES2), _sequence(derivation, scheme))
    return _sequence(algorithm, _octets(encrypted))


def _pem(label: str, der: bytes) -> bytes:
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode("ascii"), 64))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode("ascii")


def _tlv(tag: int, content: bytes) -> bytes:
    """Return one DER element (X.690 section 8.1.3): short form of the length below 128, else the long form."""
    if len(content) < 128:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _tlv(0x30, b"".join(parts))


def _octets(content: bytes) -> bytes:
    return _tlv(0x04, content)


def _integer(value: int) -> bytes:
    """Return a non-negative INTEGER, with the leading zero that keeps it so."""
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _object_identifier(arcs: tuple[int, ...]) -> bytes:
    """Return an OBJECT IDENTIFIER: the first two arcs in one number, each number in base 128 (X.690 section 8.19)."""
    content = bytearray()
    for number in (40 * arcs[0] + arcs[1], *arcs[2:]):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        content += bytes(reversed(groups))
    return _tlv(0x06, bytes(content))
