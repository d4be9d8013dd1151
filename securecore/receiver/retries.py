"""What has failed and is to be tried again, but not at every look: each failure doubles how many looks are let pass."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from securecore import limits
from securecore.errors import BusyError, SecurecoreError

Key = TypeVar("Key")


class _Failure(NamedTuple):
    times: int
    """In a row."""
    looks: int
    """To be let pass before the next try."""


class Retries(Generic[Key]):
    """Counts looks, not seconds, so that no clock has a say in it. For one thread.

    After the first failure the next look tries again, after the second the one behind it, then every fourth, and so on; never less
    often than every limits.CARETAKER_MOST_LOOKS. Nothing of it is kept: a restart tries everything at once.
    """

    def __init__(self) -> None:
        self._failures: dict[Key, _Failure] = {}

    def begin_look(self, keys: Collection[Key]) -> None:
        """Count a look, at which *keys* are all that there is; what is gone is forgotten."""
        self._failures = {key: failure._replace(looks=failure.looks - 1) for key, failure in self._failures.items() if key in keys}

    def is_due(self, key: Key) -> bool:
        """Return whether this look is one that tries."""
        failure = self._failures.get(key)
        return failure is None or failure.looks <= 0

    @contextmanager
    def trying(self, key: Key) -> Iterator[None]:
        """Count the block as a failure when it raises a SecurecoreError or OSError, else forget what was; BusyError is neither."""
        try:
            yield
        except BusyError:
            raise
        except (SecurecoreError, OSError):
            times = self._failures[key].times + 1 if key in self._failures else 1
            self._failures[key] = _Failure(times, min(1 << (times - 1), limits.CARETAKER_MOST_LOOKS))
            raise
        self._failures.pop(key, None)
