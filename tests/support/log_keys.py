"""Log keys of one receiver that take one another's place, made without a directory and without waiting."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.audit.checkpoint import LogSigner, verifier_key
from securecore.audit.statement import encode_payload
from securecore.audit.succession import Line, encode_history, public_bytes, sign_succession
from securecore.certs import jws
from securecore.certs.profiles import RECEIVER
from tests.support.certificates import RECEIVER_NAME, Hierarchy, Made, mint
from tests.support.dumps import LOG_NAME, NOW

FIRST_LINE: Final = "securecore/log-key-succession v1"


def make_receiver(hierarchy: Hierarchy, name: str = RECEIVER_NAME) -> Made:
    """Return a receiver's certificate that is valid around NOW."""
    return mint(RECEIVER, issuer=hierarchy.receivers, now=NOW, dns=[name])


@dataclass
class Dynasty:
    """One receiver, each of whose log keys has handed over to the next."""

    receiver: Made
    name: str = LOG_NAME
    keys: list[Ed25519PrivateKey] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    @property
    def history(self) -> bytes:
        """What log-keys.jsonl has."""
        return encode_history(self.lines)

    @property
    def public_keys(self) -> list[bytes]:
        """The oldest first."""
        return [public_bytes(key) for key in self.keys]

    @property
    def now(self) -> datetime:
        """A time of its own for each key."""
        return NOW + timedelta(seconds=len(self.keys))

    def verifier_key(self, at: int) -> str:
        """Return a key as people write it."""
        return verifier_key(self.name, self.public_keys[at])

    def signer(self, at: int = -1) -> LogSigner:
        """Return a key that signs logs, with those before it."""
        before = self.public_keys[: len(self.keys) + at] if at < 0 else self.public_keys[:at]
        return LogSigner(self.name, self.keys[at], tuple(reversed(before)))

    def state(self, key: Ed25519PrivateKey) -> bytes:
        """Return the statement of a key, as whoever has the TLS key can make it."""
        payload = encode_payload(self.name, public_bytes(key), self.now.isoformat())
        above = [self.receiver.above[0].public_bytes(Encoding.DER)]
        return jws.sign(payload, self.receiver.key_pem, [self.receiver.der, *above], jws.LOG_KEY_TYP)

    def enthrone(self, *, is_lost: bool = False) -> "Dynasty":
        """Make one more key, to which the one before hands over, if it is not lost."""
        key = Ed25519PrivateKey.generate()
        note = None
        if self.keys:
            before = self.keys[-1]
            note = sign_succession(self.name, public_bytes(before) if is_lost else before, key, self.now)
        self.lines.append(Line(self.state(key), note))
        self.keys.append(key)
        return self


def make_dynasty(hierarchy: Hierarchy, keys: int = 1) -> Dynasty:
    """Return so many keys of one receiver, in order."""
    made = Dynasty(make_receiver(hierarchy))
    for _ in range(keys):
        made.enthrone()
    return made
