"""How the storm limits of a sender stand, in a line for people."""

from typing import Final

from securecore.cli import terminal
from securecore.sender.buckets import Untaken
from securecore.sender.storms import Standing

_MOST: Final = 5
"""Limits that are named; there may be hundreds."""


def words(standing: Standing) -> str:
    """Return what waits to be told, and which limits are used up."""
    parts = [f"{told} to be told by the next dumps" if (told := _counts(standing.waiting)) else "nothing to be told"]
    if standing.used_up:
        named = ", ".join(map(terminal.printable, standing.used_up[:_MOST]))
        more = len(standing.used_up) - _MOST
        parts.append(f"used up now: {named}" + (f" and {more} more" if more > 0 else ""))
    return "; ".join(parts)


def _counts(waiting: Untaken) -> str:
    suppressed = waiting.suppressed + waiting.suppressed_of_user + waiting.suppressed_of_host + waiting.suppressed_of_others
    counts = (
        (suppressed, "suppressed"), (waiting.declined, "declined"), (waiting.lost, "lost"),
        (waiting.skipped_by_kernel, "skipped by the kernel"),
    )  # fmt: skip
    told = ", ".join(f"{number} {what}" for number, what in counts if number)
    since = terminal.moment(waiting.untaken_since) if waiting.untaken_since else None
    return f"{told} since {since:%Y-%m-%d %H:%M:%S} UTC" if told and since is not None else told
