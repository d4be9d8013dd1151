"""What can be wrong with a timer of ours: its units, that it is enabled, and that it is at work."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from securecore.cli.checkup.findings import Finding, ok, warning, wrong
from securecore.cli.machine import systemd
from securecore.cli.machine.root import Root


class Timer(NamedTuple):
    """A timer as set-up makes it, and what to say where it is not so."""

    name: str
    """Of the check."""
    units: Mapping[str, bytes]
    """Its unit files by their paths."""
    link: str
    target: str
    """Of *link*, which enables it."""
    cost: str
    """What becomes without it."""
    by_hand: str
    """What does where no systemd runs."""
    setup: str
    """The command that makes it."""


def check_timer(timer: Timer, root: Root) -> Finding:
    """Return how a timer is; all that keeps it from its work is wrong."""
    if (drift := find_drift(timer.units, root)) is not None:
        return wrong(timer.name, drift, timer.setup)
    unit = os.path.basename(timer.target)
    if root.link_target(timer.link) != timer.target:
        return wrong(timer.name, f"is not enabled: {timer.cost}", timer.setup)
    if not root.is_live:
        return ok(timer.name, "enabled")
    if not systemd.is_running(root):
        return warning(timer.name, "no systemd runs here", timer.by_hand)
    if systemd.is_active(unit):
        return ok(timer.name, "enabled, and waiting for its next time")
    return wrong(timer.name, "is enabled and not active", f"systemctl start {unit}")


def find_drift(units: Mapping[str, bytes], root: Root) -> str | None:
    """Return what is wrong with the first unit file that is not as set-up writes it; None when all are."""
    for path, content in units.items():
        found = root.find(path)
        if found is None or found.content != content:
            return f"{root.outside(path)} {'is missing' if found is None else 'is not what this installation writes'}"
    return None
