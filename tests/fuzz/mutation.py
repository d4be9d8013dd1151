"""Changes to an input: any bytes, or one thing in a JSON document that stays a document in its canonical encoding.

A changed byte makes most JSON no JSON, or no canonical one, and the parser behind it is never reached.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any, Final

Mutate = Callable[[bytes], bytes]
"""Changes bytes somehow."""

_VALUES: Final = (
    None, True, False,
    0, -1, 1, 2, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**400,
    0.0, 1.0, -0.5, 1e300, float("inf"), float("nan"),
    "", "a", "\0", "\ud800", "\x1b[2J", "../..", "/", "0" * 64, "é" * 500,
    [], {}, [[]], [1], {"a": {}}, ["a"], [None],
)  # fmt: skip
"""Every type of JSON, and the borders of every number and text that a parser of ours has."""


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Return *data* with one to four changes: a byte, a bit, a cut, an insertion, a repetition."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        match random.randrange(6):
            case 0 if at < len(changed):
                changed[at] = random.randrange(256)
            case 1 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + random.randint(1, 8)]
            case 4:
                changed[at:at] = random.choice((b"\0", b"\xff" * 4, b"\n", b"9" * 20, b"=", b"..", random.randbytes(3)))
            case _:
                changed[at:at] = changed[at : at + random.randint(1, 16)]
    return bytes(changed)


def mutate_json(data: bytes, random: Random, mutate: Mutate) -> bytes:
    """Return *data* with one thing changed in the JSON object of one line, written canonically; what stands before it stays.

    *mutate* changes texts, and the bytes where no line holds an object.
    """
    lines = data.split(b"\n")
    number = random.choice([number for number, line in enumerate(lines) if b"{" in line] or [-1])
    head, brace, rest = lines[number].partition(b"{")
    try:
        document = json.loads(brace + rest)
        _change(document, random, mutate)
        lines[number] = head + json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")
    except (ValueError, RecursionError):
        return mutate(data)
    return b"\n".join(lines)


def _change(document: Any, random: Random, mutate: Mutate) -> None:
    """Change one member of an object or list, somewhere in it."""
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    if not keys:
        return
    key = random.choice(keys)
    value = document[key]
    if isinstance(value, (dict, list)) and value and random.random() < 0.7:
        _change(value, random, mutate)
        return
    match random.randrange(8):
        case 0:
            del document[key]
        case 1 if isinstance(document, dict):
            document[random.choice([*keys, "later", ""])] = random.choice(_VALUES)
        case 2 | 3 if isinstance(value, str):
            document[key] = mutate(value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
        case 4 if type(value) is int:
            document[key] = value + random.choice((-1, 1, 1 << 8, 1 << 16, -(1 << 31)))
        case 5 if isinstance(value, list):
            document[key] = value * 2
        case _:
            document[key] = random.choice(_VALUES)
