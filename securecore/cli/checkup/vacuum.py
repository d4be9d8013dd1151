"""What can be wrong where receiver.toml says that dumps are to go: the timer for it, and bounds that make no room."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from securecore import units
from securecore.cli.checkup.findings import Finding, ok, warning
from securecore.cli.machine import receiver, systemd
from securecore.cli.machine.interpreter import find_interpreter
from securecore.cli.machine.root import Root
from securecore.receiver import installation, vacuum_timer
from securecore.receiver.configuration import ReceiverConfiguration

SETUP: Final = "securecore setup receiver"
_TIMER: Final = os.path.basename(vacuum_timer.TIMER)


def check_vacuum(said: ReceiverConfiguration, user: str | None, root: Root) -> Iterator[Finding]:
    """Yield what is found where [retention] of the file bounds anything; *user* is that of our unit, None without one."""
    if not said.policy.retention.is_bounded:
        return
    if user is not None:
        yield _timer(said, user, root)
    for key, words in _find_no_room(said):
        yield warning("retention", words, f"a lower {key} in {root.outside(installation.CONFIGURATION)}")


def _timer(said: ReceiverConfiguration, user: str, root: Root) -> Finding:
    """The units as set-up writes them for this store, the timer enabled, and at work."""
    service, timer = receiver.vacuum_units(said, user, find_interpreter())
    for path, content in ((vacuum_timer.SERVICE, service), (vacuum_timer.TIMER, timer)):
        found = root.find(path)
        if found is None:
            return warning("vacuum timer", f"{root.outside(path)} is missing: nothing deletes what [retention] says", SETUP)
        if found.content != content:
            place = root.outside(installation.CONFIGURATION)
            return warning("vacuum timer", f"{root.outside(path)} is not what this installation writes for {place}", SETUP)
    if root.link_target(vacuum_timer.TIMER_LINK) != vacuum_timer.TIMER:
        return warning("vacuum timer", "is not enabled: nothing deletes what [retention] says", f"systemctl enable --now {_TIMER}")
    if not root.is_live:
        return ok("vacuum timer", "enabled")
    if not systemd.is_running(root):
        return warning("vacuum timer", "no systemd runs here", "have `securecore vacuum` run every day")
    if not systemd.is_active(_TIMER):
        return warning("vacuum timer", "is enabled and not active", f"systemctl start {_TIMER}")
    return ok("vacuum timer", "enabled, and waiting for its next time")


def _find_no_room(said: ReceiverConfiguration) -> Iterator[tuple[str, str]]:
    """Yield the keys by which vacuum makes no room for a host that has used its quota up, each with why.

    What goes by age, or by the store's bounds, makes room too; but nobody knows whose.
    """
    retention = said.policy.retention
    quotas = {"[quota]": said.policy.quota, **{f"quota of {host}": quota for host, quota in said.policy.host_quotas.items()}}
    sizes = {whose: quota.stored_bytes for whose, quota in quotas.items()}
    numbers = {whose: quota.dumps for whose, quota in quotas.items()}
    yield from _find_above("host_stored", retention.host_bytes, "stored", sizes, units.exact_size)
    yield from _find_above("host_dumps", retention.host_dumps, "dumps", numbers, str)


def _find_above(
    key: str, most: int | None, of_quota: str, bounds: Mapping[str, int | None], written: Callable[[int], str]
) -> Iterator[tuple[str, str]]:
    """Yield *key* once where what retention leaves, *most*, is as much as the quota of anybody."""
    for whose, bound in bounds.items():
        if most is not None and bound is not None and bound <= most:
            both = f"{key} is {written(most)}, and {of_quota} of {whose} {written(bound)}"
            yield key, f"{both}: a host may use its quota up before anything of it goes"
            return
