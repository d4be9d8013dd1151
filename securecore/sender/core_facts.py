"""The member "local" of a report: what is stored of its core, where the core stays on this machine."""

import json

from securecore import limits
from securecore.declarations import Any, Final

NOT_KEPT: Final = "not-kept"
"""The outcome of a crash whose report is all that there is: the disk did not take the core."""
FACTS_BYTES: Final = 4 * limits.KIB
"""What the member "local" needs in a report: names and numbers below 1 KiB, and the reason of a failure."""

Facts = dict[str, Any]


def add_facts(report: bytes, facts: Facts) -> bytes:
    """Return *report* with *facts* as its member "local"; a report that is none becomes an empty one."""
    try:
        fields = json.loads(report)
    except ValueError:
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    return json.dumps(fields | {"local": facts}, sort_keys=True, separators=(",", ":")).encode("ascii")


def find_facts(report: bytes) -> Facts:
    """Return the member "local" of a report, empty where there is none."""
    try:
        facts = json.loads(report)["local"]
    except (ValueError, KeyError, TypeError):
        return {}
    return facts if isinstance(facts, dict) else {}
