"""Checkpoints: a log's size and root in a signed note, as C2SP signed-note and tlog-checkpoint lay them down.

    receiver.example.org/securecore/web-1.example.org
    214
    ew7...=

    — receiver.example.org/securecore/web-1.example.org <base64 of key id and Ed25519 signature>

The first line is the origin: the log key's name, a slash, the host. The key name of the signature line is the origin too, as
tlog-checkpoint advises; so one Ed25519 key signs all logs of a receiver under one name for each, and a checkpoint of one log cannot
pass for another's. Source: https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from securecore import limits
from securecore.errors import BrokenError, Bug, ConfigError
from securecore.merkle import HASH_BYTES
from securecore.names import HostName

_ED25519: Final = b"\x01"
"""Signature type identifier of Ed25519 in signed-note."""

_KEY_ID_BYTES: Final = 4
_SIZE: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIGNATURE_LINE: Final = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/=]+)\Z")


class NoteSignature(NamedTuple):
    """One signature line of a note."""

    name: str
    key_id: bytes
    signature: bytes


class Checkpoint(NamedTuple):
    """A parsed checkpoint; extension lines are part of *text* only."""

    origin: str
    size: int
    root: bytes
    text: bytes
    """What is signed: the lines above the blank one, newline included."""
    signatures: list[NoteSignature]


class LogSigner:
    """A receiver's log key: signs checkpoints under ``NAME/HOST``, and under NAME those of the receiver-wide log.

    Safe for use by several threads.
    """

    def __init__(self, name: str, key: Ed25519PrivateKey, earlier: Sequence[bytes] = ()) -> None:
        self.name = name
        self.earlier = tuple(earlier)
        """The public keys before this one (succession.py), whose logs it goes on with."""
        self._key = key

    @classmethod
    def load(cls, name: str, key_pem: bytes) -> "LogSigner":
        """Return the signer for an unencrypted Ed25519 key in PEM (PKCS#8); raises ConfigError when it is anything else."""
        try:
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError("the log key cannot be read") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError("the log key is not an Ed25519 key")
        return cls(name, key)

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the public key."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, origin: str, size: int, root: bytes) -> bytes:
        """Return the checkpoint. Not checked: that it is consistent with every one signed before; the log sees to that."""
        if origin != self.name and not origin.startswith(f"{self.name}/"):
            raise Bug(f"log key {self.name!r} does not sign for {origin!r}")
        text = f"{origin}\n{size}\n{base64.b64encode(root).decode('ascii')}\n".encode()
        return text + b"\n" + signature_line(origin, self._key, text)


def origin_of(name: str, host: HostName) -> str:
    """Return the origin of a host's log, for a log key of that name."""
    return f"{name}/{host}"


def key_id(key_name: str, public_key: bytes) -> bytes:
    """Return the key id that signed-note gives an Ed25519 key."""
    return hashlib.sha256(key_name.encode() + b"\n" + _ED25519 + public_key).digest()[:_KEY_ID_BYTES]


def verifier_key(origin: str, public_key: bytes) -> str:
    """Return the key as the text that other readers of notes take: name, hexadecimal key id, base64 of type and key."""
    encoded = base64.b64encode(_ED25519 + public_key).decode("ascii")
    return f"{origin}+{key_id(origin, public_key).hex()}+{encoded}"


def parse_note(note: bytes, what: str) -> tuple[list[str], list[NoteSignature]]:
    """Return the lines that a signed note has above the blank one, and its signatures; *what* it is called in messages.

    Raises BrokenError when it has another form, or is longer than any checkpoint. Not checked: any signature.
    """
    if len(note) > limits.MAX_CHECKPOINT_BYTES:
        raise BrokenError(f"{what} is too long")
    try:
        words = note.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenError(f"{what} is not UTF-8") from error
    body, blank, tail = words.rpartition("\n\n")
    if not blank or not tail.endswith("\n") or _CONTROL.search(words):
        raise BrokenError(f"{what} is not a signed note")
    return body.split("\n"), [_parse_signature(line, what) for line in tail[:-1].split("\n")]


def signature_line(name: str, key: Ed25519PrivateKey, text: bytes) -> bytes:
    """Return the line, newline included, by which *key* signs a note's text under *name*."""
    signature = key_id(name, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)) + key.sign(text)
    return f"— {name} {base64.b64encode(signature).decode('ascii')}\n".encode()


def is_signed(text: bytes, signatures: Sequence[NoteSignature], name: str, public_key: bytes, what: str) -> bool:
    """Return whether a key has signed a note's text under *name*; raises BrokenError for a line of its that does not verify."""
    known = (name, key_id(name, public_key))
    ours = [line.signature for line in signatures if (line.name, line.key_id) == known]
    key = Ed25519PublicKey.from_public_bytes(public_key)
    for signature in ours:
        try:
            key.verify(signature, text)
        except InvalidSignature as error:
            raise BrokenError(f"{what} has a wrong signature") from error
    return bool(ours)


def parse_checkpoint(note: bytes) -> Checkpoint:
    """Return the checkpoint in *note*; raises BrokenError when it has another form. Not checked: any signature."""
    lines, signatures = parse_note(note, "checkpoint")
    if len(lines) < 3 or not all(lines) or not _SIZE.match(lines[1]):
        raise BrokenError("checkpoint does not begin with origin, size and root")
    root = decode_base64(lines[2])
    if root is None or len(root) != HASH_BYTES:
        raise BrokenError("checkpoint has no SHA-256 root")
    text = "\n".join([*lines, ""]).encode()
    return Checkpoint(lines[0], int(lines[1]), root, text, signatures)


def verify_checkpoint(note: bytes, origin: str, public_key: bytes, earlier: Sequence[bytes] = ()) -> Checkpoint:
    """Return the checkpoint in *note* once its origin is *origin* and the log's key has signed it; raises BrokenError.

    Or one of the keys *earlier* than that: for what was signed once and is kept, and not for where a log stands now. Signatures by
    other keys are passed over. Not checked: that the log is what the checkpoint says.
    """
    checkpoint = parse_checkpoint(note)
    if checkpoint.origin != origin:
        raise BrokenError(f"checkpoint is of log {checkpoint.origin[:300]!a}, expected {origin!a}")
    keys = (public_key, *earlier)
    if not any([is_signed(checkpoint.text, checkpoint.signatures, origin, key, "checkpoint") for key in keys]):
        signed = ", ".join(sorted({line.key_id.hex() for line in checkpoint.signatures}))
        nor = " nor by one before it" if earlier else ""
        raise BrokenError(f"checkpoint is not signed by the log's key{nor}, {key_id(origin, public_key).hex()}, but by {signed}")
    return checkpoint


def find_signer(checkpoint: Checkpoint, keys: Sequence[bytes]) -> bytes | None:
    """Return the first of some public keys that has a line in *checkpoint*, None when none has. Not checked: the signature."""
    lines = {line.key_id for line in checkpoint.signatures if line.name == checkpoint.origin}
    return next((key for key in keys if key_id(checkpoint.origin, key) in lines), None)


def decode_base64(text: str) -> bytes | None:
    """Return what *text* encodes in standard base64 with padding; None unless it is the one spelling of it."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode("ascii") == text else None


def _parse_signature(line: str, what: str) -> NoteSignature:
    match = _SIGNATURE_LINE.match(line)
    data = decode_base64(match[2]) if match else None
    if match is None or data is None or len(data) <= _KEY_ID_BYTES:
        raise BrokenError(f"{what} has a line that is no signature")
    return NoteSignature(match[1], data[:_KEY_ID_BYTES], data[_KEY_ID_BYTES:])
