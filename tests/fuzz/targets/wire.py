"""The wire: messages one by one, and a connection in every state."""

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import pytest

from securecore import limits
from securecore.errors import Bug, PeerError
from securecore.merkle import EMPTY_ROOT
from securecore.wire.connection import Connection
from securecore.wire.messages import (
    HEADER_BYTES,
    Accept,
    Kind,
    Message,
    Open,
    Ready,
    Refuse,
    decode_body,
    decode_header,
    encode,
    kind_of,
    max_body_bytes,
)
from securecore.wire.states import End, State
from tests.fuzz.target import Target
from tests.support.wire import DUMP, NEED_DATA, SAMPLES, STORE, pair_in, put_in_space

_FIELD: Final = struct.Struct(">BI")
_OPTIONAL: Final = {
    Kind.READY: {128}, Kind.REFUSE: {128, 129}, Kind.OPEN: {128}, Kind.ACCEPT: {128, 129}, Kind.RECEIPT: {128}, Kind.GONE: {128},
}  # fmt: skip
"""Optional fields that docs/wire.md has; a reader skips all others from 128 on."""
_PLACES: Final = [(state, end) for state in State for end in End]


def check_message(data: bytes) -> None:
    """A message is refused, or it is the one encoding of its values, but for optional fields of later versions."""
    if len(data) < HEADER_BYTES:
        return
    try:
        kind, length = decode_header(data[:HEADER_BYTES])
    except PeerError:
        return
    assert length <= max_body_bytes(kind)
    body = data[HEADER_BYTES:]
    try:
        message = decode_body(kind, body)
    except PeerError:
        return
    assert kind_of(message) is kind
    known = body if kind in (Kind.DATA, Kind.REST) else _without_unknown(kind, body)
    assert encode(message) == struct.pack(">IB", len(known), kind) + known
    assert decode_body(kind, known) == message


def _without_unknown(kind: Kind, body: bytes) -> bytes:
    """Return a good body without the optional fields that this version does not know."""
    kept, at = b"", 0
    while at < len(body):
        tag, length = _FIELD.unpack_from(body, at)
        end = at + _FIELD.size + length
        if tag < 128 or tag in _OPTIONAL.get(kind, ()):
            kept += body[at:end]
        at = end
    return kept


def message_seeds() -> Iterator[bytes]:
    """One message of every kind, some with every field, and one with a field of a later version."""
    yield from (encode(message) for message in SAMPLES.values())
    yield from (encode(message) for message in _OTHERS)
    ack = encode(SAMPLES[Kind.ACK])[HEADER_BYTES:] + _FIELD.pack(200, 3) + b"new"
    yield struct.pack(">IB", len(ack), Kind.ACK) + ack


_OTHERS: Final[tuple[Message, ...]] = (
    Ready(STORE, 7, "a b"),
    Ready(STORE, 7),
    Refuse(201, "später \U0001f600"),
    Open(DUMP, b"{}"),
    Accept(5, EMPTY_ROOT),
    Accept(5, EMPTY_ROOT, 1 << 20, bytes(32)),
)


class _Seen(NamedTuple):
    """All that a connection lets its user see."""

    messages: list[Message]
    error: str | None
    state: State
    frames: int
    acknowledged: int
    torn_bytes: int
    partial: tuple[Kind, bytes] | None
    """What a cut at the end would leave of a frame."""


def check_connection(data: bytes) -> None:
    """However the bytes are cut, one end in one state sees the same messages, ends with the same error, and is done then.

    The first byte chooses state and end, the second the length of the parts.
    """
    if len(data) < 3:
        return
    state, end = _PLACES[data[0] % len(_PLACES)]
    stream, step = data[2:], data[1] % 29 + 1
    whole = _feed(state, end, [stream])
    parts = [stream[at : at + step] for at in range(0, len(stream), step)]
    assert whole == _feed(state, end, parts)
    assert whole == _feed(state, end, parts, put=put_in_space)


def _feed(state: State, end: End, parts: list[bytes], put: Callable[[Connection, bytes], None] = Connection.receive) -> _Seen:
    connection = pair_in(state).ends[end]
    messages: list[Message] = []
    error = None
    for part in parts:
        put(connection, part)
        try:
            while (message := connection.next_message()) is not NEED_DATA:
                messages.append(message)
        except PeerError as refused:
            error = refused.message
            break
        assert connection.acknowledged <= connection.frames <= connection.max_frames <= limits.MAX_FRAMES
        assert connection.torn_bytes < limits.MAX_FRAME_BYTES
    if error is not None:
        assert not connection.holds_partial_message
        for use in (lambda: connection.receive(b""), connection.space, connection.next_message):
            with pytest.raises(Bug):
                use()
    partial = connection.find_partial_frame()
    return _Seen(messages, error, connection.state, connection.frames, connection.acknowledged, connection.torn_bytes, partial)


def connection_seeds() -> Iterator[bytes]:
    """In every state and at either end: each message that the peer may say there, and some that it may not."""
    stream = [encode(SAMPLES[kind]) for kind in (Kind.DATA, Kind.ZERO, Kind.DATA, Kind.END)]
    resumed = [encode(SAMPLES[kind]) for kind in (Kind.OPEN, Kind.REST, Kind.DATA)]
    offered = [encode(SAMPLES[kind]) for kind in (Kind.READY, Kind.ACCEPT)]
    answers = [encode(SAMPLES[kind]) for kind in (Kind.ACK, Kind.RECEIPT, Kind.REFUSE)]
    for place in range(len(_PLACES)):
        yield from (bytes([place, 7]) + encode(message) for message in SAMPLES.values())
        yield bytes([place, 3]) + b"".join(stream)
        yield bytes([place, 11]) + b"".join(answers)
        yield bytes([place, 13]) + b"".join(resumed)
        yield bytes([place, 17]) + b"".join(offered)


MESSAGE = Target(check_message, message_seeds, ("wire.messages.decode_header", "wire.messages.decode_body"))
CONNECTION = Target(
    check_connection,
    connection_seeds,
    ("wire.connection.Connection.next_message", "wire.connection.Connection.find_partial_frame"),
)
