"""Two ends that may say anything at all, over a wire that splits, delays and ends: nothing that is not allowed is ever believed.

What is allowed is told by a model of its own here, from the state table and the rules for counts in docs/wire.md.
"""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from securecore import limits
from securecore.errors import Bug, PeerError
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import (
    Accept,
    Ack,
    Data,
    Gone,
    Kind,
    Message,
    Open,
    Ready,
    Receipt,
    Refuse,
    Rest,
    Zero,
    encode,
    kind_of,
)
from securecore.wire.messages import End as EndMessage
from securecore.wire.states import TRANSITIONS, End, State
from tests.support.wire import DUMP, STORE, other_end

count = st.integers(0, 9)
torn_bytes = st.sampled_from([0, 1, limits.MAX_FRAME_BYTES - 8, limits.MAX_FRAME_BYTES - 7, limits.MAX_FRAME_BYTES])
"""None, and at both sides of what "the rest" fits behind."""
any_message = st.one_of(
    st.builds(Ready, st.just(STORE), count, st.sampled_from(["", "rest"])),
    st.builds(Refuse, st.sampled_from([0, 107, 201, 65535]), st.sampled_from(["no", "\x1b[2J"]), count),
    st.builds(Open, st.just(DUMP), st.just(b"{}"), st.none()),
    st.builds(Accept, count, st.just(bytes(32)), torn_bytes, st.sampled_from([b"", bytes(32)])),
    st.builds(Rest, st.just(b"the rest")),
    st.builds(Data, st.just(b"frame")),
    st.builds(Zero, count | st.sampled_from([limits.MAX_ZERO_PIECES, limits.MAX_ZERO_PIECES + 1, (1 << 32) - 1])),
    st.builds(Ack, count | st.just((1 << 32) - 1)),
    st.builds(EndMessage, st.just(b"manifest")),
    st.builds(Receipt, st.just(b"receipt"), st.just(b"statement")),
    st.builds(Gone, st.just("gone"), st.just(b"receipt"), st.just(b"statement")),
)
LIKELY = {
    (State.GREETING, End.RECEIVER): Ready(STORE, 9, "rest"),
    (State.IDLE, End.SENDER): Open(DUMP, b"{}"),
    (State.OPENING, End.RECEIVER): Accept(2, bytes(32), 5, bytes(32)),
    (State.STREAMING, End.SENDER): Data(b"frame"),
    (State.ENDING, End.RECEIVER): Receipt(b"receipt", b"statement"),
}
"""What goes on from each state, so that conversations get far."""


class Model:
    """What one end knows: the state, the counts, and whether anything may still be said or heard."""

    def __init__(self) -> None:
        self.state = State.GREETING
        self.max_frames = limits.MAX_FRAMES
        self.sent = self.acknowledged = self.torn = 0
        self.takes_rest = False
        self.is_broken = False

    def allows(self, end: End, message: Message) -> bool:
        """Return whether *end* may say *message* now."""
        if (self.state, end, kind_of(message)) not in TRANSITIONS:
            return False
        match message:
            case Accept(held, _, torn, digest):
                return held <= self.max_frames and (torn > 0) == (digest != b"") and torn < limits.MAX_FRAME_BYTES
            case Data():
                return self.sent < self.max_frames
            case Rest(rest):
                return self.sent < self.max_frames and 0 < self.torn <= limits.MAX_FRAME_BYTES - len(rest)
            case Zero(pieces):
                return 1 <= pieces <= 4096 and self.sent + pieces <= self.max_frames
            case Ack(frames):
                return self.acknowledged < frames <= self.sent
        return True

    def step(self, end: End, message: Message) -> None:
        """Go where an allowed message leads."""
        self.state = TRANSITIONS[self.state, end, kind_of(message)]
        match message:
            case Ready(_, most, features):
                self.max_frames, self.takes_rest = most, features == "rest"
            case Accept(held, _, torn, _):
                self.sent = self.acknowledged = held
                self.torn = torn if self.takes_rest else 0
            case Data() | Rest():
                self.sent, self.torn = self.sent + 1, 0
            case Zero(pieces):
                self.sent, self.torn = self.sent + pieces, 0
            case Ack(frames):
                self.acknowledged = frames


class Strangers(RuleBasedStateMachine):
    """A sender and a receiver, each of which says what it may, what it may not, and bytes that are no message."""

    @initialize(steps=st.integers(0, 6), max_frames=st.integers(2, 9))
    def connect(self, steps: int, max_frames: int) -> None:
        """Begin in the greeting, and get on honestly for so many steps: what is strange comes in every state."""
        self.ends = {end: Connection(end) for end in End}
        self.models = {end: Model() for end in End}
        self.wires = {end: bytearray() for end in End}
        self.said: dict[End, deque[Message] | None] = {end: deque() for end in End}
        """What is on the wire as messages; None once it holds bytes that are none."""
        self.is_cut = dict.fromkeys(End, False)
        self.is_honest = True
        self.counts = {end: (0, 0) for end in End}
        self.say(End.RECEIVER, Ready(STORE, max_frames, "rest"))
        for _ in range(steps):
            for end in End:
                self.deliver(end, 1000)
                self.go_on(end)

    @rule(end=st.sampled_from(End), message=any_message, is_daring=st.integers(0, 9))
    def speak(self, end: End, message: Message, is_daring: int) -> None:
        """An end says something that it may say; one time in ten also what it may not."""
        if is_daring == 0 or self.models[end].allows(end, message):
            self.say(end, message)

    def say(self, end: End, message: Message) -> None:
        """Say *message* through the end's own connection, which lets out what the table allows and nothing else."""
        model, connection = self.models[end], self.ends[end]
        is_last_word = isinstance(message, Refuse) and model.allows(end, message)
        if model.is_broken and not is_last_word:
            with pytest.raises(Bug, match=r"after an error|may not say"):
                connection.send(message)
        elif not model.allows(end, message):
            with pytest.raises(Bug, match="we may not say this"):
                connection.send(message)
            model.is_broken = True
            self.is_honest = False
        else:
            self._put(end, connection.send(message), message)
            model.step(end, message)

    @rule(end=st.sampled_from(End))
    def go_on(self, end: End) -> None:
        """An end says what comes next, if it is its turn."""
        model = self.models[end]
        message = LIKELY.get((model.state, end))
        if message is not None and not model.is_broken and model.allows(end, message):
            self.say(end, message)

    @rule(end=st.sampled_from(End), message=any_message)
    def forge(self, end: End, message: Message) -> None:
        """An end that is no implementation of ours says a message whatever its state."""
        self.is_honest = False
        self._put(end, encode(message), message)

    @rule(
        kind=st.sampled_from([Accept, Ack, Zero]), of=st.sampled_from(["acknowledged", "sent", "max_frames"]), by=st.integers(-1, 1)
    )
    def lie(self, kind: type[Accept | Ack | Zero], of: str, by: int) -> None:
        """An end says a count at or beside a bound, where a count may be said, and is heard at once."""
        end = End.SENDER if kind is Zero else End.RECEIVER
        model = self.models[other_end(end)]
        number = max(getattr(model, of) + by - (model.sent if kind is Zero else 0), 0)
        message: Message = Accept(number, bytes(32)) if kind is Accept else Zero(number) if kind is Zero else Ack(number)
        if not self.wires[end] and (model.state, end, kind_of(message)) in TRANSITIONS:
            self.forge(end, message)
            self.deliver(end, 1000)

    @rule(end=st.sampled_from(End), data=st.binary(min_size=1, max_size=12))
    def babble(self, end: End, data: bytes) -> None:
        """It says bytes that are no message, or the beginning of one."""
        self.is_honest = False
        self._put(end, data, None)

    def _put(self, end: End, data: bytes, message: Message | None) -> None:
        if self.is_cut[end]:
            return
        self.wires[end] += data
        queue = self.said[end]
        if message is None:
            self.said[end] = None
        elif queue is not None:
            queue.append(message)

    @rule(end=st.sampled_from(End), keep=st.integers(0, 60))
    def cut(self, end: End, keep: int) -> None:
        """The wire from *end* is cut behind some of what is on it; nothing comes after that."""
        del self.wires[end][keep:]
        self.is_cut[end] = True

    @rule(end=st.sampled_from(End), count=st.integers(1, 200))
    def deliver(self, end: End, count: int) -> None:
        """The wire hands some bytes from *end* to the other one."""
        hearer, model = self.ends[other_end(end)], self.models[other_end(end)]
        data = bytes(self.wires[end][:count])
        del self.wires[end][:count]
        if model.is_broken or model.state is State.CLOSED:
            return  # What comes after an error or a refusal is not looked at.
        hearer.receive(data)
        while model.state is not State.CLOSED:
            try:
                message = hearer.next_message()
            except PeerError:
                self._check_refusal_was_due(end, model)
                model.is_broken = True
                assert not hearer.holds_partial_message
                return
            if message is NEED_DATA:
                return
            assert isinstance(message, tuple)
            queue = self.said[end]
            assert queue is None or queue.popleft() == message
            assert model.allows(end, message)
            model.step(end, message)

    def _check_refusal_was_due(self, end: End, model: Model) -> None:
        """What is refused is not allowed, unless it is no message at all; and no honest end is ever refused."""
        queue = self.said[end]
        assert queue is None or not model.allows(end, queue[0])
        assert not self.is_honest

    @precondition(lambda self: any(model.is_broken for model in self.models.values()))
    @rule(kind=st.sampled_from(Kind))
    def use_a_broken_end(self, kind: Kind) -> None:
        """Nothing is taken by an end that has met an error."""
        for end, model in self.models.items():
            if model.is_broken:
                with pytest.raises(Bug, match="after an error"):
                    self.ends[end].receive(bytes([0, 0, 0, 0, kind]))
                with pytest.raises(Bug, match="after an error"):
                    self.ends[end].next_message()

    @invariant()
    def each_end_is_where_the_model_is(self) -> None:
        """State and counts are those that the rules give, and nothing else."""
        for end, model in self.models.items():
            connection = self.ends[end]
            assert (connection.state, connection.frames, connection.acknowledged) == (model.state, model.sent, model.acknowledged)
            assert model.acknowledged <= model.sent <= limits.MAX_FRAMES

    @invariant()
    def counts_never_go_back_within_a_dump(self) -> None:
        """Only ACCEPT, which leaves the state *opening*, sets them anew."""
        for end, model in self.models.items():
            before, now = self.counts[end], (model.acknowledged, model.sent)
            assert now[0] >= before[0]
            assert now[1] >= before[1]
            self.counts[end] = now if model.state in (State.STREAMING, State.ENDING) else (0, 0)

    @invariant()
    def an_idle_wire_means_one_state(self) -> None:
        """Two honest ends whose messages have all arrived agree on where they are.

        But for what was on its way to an end that had said its last word: that is not looked at any more.
        """
        if self.is_honest and not any(self.wires.values()) and not any(self.is_cut.values()):
            sender, receiver = (self.ends[end] for end in End)
            assert sender.state == receiver.state
            if sender.state is not State.CLOSED:
                assert (sender.frames, sender.acknowledged) == (receiver.frames, receiver.acknowledged)


Strangers.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
test_nothing_that_is_not_allowed_is_believed = Strangers.TestCase
