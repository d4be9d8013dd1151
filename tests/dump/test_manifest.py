"""The manifest's payload: one encoding, and nothing else is one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.dump.manifest import COMPLETE, CUT, OUTCOMES, Manifest, parse_manifest
from securecore.errors import BrokenError
from securecore.names import DumpId, HostName, StoreId

MANIFEST = Manifest(
    dump=DumpId.make(1_763_780_062_000, bytes(range(10))),
    host=HostName("web-1.example.org"),
    store=StoreId.make(bytes(16)),
    outcome=COMPLETE,
    predicted_size=2_000_000,
    size=2_000_000,
    frames=2,
    root=bytes(range(32)),
    report_sha256=bytes(range(32, 64)),
    started_at=1_763_780_062_000,
    ended_at=1_763_780_063_000,
    sender="securecore 0.1.0",
)
FIELDS: dict[str, Any] = json.loads(MANIFEST.encode())


def canonical(fields: object) -> bytes:
    """Return the canonical JSON of *fields*."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


numbers = st.integers(0, (1 << 63) - 1)
hashes = st.binary(min_size=32, max_size=32)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)


any_manifest = st.builds(
    Manifest,
    st.just(MANIFEST.dump),
    st.just(MANIFEST.host),
    st.just(MANIFEST.store),
    st.sampled_from(OUTCOMES),
    st.none() | numbers,
    numbers,
    numbers,
    hashes,
    hashes,
    numbers,
    numbers,
    text,
    st.just(0),
)
cut_manifest = st.builds(
    lambda manifest, lost: manifest._replace(outcome=CUT, frames=max(manifest.frames, lost), lost_frames=lost),
    any_manifest,
    st.integers(1, (1 << 63) - 1),
)


@given(any_manifest | cut_manifest)
def test_a_manifest_survives(manifest: Manifest) -> None:
    """parse(encode(m)) == m, for every value in bounds."""
    assert manifest == parse_manifest(manifest.encode())


def test_the_payload_is_canonical_json() -> None:
    """Keys sorted, no spaces, ASCII; type and version are said."""
    assert canonical(FIELDS) == MANIFEST.encode()
    assert (FIELDS["type"], FIELDS["version"]) == ("securecore/manifest", 1)
    assert len(MANIFEST.encode()) < 1024


def test_a_long_sender_is_cut() -> None:
    """What we sign we accept."""
    long = MANIFEST._replace(sender="x" * 1000)
    assert parse_manifest(long.encode()).sender == "x" * limits.MAX_WORDS


@pytest.mark.parametrize(
    "payload",
    [
        MANIFEST.encode() + b"\n",
        b" " + MANIFEST.encode(),
        b"\xef\xbb\xbf" + MANIFEST.encode(),
        MANIFEST.encode().decode().encode("utf-16"),
        json.dumps(FIELDS, sort_keys=True).encode(),
        json.dumps(dict(reversed(FIELDS.items())), separators=(",", ":")).encode(),
        MANIFEST.encode().replace(b'"frames":2', b'"frames":2,"frames":2'),
        MANIFEST.encode().replace(b'"frames":2', b'"frames":2.0'),
        MANIFEST.encode().replace(b'"frames":2', b'"frames":2e0'),
        MANIFEST.encode().replace(b"web-1", b"\\u0077eb-1"),
        MANIFEST.encode().replace(b"1e1f", b"1E1F"),
        canonical(FIELDS | {"more": 1}),
        canonical(FIELDS | {"version": 2}),
        canonical(FIELDS | {"type": "securecore/other"}),
        b"",
        b"{}",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 30_000,
        b"9" * 10_000,
        b"\xff",
        MANIFEST.encode() + b" " * limits.MAX_MANIFEST_BYTES,
    ],
    ids=range(23),
)
def test_what_is_not_the_canonical_encoding_is_refused(payload: bytes) -> None:
    """Two encodings of one statement would be two statements to whoever compares bytes."""
    with pytest.raises(BrokenError, match="manifest is"):
        parse_manifest(payload)


WRONG_TYPES = [None, True, False, 0, -1, 1.5, "", "x", [], {}, ["x"], {"a": 1}, 1 << 63, "\ud800"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", WRONG_TYPES, ids=repr)
def test_a_value_of_the_wrong_type_is_refused(field: str, value: object) -> None:
    """Each field has one type; what Python would take for zero or for text is not accepted as such."""
    number = field in ("size", "frames", "started_at", "ended_at", "predicted_size")
    fits = (number and type(value) is int and 0 <= value < 1 << 63) or (field == "predicted_size" and value is None)
    payload = canonical(FIELDS | {field: value})
    if fits or (field == "sender" and value in ("", "x")):
        assert payload == parse_manifest(payload).encode()
    else:
        with pytest.raises(BrokenError):
            parse_manifest(payload)


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_refused(field: str) -> None:
    """All are required."""
    with pytest.raises(BrokenError):
        parse_manifest(canonical({key: value for key, value in FIELDS.items() if key != field}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dump", str(MANIFEST.store)),
        ("store", str(MANIFEST.dump)),
        ("dump", str(MANIFEST.dump).upper()),
        ("host", "Web-1.example.org"),
        ("host", "../x.example.org"),
        ("outcome", "completed"),
        ("root", "00" * 31),
        ("root", "00" * 33),
        ("root", "00 " * 32),
        ("report_sha256", ""),
    ],
)
def test_a_value_out_of_its_domain_is_refused(field: str, value: str) -> None:
    """Names, outcomes and hashes are what their types say."""
    with pytest.raises(BrokenError):
        parse_manifest(canonical(FIELDS | {field: value}))


LOST = MANIFEST._replace(outcome=CUT, lost_frames=2)


def test_lost_frames_are_said_where_there_are_any() -> None:
    """What has lost nothing says nothing of it: one statement has one encoding."""
    assert "lost_frames" not in FIELDS
    assert json.loads(LOST.encode())["lost_frames"] == 2


@pytest.mark.parametrize("value", [0, -1, 3, 1.0, True, None, "2", 1 << 63], ids=repr)
def test_lost_frames_are_a_number_of_frames_of_the_dump(value: object) -> None:
    """At least one, at most all."""
    with pytest.raises(BrokenError):
        parse_manifest(canonical(json.loads(LOST.encode()) | {"lost_frames": value}))


@pytest.mark.parametrize("outcome", sorted(set(OUTCOMES) - {CUT}))
def test_a_dump_that_has_lost_frames_is_cut(outcome: str) -> None:
    """None is called complete whose beginning is zeroes in the place of what was there."""
    with pytest.raises(BrokenError):
        parse_manifest(LOST._replace(outcome=outcome).encode())


@pytest.mark.parametrize("manifest", [MANIFEST, LOST], ids=["whole", "lost"])
def test_truncation_at_every_offset_is_refused(manifest: Manifest) -> None:
    """No prefix of a payload is one."""
    payload = manifest.encode()
    for cut in range(len(payload)):
        with pytest.raises(BrokenError):
            parse_manifest(payload[:cut])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


altered = st.dictionaries(st.sampled_from(list(FIELDS)), json_values).map(lambda changes: canonical(FIELDS | changes))


@given(st.binary(max_size=200) | altered)
def test_arbitrary_payloads_are_refused_or_canonical(payload: bytes) -> None:
    """Never another exception; what is accepted encodes to the same bytes and has the types that it declares."""
    try:
        manifest = parse_manifest(payload)
    except BrokenError:
        return
    assert payload == manifest.encode()
    assert isinstance(manifest.sender, str)
    assert manifest.predicted_size is None or type(manifest.predicted_size) is int
