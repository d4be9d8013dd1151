"""JSON without the json package, which is the specification."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import plain_json
from securecore.cli.machine.interpreter import find_interpreter

texts = st.text() | st.text(st.characters(categories=["Cs", "Cc", "Lo", "So"]))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12)


@given(values)
def test_a_value_is_written_as_the_package_writes_it(value: Any) -> None:
    """In its shortest form, members in their order."""
    assert plain_json.encode(value) == json.dumps(value, separators=(",", ":"))


@given(values)
def test_a_value_is_read_as_the_package_reads_it(value: Any) -> None:
    """With blanks around it and in it, or without; and numbers that are none."""
    for word in ("NaN", "Infinity", "-Infinity"):
        assert repr(plain_json.parse(word.encode())) == repr(json.loads(word))
    for text in (json.dumps(value), json.dumps(value, indent=2), f"\r\n\t {json.dumps(value)} \n"):
        found = plain_json.parse(text.encode("ascii"))
        assert found == json.loads(text)
        assert json.dumps(found) == json.dumps(json.loads(text))


def loads(data: bytes) -> Any:
    """Return what the package reads from UTF-8 without a byte order mark."""
    return json.loads(data.decode("utf-8"))


BROKEN = [
    b"", b" ", b"\n", b"{", b"[1,", b'{"a"', b'{"a":', b'{"a":1,}', b"[1,]", b"{1:2}", b"tru", b"nul", b"01", b"1.", b"-", b"+1",
    b".5", b"1e", b'"', b'"\\x"', b'"\\u12"', b'"a\nb"',
    b"'a'", b"1 2", b"{} x", b"[] []", b"nan", b"[Infinit]", b"--Infinity", b"\xff",
    b"\xef\xbb\xbf1", b'"\xed\xa0\x80"', "1".encode("utf-16"), b"\x00", b"1\x00", b"\xc2\xa01", b"\x0c1", b"9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN, ids=lambda data: ascii(data[:12]))
def test_what_is_no_document_is_refused(data: bytes) -> None:
    """As a ValueError, by both."""
    for read in (plain_json.parse, loads):
        with pytest.raises(ValueError):
            read(data)


def test_a_document_cut_at_every_offset_is_refused() -> None:
    """And one with a byte behind it that is no blank."""
    whole = b'{"a": [1, -2.5e3, true, null], "b\\u00e9": {"c": "d\\n"}}'
    assert plain_json.parse(whole) == json.loads(whole)
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            plain_json.parse(whole[:length])
    for byte in range(256):
        if chr(byte) not in " \t\n\r":
            with pytest.raises(ValueError):
                plain_json.parse(whole + bytes([byte]))


def changed(good: bytes) -> st.SearchStrategy[bytes]:
    """Return documents of which one byte is another, or gone."""
    others = st.sampled_from([b"", b"[", b"]", b'"', b",", b"0"])
    return st.builds(lambda at, other: good[:at] + other + good[at + 1 :], st.integers(0, len(good)), others)


@given(st.binary(max_size=30) | values.map(lambda value: json.dumps(value).encode()).flatmap(changed))
def test_any_bytes_are_read_or_refused_as_by_the_package(data: bytes) -> None:
    """The same value, or a refusal from both."""
    try:
        expected = loads(data)
    except ValueError:
        with pytest.raises(ValueError):
            plain_json.parse(data)
    else:
        assert repr(plain_json.parse(data)) == repr(expected)


def test_what_is_too_deep_is_an_error_of_depth() -> None:
    """Which whoever reads a stranger's document has to expect."""
    with pytest.raises(RecursionError):
        plain_json.parse(b"[" * 200_000)


@pytest.mark.parametrize("value", [b"bytes", {1: 2}, {"a": object()}, {1, 2}], ids=["bytes", "number as a key", "object", "set"])
def test_what_json_has_no_word_for_is_refused(value: Any) -> None:
    """And a key that is no text, which the package would have made one."""
    with pytest.raises(TypeError):
        plain_json.encode(value)


def test_an_interpreter_without_the_c_functions_has_the_same() -> None:
    """The package's own then."""
    program = (
        "import sys\nsys.modules['_json'] = None\nfrom securecore import plain_json\n"
        "print(plain_json.encode({'a': ['\\u00e4', 1, None]}), plain_json.parse(b' [1, {\"b\": 2.5}] '))\n"
        "try:\n    plain_json.parse(b'1 2')\nexcept ValueError:\n    print('refused')"
    )
    answer = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ['{"a":["\\u00e4",1,null]} [1, {\'b\': 2.5}]', "refused"]


_NO_PACKAGE = """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("json"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize("package", ["", _NO_PACKAGE], ids=["not loaded", "not there"])
def test_what_is_no_document_is_refused_without_the_package_too(package: str) -> None:
    """As by a handler, which does not load it, and that is not root any more, of a Python that only root can read."""
    program = (
        f"import sys\nsys.path += {[*find_interpreter().packages]}\nfrom securecore import plain_json\n{package}\n"
        f"for data in {BROKEN}:\n"
        "    assert sys.modules.get('json.decoder') is None or sys.version_info >= (3, 13)\n"
        "    try:\n        print(data, plain_json.parse(data))\n    except ValueError:\n        pass"
    )
    answer = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
