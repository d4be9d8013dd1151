"""Names: the constructor that refuses is the only way to one."""

import os.path
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.names import Address, DumpId, HostName, NameRefused, StoreId

GOOD_HOSTS = [
    "a.b",
    "web-1.hosts.acme.example",
    "1.example",
    "xn--bcher-kva.example",
    "a--b.example",
    f"{'a' * 63}.example",
    ".".join(["a" * 61] * 4) + ".abcde",
    "1.2.3.4a",
]
BAD_HOSTS = [
    "", ".", "..", "a", "localhost", "a.", ".a", "a..b", "a.b.", "-a.b", "a-.b", "a.-b", "a.b-", "A.b", "web_1.example", "a b.c",
    "a.b\n", "\na.b", "a.b\0", "a\0.b", "*.example", "a/b.example", "../a.b", "a.b/..", "1.2.3.4", "a.1", "[::1]", "::1",
    "ä.example", "a.exämple", "a\u2024b.example", "\u0661.example", "a.\u0661", "\u212a.example", f"{'a' * 64}.example",
    ".".join(["a" * 61] * 4) + ".abcdef", "a." * 200_000, "a:80.example", "a@b.example", "a.b\r", "a.b ", "%61.b", "con.b\u200b",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD_HOSTS)
def test_a_host_name_is_a_lower_case_dns_name(text: str) -> None:
    """It is kept exactly as written."""
    assert str(HostName(text)) == text
    assert HostName(text) == HostName(text)
    assert len({HostName(text), HostName(text)}) == 1


@pytest.mark.parametrize("text", BAD_HOSTS, ids=lambda text: ascii(text[:20]))
def test_what_is_no_host_name_is_refused(text: str) -> None:
    """With a message of one printable line, however hostile the text."""
    with pytest.raises(NameRefused) as refused:
        HostName(text)
    assert refused.value.message.isascii()
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 2000


@given(st.text(max_size=40) | st.from_regex(r"[a-z0-9./\-]{1,40}") | st.text("a.-/1A", max_size=12))
def test_a_host_name_is_always_one_harmless_path_component(text: str) -> None:
    """Whatever the constructor accepts is one component of a path, not hidden, and no option."""
    try:
        name = str(HostName(text))
    except NameRefused:
        return
    assert os.path.join("/store/hosts", name) == os.path.normpath(f"/store/hosts/{name}")
    assert os.path.basename(name) == name
    assert name[0] not in ".-"
    assert name.isascii()
    assert name == name.lower()


def test_host_names_sort_as_text() -> None:
    """For listings."""
    assert [str(name) for name in sorted([HostName("b.a"), HostName("a.b"), HostName("a.a")])] == ["a.a", "a.b", "b.a"]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("collector.example.org:4455", "collector.example.org", 4455),
        ("localhost:0", "localhost", 0),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("[::1]:4455", "::1", 4455),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("[::ffff:10.0.0.1]:1", "::ffff:10.0.0.1", 1),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    """Written as it was read."""
    address = Address(text)
    assert (address.host, address.port, str(address)) == (host, port, text)
    assert {address} == {Address(text)}


def test_a_certificate_knows_no_zone() -> None:
    """Which link leads to an address is the dialler's own affair."""
    assert [Address(text).host_without_zone for text in ("[fe80::1%eth0]:1", "[::1]:1", "a.b:1")] == ["fe80::1", "::1", "a.b"]


@pytest.mark.parametrize(
    "text",
    ["", ":", "a", "a:", ":1", "a:65536", "a:99999", "a:-1", "a:1 ", "a: 1", "a:0x1", "a:\u0661", "::1:4455", "[::1]", "[::1]4455",
     "[a.b]:1", "[]:1", "a b:1", "a/b:1", "-a:1", "a\n:1", "a:1\n", "[::1%]:1", "[::1%" + "x" * 16 + "]:1", "x" * 254 + ":1", "ä:1",
     "a:000001"],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    """An IPv6 address without brackets among them: its last group would read as the port."""
    with pytest.raises(NameRefused, match="not an address"):
        Address(text)


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=10))
def test_a_dump_id_is_a_version_7_uuid(time_ms: int, randomness: bytes) -> None:
    """With the moment in its first 48 bits; text and bytes lead back to it."""
    dump = DumpId.make(time_ms, randomness)
    other = uuid.UUID(bytes=bytes(dump))
    assert (other.version, other.variant, str(other)) == (7, uuid.RFC_4122, str(dump))
    assert dump.time_ms == time_ms
    assert DumpId.parse(str(dump)) == DumpId(bytes(dump)) == dump
    assert str(dump).endswith(dump.short)
    assert len(dump.short) == 8


@given(st.integers(0, (1 << 48) - 2), st.binary(min_size=10, max_size=10))
def test_dump_ids_sort_by_time(time_ms: int, randomness: bytes) -> None:
    """As text and as bytes, so that a directory listing is in the order of crashes."""
    earlier, later = DumpId.make(time_ms, b"\xff" * 10), DumpId.make(time_ms + 1, randomness)
    assert str(earlier) < str(later)
    assert bytes(earlier) < bytes(later)


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_the_randomness_of_a_dump_id_survives(one: bytes, other: bytes) -> None:
    """All but the six bits that the version and the variant take."""
    mask = bytes([0x0F, 0xFF, 0x3F, *[0xFF] * 7])
    same = bytes(a & m for a, m in zip(one, mask, strict=True)) == bytes(b & m for b, m in zip(other, mask, strict=True))
    assert same == (DumpId.make(0, one) == DumpId.make(0, other))


@given(st.binary(min_size=16, max_size=16))
def test_a_store_id_is_a_version_4_uuid(randomness: bytes) -> None:
    """Text and bytes lead back to it."""
    store = StoreId.make(randomness)
    assert uuid.UUID(bytes=bytes(store)).version == 4
    assert StoreId.parse(str(store)) == StoreId(bytes(store)) == store


@pytest.mark.parametrize("cls", [DumpId, StoreId])
@given(raw=st.binary(max_size=20))
def test_other_bytes_are_no_id(cls: type[DumpId | StoreId], raw: bytes) -> None:
    """What is accepted has sixteen bytes, the variant of RFC 9562 and the version of its class."""
    try:
        found = cls(raw)
    except NameRefused:
        return
    assert uuid.UUID(bytes=bytes(found)).version == (7 if cls is DumpId else 4)


@pytest.mark.parametrize("cls", [DumpId, StoreId])
def test_an_id_has_one_spelling(cls: type[DumpId | StoreId]) -> None:
    """Upper case, braces, missing hyphens and everything that uuid.UUID would also take are refused."""
    good = str(DumpId.make(5, bytes(10)) if cls is DumpId else StoreId.make(bytes(16)))
    foreign = str(StoreId.make(bytes(16)) if cls is DumpId else DumpId.make(5, bytes(10)))
    forms = [good.replace("-", ""), f"{{{good}}}", f"urn:uuid:{good}", good.upper().replace("0", "A")]
    for text in [*forms, good + "\n", good[:-1] + "A", good[:-1], good + "0", "", "../" + good[3:], foreign]:
        with pytest.raises(NameRefused):
            cls.parse(text)


def test_ids_of_different_kinds_are_never_equal() -> None:
    """Nor is an id equal to its own bytes."""
    dump = DumpId.make(5, bytes(10))
    assert dump != StoreId.make(bytes(dump))
    assert dump != bytes(dump)
    assert HostName("a.b") != "a.b"
    assert Address("a:1") != "a:1"


PATTERNS = {
    "host": (HostName, r"(?!.{254})([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+(?![0-9]+\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"),
    "address": (lambda text: Address(f"{text}:1"), r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}"),
    "address in brackets": (
        lambda text: Address(f"[{text}]:1"), r"(?=[^%]*:)[0-9a-fA-F:.]{2,45}(%[A-Za-z0-9._-]{1,15})?",
    ),
    "dump id": (DumpId.parse, r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
    "store id": (StoreId.parse, r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
}  # fmt: skip
"""What each kind of name is, said a second time."""
PIECES = st.sampled_from([
    "a", "Z", "0", "f", "g", "-", ".", "_", ":", "%", "\n", "é", "\u0661", "", "a" * 15, "0" * 45, "b" * 63, "c.d" * 84, "::1",
])  # fmt: skip


@given(st.sampled_from(sorted(PATTERNS)), st.data())
def test_a_name_is_what_its_pattern_says(kind: str, data: st.DataObject) -> None:
    """Good ones, good ones with a piece put in or taken out, and pieces at random."""
    make, pattern = PATTERNS[kind]
    good = data.draw(st.from_regex(pattern, fullmatch=True))
    at, much = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 3))
    changed, other = good[:at] + data.draw(PIECES) + good[at + much :], "".join(data.draw(st.lists(PIECES)))
    text = data.draw(st.sampled_from([good, changed, other]))
    try:
        make(text)
    except NameRefused:
        assert not re.fullmatch(pattern, text)
    else:
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("parse", [DumpId.parse, StoreId.parse])
@pytest.mark.parametrize("value", [None, 7, b"bytes", [], {}], ids=str)
def test_an_id_that_is_no_text_is_an_error_of_type(parse: Any, value: object) -> None:
    """As a member of a document may be; whoever reads one expects it."""
    with pytest.raises(TypeError):
        parse(value)
