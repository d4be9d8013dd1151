"""The statement of a receiver's log key, signed with its TLS key: whoever has the root can verify every receipt."""

import base64
import json
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
