"""What the entries of an audit log say, in words: of certificates, of dumps that go on, and of verifications."""

from collections.abc import Mapping
from typing import Any, Final

from securecore.audit.entry import CERTIFICATE, RESUMED, VERIFIED
from securecore.audit.introductions import KEPT, ROTATED
from securecore.cli import terminal

_MOST: Final = 1 << 63
"""An entry holds any number; one that no receiver writes is not shown."""
_KEYS: Final = {KEPT: ", the key is that of the one before", ROTATED: ", with another key than the one before"}


def find_words(row: Mapping[str, Any]) -> str | None:
    """Return what an entry says, without control characters; None for other events. Its fields may hold anything."""
    if row["event"] == CERTIFICATE:
        which, end = (terminal.printable(str(row.get(name))[:length]) for name, length in (("certificate", 12), ("not_after", 10)))
        return f"{which} until {end}{_KEYS.get(str(row.get('key')), '')}"
    if row["event"] == RESUMED:
        more = f"; {count(row.get('others'), 'time')} more before" if row.get("others") else ""
        return f"goes on, {count(row.get('frames'), 'frame')} held{more}"
    if row["event"] == VERIFIED:
        by = f"by {terminal.printable(str(row.get('user') or row.get('uid')), 32)}"
        problem = row.get("problem")
        return f"all of it holds, {by}" if problem is None else f"broken, {by}: {terminal.printable(str(problem), 120)}"
    return None


def count(value: object, noun: str) -> str:
    """Return a number of things, in words that agree; a dash for one that no receiver writes."""
    return terminal.count(value, noun) if type(value) is int and 0 <= value < _MOST else f"- {noun}s"
