"""Does the kernel still start our handler? The live core_pattern against the one that set-up has written (R26)."""

from typing import NamedTuple

from securecore.cli.machine import plan
from securecore.cli.machine.kernel_setting import CORE_PATTERN, read_setting
from securecore.cli.machine.root import Root
from securecore.errors import SecurecoreError


class Drift(NamedTuple):
    """A core_pattern that is not what set-up has written."""

    installed: str
    found: str


def find_drift(root: Root) -> Drift | None:
    """Return what the kernel has in place of our pattern; None when it is ours, or when no set-up of this machine is on record."""
    try:
        records = plan.load_records("sender", root) or []
        found = read_setting(CORE_PATTERN, root)
    except SecurecoreError:
        # `doctor` says what is wrong with the record; whoever asks in passing is told of drift only.
        return None
    record = next((record for record in records if record.get("path") == CORE_PATTERN), {})
    installed, also = record.get("written"), record.get("also", [])
    if found is None or not isinstance(installed, str) or found == installed or (isinstance(also, list) and found in also):
        return None
    return Drift(installed, found)
