"""The state table: which message may come from which end, and where it leads.

Everything that affects the protocol's state stands in this file, and nothing here knows which end we are, so that we cannot be
laxer with ourselves than with the peer. A pair that the table does not list is a breach of protocol.
"""

from enum import Enum

from securecore.declarations import Final
from securecore.wire.messages import Kind


class End(Enum):
    """The two ends of a connection."""

    SENDER = "sender"
    RECEIVER = "receiver"


class State(Enum):
    """Where a connection stands."""

    GREETING = "greeting"
    """The receiver judges the certificate; only it may speak."""
    IDLE = "idle"
    """Between dumps."""
    OPENING = "opening"
    """The sender has named a dump; the receiver looks what it holds."""
    STREAMING = "streaming"
    """Frames flow one way, acknowledgements the other."""
    ENDING = "ending"
    """The manifest is with the receiver."""
    CLOSED = "closed"
    """Refused; nothing more is said."""


_SENDER, _RECEIVER = End.SENDER, End.RECEIVER

TRANSITIONS: Final[dict[tuple[State, End, Kind], State]] = {
    (State.GREETING, _RECEIVER, Kind.READY): State.IDLE,
    (State.GREETING, _RECEIVER, Kind.REFUSE): State.CLOSED,
    (State.IDLE, _SENDER, Kind.OPEN): State.OPENING,
    (State.IDLE, _RECEIVER, Kind.REFUSE): State.CLOSED,
    (State.OPENING, _RECEIVER, Kind.ACCEPT): State.STREAMING,
    (State.OPENING, _RECEIVER, Kind.RECEIPT): State.IDLE,
    (State.OPENING, _RECEIVER, Kind.GONE): State.IDLE,
    (State.OPENING, _RECEIVER, Kind.REFUSE): State.CLOSED,
    (State.STREAMING, _SENDER, Kind.DATA): State.STREAMING,
    (State.STREAMING, _SENDER, Kind.REST): State.STREAMING,
    (State.STREAMING, _SENDER, Kind.ZERO): State.STREAMING,
    (State.STREAMING, _SENDER, Kind.END): State.ENDING,
    (State.STREAMING, _RECEIVER, Kind.ACK): State.STREAMING,
    (State.STREAMING, _RECEIVER, Kind.REFUSE): State.CLOSED,
    (State.ENDING, _RECEIVER, Kind.ACK): State.ENDING,
    (State.ENDING, _RECEIVER, Kind.RECEIPT): State.IDLE,
    (State.ENDING, _RECEIVER, Kind.REFUSE): State.CLOSED,
}
