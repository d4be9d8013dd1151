"""The statement of a receiver's log key, signed with its TLS key: whoever has the root can verify every receipt."""

import base64
import ipaddress
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit.checkpoint import decode_base64
from securecore.certs import judge, jws
from securecore.certs.chain import Anchors
from securecore.errors import BrokenError

_TYPE: Final = "securecore/log-key"
_VERSION: Final = 1
_KEY_BYTES: Final = 32


class LogKey(NamedTuple):
    """A log key that a certified receiver has stated to be its own."""

    name: str
    """``RECEIVER/securecore``; the origin of a host's log is this, a slash and the host."""
    public_key: bytes
    """Ed25519, 32 bytes."""
    issued_at: datetime
    receiver: judge.Judgement
    earlier: tuple[bytes, ...] = ()
    """The public keys before it, the newest first, as far as a chain of successions leads (succession.py)."""
    cut: str | None = None
    """Why that chain leads no further back, where there is more of it."""

    def is_of(self, host: str) -> bool:
        """Return whether the receiver's certificate names *host*, a name or an address (without its zone) as it was dialled."""
        names, addresses = judge.alternative_names(self.receiver.chain[0], judge.Purpose.RECEIVER)
        return _as_certified(host) in {*map(str, names), *addresses}


def sign_statement(name: str, public_key: bytes, key_pem: bytes, chain_der: Sequence[bytes], now: datetime) -> bytes:
    """Return the statement of a log key by a receiver's TLS key, from its PEM and its chain of certificates, the leaf first.

    Not checked: that the certificate is one of that name.
    """
    payload = encode_payload(name, public_key, now.isoformat(timespec="seconds"))
    return jws.sign(payload, key_pem, chain_der, jws.LOG_KEY_TYP)


def verify_statement(token: bytes, anchors: Anchors, now: datetime | None = None) -> LogKey:
    """Return the log key that *token* states.

    1. It is a JWS of the right type, signed by the key of its first certificate.
    2. Its payload is a log key's, in its canonical encoding.
    3. That certificate was a receiver's under one of our roots: at *now*, or when that is None at the time that the statement
       gives, so that a receipt can still be checked when the certificate has expired.
    4. The key's name is that receiver's, with ``/securecore`` behind it.

    Raises BrokenError, or the judge's Refusal (an UntrustedError). Not checked: revocation.
    """
    statement = jws.verify(token, jws.LOG_KEY_TYP, limits.MAX_STATEMENT_BYTES)
    name, public_key, issued_at = _parse_payload(statement.payload)
    receiver = judge.judge(
        statement.chain_der[0], statement.chain_der[1:], anchors, judge.Purpose.RECEIVER, issued_at if now is None else now
    )
    if name != f"{receiver.name}/securecore":
        raise BrokenError(f"log key statement names {name[:300]!a}, it is signed by {receiver.name}")
    return LogKey(name, public_key, issued_at, receiver)


def read_stated_key(token: bytes) -> bytes:
    """Return the public key that *token* states; raises BrokenError when it states none. Not checked: any certificate."""
    return _parse_payload(jws.verify(token, jws.LOG_KEY_TYP, limits.MAX_STATEMENT_BYTES).payload)[1]


def read_stated_name(token: bytes) -> str:
    """Return the name of the key that *token* states; raises as read_stated_key does. Not checked: any certificate."""
    return _parse_payload(jws.verify(token, jws.LOG_KEY_TYP, limits.MAX_STATEMENT_BYTES).payload)[0]


def encode_payload(name: str, public_key: bytes, issued_at: str) -> bytes:
    """Return the payload to sign: canonical JSON; *issued_at* is RFC 3339."""
    fields = {
        "type": _TYPE,
        "version": _VERSION,
        "name": name,
        "public_key": base64.b64encode(public_key).decode("ascii"),
        "issued_at": issued_at,
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _parse_payload(payload: bytes) -> tuple[str, bytes, datetime]:
    try:
        fields = json.loads(payload)
        name, key_text, issued_text = fields["name"], fields["public_key"], fields["issued_at"]
        public_key = decode_base64(key_text) or b""
        issued_at = datetime.fromisoformat(issued_text)
        is_canonical = isinstance(name, str) and payload == encode_payload(name, public_key, issued_text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenError("log key statement is malformed") from error
    if not is_canonical or len(public_key) != _KEY_BYTES or issued_at.tzinfo is None:
        raise BrokenError("log key statement is malformed or not in its canonical encoding")
    return name, public_key, issued_at


def _as_certified(host: str) -> str:
    """Return a name or address that was dialled as certificates are read: lower case, IPv6 in its shortest form (RFC 5952)."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()
