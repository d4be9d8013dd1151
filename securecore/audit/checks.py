"""Numbered checks: the form that every verification's outcome has, and what each of them needs to run."""

from collections.abc import Callable
from typing import NamedTuple

from securecore.dump import directory
from securecore.errors import BrokenError, SecurecoreError


class Check(NamedTuple):
    """One step of a verification."""

    number: int
    what: str
    """What must hold, as a statement."""
    ok: bool | None
    """None: could not be checked, because what it needs is missing or did not hold."""
    detail: str
    """What was found; the reason when it does not hold."""


class Steps:
    """The checks so far; each is numbered, and none ends the verification."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def run(self, what: str, step: Callable[[], str], *, possible: bool = True) -> None:
        """Run one step, which returns what it found or raises why it does not hold."""
        ok: bool | None = None
        detail = "not checked: what it needs is missing or does not hold"
        if possible:
            try:
                detail, ok = step(), True
            except SecurecoreError as error:
                detail, ok = error.message, False
        self._add(what, ok, detail)

    def leave_out(self, what: str, why: str) -> None:
        """Count a step that cannot be made by the nature of what is verified."""
        self._add(what, None, f"not checked: {why}")

    def _add(self, what: str, ok: bool | None, detail: str) -> None:
        self.checks.append(Check(len(self.checks) + 1, what, ok, detail))


def read_needed(directory_fd: int, name: str, max_bytes: int) -> bytes:
    """Return the bytes of a file that must be there; raises BrokenError when it is not, StorageError as read_file does."""
    data = directory.read_file(name, directory_fd, max_bytes)
    if data is None:
        raise BrokenError(f"{name} is missing")
    return data
