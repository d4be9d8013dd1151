"""The lines of enrolment as values: one form, and no surprise for any bytes."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.errors import BusyError, PeerError, RefusedError, SecurecoreError
from securecore.limits import MAX_RETRY_AFTER_S, MAX_WORDS
from securecore.pki.enrolment import (
    Answer,
    Denied,
    Request,
    encode_answer,
    encode_denial,
    encode_request,
    parse_answer,
    parse_request,
)

REQUESTS = [
    Request("roots"),
    Request("lists"),
    Request("enroll", "5f3c0a1b2c3d4e5f", b"\x30\x00request", bytes(range(32))),
    Request("enroll", "5f3c0a1b2c3d4e5f", b"\x30\x00request", bytes(range(32)), "web-1.hosts.test.example"),
    Request("renew", csr=b"\x30\x00request"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: one.op)
def test_a_request_comes_back_as_it_was(request_: Request) -> None:
    """Each is one line of ASCII."""
    line = encode_request(request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert parse_request(line[:-1]) == request_


def test_the_line_of_the_document() -> None:
    """docs/enrolment.md shows these bytes."""
    line = encode_request(Request("enroll", "5f3c0a1b2c3d4e5f", b"\x30\x00", bytes(32)))
    mac = "0" * 64
    assert line == f'{{"csr":"MAA=","mac":"{mac}","op":"enroll","token":"5f3c0a1b2c3d4e5f"}}\n'.encode()


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{}", b"[]", b"null", b"1", b'"roots"', b"{", b"\xff", b'{"op":1}', b'{"op":"revoke"}', b'{"op":["roots"]}',
        b'{"op":"roots","more":"x"}', b'{"op":"renew"}', b'{"op":"renew","csr":1}', b'{"op":"renew","csr":"*"}',
        b'{"op":"renew","csr":"MAA=\\n"}', b'{"op":"renew","csr":"\\u00e4"}', b'{"op":"renew","csr":"MAA=","host":"x"}',
        b'{"op":"enroll","token":"x","csr":"MAA="}', b'{"op":"enroll","token":"x","csr":"MAA=","mac":"xy"}',
        b"[" * 30000, b"1" * 30000, b'{"op":' * 5000, b'{"op":"roots"}{}',
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)  # fmt: skip
def test_another_line_is_no_request(line: bytes) -> None:
    """Unknown operations, missing, further and wrong fields, other encodings, nesting without end."""
    with pytest.raises(PeerError) as caught:
        parse_request(line)
    assert caught.value.message.isprintable()


_GOOD = f'{{"csr":"MAA=","mac":"{"0a" * 32}","op":"enroll","token":"5f3c0a1b2c3d4e5f"}}'


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ('"op":"enroll"', '"op":"enroll","op":"enroll"'),
        ('"op":"enroll"', '"op":"renew","op":"enroll"'),
        ('"csr":"MAA="', '"csr":"MAA=","csr":"MAA="'),
        ('{"csr":"MAA=",', '{"csr":"MBA=","csr":"MAA=",'),
        ('"mac":"0a', '"mac":"0A'),
        ('"mac":"0a', '"mac":" 0a'),
        ('"mac":"0a0a', '"mac":"0a 0a'),
        ('"mac":"0a0a', '"mac":"0a'),
        ('"mac":"0a', '"mac":"0a0a'),
        ('"csr":"MAA="', '"csr":"MAB="'),
        ('"csr":"MAA="', '"csr":"MAA=="'),
        ('"csr":"MAA="', '"csr":"MA\\u0041="'),
        ('"csr":"MAA="', '"csr":""'),
        ('"csr":"MAA=",', ""),
        ('"csr":', '"csr": '),
        ('{"csr"', ' {"csr"'),
        ('5f"}', '5f"} '),
        ('5f"}', '5f"}\r'),
        ('5f"}', '5f",}'),
        ('"op":"enroll","token":"5f3c0a1b2c3d4e5f"', '"token":"5f3c0a1b2c3d4e5f","op":"enroll"'),
        ("5f3c0a1b2c3d4e5f", "5F3C0A1B2C3D4E5F"),
        ("5f3c0a1b2c3d4e5f", "5f3c0a1b2c3d4e5"),
        ("5f3c0a1b2c3d4e5f", "5f3c0a1b2c3d4e5f\\n"),
    ],
)  # fmt: skip
def test_a_request_has_one_encoding(good: str, bad: str) -> None:
    """No field twice, no blank, no capital, no stray bit, no other order: two readers of a line have read the same."""
    assert parse_request(_GOOD.encode()).mac == b"\x0a" * 32
    assert _GOOD.count(good) == 1
    with pytest.raises(PeerError) as caught:
        parse_request(_GOOD.replace(good, bad).encode())
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "line",
    [
        b'{"ca":"x","ca":"y"}', b'{"ca": "x"}', b'{"crl":"y","ca":"x"}', b'{"ca":"\\u0078"}', b'{"ca":"x"} ', b'\t{"ca":"x"}',
        b'{"ca":"","reply":"x"}', b'{"error":"busy","error":"bad-token","words":"x"}', b'{"words":"x","error":"busy"}',
    ],
)  # fmt: skip
def test_an_answer_has_one_encoding(line: bytes) -> None:
    """As a request; a no that could be read as another no is none."""
    with pytest.raises(PeerError, match="one encoding"):
        parse_answer(line, "enroller")


def test_a_request_that_is_cut_is_none_at_every_length() -> None:
    """No beginning of a line is a request."""
    for request in REQUESTS:
        line = encode_request(request)[:-1]
        for length in range(len(line)):
            with pytest.raises(PeerError):
                parse_request(line[:length])


def error_of(parse: Callable[[bytes], object], line: bytes) -> SecurecoreError | None:
    """Return the error of ours that a line is refused with, None for one that is taken; no other is expected."""
    try:
        parse(line)
    except SecurecoreError as error:
        return error
    return None


NAMES = st.sampled_from(["error", "words", "hint", "retry_after_s", "ca", "op"])


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_without_surprise(line: bytes) -> None:
    """Whatever comes: a value, or an error of ours, at both ends."""
    for parse in (parse_request, lambda data: parse_answer(data, "enroller")):
        error = error_of(parse, line)
        assert error is None or error.message.isprintable()


@given(st.dictionaries(NAMES, st.one_of(st.text(), st.integers())))
def test_any_fields_are_parsed_without_surprise(fields: dict[str, object]) -> None:
    """What a server says steers no terminal, and makes nobody wait for ever."""
    error = error_of(lambda line: parse_answer(line, "enroller"), json.dumps(fields).encode())
    if error is not None:
        assert error.message.isprintable()
        assert (error.hint or "").isprintable()
        assert getattr(error, "retry_after_s", 0) in range(MAX_RETRY_AFTER_S + 1)


def test_an_answer_comes_back_as_it_was() -> None:
    """What is empty is left out, and an answer of nothing is none."""
    answer = Answer(ca="-----BEGIN\nx\n", crl="y")
    assert parse_answer(encode_answer(answer)[:-1], "enroller") == answer
    with pytest.raises(PeerError, match="not an answer"):
        parse_answer(encode_answer(Answer())[:-1], "enroller")


def test_a_no_has_words_and_a_time() -> None:
    """Not now is told from no: the exit codes differ."""
    no = encode_denial(Denied("token-used", "the token was used", hint="ask for another"))
    with pytest.raises(RefusedError, match=r"^enroller says no: the token was used$") as refused:
        parse_answer(no[:-1], "enroller")
    assert refused.value.hint == "ask for another"
    later = encode_denial(Denied("busy", "\x1b[2J" + "x" * 9999, retry_after_s=60))
    with pytest.raises(BusyError) as busy:
        parse_answer(later[:-1], "enroller")
    assert busy.value.retry_after_s == 60
    assert len(busy.value.message) < 2 * MAX_WORDS
