"""A receiver that takes its time: every wait of a sender ends within its deadline, and drops do not renew it.

The deadlines are shortened here. A test waits for the deadline itself; what must not happen is told by counting what the receiver
could say before the sender had enough, so that a slow machine makes no test fail.
"""

import random
import select
import ssl
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NoReturn

import pytest

from securecore import limits
from securecore.errors import BusyError, SecurecoreError, UnreachableError
from securecore.merkle import EMPTY_ROOT
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender import allowance
from securecore.sender.delivery import Delivery, connect
from securecore.sender.dialling import Dialler
from securecore.sender.patience import Patience
from securecore.sender.spool import Spool, create_spool, open_spool
from securecore.sender.spool_entry import SpoolEntry
from securecore.sender.spool_limits import SpoolLimits
from securecore.wire.messages import Accept, Ack, Open, Ready, Receipt, Refusal, Refuse, encode
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.custody import send_to
from tests.support.elf import Segment, write_core
from tests.support.local_files import small_disk
from tests.support.receivers import Hold, new_dump_id, papers_of, send_bytes
from tests.support.scripted import STORE, Peer, Script, forge_receipt, scripted_receiver

pytestmark = pytest.mark.slow

DEADLINE_S: Final = 0.3
EVERY_S: Final = DEADLINE_S / 6
"""Between two drops: six or seven fit into the deadline."""
ENOUGH: Final = 30
"""Drops that would take five deadlines: who lets a receiver say so many has none."""

SHARED_S: Final = 2.0
"""A deadline that is waited for in vain, where a real receiver must be reached in a part of it."""

NOISE: Final = random.Random(12).randbytes(24 * limits.MIB)
"""More than a ring, and more than the sockets' buffers between two ends."""


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender without patience."""
    for name in ("CONNECT_DEADLINE_S", "PROGRESS_DEADLINE_S", "RECEIPT_DEADLINE_S"):
        monkeypatch.setattr(limits, name, DEADLINE_S)


def silent_in(state: State) -> Script:
    """Return the script that reads on in *state* and says nothing more."""

    def script(peer: Peer) -> None:
        peer.reach(state)
        peer.before_end()
        peer.stay()

    return script


@pytest.mark.parametrize("state", [State.GREETING, State.IDLE, State.OPENING, State.ENDING])
def test_a_receiver_that_never_answers_is_given_up(state: State, fleet: Fleet, spool: Spool) -> None:
    """READY, ACCEPT or RECEIPT does not come."""
    sent = send_to(silent_in(state), fleet, spool)

    assert_given_up(sent.failure)


def assert_given_up(failure: SecurecoreError) -> None:
    """The receiver is unreachable, for its silence."""
    assert type(failure) is UnreachableError
    assert "did not answer in time" in failure.message


def test_a_receiver_that_never_acknowledges_is_given_up_once_the_ring_is_full(fleet: Fleet, spool: Spool) -> None:
    """It takes every byte and vouches for none: the crashed process is let go, and all frames are in the spool."""
    sent = send_to(silent_in(State.STREAMING), fleet, spool, core=NOISE)

    assert_given_up(sent.failure)


def test_a_receiver_that_never_reads_is_given_up_once_the_sockets_are_full(fleet: Fleet, spool: Spool) -> None:
    """A frame does not leave: the wire is stalled."""

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        peer.before_end()
        peer.wait_unread()

    sent = send_to(script, fleet, spool, core=NOISE)

    assert_given_up(sent.failure)


READY: Final = encode(Ready(STORE, 1 << 24))
ACCEPT: Final = encode(Accept(0, EMPTY_ROOT))
RECEIPT: Final = encode(Receipt(b"x" * 500, b"y"))
DRIPS: Final[dict[str, tuple[State, bytes]]] = {
    "READY": (State.GREETING, READY),
    "ACCEPT": (State.OPENING, ACCEPT),
    "RECEIPT": (State.ENDING, RECEIPT),
}
"""In which state, and a message of more bytes than ENOUGH."""


@pytest.mark.parametrize("name", DRIPS)
def test_bytes_one_by_one_do_not_renew_a_deadline(name: str, fleet: Fleet, spool: Spool) -> None:
    """A message that comes in drops has the time of one that comes at once."""
    state, data = DRIPS[name]
    peers: list[Peer] = []

    def script(peer: Peer) -> None:
        peers.append(peer)
        peer.reach(state)
        peer.before_end()
        peer.drip([bytes([byte]) for byte in data], EVERY_S)
        peer.stay()

    sent = send_to(script, fleet, spool)

    assert_given_up(sent.failure)
    assert peers[0].dripped < ENOUGH < len(data)


def test_an_acknowledgement_in_drops_holds_nobody_up(fleet: Fleet, spool: Spool) -> None:
    """Its first byte makes a sender read, but not for longer than a frame may take."""

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        first, *others = (bytes([byte]) for byte in encode(Ack(1)))
        peer.say(first)
        peer.before_end()
        peer.hear()
        peer.drip(others, EVERY_S)
        peer.stay()

    assert_given_up(send_to(script, fleet, spool).failure)


ZEROES: Final = 100
"""Frames of 45 bytes, each of which can be acknowledged by itself."""


def test_acknowledgements_one_by_one_do_not_renew_the_wait_for_the_receipt(fleet: Fleet, spool: Spool) -> None:
    """After END a receiver may still acknowledge, but RECEIPT has its deadline from END."""
    peers: list[Peer] = []

    def script(peer: Peer) -> None:
        peers.append(peer)
        peer.reach(State.ENDING)
        peer.drip([Ack(number) for number in range(1, ZEROES)], EVERY_S)
        peer.stay()

    sent = send_to(script, fleet, spool, core=bytes(ZEROES * limits.PIECE_BYTES), acknowledged=None)

    assert_given_up(sent.failure)
    assert peers[0].dripped < ENOUGH


def test_acknowledgements_one_by_one_do_not_renew_the_wait_for_room(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring is over its bound by one large frame: acknowledging the small ones before it, one by one, buys no time."""
    monkeypatch.setattr(limits, "RING_BYTES", 64 * limits.KIB)
    peers: list[Peer] = []

    def script(peer: Peer) -> None:
        peers.append(peer)
        peer.reach(State.STREAMING)
        peer.before_end()
        for _ in range(ZEROES):
            peer.hear()
        peer.drip([Ack(number) for number in range(1, ZEROES)], EVERY_S)
        peer.stay()

    core = bytes(ZEROES * limits.PIECE_BYTES) + NOISE[: limits.PIECE_BYTES]
    sent = send_to(script, fleet, spool, core=core, acknowledged=None)

    assert_given_up(sent.failure)
    assert peers[0].dripped < ENOUGH


def test_acknowledgements_one_by_one_do_not_hold_up_who_gives_up(fleet: Fleet, spool: Spool) -> None:
    """The wire is stalled; a sender listens for last words, but not for as long as there are any."""
    peers: list[Peer] = []

    def script(peer: Peer) -> None:
        peers.append(peer)
        peer.reach(State.STREAMING)
        peer.before_end()
        for _ in range(ZEROES):
            peer.hear()
        peer.drip([Ack(number) for number in range(1, ZEROES)], EVERY_S, until=select.POLLRDHUP)
        peer.wait_unread()

    sent = send_to(script, fleet, spool, core=bytes(ZEROES * limits.PIECE_BYTES) + NOISE, acknowledged=None)

    assert_given_up(sent.failure)
    # The sender listens a second for last words, and a receiver learns late that nobody listens any more.
    assert peers[0].dripped < 2 * ENOUGH


LARGE: Final = random.Random(13).randbytes(3 * ENOUGH // 2 * limits.MIB)
"""So much that its source is open still when ENOUGH frames were taken: a pump is at most a dozen ahead."""
PATIENT_S: Final = 60.0
"""A deadline for one frame that no test comes near: the budget for all of them is what counts."""


def always_in_time(peers: list[Peer], frames: int) -> Script:
    """Return the script of a receiver that acknowledges every frame by itself, and each one just before a sender would give up."""

    def script(peer: Peer) -> None:
        peers.append(peer)
        peer.reach(State.STREAMING)
        peer.before_end()
        for number in range(1, frames + 1):
            peer.drip([Ack(number)], EVERY_S)
            peer.hear()

    return script


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that waits for every frame, and for each as long as it takes."""
    monkeypatch.setattr(limits, "RING_BYTES", 64 * limits.KIB)
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", PATIENT_S)


@pytest.mark.usefixtures("one_by_one")
def test_a_receiver_that_is_always_just_in_time_holds_no_crash_for_long(fleet: Fleet, spool: Spool) -> None:
    """No frame takes too long, all together do: the rest is in the spool, with the reason, and the process goes."""
    peers: list[Peer] = []
    sent = send_to(
        always_in_time(peers, len(LARGE) // limits.MIB), fleet, spool, core=LARGE, acknowledged=None, hold_budget_s=DEADLINE_S
    )

    assert type(sent.failure) is BusyError
    assert sent.failure.message == "the receiver is slower than the core: the rest waits in the spool"
    assert sent.acknowledged <= peers[0].dripped < ENOUGH


def test_a_receiver_that_reads_nothing_holds_no_crash_for_longer_than_the_budget(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that does not leave has what is left of the budget, not a deadline of its own."""
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", PATIENT_S)

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        peer.before_end()
        peer.wait_unread()

    sent = send_to(script, fleet, spool, core=LARGE, hold_budget_s=DEADLINE_S)

    assert type(sent.failure) is BusyError
    assert sent.failure.message == "the receiver is slower than the core: the rest waits in the spool"


def test_a_stalled_receiver_holds_a_crash_for_a_share_of_what_draining_takes(
    fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour would be left to it, and a minute to each frame. The core tells its length, and is read in a part of a second."""
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", PATIENT_S)
    monkeypatch.setattr(limits, "HOLD_BUDGET_S", 3600.0)
    monkeypatch.setattr(allowance, "_LEAST_HOLD_S", EVERY_S)

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        peer.before_end()
        peer.wait_unread()

    sent = send_to(script, fleet, spool, core=write_core([Segment(LARGE)]), hold_budget_s=limits.HOLD_BUDGET_S)

    assert type(sent.failure) is BusyError
    assert sent.failure.message == "the receiver is slower than the core: the rest waits in the spool"


def test_the_share_is_of_what_the_whole_core_takes() -> None:
    """As fast as the part so far; never less than a second, nor more than what was set, which is also for what has no known end.

    Who sets more seconds than usual has a larger share.
    """
    gib = 1024 * limits.MIB

    assert allowance.share_s(10, gib, gib // 4, 1.0) == pytest.approx(1.6)
    assert allowance.share_s(20, gib, gib // 4, 1.0) == pytest.approx(3.2)
    assert allowance.share_s(10, 100 * gib, gib // 4, 1.0) == 10
    assert allowance.share_s(10, limits.MIB, limits.MIB, 0.003) == 1
    assert allowance.share_s(0.3, gib, gib // 4, 1.0) == 0.3
    assert allowance.share_s(10, None, gib, 3.0) == 10
    assert allowance.share_s(10, gib, 0, 0.0) == 10
    # Headers may lie: what was read is there.
    assert allowance.share_s(10, limits.MIB, gib, 4.0) == pytest.approx(1.6)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("has_spool", [True, False])
def test_who_has_no_spool_or_holds_nobody_waits_for_a_slow_receiver(has_spool: bool, fleet: Fleet, spool: Spool) -> None:
    """A lost core is worse than a process that is held; and where a person sends a file there is no budget."""
    core = LARGE[: ENOUGH // 2 * limits.MIB]
    take = always_in_time([], len(core) // limits.MIB)

    def script(peer: Peer) -> None:
        take(peer)
        peer.say(forge_receipt(fleet.receiver, peer.manifest))

    budget_s = None if has_spool else EVERY_S
    with scripted_receiver(fleet.receiver, script) as scripted:
        outcome = send_bytes(
            core, papers_of(fleet.host), [scripted.address], spool=spool if has_spool else None, hold_budget_s=budget_s
        )

    assert outcome.failure is None
    assert outcome.receipt is not None


TEXT: Final = b"the quick brown fox " * (2 * limits.MIB)


@pytest.mark.usefixtures("one_by_one")
def test_noise_behind_text_is_not_cut_for_a_wire_that_is_slow(fleet: Fleet, tmp_path: Path) -> None:
    """Text, then noise that the spool has not room for: to give the wire up amid the text, as it is slow, would cut the core.

    Once all of the rest has room it may go there.
    """
    core = write_core([Segment(TEXT + LARGE[: ENOUGH * limits.MIB])])
    take = always_in_time([], len(core) // limits.MIB + 1)

    def script(peer: Peer) -> None:
        take(peer)
        peer.say(forge_receipt(fleet.receiver, peer.manifest))

    create_spool(str(tmp_path / "spool"), bytes(16))
    bounds = SpoolLimits(floor_share=0.0, max_bytes=ENOUGH // 2 * limits.MIB)
    with closing(open_spool(str(tmp_path / "spool"), bounds)) as spool, scripted_receiver(fleet.receiver, script) as scripted:
        outcome = send_bytes(core, papers_of(fleet.host), [scripted.address], spool=spool, hold_budget_s=EVERY_S)

    assert (outcome.spool_failure, outcome.source_failure, outcome.size) == (None, None, len(core))
    assert outcome.spooled or outcome.receipt is not None


@pytest.mark.usefixtures("one_by_one")
def test_who_could_not_keep_all_of_the_rest_waits_for_a_slow_receiver(fleet: Fleet, tmp_path: Path) -> None:
    """The spool's disk has room for a ring and a frame. By its headers more comes: to fall back would cut the core."""
    core = write_core([Segment(LARGE[: ENOUGH // 2 * limits.MIB])])
    take = always_in_time([], len(core) // limits.MIB + 1)

    def script(peer: Peer) -> None:
        take(peer)
        peer.say(forge_receipt(fleet.receiver, peer.manifest))

    with small_disk(tmp_path / "disk", "4m") as disk, scripted_receiver(fleet.receiver, script) as scripted:
        create_spool(str(disk / "spool"), bytes(16))
        with closing(open_spool(str(disk / "spool"))) as spool:
            outcome = send_bytes(core, papers_of(fleet.host), [scripted.address], spool=spool, hold_budget_s=EVERY_S)

    assert (outcome.failure, outcome.spooled) == (None, False)
    assert outcome.receipt is not None


def test_a_slow_disk_of_the_spool_costs_the_wire_nothing(
    fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mode "whole" the process waits for the spool's disk as well: that is no reason to give a receiver up that keeps up."""
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", PATIENT_S)
    real = SpoolEntry.append

    def append(entry: SpoolEntry, frame: bytes) -> None:
        threading.Event().wait(EVERY_S)
        real(entry, frame)

    monkeypatch.setattr(SpoolEntry, "append", append)
    core = LARGE[: ENOUGH * limits.MIB]

    outcome = send_bytes(
        core, papers_of(fleet.host), receiver.addresses, spool=spool, hold_budget_s=2 * DEADLINE_S, keeps_copy=True
    )

    assert (outcome.failure, outcome.copy_failure) == (None, None)


@pytest.mark.parametrize(("most_s", "answer_s"), [(DEADLINE_S, PATIENT_S), (PATIENT_S, DEADLINE_S), (PATIENT_S, None)])
def test_an_answer_has_the_time_that_its_question_gives(most_s: float, answer_s: float | None, fleet: Fleet) -> None:
    """Of the time for silence and the time in all the shorter counts; RECEIPT_DEADLINE_S where nothing is said."""
    with scripted_receiver(fleet.receiver, silent_in(State.OPENING)) as scripted:
        delivery = connect([scripted.address], papers_of(fleet.host).context, deadline_s=PATIENT_S)
        try:
            with pytest.raises(UnreachableError, match="did not answer in time"):
                delivery.open(Open(new_dump_id(), b"{}"), lambda frames: None, most_s, answer_s)
        finally:
            delivery.close()


def test_receivers_share_one_deadline(fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that do not answer take no longer than one: each may take its share of what is left."""
    given: list[float] = []

    def connect(self: Dialler, address: Address, context: object, deadline_s: float, *rest: object) -> NoReturn:
        given.append(deadline_s)
        raise UnreachableError("nobody")

    monkeypatch.setattr(Dialler, "connect", connect)
    send_bytes(b"core", papers_of(fleet.host), [Address(f"127.0.0.1:{port}") for port in (1, 2, 3)], spool=spool)

    assert len(given) == 3
    assert all(0 < share <= limits.CONNECT_DEADLINE_S / left for share, left in zip(given, (3, 2, 1), strict=True))


def test_the_answer_to_the_opening_has_the_same_share(fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that greets and then says nothing does not use up what the next one needs."""
    given: list[float] = []

    def open_nothing(self: Delivery, message: Open, on_ack: object, most_s: Callable[[], float]) -> NoReturn:
        given.append(most_s())
        raise UnreachableError("no answer")

    monkeypatch.setattr(limits, "CONNECT_DEADLINE_S", PATIENT_S)
    monkeypatch.setattr(Delivery, "open", open_nothing)
    with (
        scripted_receiver(fleet.receiver, silent_in(State.OPENING)) as one,
        scripted_receiver(fleet.receiver, silent_in(State.OPENING)) as other,
    ):
        send_bytes(b"core", papers_of(fleet.host), [one.address, other.address], spool=spool)

    assert len(given) == 2
    assert all(0 < share < PATIENT_S / left for share, left in zip(given, (2, 1), strict=True))


def test_the_time_that_a_source_takes_is_no_receivers(
    fleet: Fleet, receiver: Receiver, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first byte comes later than all receivers may take together; the first one then refuses, and the next has its share."""
    given: list[float] = []
    has_begun = threading.Event()

    def watched(
        self: Dialler, address: Address, context: ssl.SSLContext, deadline_s: float, patience: Patience, check: object
    ) -> Delivery:
        given.append(deadline_s)
        return connect([address], context, deadline_s=deadline_s, patience=patience)

    def script(peer: Peer) -> None:
        peer.reach(State.IDLE)
        peer.drip([b""], 1.5 * SHARED_S)
        has_begun.set()
        peer.hear()
        peer.say(Refuse(Refusal.BUSY, "not now"))

    monkeypatch.setattr(limits, "CONNECT_DEADLINE_S", SHARED_S)
    monkeypatch.setattr(Dialler, "connect", watched)
    with scripted_receiver(fleet.receiver, script) as scripted:
        receivers = [scripted.address, *receiver.addresses]
        outcome = send_bytes(b"core", papers_of(fleet.host), receivers, spool=spool, hold=Hold(0, has_begun))

    assert outcome.failure is None
    assert len(given) == 2
    assert given[1] > SHARED_S / 4
