"""The bytes of a peer that are no message yet: what comes out is what went in, and a long message is put where it stays."""

from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.merkle import EMPTY_ROOT
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.inbox import Inbox
from securecore.wire.messages import HEADER_BYTES, Accept, Data, Kind, Zero, encode
from securecore.wire.states import End, State
from tests.support.wire import SAMPLES, pair_in, put_in_space

TLS_RECORD_BYTES = 16 * limits.KIB
BUFFER_STEP_BYTES = 64 * limits.KIB

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.binary(max_size=200_000)),
        st.tuples(st.just("fill"), st.tuples(st.integers(1, 100_000), st.binary(max_size=1000))),
        st.tuples(st.just("drop"), st.integers(0, 100_000)),
        st.tuples(st.just("look"), st.tuples(st.integers(0, 300), st.integers(0, 300))),
    ),
    max_size=30,
)


@given(STEPS)
def test_what_comes_out_is_what_went_in(steps: list[tuple[str, object]]) -> None:
    """However bytes are put in, looked at and taken out, they are those of a plain string of bytes."""
    inbox, model = Inbox(), b""
    for step in steps:
        match step:
            case "put", bytes(data):
                inbox.put(data)
                model += data
            case "fill", (int(wanted), bytes(data)):
                part = data[:wanted]
                space = inbox.space(wanted)
                assert len(space) == wanted
                space[: len(part)] = part
                inbox.fill(len(part))
                model += part
            case "drop", int(count):
                inbox.drop(min(count, len(model)))
                model = model[min(count, len(model)) :]
            case "look", (int(length), int(offset)):
                assert bytes(inbox.look(length, offset)) == model[offset : offset + length]
        assert len(inbox) == len(model)
    assert bytes(inbox.look(len(model))) == model


@given(st.lists(st.integers(1, 70_000), min_size=1, max_size=8), st.data())
def test_messages_that_are_read_into_place_are_the_same(lengths: list[int], data: st.DataObject) -> None:
    """A connection whose bytes are put into its spaces, a few or all at a time, hears what was said."""
    connection = pair_in(State.STREAMING).ends[End.RECEIVER]
    said = [Data(bytes([number]) * length) if length % 3 else Zero(length % 100 + 1) for number, length in enumerate(lengths)]
    wire, heard = b"".join(map(encode, said)), []
    while wire or len(heard) < len(said):
        message = connection.next_message()
        if message is not NEED_DATA:
            heard.append(message)
            continue
        space = connection.space()
        count = min(len(wire), len(space), data.draw(st.integers(1, 100_000)))
        space[:count] = wire[:count]
        connection.received(count)
        wire = wire[count:]
    assert heard == said


def test_who_announces_a_long_message_gets_no_memory_for_it() -> None:
    """What there is room for grows with what has come, and ends with the message."""
    connection = pair_in(State.STREAMING).ends[End.RECEIVER]
    message = encode(Data(bytes(limits.MAX_FRAME_BYTES)))
    connection.receive(message[:HEADER_BYTES])
    came = HEADER_BYTES
    while connection.next_message() is NEED_DATA:
        count = min(len(connection.space()), len(message) - came)
        assert 0 < count <= max(came, TLS_RECORD_BYTES) + BUFFER_STEP_BYTES
        assert len(connection._inbox._buffer) <= came + max(came, TLS_RECORD_BYTES) + BUFFER_STEP_BYTES
        connection.received(count)
        came += count
    assert came == len(message)


def test_there_is_room_behind_a_message_that_nobody_has_taken_yet() -> None:
    """A space is never empty: who fills one after the other may bring several messages before the first is asked for."""
    connection = pair_in(State.STREAMING).ends[End.RECEIVER]
    said = [Zero(2), Data(b"two"), SAMPLES[Kind.END]]
    wire = b"".join(map(encode, said))
    put_in_space(connection, wire)
    assert [connection.next_message() for _ in said] == said


def test_a_frame_has_its_place_where_the_one_before_had_it() -> None:
    """Once its header is here all of it is read as one piece, and no more; behind END the memory is given back."""
    connection = pair_in(State.STREAMING).ends[End.RECEIVER]
    frame = bytes(range(256)) * 2048
    connection.receive(encode(Data(frame)))
    assert connection.next_message() == Data(frame)
    buffer = connection._inbox._buffer
    connection.receive(encode(Data(frame))[:1000])
    assert connection.next_message() is NEED_DATA
    assert len(connection.space()) == HEADER_BYTES + len(frame) - 1000
    assert connection._inbox._buffer is buffer
    connection.receive(encode(Data(frame))[1000:])
    assert connection.next_message() == Data(frame)
    connection.receive(encode(SAMPLES[Kind.END]))
    assert connection.next_message() == SAMPLES[Kind.END]
    assert not connection._inbox._buffer


def test_memory_is_not_let_go_of_and_asked_for_again() -> None:
    """A second message no longer than the first is put into the same buffer."""
    inbox = Inbox()
    inbox.put(bytes(300_000))
    buffer = inbox._buffer
    for _ in range(3):
        inbox.drop(len(inbox))
        inbox.put(bytes(300_000))
    assert inbox._buffer is buffer


def test_a_frame_that_is_lent_is_not_copied() -> None:
    """It is the buffer's own memory, good until the next bytes are asked for; what is kept for longer is asked for as bytes."""
    lending = Connection(End.RECEIVER, lends_frames=True)
    lending.send(SAMPLES[Kind.READY])
    lending.receive(encode(SAMPLES[Kind.OPEN]))
    assert lending.next_message() == SAMPLES[Kind.OPEN]
    lending.send(Accept(0, EMPTY_ROOT))
    frames = [bytes([number]) * 50_000 for number in range(3)]
    for frame in frames:
        lending.receive(encode(Data(frame)))
        message = lending.next_message()
        assert isinstance(message, Data)
        assert isinstance(message.frame, memoryview)
        assert message.frame.obj is lending._inbox._buffer
        assert bytes(message.frame) == frame
