"""A receiver that passed the handshake and lies: the core stays ours, the error says what it did, and nothing waits for ever."""

import socket
from itertools import product
from typing import Final

import pytest

from securecore import limits
from securecore.errors import BusyError, ClockError, PeerError, RefusedError, SecurecoreError, UnreachableError
from securecore.merkle import EMPTY_ROOT
from securecore.sender.spool import Spool
from securecore.wire import messages
from securecore.wire.messages import Accept, Ack, Kind, Ready, Receipt, Refuse, encode, max_body_bytes
from securecore.wire.states import TRANSITIONS, End, State
from tests.support.certificates import Fleet
from tests.support.custody import FRAMES, held_open, send_to
from tests.support.scripted import STORE, Peer, Script
from tests.support.wire import SAMPLES

REACHABLE: Final = [State.GREETING, State.OPENING, State.STREAMING, State.ENDING]
WRONG: Final = [(state, kind) for state, kind in product(REACHABLE, Kind) if (state, End.RECEIVER, kind) not in TRANSITIONS]


def in_name(value: object) -> str:
    """Return how a parameter is called in a test's id."""
    return str(getattr(value, "name", value)).lower()


@pytest.mark.parametrize(("state", "kind"), WRONG, ids=in_name)
def test_a_message_in_the_wrong_state_ends_it(state: State, kind: Kind, fleet: Fleet, spool: Spool) -> None:
    """Whatever the receiver says out of turn, a sender's own messages among it, is a breach that is named."""
    sent = send_to(held_open(state, SAMPLES[kind]), fleet, spool)

    assert type(sent.failure) is PeerError
    assert f"{kind.name} from the receiver is not allowed in state" in sent.failure.message


def header(kind: int, length: int) -> bytes:
    """Return a message's header."""
    return length.to_bytes(4, "big") + bytes([kind])


ALLOWED: Final = [(state, kind) for state, end, kind in TRANSITIONS if end is End.RECEIVER and state is not State.IDLE]


@pytest.mark.parametrize("beyond", [1, (1 << 30) - 5731, (1 << 32) - 1])
@pytest.mark.parametrize(("state", "kind"), ALLOWED, ids=in_name)
def test_a_body_over_its_bound_is_refused_at_its_header(state: State, kind: Kind, beyond: int, fleet: Fleet, spool: Spool) -> None:
    """A byte too many, a gibibyte of optional fields, the longest that four bytes can say: five bytes are enough to refuse it."""
    length = min(max_body_bytes(kind) + beyond, (1 << 32) - 1)
    sent = send_to(held_open(state, header(kind, length)), fleet, spool)

    assert type(sent.failure) is PeerError
    assert sent.failure.message == f"{kind.name} is {length} bytes long, at most {max_body_bytes(kind)} are allowed"


OPTIONAL: Final = b"\xff" + (4091).to_bytes(4, "big") + bytes(4091)
"""All the room that a body leaves for fields of later versions, as one unknown optional field."""
READY: Final = encode(Ready(STORE, 1 << 24))
ACCEPT: Final = encode(Accept(0, EMPTY_ROOT))

MALFORMED: Final[dict[str, tuple[State, bytes, str]]] = {
    "kind 0": (State.GREETING, header(0, 0), "kind 0 is unknown"),
    "kind of modules": (State.OPENING, header(32, 0), "kind 32 is unknown"),
    "kind 255": (State.STREAMING, header(255, 0), "kind 255 is unknown"),
    "plain HTTP inside TLS": (State.GREETING, b"HTTP/1.1 400 Bad Request\r\n\r\n", "kind 47 is unknown"),
    "READY without fields": (State.GREETING, header(1, 0), "READY: store is missing"),
    "READY cut in a field": (State.GREETING, header(1, 10) + READY[5:15], "field 1 is cut off"),
    "READY of the longest kind": (State.GREETING, header(1, len(READY) - 5 + len(OPTIONAL)) + READY[5:] + OPTIONAL, ""),
    "READY with an unknown critical field": (State.GREETING, header(1, 5) + b"\x7f" + bytes(4), "READY: store is missing"),
    "READY with a version 1 store": (
        State.GREETING, READY[:10] + bytes(16) + READY[26:], "READY: store: "
    ),
    "READY with features that are not UTF-8": (
        State.GREETING, header(1, len(READY) - 5 + 6) + READY[5:] + b"\x80" + (1).to_bytes(4, "big") + b"\xff", "not UTF-8",
    ),
    "ACCEPT with a root of 31 bytes": (
        State.OPENING, header(4, len(ACCEPT) - 6) + ACCEPT[5:18] + b"\x1f" + ACCEPT[19:-1], "31 bytes",
    ),
    "ACK without its number": (State.STREAMING, header(7, 0), "ACK: frames is missing"),
    "RECEIPT without a log key": (State.ENDING, header(9, 6) + b"\x01" + (1).to_bytes(4, "big") + b"x", "log_key is missing"),
}  # fmt: skip
"""In which state, the bytes, and a part of what the sender says; an empty part stands for what is not refused by itself."""


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_message_ends_it(name: str, fleet: Fleet, spool: Spool) -> None:
    """Unknown kinds, missing and torn fields: the connection is over; optional fields of a later version are passed over."""
    state, data, words = MALFORMED[name]
    sent = send_to(held_open(state, data), fleet, spool)

    assert words in sent.failure.message
    assert type(sent.failure) is (PeerError if words else UnreachableError)


COUNTS: Final[dict[str, tuple[State, list[messages.Message], int, str]]] = {
    "ACCEPT holds a frame of a new dump": (State.OPENING, [Accept(1, bytes(32))], 0, "has this new dump already"),
    "ACCEPT holds all that can be": (State.OPENING, [Accept(1 << 24, bytes(32))], 0, "has this new dump already"),
    "ACCEPT holds more than can be": (State.OPENING, [Accept((1 << 32) - 1, bytes(32))], 0, "more than a dump may have"),
    "ACCEPT of no frames under a root of some": (State.OPENING, [Accept(0, bytes(32))], 0, "another root for no frames"),
    "ACK of nothing": (State.STREAMING, [Ack(0)], 0, "ACK of 0 frames: 0 were acknowledged"),
    "ACK of more than was sent": (State.STREAMING, [Ack(FRAMES + 1)], 0, f"ACK of {FRAMES + 1} frames"),
    "ACK of the largest number": (State.STREAMING, [Ack((1 << 32) - 1)], 0, "ACK of 4294967295 frames"),
    "ACK twice": (State.STREAMING, [Ack(1), Ack(1)], 1, "ACK of 1 frames: 1 were acknowledged"),
    "ACK that goes back": (State.ENDING, [Ack(3), Ack(2)], 3, "ACK of 2 frames: 3 were acknowledged, 4 sent"),
    "ACK of all, and once more": (State.ENDING, [Ack(FRAMES), Ack(FRAMES)], FRAMES - 1, "4 were acknowledged, 4 sent"),
    "ACK of one frame more than all": (State.ENDING, [Ack(FRAMES + 1)], 0, f"ACK of {FRAMES + 1} frames"),
}
"""In which state, what is said, how many frames the sender lets go of, and how it ends. It never lets go of a short last one."""


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_cannot_be_ends_it(name: str, fleet: Fleet, spool: Spool) -> None:
    """The sender lets go of what was acknowledged in order and was sent, and of nothing else."""
    state, said, acknowledged, words = COUNTS[name]
    sent = send_to(held_open(state, *said), fleet, spool, acknowledged=acknowledged)

    assert type(sent.failure) is PeerError
    assert words in sent.failure.message


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_receiver_that_takes_fewer_frames_gets_no_more(most: int, fleet: Fleet, spool: Spool) -> None:
    """READY says how many frames a dump may have there: what does not fit is a refusal in words, not an error of ours."""

    def script(peer: Peer) -> None:
        peer.say(Ready(STORE, most))
        peer.hear()
        peer.say(Accept(0, EMPTY_ROOT))
        peer.before_end()
        peer.stay()

    sent = send_to(script, fleet, spool)

    assert type(sent.failure) is RefusedError
    assert sent.failure.message.endswith(f"takes at most {most} frames of a dump")


CODES: Final[dict[int, type[SecurecoreError]]] = {
    0: RefusedError, 1: RefusedError, 99: RefusedError, 100: RefusedError, 109: RefusedError, 199: RefusedError,
    200: ClockError, 201: BusyError, 204: BusyError, 299: BusyError, 300: BusyError, 65535: BusyError,
}  # fmt: skip
"""Known and unknown codes, and what a sender does next."""


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("state", REACHABLE, ids=in_name)
def test_a_refusal_is_heard_in_every_state(state: State, code: int, fleet: Fleet, spool: Spool) -> None:
    """Its hundreds say what comes next, also for codes of later versions; whatever they say, the core is kept."""
    sent = send_to(held_open(state, Refuse(code, "no")), fleet, spool)

    assert type(sent.failure) is CODES[code]
    assert sent.failure.message.endswith(": no")


HOSTILE_WORDS: Final = [
    "\x1b]0;owned\x07\x1b[2J\x1b[1;31mFAIL", "line\nsecurecore: delivered", "a\r\x08\x08b", "\x00", "\u202etxt.exe",
    "\x9b31m", "\u2028next", "x" * limits.MAX_WORDS, "\U0010ffff" * limits.MAX_WORDS,
]  # fmt: skip


@pytest.mark.parametrize("words", HOSTILE_WORDS, ids=lambda words: ascii(words[:12]))
def test_words_of_a_refusal_move_no_cursor(words: str, fleet: Fleet, spool: Spool) -> None:
    """Control characters, escapes, line ends and marks that turn the direction become question marks, at most so many."""
    sent = send_to(held_open(State.OPENING, Refuse(100, words)), fleet, spool)

    shown = sent.failure.message.partition(": ")[2]
    assert shown == "".join(character if character.isprintable() else "?" for character in words)
    assert len(shown) <= limits.MAX_WORDS


@pytest.mark.parametrize("retry_after_s", [1, limits.MAX_RETRY_AFTER_S, limits.MAX_RETRY_AFTER_S + 1, (1 << 32) - 1])
def test_a_receiver_cannot_silence_a_sender_for_long(retry_after_s: int, fleet: Fleet, spool: Spool) -> None:
    """R24: what it asks for is shown, a day at most, and the core is in the spool at once."""
    sent = send_to(held_open(State.OPENING, Refuse(201, "no", retry_after_s)), fleet, spool)

    assert sent.failure.hint == f"come again in {min(retry_after_s, 86400)} s"


def reset_in(state: State) -> Script:
    """Return the script that ends the connection with RST in *state*."""

    def script(peer: Peer) -> None:
        peer.reach(state)
        peer.reset()

    return script


def forge_record(peer: Peer) -> None:
    """Put a record on the wire that the session's key did not make."""
    peer.reach(State.OPENING)
    socket.socket.sendall(peer.socket, b"\x17\x03\x03\x00\x20" + bytes(32))


CLOSES: Final[dict[str, Script]] = {
    **{f"FIN when {state.value}": held_open(state) for state in (*REACHABLE, State.IDLE)},
    **{f"RST when {state.value}": reset_in(state) for state in (*REACHABLE, State.IDLE)},
    "FIN in READY": held_open(State.GREETING, READY[:20]),
    "FIN in ACCEPT": held_open(State.OPENING, ACCEPT[:-1]),
    "FIN in ACK": held_open(State.STREAMING, encode(Ack(1))[:5]),
    "FIN in RECEIPT": held_open(State.ENDING, encode(Receipt(b"x" * 5000, b"y"))[:4000]),
    "no TLS any more": forge_record,
}


@pytest.mark.parametrize("name", CLOSES)
def test_a_receiver_that_goes_costs_nothing(name: str, fleet: Fleet, spool: Spool) -> None:
    """After every message and within, by FIN or RST: it is unreachable, and nothing of the core is lost."""
    sent = send_to(CLOSES[name], fleet, spool)

    assert type(sent.failure) is (PeerError if name.startswith("no TLS") else UnreachableError)
