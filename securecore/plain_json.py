"""JSON as the crash handler reads and writes it, by the C functions that the ``json`` package calls too.

That package compiles six patterns when it is loaded, and a crashed process waits for it; none of them is needed for documents that
are read whole and written in one line. Where an interpreter has no such C functions, the package does the same work.
"""

from securecore.declarations import Any, Callable

_BLANKS = " \t\n\r"
"""What may stand between the words of a document (RFC 8259 section 2)."""


def encode(value: object) -> str:
    """Return a value as JSON: ASCII, no spaces, members in their order; raises TypeError for what JSON has no word for.

    Values: None, text, numbers, lists and tuples, and dictionaries whose keys are text. Not checked: that a float is finite.
    """
    if isinstance(value, str):
        return _quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(encode, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_quote(key)}:{encode(item)}' for key, item in value.items())}}}"
    raise TypeError(f"JSON has no word for a {type(value).__name__}")


def parse(data: bytes) -> Any:
    """Return what a document says; raises ValueError where it is none in UTF-8, RecursionError where it is too deep.

    As ``json.loads`` has it, NaN and its like included, but in no other encoding than UTF-8.
    """
    text = data.decode("utf-8").lstrip(_BLANKS)
    try:
        value, end = _scan(text, 0)
    except StopIteration as error:
        raise ValueError("no JSON value") from error
    except (SystemError, ImportError) as error:
        # The scanner's own error is in the package. Until Python 3.12 it has none where that is not loaded; later ones load it, and
        # it may be where only root can read, and who reads this not be root any more.
        raise ValueError("no JSON") from error
    if text[end:].strip(_BLANKS):
        raise ValueError("something stands behind the JSON value")
    return value


class _Context:
    """What the scanner asks for its ways: those of ``json.JSONDecoder`` by default."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def _find_functions() -> "tuple[Callable[[str], str], Callable[[str, int], tuple[Any, int]]]":
    """Return the function that quotes a text, and the one that reads a value and says where it ends."""
    try:
        from _json import encode_basestring_ascii, make_scanner
    except ImportError:
        from json import JSONDecoder
        from json.encoder import encode_basestring_ascii as quote

        return quote, JSONDecoder().raw_decode
    return encode_basestring_ascii, make_scanner(_Context)  # type: ignore[arg-type]  # any object with these attributes will do


_quote, _scan = _find_functions()
