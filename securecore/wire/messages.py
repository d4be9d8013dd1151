"""The messages of ``securecore/1``: values, and the one encoding that each has.

A message on the wire is a 5-byte header (body length, 4 bytes big-endian; kind, 1 byte) and a body. The body of DATA is the
stored bytes of one frame and nothing else, that of REST the last bytes of one. Every other body is a list of fields, each a tag
(1 byte), a length (4 bytes big-endian) and a value, in strictly ascending order of tags. Tags 1 to 127 are critical: an unknown
one is refused. Tags 128 to 255 are optional: an unknown one is skipped. Numbers are big-endian and have a fixed width; text is
UTF-8. docs/wire.md is normative.
"""

import struct
from collections.abc import Callable
from enum import IntEnum

from securecore import limits
from securecore.declarations import Any, Final, NamedTuple
from securecore.errors import PeerError
from securecore.names import DumpId, NameRefused, StoreId

HEADER_BYTES: Final = 5
_HEADER: Final = struct.Struct(">IB")
_FIELD: Final = struct.Struct(">BI")


class Kind(IntEnum):
    """Message numbers; 32 to 47 are reserved for modules (docs/wire.md) and refused by this version."""

    READY = 1
    REFUSE = 2
    OPEN = 3
    ACCEPT = 4
    DATA = 5
    ZERO = 6
    ACK = 7
    END = 8
    RECEIPT = 9
    GONE = 10
    REST = 16


class Refusal(IntEnum):
    """Why a receiver refuses: the hundreds say what the sender does next (1xx: an operator must act; 2xx: try again later)."""

    BAD_CERTIFICATE = 100
    UNKNOWN_ISSUER = 101
    EXPIRED = 102
    REVOKED = 103
    WRONG_PURPOSE = 104
    BAD_NAME = 105
    NOT_ALLOWED = 106
    BAD_REQUEST = 107
    BAD_FRAME = 108
    BAD_MANIFEST = 109
    TOO_LARGE = 110
    NOT_YET_VALID = 200
    BUSY = 201
    STORAGE = 202
    SHUTTING_DOWN = 203
    SUPERSEDED = 204
    QUOTA = 205
    REVOCATION_UNKNOWN = 206


def is_final(code: int) -> bool:
    """Return whether the same request can't succeed until a person has changed something; also for codes of later versions."""
    return code < 200


class Ready(NamedTuple):
    """The receiver has judged the certificate and will take dumps into this store."""

    store: StoreId
    max_frames: int
    """Frames that it will take in one dump."""
    features: str = ""
    """Words separated by single spaces: REST_FEATURE, and those of later versions."""

    @property
    def takes_rest(self) -> bool:
        """Whether the receiver understands REST."""
        return REST_FEATURE in self.features.split(" ")


class Refuse(NamedTuple):
    """The receiver says no and closes the connection."""

    code: int
    """A Refusal; unknown codes are read by their hundreds."""
    words: str
    retry_after_s: int = 0
    """Seconds after which to come again; 0 leaves it to the sender, who caps whatever stands here."""
    kept: bool = False
    """Report and frames of the dump that is under way stay with the receiver."""


class Open(NamedTuple):
    """The sender begins or resumes a dump."""

    dump: DumpId
    report: bytes
    predicted_size: int | None = None
    """Plaintext bytes."""


class Accept(NamedTuple):
    """The receiver wants the frames from number *held* on."""

    held: int
    root: bytes
    """Merkle root over the frames that it holds."""
    torn_bytes: int = 0
    """Bytes that it has of the beginning of frame number *held*."""
    torn_hash: bytes = b""
    """Their SHA-256; empty when there are none."""


class Data(NamedTuple):
    """One frame."""

    frame: bytes | memoryview


class Rest(NamedTuple):
    """The bytes of one frame behind those that ACCEPT has offered to keep."""

    rest: bytes


class Zero(NamedTuple):
    """So many whole pieces of zeroes; each is one frame and one leaf."""

    pieces: int


class Ack(NamedTuple):
    """The first *frames* frames are durable: the sender may forget them."""

    frames: int


class End(NamedTuple):
    """All frames were sent; the signed manifest says what they were."""

    manifest: bytes


class Receipt(NamedTuple):
    """The dump, its audit entry and the checkpoint are durable."""

    receipt: bytes
    """A tlog-proof."""
    log_key: bytes
    """The statement of the log's public key."""
    successions: bytes = b""
    """The notes by which the receiver's log keys took one another's place; empty where it has had but one."""


class Gone(NamedTuple):
    """The receiver had this dump and its operator has deleted it since: the sender need not keep it.

    Anybody could say so; that it was here is proved like a dump that still is.
    """

    words: str
    receipt: bytes
    """The tlog-proof of the entry that says that the dump was received."""
    log_key: bytes
    """The statement of the log's public key."""
    successions: bytes = b""
    """As in Receipt."""


Message = Ready | Refuse | Open | Accept | Data | Rest | Zero | Ack | End | Receipt | Gone

REST_FEATURE: Final = "rest"
"""The word in READY by which a receiver says that it understands REST."""


class _Codec(NamedTuple):
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    max_bytes: int


class _Field(NamedTuple):
    tag: int
    name: str
    codec: _Codec
    required: bool = True


def _number(width: int) -> _Codec:
    def decode(value: bytes) -> int:
        if len(value) != width:
            raise PeerError(f"number has {len(value)} bytes instead of {width}")
        return int.from_bytes(value, "big")

    return _Codec(lambda number: number.to_bytes(width, "big"), decode, width)


def _blob(max_bytes: int, exactly: int | None = None) -> _Codec:
    def decode(value: bytes) -> bytes:
        if exactly is not None and len(value) != exactly:
            raise PeerError(f"value has {len(value)} bytes instead of {exactly}")
        return value

    return _Codec(bytes, decode, max_bytes)


def _decode_text(value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PeerError("text is not UTF-8") from error
    if len(text) > limits.MAX_WORDS:
        raise PeerError(f"text has {len(text)} characters, at most {limits.MAX_WORDS} are allowed")
    return text


def _encode_words(words: str) -> bytes:
    return words[: limits.MAX_WORDS].encode("utf-8", "replace")


def _decode_flag(value: bytes) -> bool:
    if value != b"\x01":
        raise PeerError("flag is not one byte 1")
    return True


_FLAG: Final = _Codec(lambda flag: b"\x01", _decode_flag, 1)
_TEXT: Final = _Codec(_encode_words, _decode_text, 4 * limits.MAX_WORDS)
_HASH: Final = _blob(32, exactly=32)
_DUMP: Final = _Codec(bytes, DumpId, 16)
_STORE: Final = _Codec(bytes, StoreId, 16)

_FIELDS: Final[dict[Kind, tuple[type[Any], tuple[_Field, ...]]]] = {
    Kind.READY: (Ready, (_Field(1, "store", _STORE), _Field(2, "max_frames", _number(4)), _Field(128, "features", _TEXT, False))),
    Kind.REFUSE: (
        Refuse,
        (
            _Field(1, "code", _number(2)),
            _Field(2, "words", _TEXT),
            _Field(128, "retry_after_s", _number(4), False),
            _Field(129, "kept", _FLAG, False),
        ),
    ),
    Kind.OPEN: (
        Open,
        (
            _Field(1, "dump", _DUMP),
            _Field(2, "report", _blob(limits.MAX_REPORT_BYTES)),
            _Field(128, "predicted_size", _number(8), False),
        ),
    ),
    Kind.ACCEPT: (
        Accept,
        (
            _Field(1, "held", _number(4)),
            _Field(2, "root", _HASH),
            _Field(128, "torn_bytes", _number(4), False),
            _Field(129, "torn_hash", _HASH, False),
        ),
    ),
    Kind.ZERO: (Zero, (_Field(1, "pieces", _number(4)),)),
    Kind.ACK: (Ack, (_Field(1, "frames", _number(4)),)),
    Kind.END: (End, (_Field(1, "manifest", _blob(limits.MAX_MANIFEST_BYTES)),)),
    Kind.RECEIPT: (
        Receipt,
        (
            _Field(1, "receipt", _blob(limits.MAX_RECEIPT_BYTES)),
            _Field(2, "log_key", _blob(limits.MAX_STATEMENT_BYTES)),
            _Field(128, "successions", _blob(limits.MAX_SUCCESSIONS_BYTES), False),
        ),
    ),
    Kind.GONE: (
        Gone,
        (
            _Field(1, "words", _TEXT),
            _Field(2, "receipt", _blob(limits.MAX_RECEIPT_BYTES)),
            _Field(3, "log_key", _blob(limits.MAX_STATEMENT_BYTES)),
            _Field(128, "successions", _blob(limits.MAX_SUCCESSIONS_BYTES), False),
        ),
    ),
}
_KIND_OF: Final[dict[type[Any], Kind]] = {cls: kind for kind, (cls, _) in _FIELDS.items()} | {Data: Kind.DATA, Rest: Kind.REST}
_OPTIONAL_SLACK: Final = 4096
"""Room in every field body for optional fields of later versions; one page is more than any message has needed so far."""


def kind_of(message: Message) -> Kind:
    """Return the number of a message's kind."""
    return _KIND_OF[type(message)]


def max_body_bytes(kind: Kind) -> int:
    """Return the longest body that a reader takes for this kind, before it allocates anything."""
    if kind is Kind.DATA:
        return limits.MAX_FRAME_BYTES
    if kind is Kind.REST:
        return limits.MAX_FRAME_BYTES - 1
    return sum(_FIELD.size + field.codec.max_bytes for field in _FIELDS[kind][1]) + _OPTIONAL_SLACK


def encode(message: Message) -> bytes:
    """Return the message's bytes on the wire; fields that equal an optional default are left out.

    Text is cut to MAX_WORDS. Raises PeerError, as a reader of these bytes would, when a value is outside its bounds.
    """
    kind = kind_of(message)
    if isinstance(message, (Data, Rest)):
        frame = message[0]
        _check_bare_length(kind, len(frame))
        return _HEADER.pack(len(frame), kind) + frame
    body = bytearray()
    for field in _FIELDS[kind][1]:
        value = getattr(message, field.name)
        if not field.required and not value:
            continue
        encoded = _encode_value(kind, field, value)
        body += _FIELD.pack(field.tag, len(encoded))
        body += encoded
    return _HEADER.pack(len(body), kind) + bytes(body)


def decode_header(header: bytes | bytearray | memoryview) -> tuple[Kind, int]:
    """Return kind and body length from the first five bytes; raises PeerError for an unknown kind or a length over its bound."""
    length, number = _HEADER.unpack_from(header)
    try:
        kind = Kind(number)
    except ValueError as error:
        raise PeerError(f"message kind {number} is unknown") from error
    if length > max_body_bytes(kind):
        raise PeerError(f"{kind.name} is {length} bytes long, at most {max_body_bytes(kind)} are allowed")
    return kind, length


def decode_body(kind: Kind, body: bytes | memoryview) -> Message:
    """Return the message of this kind in *body*; raises PeerError for anything but its one encoding."""
    if kind is Kind.DATA or kind is Kind.REST:
        _check_bare_length(kind, len(body))
        return Data(body) if kind is Kind.DATA else Rest(bytes(body))
    cls, fields = _FIELDS[kind]
    values = _split_fields(kind, bytes(body))
    arguments: dict[str, Any] = {}
    for field in fields:
        value = values.pop(field.tag, None)
        if value is not None:
            arguments[field.name] = _decode_value(kind, field, value)
        elif field.required:
            raise PeerError(f"{kind.name}: {field.name} is missing")
    unknown = [tag for tag in values if tag < 128]
    if unknown:
        raise PeerError(f"{kind.name}: field {unknown[0]} is unknown and critical")
    message: Message = cls(**arguments)
    return message


def _check_bare_length(kind: Kind, length: int) -> None:
    if not 1 <= length <= max_body_bytes(kind):
        raise PeerError(f"{kind.name} is {length} bytes long, a frame has 1 to {limits.MAX_FRAME_BYTES}")


def _encode_value(kind: Kind, field: _Field, value: Any) -> bytes:
    try:
        encoded = field.codec.encode(value)
    except OverflowError as error:
        raise PeerError(f"{kind.name}: {field.name}: {value} is out of range") from error
    _decode_value(kind, field, encoded)
    return encoded


def _decode_value(kind: Kind, field: _Field, value: bytes) -> Any:
    if len(value) > field.codec.max_bytes:
        raise PeerError(f"{kind.name}: {field.name} is too long")
    try:
        decoded = field.codec.decode(value)
    except (PeerError, NameRefused) as error:
        raise PeerError(f"{kind.name}: {field.name}: {error.message}") from error
    if not field.required and not decoded:
        # One message has one encoding: a default is said by leaving the field out.
        raise PeerError(f"{kind.name}: {field.name} is present but empty")
    return decoded


def _split_fields(kind: Kind, body: bytes) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    at, previous = 0, 0
    while at < len(body):
        if len(body) - at < _FIELD.size:
            raise PeerError(f"{kind.name}: field header is cut off")
        tag, length = _FIELD.unpack_from(body, at)
        at += _FIELD.size
        if tag <= previous:
            raise PeerError(f"{kind.name}: field {tag} is out of order or repeated")
        if length > len(body) - at:
            raise PeerError(f"{kind.name}: field {tag} is cut off")
        values[tag] = body[at : at + length]
        previous = tag
        at += length
    return values
