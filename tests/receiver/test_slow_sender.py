"""A sender that stalls or drips, at any byte: it is let go within the deadline, and it holds up nobody else meanwhile.

The receiver's patience is shortened here. What must not happen is told by counting what a sender could still say.
"""

import random
import select
import socket
import time
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.merkle import leaf_hash
from securecore.receiver.server import Receiver
from securecore.wire.messages import HEADER_BYTES, Ack, Data, End, Open, Receipt, Refusal, Refuse, encode
from tests.support.certificates import Fleet
from tests.support.hands import REPORT, Hand
from tests.support.receivers import new_dump_id, running_receiver
from tests.support.stages import Stage

PATIENCE_S: Final = 0.5
EVERY_S: Final = PATIENCE_S / 10
ENOUGH: Final = 50
"""Drops that would take five times the receiver's patience."""

HALF_A_RECORD: Final = b"\x17\x03\x03\x40\x00" + bytes(100)
"""The beginning of a TLS record of 16 KiB: what a network that dies in the middle of a transfer leaves."""

MESSAGES: Final[dict[str, bytes]] = {
    "OPEN": encode(Open(new_dump_id(), REPORT)),
    "DATA": encode(Data(Compressor().frame(b"x" * 1000 + bytes(range(256))))),
    "END": encode(End(b"x" * 500)),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that waits half a second for what it waits a minute for."""
    monkeypatch.setattr(limits, "IDLE_DEADLINE_S", PATIENCE_S)


def hand_before(name: str, stage: Stage) -> Hand:
    """Return a sender that may say this message next."""
    hand = stage.hand()
    if name != "OPEN":
        hand.open(new_dump_id())
    return hand


def drip(hand: Hand, data: bytes) -> int:
    """Send *data* byte by byte until the receiver has enough; return how many bytes went."""
    poll = select.poll()
    poll.register(hand.socket, select.POLLIN)
    for count in range(len(data)):
        if poll.poll(EVERY_S * 1000):
            return count
        hand.put(data[count : count + 1])
    return len(data)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", MESSAGES)
def test_bytes_one_by_one_do_not_renew_a_receivers_patience(name: str, stage: Stage) -> None:
    """A message has so long to become whole from its first byte on; who sends it in drops is cut off, and the log says so."""
    hand = hand_before(name, stage)

    assert drip(hand, MESSAGES[name]) < ENOUGH < len(MESSAGES[name])
    assert hand.answer() is None
    stage.ended(hand, "message was not whole after")


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begun", [0, 1, 4, 5, 6, -1])
@pytest.mark.parametrize("name", MESSAGES)
def test_a_sender_that_stalls_is_let_go(name: str, begun: int, stage: Stage) -> None:
    """Before a message and at any byte within it."""
    hand = hand_before(name, stage)
    hand.put(MESSAGES[name][:begun])

    assert hand.answer() is None
    stage.ended(hand, "peer was silent for" if begun == 0 else "message was not whole after")


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_sender_that_stalls_within_a_tls_record_is_let_go(stage: Stage) -> None:
    """Below our messages there are records; one that never becomes whole is silence."""
    hand = hand_before("DATA", stage)
    socket.socket.sendall(hand.socket, HALF_A_RECORD)

    assert hand.answer() is None
    stage.ended(hand, "peer was silent for")


def test_a_connection_that_died_within_a_record_does_not_hold_its_dump(stage: Stage) -> None:
    """A sender comes back while the receiver still waits for the rest of a record of its old connection: it is served at once."""
    dump, older = new_dump_id(), stage.hand()
    older.open(dump)
    older.send(b"x" * limits.PIECE_BYTES)
    socket.socket.sendall(older.socket, HALF_A_RECORD)

    newer = stage.hand()
    newer.open(dump)
    assert older.refusal().code == Refusal.SUPERSEDED


def test_a_connection_that_died_within_a_record_does_not_hold_a_receiver_that_stops(fleet: Fleet, tmp_path: Path) -> None:
    """It is idle for all that anybody can tell, and is told to go at once."""
    with running_receiver(fleet.receiver, tmp_path / "store") as running:
        hand = Hand(fleet.host, running.addresses)
        socket.socket.sendall(hand.socket, HALF_A_RECORD)
    message = hand.answer()
    hand.close()

    assert isinstance(message, Refuse)
    assert message.code == Refusal.SHUTTING_DOWN


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_large_message_has_its_time_on_a_slow_link(stage: Stage) -> None:
    """A frame that takes several times the patience with silence becomes whole: its header says how long it may take."""
    piece, dump, hand = random.Random(8).randbytes(limits.PIECE_BYTES), new_dump_id(), stage.hand()
    hand.open(dump)
    data = encode(Data(Compressor().frame(piece)))
    poll = select.poll()
    poll.register(hand.socket, select.POLLIN)
    for part in range(6):
        assert not poll.poll(PATIENCE_S * 500)
        hand.put(data[part * len(data) // 6 : (part + 1) * len(data) // 6])
    hand.tree.append(leaf_hash(data[HEADER_BYTES:]))
    hand.size = len(piece)
    hand.put(encode(End(hand.manifest(dump))))
    while isinstance(answer := hand.answer(), Ack):
        pass

    assert isinstance(answer, Receipt)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_message_that_says_it_is_long_has_no_more_than_its_length_takes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of the longest frame, and drops: a second for its length, then it is over."""
    monkeypatch.setattr(limits, "MIN_RATE_BYTES_PER_S", limits.MAX_FRAME_BYTES)
    hand = hand_before("DATA", stage)
    hand.put(limits.MAX_FRAME_BYTES.to_bytes(4, "big") + bytes([5]))

    assert drip(hand, bytes(10 * ENOUGH)) < 2 * ENOUGH
    assert hand.answer() is None
    stage.ended(hand, "message was not whole after 2 s")


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", [False, True], ids=["silence", "drops"])
def test_a_frame_does_not_wait_long_for_its_acknowledgement(goes_on: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether nothing follows it or the next one comes in drops: custody moves on, on a slow link too."""
    monkeypatch.setattr(limits, "ACK_EVERY_S", PATIENCE_S)
    hand = stage.hand()
    hand.open(new_dump_id())
    hand.send(b"x" * limits.PIECE_BYTES)
    hand.send(b"y" * limits.PIECE_BYTES)
    if goes_on:
        assert drip(hand, encode(Data(bytes(10 * ENOUGH)))) < 2 * ENOUGH

    assert hand.answer() == Ack(2)


@pytest.mark.slow
def test_what_a_receipt_has_acknowledged_is_not_acknowledged_later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session says nothing more of that dump, waits without spinning, and hears the next OPEN and the connection's end."""
    monkeypatch.setattr(limits, "ACK_EVERY_S", PATIENCE_S)
    hand, dump = stage.hand(), new_dump_id()
    hand.open(dump)
    hand.send(b"short")
    assert isinstance(hand.delivery.end(hand.manifest(dump)), Receipt)
    before = time.process_time()
    hand.socket.settimeout(3 * PATIENCE_S)
    with pytest.raises(TimeoutError):
        hand.socket.recv(1)

    assert time.process_time() - before < PATIENCE_S, "the session waits without pause"
    assert isinstance(hand.open(dump), Receipt)
    hand.close()
    stage.wait_until(lambda: stage.receiver.session_count == 0)


@pytest.mark.slow
def test_a_sender_that_reads_nothing_is_let_go(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for one receipt after the other until the sockets are full: a message has its deadline to leave, too."""
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", PATIENCE_S)
    # Each receipt has a line, and what comes behind as many as a host may have is only counted.
    monkeypatch.setattr(limits, "HOST_LINES", 1 << 30)
    stage.serves_the_next(dump := new_dump_id())
    hand = stage.hand(receive_buffer=4096)
    asked = encode(Open(dump, REPORT)) * 100
    while stage.receiver.session_count:
        hand.put(asked)

    assert "connection was lost: The write operation timed out" in stage.log_lines()[0]
    hand.close()
    stage.wait_until(lambda: stage.receiver.session_count == 0)


def test_half_a_record_of_many_connections_holds_up_nobody(receiver: Receiver, stage: Stage) -> None:
    """Sixteen of them wait for the rest; an honest sender is served."""
    hands = [stage.hand() for _ in range(16)]
    for hand in hands:
        socket.socket.sendall(hand.socket, HALF_A_RECORD)
    stage.serves_the_next()
    assert receiver.session_count >= 16
