"""Properties of a connection: nothing that arrives breaks it, and two ends never come apart."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from securecore import limits
from securecore.errors import PeerError
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import (
    Accept,
    Ack,
    Data,
    Kind,
    Message,
    Open,
    Ready,
    Refuse,
    Rest,
    Zero,
    encode,
    kind_of,
    max_body_bytes,
)
from securecore.wire.states import TRANSITIONS, End, State
from tests.support.wire import DUMP, SAMPLES, STORE, drain, pair_in, speaker

LONGEST = max(max_body_bytes(kind) for kind in Kind)
hostile_chunk = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([encode(message) for message in SAMPLES.values()]),
    st.builds(
        lambda length, kind, body: length.to_bytes(4, "big") + bytes([kind]) + body,
        st.integers(0, 80) | st.integers(0, (1 << 32) - 1),
        st.integers(0, 12) | st.integers(0, 255),
        st.binary(max_size=60),
    ),
)


@given(st.sampled_from(State), st.sampled_from(End), st.lists(hostile_chunk, max_size=8))
def test_arbitrary_bytes_give_messages_or_a_peer_error(state: State, end: End, chunks: list[bytes]) -> None:
    """Never another exception, never more memory than one message beside the last chunk."""
    connection = pair_in(state).ends[end]
    try:
        for chunk in chunks:
            connection.receive(chunk)
            assert len(connection._inbox) <= LONGEST + 5 + len(chunk)
            drain(connection)
    except PeerError:
        assert not connection._inbox


@given(st.data())
def test_any_split_of_a_conversation_gives_the_same_messages(data: st.DataObject) -> None:
    """Where the network cuts the stream does not matter."""
    said: list[Message] = [SAMPLES[Kind.DATA], Zero(2), SAMPLES[Kind.DATA], SAMPLES[Kind.END]]
    stream = b"".join(encode(message) for message in said)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=10)))
    receiver = pair_in(State.STREAMING).ends[End.RECEIVER]
    heard: list[Message] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        receiver.receive(stream[start:stop])
        heard += drain(receiver)
    assert said == heard


class TwoEnds(RuleBasedStateMachine):
    """Two ends that say anything that the table allows, over a wire that delays and splits as it likes."""

    @initialize(max_frames=st.integers(0, 20))
    def connect(self, max_frames: int) -> None:
        """Begin with both ends in the greeting; what READY will say is drawn now."""
        self.ends = {end: Connection(end) for end in End}
        self.wires = {end: bytearray() for end in End}
        self.said: dict[End, deque[Message]] = {end: deque() for end in End}
        self.max_frames = max_frames
        self.held = 0

    def say(self, message: Message) -> None:
        """Put *message* on the wire, unless its speaker's view of the connection forbids it."""
        end = speaker(kind_of(message))
        speaking = self.ends[end]
        if (speaking.state, end, kind_of(message)) in TRANSITIONS:
            self.wires[end] += speaking.send(message)
            self.said[end].append(message)

    @rule()
    def greet(self) -> None:
        """The receiver is ready."""
        self.say(Ready(STORE, self.max_frames, "rest"))

    @rule()
    def open(self) -> None:
        """The sender names a dump."""
        self.say(Open(DUMP, b"{}"))

    @rule(held=st.integers(0, 20), torn=st.integers(0, 3))
    def accept(self, held: int, torn: int) -> None:
        """The receiver says what it holds, perhaps with the beginning of one frame more."""
        self.say(Accept(min(held, self.max_frames), bytes(32), torn, bytes(32) if torn else b""))

    @precondition(lambda self: self.ends[End.SENDER].torn_bytes and self.ends[End.SENDER].frames < self.ends[End.SENDER].max_frames)
    @rule()
    def send_rest(self) -> None:
        """The sender goes on within a frame."""
        self.say(Rest(b"of a frame"))

    @precondition(lambda self: self.ends[End.SENDER].frames < self.ends[End.SENDER].max_frames)
    @rule(pieces=st.integers(0, 6))
    def send_frames(self, pieces: int) -> None:
        """The sender sends a frame, or several pieces of zeroes."""
        sender = self.ends[End.SENDER]
        room = sender.max_frames - sender.frames
        self.say(Data(b"frame") if pieces == 0 else Zero(min(pieces, room)))

    @precondition(lambda self: self.ends[End.RECEIVER].acknowledged < self.ends[End.RECEIVER].frames)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """The receiver acknowledges some of what it has heard."""
        receiver = self.ends[End.RECEIVER]
        self.say(Ack(data.draw(st.integers(receiver.acknowledged + 1, receiver.frames))))

    @rule(kind=st.sampled_from([Kind.END, Kind.RECEIPT, Kind.GONE]))
    def settle(self, kind: Kind) -> None:
        """One of the messages that end a dump."""
        self.say(SAMPLES[kind])

    @precondition(lambda self: self.ends[End.RECEIVER].state in (State.IDLE, State.STREAMING, State.ENDING))
    @rule()
    def refuse(self) -> None:
        """The receiver gives up."""
        self.say(Refuse(201, "later"))

    @rule(end=st.sampled_from(End), count=st.integers(1, 200))
    def deliver(self, end: End, count: int) -> None:
        """The wire hands some bytes from *end* to the other one, which understands all of them."""
        hearer = self.ends[End.RECEIVER if end is End.SENDER else End.SENDER]
        if hearer.state is State.CLOSED:
            return  # What crosses a refusal is thrown away unread.
        hearer.receive(self.wires[end][:count])
        del self.wires[end][:count]
        while hearer.state is not State.CLOSED and (message := hearer.next_message()) is not NEED_DATA:
            assert self.said[end].popleft() == message

    @invariant()
    def the_receiver_never_knows_of_more_than_was_sent(self) -> None:
        """Counts never cross: acknowledged <= heard <= sent, within one dump."""
        sender, receiver = self.ends[End.SENDER], self.ends[End.RECEIVER]
        if State.CLOSED not in (sender.state, receiver.state) and {sender.state, receiver.state} <= {State.STREAMING, State.ENDING}:
            assert sender.acknowledged <= receiver.acknowledged <= receiver.frames <= sender.frames <= limits.MAX_FRAMES

    @invariant()
    def an_idle_wire_means_one_state(self) -> None:
        """When nothing is under way both ends agree on where they are and what is held."""
        sender, receiver = self.ends[End.SENDER], self.ends[End.RECEIVER]
        if not any(self.wires.values()):
            assert len({(end.state, end.frames, end.acknowledged, end.torn_bytes) for end in (sender, receiver)}) == 1


TwoEnds.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_two_ends_never_come_apart = TwoEnds.TestCase
