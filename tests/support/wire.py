"""Two ends of the protocol over a fake wire, and one good message of every kind."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from securecore import limits
from securecore.merkle import EMPTY_ROOT
from securecore.names import DumpId, StoreId
from securecore.wire.connection import NEED_DATA, Connection, NeedData
from securecore.wire.messages import (
    Accept,
    Ack,
    Data,
    End,
    Gone,
    Kind,
    Message,
    Open,
    Ready,
    Receipt,
    Refusal,
    Refuse,
    Rest,
    Zero,
)
from securecore.wire.states import End as WireEnd
from securecore.wire.states import State

STORE: Final = StoreId.make(bytes(range(16)))
DUMP: Final = DumpId.make(1_763_780_062_000, bytes(range(10)))

SAMPLES: Final[dict[Kind, Message]] = {
    Kind.READY: Ready(STORE, limits.MAX_FRAMES, "rest"),
    Kind.REFUSE: Refuse(Refusal.BUSY, "come back later", 10, kept=True),
    Kind.OPEN: Open(DUMP, b'{"signal":11}', 12_345_678),
    Kind.ACCEPT: Accept(0, EMPTY_ROOT, 9, sha256(b"beginning").digest()),
    Kind.DATA: Data(b"the stored bytes of a frame; the connection does not look at them"),
    Kind.REST: Rest(b" and the end of a frame"),
    Kind.ZERO: Zero(3),
    Kind.ACK: Ack(1),
    Kind.END: End(b"a manifest"),
    Kind.RECEIPT: Receipt(b"a receipt", b"a statement", b"successions"),
    Kind.GONE: Gone("deleted on 2026-11-22 by alice", b"a receipt", b"a statement", b"successions"),
}
"""One message of every kind; the ACK fits after one frame, the REST behind ACCEPT."""

_WAY: Final[dict[State, tuple[Kind, ...]]] = {
    State.GREETING: (),
    State.IDLE: (Kind.READY,),
    State.OPENING: (Kind.READY, Kind.OPEN),
    State.STREAMING: (Kind.READY, Kind.OPEN, Kind.ACCEPT, Kind.DATA),
    State.ENDING: (Kind.READY, Kind.OPEN, Kind.ACCEPT, Kind.DATA, Kind.END),
    State.CLOSED: (Kind.REFUSE,),
}
_SENDERS: Final = frozenset({Kind.OPEN, Kind.DATA, Kind.REST, Kind.ZERO, Kind.END})


class Pair:
    """A sender's and a receiver's connection, and the bytes that one hands to the other."""

    def __init__(self) -> None:
        self.ends = {end: Connection(end) for end in WireEnd}

    def say(self, end: WireEnd, message: Message) -> Message | NeedData:
        """Send *message* from *end* and return what the other end makes of it."""
        other = self.ends[other_end(end)]
        other.receive(self.ends[end].send(message))
        return other.next_message()

    def play(self, kinds: Iterable[Kind]) -> None:
        """Say the samples of *kinds*, each from the end that it comes from."""
        for kind in kinds:
            self.say(speaker(kind), SAMPLES[kind])


def other_end(end: WireEnd) -> WireEnd:
    """Return the end that *end* talks to."""
    return WireEnd.RECEIVER if end is WireEnd.SENDER else WireEnd.SENDER


def speaker(kind: Kind) -> WireEnd:
    """Return the only end that may ever say this."""
    return WireEnd.SENDER if kind in _SENDERS else WireEnd.RECEIVER


def pair_in(state: State) -> Pair:
    """Return a pair whose ends stand in *state*, with one unacknowledged frame where there are frames."""
    pair = Pair()
    pair.play(_WAY[state])
    return pair


def pair_before(state: State, kind: Kind) -> Pair:
    """Return a pair in *state* that may go on with *kind* where the table allows it: REST comes right after ACCEPT."""
    if kind is not Kind.REST or state is not State.STREAMING:
        return pair_in(state)
    pair = Pair()
    pair.play((Kind.READY, Kind.OPEN, Kind.ACCEPT))
    return pair


def drain(connection: Connection) -> list[Message]:
    """Return the messages that a connection has whole."""
    found = []
    while not isinstance(message := connection.next_message(), NeedData):
        found.append(message)
    return found


__all__ = [
    "DUMP", "NEED_DATA", "SAMPLES", "STORE", "Pair", "drain", "other_end", "pair_before", "pair_in", "put_in_space", "speaker",
]  # fmt: skip


def put_in_space(connection: Connection, data: bytes) -> None:
    """Give *data* to a connection as one does who reads from a socket into its memory."""
    while data:
        space = connection.space()
        assert len(space)
        count = min(len(space), len(data))
        space[:count] = data[:count]
        connection.received(count)
        data = data[count:]
