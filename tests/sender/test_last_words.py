"""Why a receiver has ended the wire: heard when the crashed process is gone, and however late it is said.

What must not happen is told by the order of things, not by a clock: a receiver says its word when the source has been drained.
"""

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from securecore import limits
from securecore.errors import BusyError, UnreachableError
from securecore.sender import delivery, effort
from securecore.sender.delivery import Delivery, connect
from securecore.sender.parcel import Outcome
from securecore.sender.pump import Pump
from securecore.sender.spool import Spool
from securecore.sender.spool_limits import SpoolLimits
from securecore.wire.messages import Ack, Message, Open, Refusal, Refuse
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.hands import PATIENCE_S
from tests.support.kernel import wait_until
from tests.support.receivers import new_dump_id, papers_of, send_bytes
from tests.support.scripted import Peer, Script, scripted_receiver
from tests.support.spools import make_spool

pytestmark = pytest.mark.slow

NOISE: Final = random.Random(14).randbytes(32 * limits.MIB)
"""More than a ring, and more than the sockets' buffers between two ends."""
LATER: Final = Refuse(Refusal.BUSY, "the quota is used up", 7200)
PATIENT_S: Final = 60.0
"""A deadline that no test comes near."""


@pytest.fixture
def pumps(monkeypatch: pytest.MonkeyPatch) -> list[Pump]:
    """The pumps of the transfers that are made."""
    made: list[Pump] = []

    def make(*arguments: Any) -> Pump:
        made.append(Pump(*arguments))
        return made[-1]

    monkeypatch.setattr(effort, "Pump", make)
    return made


def stalled_until(
    is_time: Callable[[], object | None], is_over: Callable[[], object | None] = lambda: True, said: Sequence[Message] = (LATER,)
) -> Script:
    """Return the script that reads nothing behind the first frame, refuses the rest when *is_time*, and stays until *is_over*."""

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        wait_until(is_time, PATIENCE_S)
        peer.say(*said)
        wait_until(is_over, PATIENCE_S)
        peer.wait_unread()

    return script


def send_noise(script: Script, fleet: Fleet, spool: Spool | None) -> Outcome:
    """Send more to *script* than it takes."""
    with scripted_receiver(fleet.receiver, script) as scripted:
        return send_bytes(NOISE, papers_of(fleet.host), [scripted.address], spool=spool)


def send_more_than_it_takes(opened: Delivery) -> None:
    """Send frames until one does not leave."""
    while True:
        opened.send_frame(NOISE[: limits.PIECE_BYTES])


def assert_heard(outcome: Outcome) -> None:
    """The refusal is why the dump was not delivered, with its words and with when to come again."""
    assert isinstance(outcome.failure, BusyError)
    assert LATER.words in outcome.failure.message
    assert outcome.failure.retry_after_s == LATER.retry_after_s


def test_the_process_is_gone_and_the_rest_is_kept_before_a_stalled_receiver_is_heard_out(
    fleet: Fleet, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wire stalls, and is given up: what the spool has is durable before anybody listens for the reason."""
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", 0.3)
    monkeypatch.setattr(delivery, "_LAST_WORDS_S", PATIENT_S)
    is_kept = stalled_until(lambda: next(iter(tmp_path.glob("spool/dumps/*/end.json")), None))

    outcome = send_noise(is_kept, fleet, spool)

    assert_heard(outcome)
    assert (outcome.spooled, outcome.size) == (True, len(NOISE))


def test_without_a_spool_the_process_is_gone_before_a_receiver_is_heard_out(
    fleet: Fleet, pumps: list[Pump], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody will keep the core: to hold its process would save nothing."""
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", 0.3)
    monkeypatch.setattr(delivery, "_LAST_WORDS_S", PATIENT_S)

    assert_heard(send_noise(stalled_until(lambda: pumps[-1].end), fleet, None))


@pytest.mark.parametrize("code", [Refusal.QUOTA, Refusal.STORAGE, Refusal.NOT_ALLOWED])
def test_an_acknowledgement_among_the_last_words_counts_whatever_is_refused(
    code: Refusal, fleet: Fleet, pumps: list[Pump], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that refuses the rest acknowledges first what it has: of that dump a part is there, also if no spool has room."""
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", 0.3)
    monkeypatch.setattr(delivery, "_LAST_WORDS_S", PATIENT_S)
    spool = make_spool(tmp_path, SpoolLimits(max_dumps=0))

    outcome = send_noise(stalled_until(lambda: pumps[-1].end, said=(Ack(1), Refuse(code, "no more of it"))), fleet, spool)

    assert outcome.failure is not None
    assert "no more of it" in outcome.failure.message
    assert (outcome.receipt, outcome.spooled, outcome.is_kept) == (None, False, True)


def test_a_refusal_is_heard_while_a_frame_does_not_leave(
    fleet: Fleet, spool: Spool, pumps: list[Pump], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that refuses and reads nothing more holds nobody until the wire counts as stalled."""
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", PATIENT_S)
    monkeypatch.setattr(delivery, "_LAST_WORDS_S", 0.0)

    is_held = stalled_until(lambda: pumps[-1].held_s > 0.5 or None, lambda: pumps[-1].end)

    assert_heard(send_noise(is_held, fleet, spool))


def test_who_says_nothing_has_no_last_words(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure of the wire is what is told; and where no send has failed, nobody listens."""
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", 0.3)
    monkeypatch.setattr(delivery, "_LAST_WORDS_S", 0.3)
    is_over = threading.Event()

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        is_over.wait(PATIENT_S)

    with scripted_receiver(fleet.receiver, script) as scripted:
        opened = connect([scripted.address], papers_of(fleet.host).context)
        opened.open(Open(new_dump_id(), b"{}"), lambda frames: None)
        assert opened.last_words() is None
        with pytest.raises(UnreachableError, match="did not answer in time"):
            send_more_than_it_takes(opened)
        assert opened.last_words() is None
        opened.close()
        is_over.set()
