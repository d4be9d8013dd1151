"""Does the kernel still start our handler? The live core_pattern against the one that set-up has written (R26)."""

from typing import Final, NamedTuple

from securecore.cli.machine import plan
from securecore.cli.machine.root import Root
from securecore.errors import SecurecoreError

CORE_PATTERN: Final = "/proc/sys/kernel/core_pattern"
CORE_PIPE_LIMIT: Final = "/proc/sys/kernel/core_pipe_limit"


class Drift(NamedTuple):
    """A core_pattern that is not what set-up has written."""

    installed: str
    found: str


def read_setting(path: str, root: Root) -> str | None:
    """Return a kernel setting; None where there is no /proc, as in an image. Raises StorageError."""
    found = root.find(path)
    return None if found is None else found.content.decode("utf-8", "backslashreplace").removesuffix("\n")


def find_drift(root: Root) -> Drift | None:
    """Return what the kernel has in place of our pattern; None when it is ours, or when no set-up of this machine is on record."""
    try:
        records = plan.load_records("sender", root) or []
        found = read_setting(CORE_PATTERN, root)
    except SecurecoreError:
        # `doctor` says what is wrong with the record; whoever asks in passing is told of drift only.
        return None
    installed = next((record.get("written") for record in records if record.get("path") == CORE_PATTERN), None)
    if found is None or not isinstance(installed, str) or found == installed:
        return None
    return Drift(installed, found)
