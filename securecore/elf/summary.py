"""CoreSummary: what a core says of its crash, as a value and as a line of JSON. No ELF is parsed here."""

import json
from typing import Final, NamedTuple

from securecore import limits
from securecore.errors import BrokenError

MAX_SUMMARY_BYTES: Final = 64 * limits.KIB
"""A summary as JSON: one path of MAX_TEXT characters, twelve bytes each at worst, and a few short fields."""

_INTEGER_MAX: Final = (1 << 64) - 1


class CoreSummary(NamedTuple):
    """A crash, as its core tells it; every field may be missing, and all of it may be a lie.

    Ids are those that the process saw itself: in a container, not the host's.
    """

    machine: str | None = None
    """As uname(2) would name it, where that is known; else the ELF specification's name in lower case."""
    signal: int | None = None
    reason: str | None = None
    """The signal's code in words."""
    fault_address: int | None = None
    tid: int | None = None
    """The crashed thread."""
    pid: int | None = None
    uid: int | None = None
    program: str | None = None
    """The name of the first thread: at most 15 bytes."""
    command_line: str | None = None
    """At most 79 bytes of it; the kernel keeps no more in a core."""
    threads: int | None = None
    executable: str | None = None
    build_id: str | None = None
    """Of the executable, in hexadecimal."""

    def encode(self) -> bytes:
        """Return one line of JSON: present fields only, ASCII, at most MAX_SUMMARY_BYTES."""
        fields = {key: value for key, value in self._asdict().items() if value is not None}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


_TEXT_FIELDS = frozenset(name for name, hint in CoreSummary.__annotations__.items() if hint == str | None)


def parse_summary(data: bytes) -> CoreSummary:
    """Return the summary that an analyser wrote; raises BrokenError when it is no JSON object.

    The analyser has read a hostile core, so it is not trusted either: fields of the wrong type or outside 64 bits are dropped, text
    is cut to MAX_TEXT.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenError("the analyser's answer is not JSON") from error
    if not isinstance(fields, dict):
        raise BrokenError("the analyser's answer is not a JSON object")
    known: dict[str, int | str] = {}
    for key, value in fields.items():
        if key in _TEXT_FIELDS:
            if isinstance(value, str):
                known[key] = value[: limits.MAX_TEXT].encode("utf-8", "replace").decode("utf-8")
        elif key in CoreSummary._fields and type(value) is int and 0 <= value <= _INTEGER_MAX:
            known[key] = value
    return CoreSummary(**known)  # type: ignore[arg-type]  # the loop above has matched each value's type to its field
