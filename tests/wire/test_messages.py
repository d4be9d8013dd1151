"""The encoding of messages: one for each value, bounded, and refused in every other shape."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.errors import PeerError
from securecore.names import DumpId, StoreId
from securecore.wire import messages
from securecore.wire.messages import (
    HEADER_BYTES,
    Accept,
    Ack,
    Data,
    End,
    Gone,
    Kind,
    Message,
    Open,
    Ready,
    Receipt,
    Refusal,
    Refuse,
    Rest,
    Zero,
    decode_body,
    decode_header,
    encode,
    is_final,
    kind_of,
    max_body_bytes,
)
from tests.support.wire import DUMP, SAMPLES, STORE

FIELD_HEADER = struct.Struct(">BI")
FIELD_KINDS = [kind for kind in Kind if kind not in (Kind.DATA, Kind.REST)]
FIELDS = [(kind, field) for kind, (_, fields) in messages._FIELDS.items() for field in fields]


def decode(data: bytes) -> Message:
    """Return the one message in *data*."""
    kind, length = decode_header(data)
    if len(data) != HEADER_BYTES + length:
        raise PeerError("length does not fit")
    return decode_body(kind, data[HEADER_BYTES:])


def split(message: Message) -> dict[int, bytes]:
    """Return the fields of an encoded message by their tags."""
    body, found = encode(message)[HEADER_BYTES:], {}
    while body:
        tag, length = FIELD_HEADER.unpack_from(body)
        found[tag] = body[FIELD_HEADER.size : FIELD_HEADER.size + length]
        body = body[FIELD_HEADER.size + length :]
    return found


def join(fields: list[tuple[int, bytes]]) -> bytes:
    """Return a body of these fields, in this order."""
    return b"".join(FIELD_HEADER.pack(tag, len(value)) + value for tag, value in fields)


def body_with(kind: Kind, tag: int, value: bytes) -> bytes:
    """Return the body of the sample of *kind* with one field set."""
    return join(sorted((split(SAMPLES[kind]) | {tag: value}).items()))


def test_there_is_a_sample_of_every_kind() -> None:
    """A message that is added gets into every test of this directory, or this one fails."""
    assert set(Kind) == set(SAMPLES) == {kind_of(message) for message in SAMPLES.values()}


@pytest.mark.parametrize("kind", Kind)
def test_a_message_survives_the_wire(kind: Kind) -> None:
    """decode(encode(m)) == m."""
    assert SAMPLES[kind] == decode(encode(SAMPLES[kind]))


@pytest.mark.parametrize("kind", FIELD_KINDS)
def test_truncation_at_every_offset_of_the_body_is_refused(kind: Kind) -> None:
    """A prefix of a body is no body, unless it ends before an optional field: then it is another message."""
    body = encode(SAMPLES[kind])[HEADER_BYTES:]
    for cut in range(len(body)):
        try:
            shorter = decode_body(kind, body[:cut])
        except PeerError:
            continue
        assert body[:cut] == encode(shorter)[HEADER_BYTES:]
        assert shorter != SAMPLES[kind]


@pytest.mark.parametrize("number", [0, *range(11, 16), *range(17, 256)])
def test_an_unknown_kind_is_refused(number: int) -> None:
    """Numbers without a message, those reserved for modules and for later among them, are a breach of protocol."""
    with pytest.raises(PeerError, match=f"kind {number} is unknown"):
        decode_header(struct.pack(">IB", 0, number))


@pytest.mark.parametrize("kind", Kind)
def test_the_length_in_the_header_is_bounded(kind: Kind) -> None:
    """The longest body is accepted at its header, one byte more is not, nor 4 GiB."""
    bound = max_body_bytes(kind)
    assert (kind, bound) == decode_header(struct.pack(">IB", bound, kind))
    for length in (bound + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        with pytest.raises(PeerError, match=f"at most {bound}"):
            decode_header(struct.pack(">IB", length, kind))


def at_bound(kind: Kind, field: Any) -> bytes:
    """Return a value of exactly the field's bound that its codec takes."""
    if field.codec is messages._TEXT:
        return "\N{GRINNING FACE}".encode() * limits.MAX_WORDS
    if field.codec is messages._DUMP:
        return bytes(DUMP)
    if field.codec is messages._STORE:
        return bytes(STORE)
    if field.codec is messages._FLAG:
        return b"\x01"
    return b"\xff" * int(field.codec.max_bytes)


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "name", None))
def test_each_field_is_taken_at_its_bound_and_refused_beyond(kind: Kind, field: Any) -> None:
    """A value of max_bytes decodes and encodes to the same bytes; one byte more is refused even where the body has room."""
    value = at_bound(kind, field)
    assert len(value) == field.codec.max_bytes
    body = body_with(kind, field.tag, value)
    assert body == encode(decode_body(kind, body))[HEADER_BYTES:]
    with pytest.raises(PeerError, match=field.name):
        decode_body(kind, body_with(kind, field.tag, value + b"\0"))


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "name", None))
def test_a_field_of_fixed_width_is_refused_in_every_other_width(kind: Kind, field: Any) -> None:
    """Numbers, hashes and ids have one width; blobs and text may be shorter, and an optional one is never empty."""
    variable = field.codec is messages._TEXT or field.codec.max_bytes > 32
    for width in range(min(field.codec.max_bytes, 40)):
        body = body_with(kind, field.tag, b"a" * width)
        if variable and (width or field.required):
            assert body == encode(decode_body(kind, body))[HEADER_BYTES:]
        else:
            with pytest.raises(PeerError, match=field.name):
                decode_body(kind, body)


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "name", None))
def test_a_missing_field_is_refused_only_where_it_is_required(kind: Kind, field: Any) -> None:
    """Leaving out an optional field gives its default."""
    fields = split(SAMPLES[kind])
    fields.pop(field.tag, None)
    body = join(sorted(fields.items()))
    if field.required:
        with pytest.raises(PeerError, match=f"{field.name} is missing"):
            decode_body(kind, body)
    else:
        default = messages._FIELDS[kind][0]._field_defaults[field.name]
        assert default == getattr(decode_body(kind, body), field.name)


def test_required_fields_are_critical_and_optional_ones_are_not() -> None:
    """A reader that does not know a required field must refuse the message, one that does not know an optional one may go on."""
    wrong = [(kind, field.name) for kind, field in FIELDS if field.required != (field.tag < 128)]
    assert not wrong


def test_fields_are_declared_in_the_order_of_their_tags() -> None:
    """Encoding walks the table, decoding demands ascending tags."""
    for _, fields in messages._FIELDS.values():
        tags = [field.tag for field in fields]
        assert sorted(set(tags)) == tags


@pytest.mark.parametrize("kind", FIELD_KINDS)
def test_an_unknown_optional_field_is_skipped(kind: Kind) -> None:
    """What a later version adds with a tag of 128 or more does not disturb this one."""
    for tag, value in ((200, b"something new"), (255, b""), (254, bytes(4000))):
        body = join(sorted((split(SAMPLES[kind]) | {tag: value}).items()))
        assert SAMPLES[kind] == decode_body(kind, body)


@pytest.mark.parametrize("kind", FIELD_KINDS)
@pytest.mark.parametrize("tag", [100, 127])
def test_an_unknown_critical_field_is_refused(kind: Kind, tag: int) -> None:
    """What a later version adds with a tag below 128 changes the meaning of the message."""
    with pytest.raises(PeerError, match=f"field {tag} is unknown and critical"):
        decode_body(kind, join(sorted((split(SAMPLES[kind]) | {tag: b""}).items())))


@pytest.mark.parametrize("kind", FIELD_KINDS)
def test_fields_out_of_order_or_repeated_are_refused(kind: Kind) -> None:
    """Each list of fields has one order, and tag 0 is in none."""
    fields = sorted(split(SAMPLES[kind]).items())
    bad = [[*fields, fields[-1]], [fields[0], *fields], [(0, b""), *fields]]
    if len(fields) > 1:
        bad.append(fields[::-1])
    for arrangement in bad:
        with pytest.raises(PeerError, match="out of order or repeated"):
            decode_body(kind, join(arrangement))


@pytest.mark.parametrize("kind", FIELD_KINDS)
@pytest.mark.parametrize("length", [1, (1 << 31) - 1, (1 << 32) - 1])
def test_a_field_longer_than_its_message_is_refused(kind: Kind, length: int) -> None:
    """A field's length is held against what is there before anything is taken."""
    with pytest.raises(PeerError, match="is cut off"):
        decode_body(kind, FIELD_HEADER.pack(1, length))


@pytest.mark.parametrize("kind", Kind)
def test_trailing_bytes_in_a_body_are_refused(kind: Kind) -> None:
    """Nothing but fields stands in a body; DATA and REST have no fields, there it is the frame check that refuses."""
    body = encode(SAMPLES[kind])[HEADER_BYTES:]
    if kind in (Kind.DATA, Kind.REST):
        assert (Data if kind is Kind.DATA else Rest)(body + b"\0") == decode_body(kind, body + b"\0")
    else:
        for extra in (b"\0", b"\xff", b"\xff\0\0\0"):
            with pytest.raises(PeerError, match="field header is cut off"):
                decode_body(kind, body + extra)


@pytest.mark.parametrize(
    "message",
    [
        Data(b""),
        Rest(b""),
        Rest(bytes(limits.MAX_FRAME_BYTES)),
        Data(bytes(limits.MAX_FRAME_BYTES + 1)),
        Ready(STORE, 1 << 32),
        Ack(-1),
        Open(DUMP, bytes(limits.MAX_REPORT_BYTES + 1)),
        Open(DUMP, b"{}", 1 << 64),
        Accept(0, bytes(31)),
        Accept(0, bytes(33)),
        End(bytes(limits.MAX_MANIFEST_BYTES + 1)),
        Receipt(bytes(limits.MAX_RECEIPT_BYTES + 1), b""),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_a_reader_would_refuse_is_not_encoded(message: Message) -> None:
    """We are no laxer with ourselves than with the peer."""
    with pytest.raises(PeerError):
        encode(message)


def test_words_are_cut_when_encoded_and_refused_when_received_too_long() -> None:
    """At most MAX_WORDS characters are said, and no peer can make us show more; what is not Unicode does not stop a refusal."""
    assert Refuse(1, "x" * limits.MAX_WORDS) == decode(encode(Refuse(1, "x" * 1000)))
    assert Gone("a?b", b"r", b"k") == decode(encode(Gone("a\udc80b", b"r", b"k")))
    with pytest.raises(PeerError, match="at most 400"):
        decode_body(Kind.GONE, join([(1, b"x" * (limits.MAX_WORDS + 1))]))
    for bad in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"):
        with pytest.raises(PeerError, match="not UTF-8"):
            decode_body(Kind.GONE, join([(1, bad)]))


def test_an_optional_field_is_never_present_with_its_default() -> None:
    """Leaving it out is the one way to say it."""
    assert encode(Refuse(Refusal.BUSY, "later")) == encode(Refuse(Refusal.BUSY, "later", 0))
    with pytest.raises(PeerError, match="retry_after_s is present but empty"):
        decode_body(Kind.REFUSE, body_with(Kind.REFUSE, 128, bytes(4)))
    assert encode(Refuse(Refusal.BUSY, "later")) == encode(Refuse(Refusal.BUSY, "later", kept=False))
    with pytest.raises(PeerError, match="features is present but empty"):
        decode_body(Kind.READY, body_with(Kind.READY, 128, b""))


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x02", b"\x01\x01"])
def test_a_flag_has_one_encoding(value: bytes) -> None:
    """One byte 1; it is left out where it does not hold."""
    with pytest.raises(PeerError, match="REFUSE: kept"):
        decode_body(Kind.REFUSE, body_with(Kind.REFUSE, 129, value))


def test_ids_of_other_versions_are_refused() -> None:
    """A dump id is a UUIDv7 and a store id a UUIDv4, whatever else is in their sixteen bytes."""
    with pytest.raises(PeerError, match="OPEN: dump: not a dump id"):
        decode_body(Kind.OPEN, body_with(Kind.OPEN, 1, bytes(STORE)))
    with pytest.raises(PeerError, match="READY: store: not a store id"):
        decode_body(Kind.READY, body_with(Kind.READY, 1, bytes(DUMP)))


def test_refusals_are_final_below_two_hundred() -> None:
    """The hundreds of a code say what the sender does next, for codes that it does not know, too."""
    assert {code for code in Refusal if code < 200} == {code for code in Refusal if is_final(code)}
    assert Refuse(999, "what") == decode(encode(Refuse(999, "what")))


uuid7 = st.builds(DumpId.make, st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=10))
uuid4 = st.builds(StoreId.make, st.binary(min_size=16, max_size=16))
digest = st.binary(min_size=32, max_size=32)
u32 = st.integers(0, (1 << 32) - 1)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)
any_message: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ready, uuid4, u32, words),
    st.builds(Refuse, st.integers(0, (1 << 16) - 1), words, u32, st.booleans()),
    st.builds(Open, uuid7, st.binary(max_size=500), st.none() | st.integers(1, (1 << 64) - 1)),
    st.builds(Accept, u32, digest, u32, st.just(b"") | digest),
    st.builds(Rest, st.binary(min_size=1, max_size=500)),
    st.builds(Data, st.binary(min_size=1, max_size=500)),
    st.builds(Zero, u32),
    st.builds(Ack, u32),
    st.builds(End, st.binary(max_size=500)),
    st.builds(Receipt, st.binary(max_size=500), st.binary(max_size=500)),
    st.builds(Gone, words, st.binary(max_size=500), st.binary(max_size=500)),
)


@given(any_message)
def test_any_message_survives_the_wire(message: Message) -> None:
    """decode(encode(m)) == m, for every value in bounds."""
    assert message == decode(encode(message))


@given(st.sampled_from(Kind), st.binary(max_size=300))
def test_arbitrary_bodies_are_refused_or_have_one_encoding(kind: Kind, body: bytes) -> None:
    """Whatever decodes and has no unknown optional field encodes to exactly what came."""
    try:
        message = decode_body(kind, body)
    except PeerError:
        return
    if kind in (Kind.DATA, Kind.REST) or set(split(message)) == _tags(body):
        assert body == encode(message)[HEADER_BYTES:]


def _tags(body: bytes) -> set[int]:
    tags = set()
    while body:
        tag, length = FIELD_HEADER.unpack_from(body)
        tags.add(tag)
        body = body[FIELD_HEADER.size + length :]
    return tags


@given(
    st.sampled_from(FIELD_KINDS),
    st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 127, 128, 129, 255]), st.binary(max_size=40)), max_size=5),
)
def test_arbitrary_fields_are_refused_or_have_one_encoding(kind: Kind, fields: list[tuple[int, bytes]]) -> None:
    """The same for bodies that are at least lists of fields."""
    body = join(fields)
    try:
        message = decode_body(kind, body)
    except PeerError:
        return
    if set(split(message)) == {tag for tag, _ in fields}:
        assert body == encode(message)[HEADER_BYTES:]
