"""Two ends of the protocol over a fake wire: what may be said when, and what happens when something else is said."""

from itertools import product

import pytest

from securecore import limits
from securecore.errors import Bug, PeerError
from securecore.merkle import EMPTY_ROOT
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import HEADER_BYTES, Accept, Ack, Data, Kind, Message, Ready, Refuse, Rest, Zero, encode
from securecore.wire.states import TRANSITIONS, End, State
from tests.support.wire import DUMP, SAMPLES, STORE, Pair, drain, other_end, pair_before, pair_in, speaker

SENDER, RECEIVER = End.SENDER, End.RECEIVER
ALLOWED = sorted(TRANSITIONS, key=str)
FORBIDDEN = sorted(set(product(State, End, Kind)) - set(TRANSITIONS), key=str)


def name(value: object) -> str:
    """Return how a parameter is called in a test's id."""
    return str(getattr(value, "name", value)).lower()


def test_every_kind_has_one_speaker() -> None:
    """No message may come from both ends, whatever the state."""
    assert {kind: {end for _, end, other in TRANSITIONS if other is kind} for kind in Kind} == {
        kind: {speaker(kind)} for kind in Kind
    }


@pytest.mark.parametrize(("state", "end", "kind"), ALLOWED, ids=name)
def test_a_message_of_the_table_moves_both_ends(state: State, end: End, kind: Kind) -> None:
    """The end that speaks and the end that hears come to the state that the table says."""
    pair = pair_before(state, kind)
    assert SAMPLES[kind] == pair.say(end, SAMPLES[kind])
    assert [TRANSITIONS[state, end, kind]] * 2 == [connection.state for connection in pair.ends.values()]


@pytest.mark.parametrize(("state", "end", "kind"), FORBIDDEN, ids=name)
def test_a_message_outside_the_table_is_refused_by_who_hears_it(state: State, end: End, kind: Kind) -> None:
    """It is the peer's breach, and the state stays where it was."""
    hearer = pair_in(state).ends[other_end(end)]
    hearer.receive(encode(SAMPLES[kind]))
    with pytest.raises(PeerError, match=f"{kind.name} from the {end.value} is not allowed in state {state.value}"):
        hearer.next_message()
    assert hearer.state is state


@pytest.mark.parametrize(("state", "end", "kind"), FORBIDDEN, ids=name)
def test_a_message_outside_the_table_is_a_bug_of_who_says_it(state: State, end: End, kind: Kind) -> None:
    """Our own end is held against the same table."""
    connection = pair_in(state).ends[end]
    with pytest.raises(Bug, match="we may not say this"):
        connection.send(SAMPLES[kind])
    assert connection.state is state


@pytest.mark.parametrize(("state", "end", "kind"), FORBIDDEN, ids=name)
def test_a_forbidden_message_is_refused_before_its_body_has_come(state: State, end: End, kind: Kind) -> None:
    """Five bytes are enough: nothing is buffered for a message that may not come."""
    hearer = pair_in(state).ends[other_end(end)]
    hearer.receive(encode(SAMPLES[kind])[:HEADER_BYTES])
    with pytest.raises(PeerError, match="not allowed"):
        hearer.next_message()


@pytest.mark.parametrize(("state", "end", "kind"), ALLOWED, ids=name)
def test_a_message_arrives_byte_by_byte(state: State, end: End, kind: Kind) -> None:
    """Every proper prefix says NEED_DATA and is known to be one."""
    pair = pair_before(state, kind)
    hearer = pair.ends[other_end(end)]
    data = pair.ends[end].send(SAMPLES[kind])
    for index in range(len(data)):
        assert hearer.next_message() is NEED_DATA
        assert hearer.state is state
        assert hearer.holds_partial_message == (index > 0)
        hearer.receive(data[index : index + 1])
    assert SAMPLES[kind] == hearer.next_message()
    assert not hearer.holds_partial_message


@pytest.mark.parametrize(("state", "end", "kind"), ALLOWED, ids=name)
def test_bytes_behind_a_message_belong_to_the_next(state: State, end: End, kind: Kind) -> None:
    """What follows is kept, and is a message that was begun."""
    pair = pair_before(state, kind)
    hearer = pair.ends[other_end(end)]
    hearer.receive(pair.ends[end].send(SAMPLES[kind]) + b"\0")
    assert SAMPLES[kind] == hearer.next_message()
    assert hearer.next_message() is NEED_DATA
    assert hearer.holds_partial_message


def test_a_message_that_may_not_come_any_more_when_it_is_whole_is_refused() -> None:
    """What is known of a message by its header does not outlive what we say in the middle of it."""
    pair = pair_in(State.STREAMING)
    data = pair.ends[SENDER].send(SAMPLES[Kind.DATA])
    pair.ends[RECEIVER].receive(data[:-1])
    assert pair.ends[RECEIVER].next_message() is NEED_DATA
    pair.ends[RECEIVER].send(Refuse(107, "enough"))

    pair.ends[RECEIVER].receive(data[-1:])
    with pytest.raises(PeerError, match="not allowed in state closed"):
        pair.ends[RECEIVER].next_message()


def test_messages_that_arrive_together_come_out_one_by_one() -> None:
    """One receive may bring any number of messages, in memory of any kind."""
    pair = pair_in(State.STREAMING)
    said: list[Message] = [Data(b"one"), Zero(2), Data(b"two"), SAMPLES[Kind.END]]
    data = b"".join(pair.ends[SENDER].send(message) for message in said)
    pair.ends[RECEIVER].receive(memoryview(bytearray(data)))
    assert said == drain(pair.ends[RECEIVER])
    assert pair.ends[RECEIVER].state is State.ENDING
    assert pair.ends[RECEIVER].frames == pair.ends[SENDER].frames == 5


def test_a_connection_takes_one_dump_after_the_other() -> None:
    """After a receipt the counts begin anew with the next ACCEPT."""
    pair = pair_in(State.ENDING)
    pair.say(RECEIVER, SAMPLES[Kind.RECEIPT])
    pair.say(SENDER, SAMPLES[Kind.OPEN])
    pair.say(RECEIVER, Accept(7, bytes(32)))
    assert {(7, 7)} == {(connection.frames, connection.acknowledged) for connection in pair.ends.values()}


@pytest.mark.parametrize("end", End)
def test_errors_are_sticky(end: End) -> None:
    """After a peer's breach nothing is taken from it and nothing said to it, but for a receiver's REFUSE."""
    connection = pair_in(State.STREAMING).ends[end]
    connection.receive(b"\0\0\0\0\xff" + encode(SAMPLES[Kind.DATA]))
    with pytest.raises(PeerError):
        connection.next_message()
    with pytest.raises(Bug, match="after an error"):
        connection.next_message()
    with pytest.raises(Bug, match="after an error"):
        connection.receive(b"more")
    for kind in set(Kind) - {Kind.REFUSE}:
        with pytest.raises(Bug, match="after an error"):
            connection.send(SAMPLES[kind])
    assert not connection.holds_partial_message


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLOSED], ids=name)
def test_a_receiver_may_say_once_why_it_gives_up(state: State) -> None:
    """A peer that broke the protocol learns what it did; nothing more is said after that."""
    pair = pair_in(state)
    receiver = pair.ends[RECEIVER]
    receiver.receive(b"\0\0\0\0\xff")
    with pytest.raises(PeerError):
        receiver.next_message()
    refuse = Refuse(107, "message kind 255 is unknown")
    pair.ends[SENDER].receive(receiver.send(refuse))
    assert refuse == pair.ends[SENDER].next_message()
    with pytest.raises(Bug):
        receiver.send(refuse)


def test_a_sender_may_not_refuse_even_after_an_error() -> None:
    """The door that is left open for the receiver is not open for the sender."""
    sender = pair_in(State.STREAMING).ends[SENDER]
    sender.receive(b"\0\0\0\0\xff")
    with pytest.raises(PeerError):
        sender.next_message()
    with pytest.raises(Bug, match="we may not say this"):
        sender.send(SAMPLES[Kind.REFUSE])


def test_a_bug_of_ours_closes_the_connection() -> None:
    """After a message that may not be said nothing else is said either."""
    sender = pair_in(State.STREAMING).ends[SENDER]
    with pytest.raises(Bug, match="DATA is 0 bytes long"):
        sender.send(Data(b""))
    with pytest.raises(Bug, match="after an error"):
        sender.send(Data(b"x"))
    assert sender.frames == 1


@pytest.mark.parametrize("frames", [0, 1, 2, 6, 7, (1 << 32) - 1])
@pytest.mark.parametrize("hears", [False, True])
def test_an_ack_grows_and_stays_within_what_was_sent(frames: int, hears: bool) -> None:
    """Two frames held and acknowledged by ACCEPT, four sent: ACK may say 3 to 6, and not the same twice."""
    pair = pair_in(State.OPENING)
    pair.say(RECEIVER, Accept(2, bytes(32)))
    for message in (Data(b"three"), Zero(2), Data(b"six")):
        pair.say(SENDER, message)
    connection = pair.ends[SENDER if hears else RECEIVER]

    def acknowledge() -> None:
        if hears:
            connection.receive(encode(Ack(frames)))
            connection.next_message()
        else:
            connection.send(Ack(frames))

    if frames == 6:
        acknowledge()
        assert connection.acknowledged == 6
    with pytest.raises(PeerError if hears else Bug, match=f"ACK of {frames} frames"):
        acknowledge()


def test_acks_go_on_while_the_manifest_is_looked_at() -> None:
    """An ACK that crosses END on the wire is no breach."""
    pair = pair_in(State.STREAMING)
    pair.ends[SENDER].send(SAMPLES[Kind.END])
    pair.ends[SENDER].receive(pair.ends[RECEIVER].send(Ack(1)))
    assert Ack(1) == pair.ends[SENDER].next_message()
    assert pair.ends[SENDER].state is State.ENDING


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (0, "are allowed"),
        (5, "more than 6 frames"),
        (limits.MAX_ZERO_PIECES, "more than 6 frames"),
        (limits.MAX_ZERO_PIECES + 1, "are allowed"),
        ((1 << 32) - 1, "are allowed"),
    ],
)
def test_zero_counts_at_least_one_piece_and_stays_within_its_bound_and_the_dump(pieces: int, words: str) -> None:
    """READY allows six frames, ACCEPT holds one, one was sent: up to four more fit, and never more than ZERO's own bound."""
    for hears in (False, True):
        pair = Pair()
        for end, message in ((RECEIVER, Ready(STORE, 6)), (SENDER, SAMPLES[Kind.OPEN]), (RECEIVER, Accept(1, bytes(32)))):
            pair.say(end, message)
        pair.say(SENDER, Data(b"second"))
        assert Zero(4) == _fresh(pair).say(SENDER, Zero(4))
        pair.ends[RECEIVER].receive(encode(Zero(pieces)))
        attempt = pair.ends[RECEIVER].next_message if hears else lambda sender=pair.ends[SENDER]: sender.send(Zero(pieces))
        with pytest.raises(PeerError if hears else Bug, match=words):
            attempt()


def _fresh(pair: Pair) -> Pair:
    """Return a pair that stands where *pair* stands, for a step that must leave *pair* alone."""
    other = pair_in(State.STREAMING)
    for end, connection in other.ends.items():
        connection.max_frames, connection.frames = pair.ends[end].max_frames, pair.ends[end].frames
    return other


def test_data_beyond_the_last_frame_is_refused() -> None:
    """A dump of exactly max_frames is taken, one frame more is not."""
    pair = Pair()
    for end, message in ((RECEIVER, Ready(STORE, 2)), (SENDER, SAMPLES[Kind.OPEN]), (RECEIVER, Accept(0, EMPTY_ROOT))):
        pair.say(end, message)
    pair.say(SENDER, Data(b"one"))
    pair.say(SENDER, Data(b"two"))
    pair.ends[RECEIVER].receive(encode(Data(b"three")))
    with pytest.raises(PeerError, match="more than 2 frames"):
        pair.ends[RECEIVER].next_message()


def test_accept_may_not_hold_more_than_a_dump_may_have() -> None:
    """What READY said binds the receiver too."""
    pair = Pair()
    pair.say(RECEIVER, Ready(STORE, 2))
    pair.say(SENDER, SAMPLES[Kind.OPEN])
    pair.ends[SENDER].receive(encode(Accept(3, bytes(32))))
    with pytest.raises(PeerError, match="ACCEPT holds 3 frames"):
        pair.ends[SENDER].next_message()


def test_a_receiver_cannot_raise_the_bound_on_frames() -> None:
    """READY may lower max_frames; what is above our own bound is read as that."""
    pair = Pair()
    pair.say(RECEIVER, Ready(STORE, (1 << 32) - 1))
    assert {limits.MAX_FRAMES} == {connection.max_frames for connection in pair.ends.values()}


@pytest.mark.parametrize("end", End)
def test_memory_is_bounded_by_one_message_beside_what_came(end: End) -> None:
    """A peer that begins the longest message and never ends it cannot make the buffer grow beyond it."""
    connection = pair_in(State.STREAMING).ends[end]
    kind = Kind.DATA if end is RECEIVER else Kind.REFUSE
    good = encode(Data(bytes(limits.MAX_FRAME_BYTES)) if kind is Kind.DATA else SAMPLES[kind])
    connection.receive(good[:-1])
    assert connection.next_message() is NEED_DATA
    assert len(connection._inbox._buffer) <= HEADER_BYTES + limits.MAX_FRAME_BYTES + 64 * limits.KIB
    connection.receive(good[-1:])
    assert connection.next_message() is not NEED_DATA
    assert not connection.holds_partial_message


def test_the_dump_that_is_opened_is_the_one_that_was_named() -> None:
    """The id arrives as sixteen bytes and leaves as the same id."""
    message = pair_in(State.IDLE).say(SENDER, SAMPLES[Kind.OPEN])
    assert getattr(message, "dump", None) == DUMP


def test_a_connection_begins_with_the_receiver() -> None:
    """A sender that speaks before READY is refused: it could not know yet whether it was believed."""
    receiver = Connection(RECEIVER)
    receiver.receive(encode(SAMPLES[Kind.OPEN]))
    with pytest.raises(PeerError, match="OPEN from the sender is not allowed in state greeting"):
        receiver.next_message()


def offering(torn_bytes: int = 9, features: str = "rest", max_frames: int = 5) -> Pair:
    """Return a pair in which the receiver holds a frame and has offered to keep the beginning of the next one."""
    pair = Pair()
    pair.say(RECEIVER, Ready(STORE, max_frames, features))
    pair.say(SENDER, SAMPLES[Kind.OPEN])
    pair.say(RECEIVER, Accept(1, bytes(32), torn_bytes, bytes(32)))
    return pair


def test_the_rest_of_a_frame_is_one_frame() -> None:
    """It counts like DATA, and the next frame is whole again."""
    pair = offering()
    assert Rest(b"the end") == pair.say(SENDER, Rest(b"the end"))
    assert Data(b"next") == pair.say(SENDER, Data(b"next"))
    assert Ack(3) == pair.say(RECEIVER, Ack(3))
    assert {(3, 3, 0)} == {(end.frames, end.acknowledged, end.torn_bytes) for end in pair.ends.values()}


def refused_rest(pair: Pair, rest: Rest, words: str) -> None:
    """Assert that a REST may be neither said nor heard, and is refused before its body has come."""
    with pytest.raises(Bug, match=words):
        pair.ends[SENDER].send(rest)
    pair.ends[RECEIVER].receive(encode(rest)[:HEADER_BYTES])
    with pytest.raises(PeerError, match=words):
        pair.ends[RECEIVER].next_message()


NOTHING_OFFERED = "no beginning of a frame was offered"


@pytest.mark.parametrize(
    ("first", "features"),
    [
        (None, "rests"),
        (None, ""),
        (None, "a b"),
        (Rest(b"x"), "rest"),
        (Data(b"x"), "rest"),
        (Zero(1), "a rest b"),
    ],
    ids=str,
)
def test_rest_is_for_the_frame_that_accept_has_offered(first: Message | None, features: str) -> None:
    """Not without an announcement, not behind another frame, and not twice."""
    pair = offering(features=features)
    if first is not None:
        pair.say(SENDER, first)
    refused_rest(pair, Rest(b"x"), NOTHING_OFFERED)


def test_rest_is_refused_where_accept_has_offered_nothing() -> None:
    """Also after an ACCEPT that had offered something for a dump before."""
    pair = offering()
    for end, kind in ((SENDER, Kind.END), (RECEIVER, Kind.RECEIPT), (SENDER, Kind.OPEN)):
        pair.say(end, SAMPLES[kind])
    pair.say(RECEIVER, Accept(1, bytes(32)))
    refused_rest(pair, Rest(b"x"), NOTHING_OFFERED)


def test_rest_does_not_make_a_frame_that_is_too_long() -> None:
    """Beginning and rest together have the bound of a frame."""
    assert Rest(b"x" * 10) == offering(limits.MAX_FRAME_BYTES - 10).say(SENDER, Rest(b"x" * 10))
    refused_rest(offering(limits.MAX_FRAME_BYTES - 10), Rest(b"x" * 11), "REST makes a frame of 1052737 bytes")


def test_rest_counts_against_the_bound_of_a_dump() -> None:
    """A dump that is full takes no further frame, in whichever way."""
    pair = offering(max_frames=1)
    pair.ends[RECEIVER].receive(encode(Rest(b"x")))
    with pytest.raises(PeerError, match="more than 1 frames"):
        pair.ends[RECEIVER].next_message()


@pytest.mark.parametrize(
    "accept",
    [
        Accept(1, bytes(32), torn_bytes=1),
        Accept(1, bytes(32), torn_hash=bytes(32)),
        Accept(1, bytes(32), limits.MAX_FRAME_BYTES, bytes(32)),
        Accept(1, bytes(32), (1 << 32) - 1, bytes(32)),
    ],
    ids=["without hash", "without length", "a whole frame", "4 GiB"],
)
def test_an_offer_is_a_length_below_a_frames_and_a_hash(accept: Accept) -> None:
    """Half an offer is a breach, of either end."""
    pair = Pair()
    pair.say(RECEIVER, Ready(STORE, 2, "rest"))
    pair.say(SENDER, SAMPLES[Kind.OPEN])
    with pytest.raises(Bug, match="ACCEPT h"):
        pair.ends[RECEIVER].send(accept)
    pair.ends[SENDER].receive(encode(accept))
    with pytest.raises(PeerError, match="ACCEPT h"):
        pair.ends[SENDER].next_message()


@pytest.mark.parametrize("message", [Data(b"a frame"), Rest(b"the rest of one")], ids=["data", "rest"])
def test_a_frame_that_was_cut_is_found_as_far_as_it_came(message: Data | Rest) -> None:
    """At every offset of its body; and nothing is found before it began, or once it is whole."""
    data = encode(message)
    for cut in range(len(data) + 1):
        receiver = offering().ends[RECEIVER]
        receiver.receive(data[:cut])
        heard = receiver.next_message()
        is_partial = HEADER_BYTES < cut < len(data)
        expected = (Kind(data[4]), message[0][: cut - HEADER_BYTES]) if is_partial else None
        assert expected == receiver.find_partial_frame()
        assert (heard is NEED_DATA) == (cut < len(data))


@pytest.mark.parametrize("kind", [Kind.END, Kind.ZERO])
def test_what_is_no_frame_is_never_taken_for_the_beginning_of_one(kind: Kind) -> None:
    """A manifest or a count that was cut is forgotten."""
    receiver = offering().ends[RECEIVER]
    receiver.receive(encode(SAMPLES[kind])[:-1])
    assert receiver.next_message() is NEED_DATA
    assert receiver.find_partial_frame() is None


@pytest.mark.parametrize("data", [b"", b"\0\0\0\1", b"\0\0\0\2\xffx", b"\0\0\0\2\x04x", encode(Rest(b"xyz"))[:-1]], ids=repr)
def test_what_may_not_come_is_never_taken_for_the_beginning_of_a_frame(data: bytes) -> None:
    """Also when nobody has looked at its header yet, because the connection ended first."""
    receiver = pair_in(State.STREAMING).ends[RECEIVER]
    receiver.receive(data)
    assert receiver.find_partial_frame() is None
