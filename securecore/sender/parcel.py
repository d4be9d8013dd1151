"""What goes into a dump's transfer, and what comes of it."""

import ssl

from securecore.declarations import Any, NamedTuple
from securecore.errors import SecurecoreError
from securecore.names import DumpId
from securecore.sender.credentials import Credentials


class Parcel(NamedTuple):
    """What is known of a dump before its first byte."""

    dump: DumpId
    report: bytes
    started_at: int
    """Unix milliseconds."""


class Papers(NamedTuple):
    """What a sender shows and signs with."""

    context: ssl.SSLContext
    credentials: Credentials


class Outcome(NamedTuple):
    """How a transfer ended."""

    receipt: dict[str, Any] | None
    """The receipt's facts, as they stand in the receipt log; None when there is none yet."""
    failure: SecurecoreError | None
    """Why the dump did not reach a receiver."""
    spooled: bool
    """Whether the spool has what the receiver has not."""
    spool_failure: SecurecoreError | None
    """Why the spool could not keep all of it."""
    size: int
    stored_bytes: int
    frames: int
    source_failure: str | None
    """Why the dump ends before its source did: it could not be read, or not be compressed, from there on."""
    copy_failure: SecurecoreError | None = None
    """Why the spool could not keep the copy that it should, beside a wire that was well."""
    is_begun_elsewhere: bool = False
    """A receiver has made frames durable, or says that it keeps what came, or had the end of the dump and gave no answer."""

    @property
    def is_kept(self) -> bool:
        """Whether something of the dump is somewhere, its report with it: at a receiver, or in the spool."""
        return self.receipt is not None or self.spooled or self.is_begun_elsewhere
