"""A network that fails at a message boundary or within one, in each way that networks have, between a real sender and receiver.

The proxy counts TLS records, whose headers travel in the clear, and each message begins a record of its own. So every fault is
placed to the byte: after a whole message, or in the middle of it.
"""

import random
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.dump.reader import open_container, open_frames
from securecore.errors import UnreachableError
from securecore.receiver.server import Receiver
from securecore.sender.flush import flush
from securecore.sender.spool import Spool
from securecore.store.layout import open_store
from securecore.wire.messages import Data, encode
from tests.support.certificates import Fleet
from tests.support.custody import kept
from tests.support.proxies import Action, Fault, faulty
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.stages import Stage

pytestmark = pytest.mark.slow

NOISE: Final = random.Random(13).randbytes(limits.PIECE_BYTES)
CORE: Final = NOISE + bytes(limits.PIECE_BYTES) + b"the end"
"""OPEN, then DATA, ZERO and DATA, then END; one ACK comes back for the first."""

_TLS_BYTES: Final = 16 * limits.KIB
"""Plaintext of a full record (RFC 8446 section 5.1)."""
DATA: Final = -(-len(encode(Data(Compressor().frame(NOISE)))) // _TLS_BYTES)
"""Records of the first DATA."""

SHORT_DEADLINE_S: Final = 1.0
COMMIT_DEADLINE_S: Final = 2.0
"""Where the fault comes behind what a receiver writes to its disk first, for which a sender waits that long."""


class Point(NamedTuple):
    """A place in a conversation: so many records after the handshake (before its end, if negative), and so many bytes."""

    from_sender: bool
    record: int
    offset: int = 0


BEFORE_END: Final = {
    "in ClientHello": Point(True, -1000, 100),
    "in the host's certificate": Point(True, -1, 9),
    "after the handshake": Point(True, 0),
    "in OPEN": Point(True, 0, 7),
    "after OPEN": Point(True, 1),
    "between the records of DATA": Point(True, 30),
    "in a record of DATA": Point(True, 30, 100),
    "after DATA": Point(True, 1 + DATA),
    "in ZERO": Point(True, 1 + DATA, 10),
    "after ZERO": Point(True, 2 + DATA),
    "in the last DATA": Point(True, 2 + DATA, 1),
    "after the last DATA": Point(True, 3 + DATA),
    "in END": Point(True, 3 + DATA, 500),
}
"""The sender's direction, where END has not passed: nothing may be published."""

AFTER_END: Final = {
    "in ServerHello": Point(False, -1000, 50),
    "in the receiver's handshake": Point(False, -1, 3),
    "before READY": Point(False, 0),
    "in READY": Point(False, 0, 10),
    "after READY": Point(False, 1),
    "in ACCEPT": Point(False, 1, 20),
    "after ACCEPT": Point(False, 2),
    "in ACK": Point(False, 2, 6),
    "after ACK": Point(False, 3),
    "in RECEIPT": Point(False, 3, 1000),
    "after END": Point(True, 4 + DATA),
}
"""Where END may have passed, or will: the dump is published whole, or not."""

POINTS: Final = BEFORE_END | AFTER_END
DARK: Final = (Action.STALL, Action.DRIP)
"""Where neither end hears that the other one is gone."""
HARMLESS: Final = [("after END", action) for action in (Action.HALF_CLOSE, Action.STALL, Action.DRIP)]
"""The sender has nothing more to say, and hears the receipt all the same."""
FAULTS: Final = [fault for fault in product(POINTS, Action) if fault not in HARMLESS]
UNDER_WAY: Final = {name for name, point in BEFORE_END.items() if point.record >= 1}
"""Where a receiver is in the middle of a dump, so that its log must say what became of it."""


@pytest.fixture(autouse=True)
def one_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that acknowledges the first DATA."""
    monkeypatch.setattr(limits, "ACK_EVERY_BYTES", limits.PIECE_BYTES)


@pytest.fixture(scope="module")
def handshake(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """How many records the handshake takes in each direction, from a conversation that nothing happens to."""
    with (
        pytest.MonkeyPatch.context() as patch,
        running_receiver(fleet.receiver, tmp_path_factory.mktemp("honest") / "s") as receiver,
    ):
        patch.setattr(limits, "ACK_EVERY_BYTES", limits.PIECE_BYTES)
        with faulty(receiver.addresses[0], None) as proxy:
            assert send_bytes(CORE, papers_of(fleet.host), [proxy.address]).failure is None
    return proxy.records[0] - (4 + DATA), proxy.records[1] - 4


def in_name(value: object) -> str:
    """Return how a parameter is called in a test's id."""
    return str(value.value if isinstance(value, Action) else value)


def fault_at(point: Point, action: Action, handshake: tuple[int, int]) -> Fault:
    """Return the fault, counted from the connection's first record."""
    record = handshake[0 if point.from_sender else 1] + point.record
    return Fault(point.from_sender, max(record, 0), point.offset, action)


def shorten_deadlines(patch: pytest.MonkeyPatch, point: Point, *, is_flush: bool = False) -> None:
    """Shorten what runs out where a connection goes dark at *point*: the one deadline of each end, and no other.

    The others would only make it more likely, on a slow machine, that the connection is over before the fault is reached.
    """
    is_before_accept = point.record < (1 if point.from_sender else 2)
    # A deadline is the one that is set here, whatever a message's length adds to it elsewhere.
    patch.setattr(limits, "MIN_RATE_BYTES_PER_S", 1 << 40)
    patch.setattr(limits, f"{'HANDSHAKE' if point.record < 0 else 'IDLE'}_DEADLINE_S", SHORT_DEADLINE_S)
    if is_before_accept and not is_flush:
        patch.setattr(limits, "CONNECT_DEADLINE_S", SHORT_DEADLINE_S)
    else:
        patch.setattr(limits, "RECEIPT_DEADLINE_S", SHORT_DEADLINE_S if point.from_sender else COMMIT_DEADLINE_S)


def published(store_path: Path) -> list[bytes]:
    """Return the plaintext of every published dump."""
    with open_store(str(store_path)) as store:
        found = []
        for host in store.host_names():
            for dump in store.dump_ids(host):
                with store.open_dump(host, dump) as files:
                    found.append(b"".join(open_container(files.open_core()).pieces()))
    return found


def incoming(store_path: Path) -> bytes:
    """Return the plaintext of the frames that are there of the dump that did not end."""
    found = b""
    for path in (store_path / "incoming").rglob("core.zst"):
        with path.open("rb") as file:
            found += b"".join(open_frames(file.fileno())[0].pieces())
    return found


@pytest.mark.parametrize(("name", "action"), FAULTS, ids=in_name)
def test_a_fault_costs_nothing(
    name: str, action: Action, handshake: tuple[int, int], fleet: Fleet, spool: Spool, stage: Stage, tmp_path: Path
) -> None:
    """At the receiver a prefix or the whole, never more, and the session is over; at the sender the rest; a flush makes it whole.

    Stall and drip run into a deadline of each end, which is short here.
    """
    dump, papers = new_dump_id(), papers_of(fleet.host)
    with pytest.MonkeyPatch.context() as patch:
        if action in DARK:
            shorten_deadlines(patch, POINTS[name])
        with faulty(stage.receiver.addresses[0], fault_at(POINTS[name], action, handshake)) as proxy:
            outcome = send_bytes(CORE, papers, [proxy.address], spool=spool, dump=dump)
            stage.wait_until(lambda: stage.receiver.session_count == 0)
    first, tail = kept(spool, dump)
    stored, held = published(tmp_path / "store"), incoming(tmp_path / "store")

    assert proxy.was_reached
    assert (outcome.receipt, outcome.spooled, outcome.spool_failure) == (None, True, None)
    assert type(outcome.failure) is UnreachableError
    assert outcome.failure.message.isprintable()
    assert tail == CORE[first * limits.PIECE_BYTES :]
    assert stored == [] or (name in AFTER_END and stored == [CORE])
    assert CORE.startswith(held)
    assert stored or len(held) >= first * limits.PIECE_BYTES
    assert len(stage.log_lines()) <= 1
    if name in UNDER_WAY:
        (line,) = stage.log_lines()
        assert str(dump) in line
        assert line.isprintable()

    (flushed,) = flush(spool, stage.receiver.addresses, papers)
    assert flushed.failure is None
    assert published(tmp_path / "store") == [CORE]
    assert incoming(tmp_path / "store") == b""
    assert (spool.dump_ids(), len(list(spool.receipts()))) == ([], 1)


AT_THE_END: Final = [*HARMLESS, *(("after RECEIPT", action) for action in (Action.FIN, Action.HALF_CLOSE))]


@pytest.mark.parametrize(("name", "action"), AT_THE_END, ids=in_name)
def test_what_no_message_is_left_for_does_not_matter(
    name: str, action: Action, handshake: tuple[int, int], fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """END has left, or RECEIPT has come: custody passes with the receipt's last byte."""
    point = POINTS.get(name, Point(False, 4))
    with faulty(receiver.addresses[0], fault_at(point, action, handshake)) as proxy:
        outcome = send_bytes(CORE, papers_of(fleet.host), [proxy.address], spool=spool)

    assert proxy.was_reached
    assert (outcome.failure, outcome.spooled) == (None, False)
    assert published(tmp_path / "store") == [CORE]


def test_a_reset_behind_the_receipt_costs_nothing(
    handshake: tuple[int, int], fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """RST may overtake the receipt in the sender's own kernel: then a flush asks for it again, and it is kept once either way."""
    papers = papers_of(fleet.host)
    with faulty(receiver.addresses[0], fault_at(Point(False, 4), Action.RST, handshake)) as proxy:
        outcome = send_bytes(CORE, papers, [proxy.address], spool=spool)
    flushed = list(flush(spool, receiver.addresses, papers))

    assert proxy.was_reached
    assert outcome.spooled == (outcome.receipt is None)
    assert [(result.failure, result.sent_frames) for result in flushed] == [(None, 0)] * outcome.spooled
    assert published(tmp_path / "store") == [CORE]
    assert len(list(spool.receipts())) == 1


CUT_CORE: Final = random.Random(14).randbytes(2 * limits.PIECE_BYTES) + CORE[limits.PIECE_BYTES :]
"""One piece more than CORE: when the first is here, the rest makes the same conversation."""
CUT_FRAMES: Final = 4

RESUMED: Final = (
    "in OPEN", "in ACCEPT", "after ACCEPT", "in a record of DATA", "after DATA", "in ACK", "in END", "in RECEIPT",
)  # fmt: skip


def frames_of(plain: bytes) -> int:
    """Return how many frames stand for so much of a core's beginning."""
    return -(-len(plain) // limits.PIECE_BYTES)


@pytest.mark.parametrize(("name", "action"), list(product(RESUMED, Action)), ids=in_name)
def test_a_fault_while_a_dump_goes_on_costs_nothing(
    name: str, action: Action, handshake: tuple[int, int], fleet: Fleet, spool: Spool, stage: Stage, tmp_path: Path
) -> None:
    """A flush that fails takes nothing from the spool; the next sends what the receiver has not, and the core is whole, once."""
    dump, papers, store = new_dump_id(), papers_of(fleet.host), tmp_path / "store"
    # The receiver has the first frame whole and hears that nothing more comes. Whether the sender hears of the frame is a race.
    first_cut = fault_at(POINTS["after DATA"], Action.HALF_CLOSE, handshake)
    with faulty(stage.receiver.addresses[0], first_cut) as proxy:
        send_bytes(CUT_CORE, papers, [proxy.address], spool=spool, dump=dump)
        stage.wait_until(lambda: stage.receiver.session_count == 0)
    spooled = first, tail = kept(spool, dump)
    assert tail == CUT_CORE[first * limits.PIECE_BYTES :]
    assert incoming(store) == CUT_CORE[: limits.PIECE_BYTES]

    with pytest.MonkeyPatch.context() as patch:
        if action in DARK:
            shorten_deadlines(patch, POINTS[name], is_flush=True)
        with faulty(stage.receiver.addresses[0], fault_at(POINTS[name], action, handshake)) as proxy:
            (failed,) = flush(spool, [proxy.address], papers)
            stage.wait_until(lambda: stage.receiver.session_count == 0)
    stored, held = published(store), incoming(store)

    assert proxy.was_reached
    assert (failed.receipt, type(failed.failure)) == (None, UnreachableError)
    assert failed.sent_frames < CUT_FRAMES
    assert kept(spool, dump) == spooled
    assert stored == [] or (name in AFTER_END and stored == [CUT_CORE])
    assert CUT_CORE.startswith(held)
    # A reset takes with it what lies unread at the receiver, but for that nothing that has passed is lost.
    has_passed = action is not Action.RST and POINTS[name].record > (DATA if POINTS[name].from_sender else 2)
    assert stored or frames_of(held) >= 1 + has_passed

    (flushed,) = flush(spool, stage.receiver.addresses, papers)
    assert flushed.failure is None
    assert flushed.sent_frames == (0 if stored else CUT_FRAMES - frames_of(held))
    assert published(store) == [CUT_CORE]
    assert incoming(store) == b""
    assert (spool.dump_ids(), len(list(spool.receipts()))) == ([], 1)
