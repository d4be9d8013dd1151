"""An identity directory: who this machine is, and whom it believes.

A sender's holds ca.pem (the root), cert.pem (leaf, issuing CA) and key.pem; a receiver's ca.pem holds the CAs as well, and beside
them stand crl.pem, log-key.pem and log-key.jws, and log-keys.jsonl once it has had another log key. The crash handler does not come
here: it hands the paths to ssl.
"""

from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from securecore import limits
from securecore.certs import chain
from securecore.certs.private_file import read_private, read_public
from securecore.errors import ConfigError, NotFoundError

CA: Final = "ca.pem"
CERTIFICATE: Final = "cert.pem"
KEY: Final = "key.pem"
CRL: Final = "crl.pem"
LOG_KEY: Final = "log-key.pem"
LOG_STATEMENT: Final = "log-key.jws"
LOG_KEYS: Final = "log-keys.jsonl"

MAX_KEY_BYTES: Final = 16 * limits.KIB
"""A private key in PEM: P-256 takes 241 bytes, RSA-4096 (which we then refuse in words) 3.3 KiB."""

MAX_CA_BYTES: Final = 2 * chain.MAX_ANCHORS * limits.MAX_CERTIFICATE_BYTES
MAX_CHAIN_BYTES: Final = 2 * limits.MAX_CHAIN * limits.MAX_CERTIFICATE_BYTES


class Identity(NamedTuple):
    """What both kinds of identity directory hold. *certificates* is the chain, leaf first."""

    path: Path
    anchors: chain.Anchors
    certificates: tuple[x509.Certificate, ...]
    key_pem: bytes

    @property
    def chain_der(self) -> list[bytes]:
        """The chain as DER, leaf first: what goes into x5c."""
        return [certificate.public_bytes(serialization.Encoding.DER) for certificate in self.certificates]


class PublicParts(NamedTuple):
    """What anybody may know of an identity: what it believes, and its chain as DER, leaf first."""

    anchors: chain.Anchors
    chain_der: list[bytes]


class ReceiverParts(NamedTuple):
    """What a receiver's directory holds beside an Identity: CRLs and log statement as they stand in the files, and the log key."""

    crl_pem: bytes
    log_key: ed25519.Ed25519PrivateKey
    log_statement: bytes


def load_identity(path: Path) -> Identity:
    """Return the identity in a directory.

    Raises ConfigError when a file is malformed, key.pem is open to others, is not a P-256 key or is not the key of the leaf;
    NotFoundError when a file is missing; StorageError when it can't be read. Not checked: dates, purpose, revocation and whether
    the chain leads to a root; the judge does that.
    """
    check_directory(path)
    anchors = chain.load_anchors(read_public(path / CA, MAX_CA_BYTES), what=str(path / CA))
    certificates = chain.load_pem_certificates(read_public(path / CERTIFICATE, MAX_CHAIN_BYTES), what=str(path / CERTIFICATE))
    key_pem = read_private(path / KEY, MAX_KEY_BYTES)
    key = _parse_p256_key(key_pem, path / KEY)
    try:
        certified = certificates[0].public_key()
    except chain.PARSE_ERRORS as error:
        raise ConfigError(f"{path / CERTIFICATE}: the leaf's key can't be read: {chain.one_line(error)}") from error
    if key.public_key() != certified:
        hint = "key.pem and cert.pem come from two different identities; copy both from the same one"
        raise ConfigError(f"{path}: key.pem is not the key of the first certificate in cert.pem", hint=hint)
    return Identity(path, anchors, tuple(certificates), key_pem)


def load_public_parts(path: Path) -> PublicParts:
    """Return what an identity directory shows of its owner, without a look at the private key; raises like load_identity.

    Not checked: what load_identity does not check, and that the directory has a key and is its owner's alone.
    """
    anchors = chain.load_anchors(read_public(path / CA, MAX_CA_BYTES), what=str(path / CA))
    certificates = chain.load_pem_certificates(read_public(path / CERTIFICATE, MAX_CHAIN_BYTES), what=str(path / CERTIFICATE))
    return PublicParts(anchors, [certificate.public_bytes(serialization.Encoding.DER) for certificate in certificates])


def load_receiver_parts(path: Path) -> ReceiverParts:
    """Return the CRLs, log key and log statement of a receiver's identity directory.

    Raises like load_identity. Not checked: the CRLs' signatures (revocation.py does that) and the statement.
    """
    crl_pem = read_public(path / CRL, limits.MAX_CRL_BYTES)
    return ReceiverParts(crl_pem, *load_log_key(path))


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in a file that is its owner's alone; raises like load_identity."""
    return _parse_p256_key(read_private(path, MAX_KEY_BYTES), path)


def load_log_key(path: Path) -> tuple[ed25519.Ed25519PrivateKey, bytes]:
    """Return the log key and the log statement of a receiver's identity directory; raises like load_identity."""
    return load_ed25519_key(path / LOG_KEY), read_public(path / LOG_STATEMENT, limits.MAX_STATEMENT_BYTES)


def load_ed25519_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """Return the Ed25519 key in a file that is its owner's alone; raises like load_identity."""
    key = _parse_key(read_private(path, MAX_KEY_BYTES), path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an Ed25519 key")
    return key


def load_log_keys(path: Path) -> bytes | None:
    """Return the history of log keys in a receiver's identity directory, None where there is none; raises like load_identity."""
    try:
        return read_public(path / LOG_KEYS, limits.MAX_LOG_KEYS_BYTES)
    except NotFoundError:
        return None


def check_directory(path: Path) -> None:
    """Raise ConfigError when others may put files into the directory: they could put their own key and certificates there."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise NotFoundError(f"{path}: no identity directory there: {error.strerror}") from error
    if not path.is_dir():
        raise ConfigError(f"{path}: not a directory", hint="name the directory that `securecore pki issue` made")
    if mode & 0o022:
        raise ConfigError(f"{path}: others than its owner may write there (mode {mode & 0o7777:04o})", hint=f"chmod 700 {path}")


def _parse_p256_key(pem: bytes, path: Path) -> ec.EllipticCurvePrivateKey:
    key = _parse_key(pem, path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{path}: not an ECDSA key on P-256")
    return key


def _parse_key(pem: bytes, path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except chain.PARSE_ERRORS as error:
        raise ConfigError(f"{path}: not a readable private key in unencrypted PEM: {chain.one_line(error)}") from error
