"""The protocol as a value machine: bytes in, messages out; messages in, bytes out. No input or output, no clock.

One object is one end's view of one connection. Every message in either direction passes ``_step``, which holds it against the state
table and against the counts of frames. After an error the connection is closed for good: every further use raises, but for one
REFUSE that says why.
"""

from enum import Enum

from securecore import limits
from securecore.declarations import Final
from securecore.errors import Bug, PeerError
from securecore.wire import messages
from securecore.wire.inbox import Inbox
from securecore.wire.messages import Accept, Ack, Data, Kind, Message, Ready, Refuse, Rest, Zero, kind_of
from securecore.wire.states import TRANSITIONS, End, State


class NeedData(Enum):
    """The value of ``next_message`` when the bytes so far hold no whole message."""

    NEED_DATA = "need data"


NEED_DATA = NeedData.NEED_DATA

_ROOM_IS_KEPT_AFTER: Final = frozenset({Kind.DATA, Kind.REST, Kind.ZERO})
"""Of the same dump more will come. Between two dumps nobody pays for the largest message that there was."""


class Connection:
    """One end's view of a connection."""

    def __init__(self, ours: End, *, lends_frames: bool = False) -> None:
        """Where it *lends frames*, that of a DATA is good until ``space`` or ``receive`` is called; nothing was copied for it."""
        self._lends_frames = lends_frames
        self._ours = ours
        self._theirs = End.RECEIVER if ours is End.SENDER else End.SENDER
        self._inbox = Inbox()
        self._broken = False
        self.state = State.GREETING
        self.max_frames = limits.MAX_FRAMES
        """What the receiver said in READY."""
        self.frames = 0
        """Frames of the dump that is under way that the receiver holds or that were sent."""
        self.acknowledged = 0
        """Frames of it that the receiver has said are durable."""
        self.torn_bytes = 0
        """Bytes of the next frame's beginning that ACCEPT has offered to keep; 0 once a frame has followed."""
        self._takes_rest = False
        self._begun: tuple[Kind, int] | None = None
        """What is said of the next message by its header, which is read once, however often the rest of it is waited for."""

    def send(self, message: Message) -> bytes:
        """Return the bytes of *message*, which the caller writes to the peer.

        Raises Bug when the state does not allow it, or when the peer would refuse it; nothing may be said after that. After an
        error REFUSE alone may still be sent, so that a peer which broke the protocol can learn what it did.
        """
        if self._broken and not isinstance(message, Refuse):
            raise Bug("connection is used after an error")
        try:
            encoded = messages.encode(message)
            self._step(self._ours, message)
        except PeerError as error:
            self._broken = True
            raise Bug(f"we may not say this: {error.message}") from error
        return encoded

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer, any number of them; raises Bug after an error."""
        if self._broken:
            raise Bug("connection is used after an error")
        self._inbox.put(data)

    def space(self) -> memoryview:
        """Return where the peer's next bytes may be put without another copy; ``received`` says how many were.

        Room for what has begun, no further than its end, else for the beginning of a message; never empty, and good until anything
        else is asked of this object. Raises Bug after an error.
        """
        if self._broken:
            raise Bug("connection is used after an error")
        begun = self.find_begun()
        lacking = messages.HEADER_BYTES + begun[1] - len(self._inbox) if begun is not None else 0
        # Where the message is whole and was not taken yet, what comes belongs to the next one.
        return self._inbox.space_for(lacking) if lacking > 0 else self._inbox.space()

    def received(self, count: int) -> None:
        """Take so many bytes as the peer's that were put into what ``space`` returned last."""
        self._inbox.fill(count)

    def next_message(self) -> Message | NeedData:
        """Return the peer's next message, or NEED_DATA.

        Raises PeerError when the peer has broken the protocol; the connection is then unusable. The buffer never holds more than
        one message's bound beside what one ``receive`` brought.
        """
        if self._broken:
            raise Bug("connection is used after an error")
        try:
            message = self._take()
            if message is not NEED_DATA:
                self._step(self._theirs, message)
        except PeerError:
            self._broken = True
            self._inbox.clear()
            raise
        return message

    @property
    def holds_partial_message(self) -> bool:
        """Whether the peer has begun a message that is not yet whole: an end of stream now is a cut in the middle of it."""
        return len(self._inbox) > 0

    def find_begun(self) -> tuple[Kind, int] | None:
        """Return what comes next from the peer and how long its body will be.

        None before its header is whole, and when it may not come.
        """
        try:
            return None if self._broken else self._read_header()
        except PeerError:
            return None

    def find_partial_frame(self) -> tuple[Kind, bytes] | None:
        """Return DATA or REST, and what has come of its body, when it is cut in its middle; else None."""
        kind, length = self.find_begun() or (None, 0)
        if (kind is not Kind.DATA and kind is not Kind.REST) or not 0 < len(self._inbox) - messages.HEADER_BYTES < length:
            return None
        return kind, bytes(self._inbox.look(length, messages.HEADER_BYTES))

    def _take(self) -> Message | NeedData:
        if (begun := self._read_header()) is None:
            return NEED_DATA
        kind, length = begun
        if len(self._inbox) < messages.HEADER_BYTES + length:
            return NEED_DATA
        body = self._inbox.look(length, messages.HEADER_BYTES)
        self._inbox.drop(messages.HEADER_BYTES + length)
        self._begun = None
        message = messages.decode_body(kind, body if self._lends_frames and kind is Kind.DATA else bytes(body))
        if kind not in _ROOM_IS_KEPT_AFTER:
            self._inbox.let_go()
        return message

    def _read_header(self) -> tuple[Kind, int] | None:
        """Return kind and body length of the next message, None before its header is whole; raises PeerError when it may not come.

        The whole message is held against the state once more (``_step``): what we have said meanwhile may have changed that.
        """
        if self._begun is None and len(self._inbox) >= messages.HEADER_BYTES:
            kind, length = messages.decode_header(self._inbox.look(messages.HEADER_BYTES))
            self._check_header(kind, length)
            self._begun = kind, length
        return self._begun

    def _check_header(self, kind: Kind, length: int) -> None:
        """Refuse a message that may not come at its header, before its body costs memory or time."""
        self._check_allowed(self._theirs, kind)
        if kind is Kind.REST:
            self._check_rest(length)

    def _check_allowed(self, end: End, kind: Kind) -> State:
        state = TRANSITIONS.get((self.state, end, kind))
        if state is None:
            raise PeerError(f"{kind.name} from the {end.value} is not allowed in state {self.state.value}")
        return state

    def _step(self, end: End, message: Message) -> None:
        """The one door: hold *message* against the table and the counts, then move."""
        state = self._check_allowed(end, kind_of(message))
        if isinstance(message, Ready):
            self.max_frames = min(message.max_frames, limits.MAX_FRAMES)
            self._takes_rest = message.takes_rest
        elif isinstance(message, Accept):
            self._accept(message)
        elif isinstance(message, (Data, Rest, Zero)):
            if isinstance(message, Rest):
                self._check_rest(len(message.rest))
            self._count_frames(message.pieces if isinstance(message, Zero) else 1)
            self.torn_bytes = 0
        elif isinstance(message, Ack):
            if not self.acknowledged < message.frames <= self.frames:
                raise PeerError(f"ACK of {message.frames} frames: {self.acknowledged} were acknowledged, {self.frames} sent")
            self.acknowledged = message.frames
        self.state = state

    def _accept(self, message: Accept) -> None:
        if message.held > self.max_frames:
            raise PeerError(f"ACCEPT holds {message.held} frames, more than a dump may have")
        if bool(message.torn_bytes) != bool(message.torn_hash):
            raise PeerError("ACCEPT has torn_bytes without torn_hash, or the other way round")
        if message.torn_bytes >= limits.MAX_FRAME_BYTES:
            raise PeerError(f"ACCEPT holds {message.torn_bytes} bytes of a frame, one has at most {limits.MAX_FRAME_BYTES}")
        self.frames = self.acknowledged = message.held
        # Who has not announced REST offers nothing that could be used.
        self.torn_bytes = message.torn_bytes if self._takes_rest else 0

    def _check_rest(self, length: int) -> None:
        """Hold a REST of so many bytes against what ACCEPT has offered."""
        if self.torn_bytes == 0:
            raise PeerError("REST, and no beginning of a frame was offered to go on from")
        if self.torn_bytes + length > limits.MAX_FRAME_BYTES:
            raise PeerError(f"REST makes a frame of {self.torn_bytes + length} bytes, one has at most {limits.MAX_FRAME_BYTES}")

    def _count_frames(self, count: int) -> None:
        if not 1 <= count <= limits.MAX_ZERO_PIECES:
            raise PeerError(f"ZERO of {count} pieces, 1 to {limits.MAX_ZERO_PIECES} are allowed")
        if self.frames + count > self.max_frames:
            raise PeerError(f"dump has more than {self.max_frames} frames")
        self.frames += count
