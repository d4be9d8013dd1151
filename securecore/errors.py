"""The error hierarchy: each class says whose fault it is and what the operator does next.

An error carries one line (``what: why``, lower case, no full stop), an optional hint (what to do about it) and, as a class
attribute, the exit code of the command that meets it. ``docs/exit-codes.md`` publishes the codes; a test compares the two.
"""

from securecore.declarations import ClassVar


class SecurecoreError(Exception):
    """Something that a user, a peer or a disk can cause; never shown with a traceback."""

    exit_code: ClassVar[int] = 1
    name: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Bug(SecurecoreError):
    """A state that our own code should have made impossible."""

    exit_code = 1
    name = "bug"


class ConfigError(SecurecoreError):
    """Settings, an identity directory or file permissions are wrong; the operator must act."""

    exit_code = 3
    name = "config"


class NotFoundError(SecurecoreError):
    """The dump, host, file or directory that was named does not exist, or the name is ambiguous."""

    exit_code = 4
    name = "not-found"


class StorageError(SecurecoreError):
    """A disk refused: full, read-only, or something stands where we would write."""

    exit_code = 5
    name = "storage"


class BrokenError(SecurecoreError):
    """Evidence does not hold: bytes, a signature or a log differ from what was signed."""

    exit_code = 6
    name = "broken"


class IncompleteError(SecurecoreError):
    """The dump is whole as far as it goes, but it is labelled incomplete and the caller asked for all of it."""

    exit_code = 7
    name = "incomplete"


class PkiError(SecurecoreError):
    """A certificate, key or CA operation was refused."""

    exit_code = 8
    name = "pki"


class UnreachableError(SecurecoreError):
    """No receiver could be reached, or the connection was lost; trying again later makes sense."""

    exit_code = 10
    name = "unreachable"


class UntrustedError(SecurecoreError):
    """The other end could not prove that it is who we want to talk to."""

    exit_code = 11
    name = "untrusted"


class PeerError(SecurecoreError):
    """The other end broke the protocol."""

    exit_code = 12
    name = "peer"


class RefusedError(SecurecoreError):
    """The receiver said no, and asking again unchanged will not help."""

    exit_code = 13
    name = "refused"


class BusyError(SecurecoreError):
    """The receiver said not now; the same request may succeed later."""

    exit_code = 14
    name = "busy"

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        """Seconds that the receiver asks us to wait, 0 for none; capped by whoever read it."""


class ClockError(SecurecoreError):
    """A certificate is not yet valid: most likely this machine's clock is behind."""

    exit_code = 15
    name = "clock"
