"""Crash reports: lenient about fields, strict about bounds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.errors import PeerError
from securecore.report import CrashReport, parse_report

INTEGERS = [name for name, hint in CrashReport.__annotations__.items() if hint == int | None]
TEXTS = [name for name, hint in CrashReport.__annotations__.items() if hint == str | None]
FULL = CrashReport(**{name: index for index, name in enumerate(INTEGERS)}, **{name: f"<{name}>" for name in TEXTS})  # type: ignore[arg-type]


def test_every_field_is_a_number_or_a_text() -> None:
    """And optional: what cannot be had is absent."""
    assert sorted(INTEGERS + TEXTS) == sorted(CrashReport._fields)
    assert set(CrashReport()) == {None}


@pytest.mark.parametrize("report", [CrashReport(), FULL], ids=["empty", "full"])
def test_a_report_survives(report: CrashReport) -> None:
    """parse(encode(r)) == r."""
    assert report == parse_report(report.encode())


def test_absent_fields_are_left_out() -> None:
    """The encoding is canonical JSON; zero is a value, absence is none."""
    assert CrashReport().encode() == b"{}"
    assert CrashReport(signal=11, pid=0, comm="").encode() == b'{"comm":"","pid":0,"signal":11}'


text = st.text(max_size=60)
reports = st.builds(
    CrashReport,
    **{name: st.none() | st.integers(0, (1 << 64) - 1) for name in INTEGERS},
    **{name: st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=60) for name in TEXTS},
)


@given(reports)
def test_any_report_survives(report: CrashReport) -> None:
    """Whatever characters a process has put into its names."""
    assert report == parse_report(report.encode())


@pytest.mark.parametrize("character", ["a", "é", "\0", "\U0001f600", "\udcff"], ids=ascii)
@pytest.mark.parametrize("fields", [["command_line"], ["command_line", "executable"], TEXTS], ids=len)
@pytest.mark.parametrize("length", [1, limits.MAX_TEXT, limits.MAX_TEXT + 1, limits.PROC_READ_BYTES])
def test_no_process_can_make_its_report_too_long_to_be_sent(character: str, fields: list[str], length: int) -> None:
    """A command line of emoji takes twelve bytes a character in JSON: texts are cut until the report fits, and none is lost."""
    encoded = CrashReport(pid=1, **dict.fromkeys(fields, character * length)).encode()  # type: ignore[arg-type]
    assert len(encoded) <= limits.MAX_REPORT_BYTES
    parsed = parse_report(encoded)
    assert parsed.pid == 1
    for name in fields:
        assert min(length, 64) <= len(getattr(parsed, name)) <= min(length, limits.MAX_TEXT)


def test_text_is_cut_and_mended() -> None:
    """MAX_TEXT characters; a lone surrogate, which could not be printed, becomes a question mark."""
    parsed = parse_report(json.dumps({"comm": "x" * 5000, "program": "a\ud800b", "kernel": "\ud83d\ude00"}).encode())
    assert (parsed.comm, parsed.program, parsed.kernel) == ("x" * limits.MAX_TEXT, "a?b", "\U0001f600")


@pytest.mark.parametrize("value", [None, True, False, -1, 1 << 64, 1.0, 1e400, "11", [], {}, [11]], ids=repr)
def test_a_number_of_another_kind_is_dropped(value: object) -> None:
    """It never costs the core; the other fields stay."""
    assert parse_report(json.dumps({"signal": value, "pid": 5}).encode()) == CrashReport(pid=5)


@pytest.mark.parametrize("value", [None, True, 5, 1.5, [], {}, ["x"]], ids=repr)
def test_a_text_of_another_kind_is_dropped(value: object) -> None:
    """Likewise."""
    assert parse_report(json.dumps({"program": value, "pid": 5}).encode()) == CrashReport(pid=5)


def test_unknown_fields_are_skipped() -> None:
    """Of later versions, and those that would shadow methods of the class."""
    data = json.dumps({"pid": 5, "_fields": "x", "encode": "x", "__class__": "x", "count": 3, "new": {"a": [1]}}).encode()
    assert parse_report(data) == CrashReport(pid=5)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"1", b'"x"', b"{", b"{}x", b'{"pid":}', b"\xff", b"[" * 60_000, b'{"a":' * 12_000, b"1" * 5000,
     b'{"pid":' + b"1" * 5000 + b"}"],
    ids=lambda data: ascii(data[:12]),
)  # fmt: skip
def test_what_is_not_one_json_object_is_refused(data: bytes) -> None:
    """Deep nesting and endless numbers included."""
    with pytest.raises(PeerError, match="report is not"):
        parse_report(data)


def test_a_report_is_bounded() -> None:
    """MAX_REPORT_BYTES are read, one more is refused before it is parsed."""
    longest = b"{" + b" " * (limits.MAX_REPORT_BYTES - 2) + b"}"
    assert parse_report(longest) == CrashReport()
    with pytest.raises(PeerError, match="at most 65536 are allowed"):
        parse_report(longest + b" ")


def test_truncation_at_every_offset_is_refused() -> None:
    """No prefix of a report is one."""
    data = FULL.encode()
    for cut in range(len(data)):
        with pytest.raises(PeerError):
            parse_report(data[:cut])


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
objects = st.dictionaries(st.sampled_from(CrashReport._fields) | st.text(max_size=5), scalars | st.lists(scalars, max_size=3))


@given(st.binary(max_size=100) | objects.map(lambda fields: json.dumps(fields).encode()))
def test_arbitrary_reports_are_bounded_or_refused(data: bytes) -> None:
    """What comes out has the declared types, can be printed, and can be encoded again."""
    try:
        report = parse_report(data)
    except PeerError:
        return
    for name, value in report._asdict().items():
        assert value is None or type(value) is (int if name in INTEGERS else str)
        assert value is None or str(value).encode("utf-8") is not None
    assert report == parse_report(report.encode())
