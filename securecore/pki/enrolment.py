"""What is said where hosts enrol: one line of JSON each way, as values; docs/enrolment.md has the normative text.

Nothing here touches a socket or a clock. Whatever bytes come, parse_request and parse_answer return a value or raise PeerError.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from securecore.certs.chain import one_line
from securecore.errors import BusyError, PeerError, RefusedError, SecurecoreError
from securecore.limits import MAX_RETRY_AFTER_S, MAX_WORDS

ALPN: Final = "securecore-enrol/1"

_FIELDS: Final = {
    "roots": (set(), set()),
    "lists": (set(), set()),
    "enroll": ({"token", "csr", "mac"}, {"host"}),
    "renew": ({"csr"}, set()),
}  # fmt: skip
"""Of each operation the fields that it must have, and those that it may have, beside ``op``; all are texts."""

_TOKEN_ID: Final = re.compile(r"[0-9a-f]{16}\Z")
_MAC_BYTES: Final = 32

_LATER: Final = ("busy", "unavailable")
"""Codes after which the same request may succeed later."""


class Request(NamedTuple):
    """What a client asks: the operation, and what goes with it."""

    op: str
    token: str = ""
    """The token's id."""
    csr: bytes = b""
    """PKCS#10, DER."""
    mac: bytes = b""
    host: str | None = None
    """Whose certificate the asking machine has already, None where it has none."""


class Answer(NamedTuple):
    """What a server answers; PEM texts, empty where they are no part of the answer."""

    ca: str = ""
    crl: str = ""
    reply: str = ""


class Denied(SecurecoreError):
    """No, in words for the operators of both ends; *code* is stable, fit for logs and the wire.

    *serial* is that of the certificate for which a token was used, or of a renewal of it; None where that was revoked.
    """

    def __init__(
        self, code: str, message: str, *, hint: str | None = None, retry_after_s: int = 0, serial: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retry_after_s = retry_after_s
        self.serial = serial
        self.host: str | None = None
        """Who was denied it, once that is known: by a certificate, or by a token. For the log, and nobody else."""


class TokenUsedError(RefusedError):
    """The token was used already; *serial* is that of its certificate in hexadecimal, empty where that was revoked.

    Where the client showed a certificate that comes from that one by renewals, it is this one's.
    """

    def __init__(self, message: str, *, hint: str | None = None, serial: str) -> None:
        super().__init__(message, hint=hint)
        self.serial = serial


def encode_request(request: Request) -> bytes:
    """Return a request's line."""
    fields = {"op": request.op}
    if request.op == "enroll":
        fields |= {"token": request.token, "mac": request.mac.hex()}
    if request.host is not None:
        fields["host"] = request.host
    if request.csr:
        fields["csr"] = base64.b64encode(request.csr).decode("ascii")
    return _line(fields)


def parse_request(line: bytes) -> Request:
    """Return the request of a line without its newline; raises PeerError for any other line, another encoding of one included.

    Not checked: that the request is one for a certificate, its signature, the HMAC, and *host*, which may be any text.
    """
    fields = _parse(line)
    op = fields.pop("op", None)
    if not isinstance(op, str) or op not in _FIELDS:
        raise PeerError("not an operation that is known here")
    needed, possible = _FIELDS[op]
    if not needed <= set(fields) <= needed | possible or not all(isinstance(value, str) for value in fields.values()):
        raise PeerError(f"{op}: not the fields that it has")
    try:
        csr = base64.b64decode(fields.get("csr", "").encode("ascii"), validate=True)
        mac = bytes.fromhex(fields.get("mac", ""))
    except (ValueError, binascii.Error) as error:
        raise PeerError(f"{op}: csr or mac is not in its encoding") from error
    request = Request(op, fields.get("token", ""), csr, mac, fields.get("host"))
    if op == "enroll" and (len(mac) != _MAC_BYTES or _TOKEN_ID.match(request.token) is None):
        raise PeerError(f"{op}: token or mac has not its length")
    # What decodes may still be written otherwise: blanks and capitals in hexadecimal, stray bits at the end of base64.
    if encode_request(request) != line + b"\n":
        raise PeerError(f"{op}: csr or mac is not in its one encoding")
    return request


def encode_answer(answer: Answer) -> bytes:
    """Return an answer's line."""
    return _line({name: text for name, text in answer._asdict().items() if text})


def encode_denial(denied: Denied) -> bytes:
    """Return the line that says no."""
    fields: dict[str, str | int] = {"error": denied.code, "words": denied.message}
    if denied.hint is not None:
        fields["hint"] = denied.hint
    if denied.retry_after_s:
        fields["retry_after_s"] = denied.retry_after_s
    if denied.serial is not None:
        fields["serial"] = f"{denied.serial:x}"
    return _line(fields)


def parse_answer(line: bytes, peer: str) -> Answer:
    """Return the answer of a line without its newline; *peer* is what messages call the server.

    Raises RefusedError or BusyError when the server says no, PeerError when the line is no answer. Not checked: the PEM texts.
    """
    fields = _parse(line)
    if "error" in fields:
        raise _denial(fields, peer)
    texts = {name: fields.get(name, "") for name in Answer._fields}
    if not fields or not set(fields) <= set(texts) or not all(isinstance(text, str) and text.isascii() for text in texts.values()):
        raise PeerError(f"{peer}: not an answer")
    answer = Answer(**texts)
    if encode_answer(answer) != line + b"\n":
        raise PeerError(f"{peer}: not an answer in its one encoding: a field is empty")
    return answer


def _denial(fields: dict[str, Any], peer: str) -> SecurecoreError:
    """Return the error that a server's no is here; its words are cut, and cannot steer a terminal."""
    code, words, hint, after = (fields.get(name) for name in ("error", "words", "hint", "retry_after_s"))
    if not isinstance(code, str) or not isinstance(words, str):
        return PeerError(f"{peer}: not an answer")
    text = f"{peer} says no: {_plain(words)}"
    advice = _plain(hint) if isinstance(hint, str) else None
    if code in _LATER:
        seconds = min(max(after, 0), MAX_RETRY_AFTER_S) if type(after) is int else 0
        return BusyError(text, hint=advice, retry_after_s=seconds)
    if code == "token-used":
        serial = fields.get("serial")
        return TokenUsedError(text, hint=advice, serial=serial if isinstance(serial, str) else "")
    return RefusedError(text, hint=advice)


def _plain(text: str) -> str:
    return ascii(" ".join(text.split())[:MAX_WORDS])[1:-1]


def _parse(line: bytes) -> dict[str, Any]:
    """Return the fields of a line; raises PeerError for what is not the one way to write them.

    So no field is there twice, of which two readers could each take another.
    """
    try:
        fields = json.loads(line.decode("ascii"))
        if not isinstance(fields, dict):
            raise PeerError("not a JSON object")
        is_canonical = _line(fields) == line + b"\n"
    except (ValueError, RecursionError) as error:
        raise PeerError(f"not a line of JSON: {one_line(error)}") from error
    if not is_canonical:
        raise PeerError("not in the one encoding of its fields: in order, each once, without blanks")
    return fields


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"
