"""The wire is cut at any byte, from either end: nothing is lost, nothing is passed off as whole, nothing is stored twice."""

import random
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import UnreachableError
from securecore.receiver.server import Receiver
from securecore.receiver.session import Session
from securecore.sender.flush import flush
from securecore.sender.spool import Spool
from tests.support.certificates import Fleet
from tests.support.proxies import Cut, cutting
from tests.support.receivers import papers_of, send_bytes
from tests.support.stores import published

pytestmark = pytest.mark.slow

CORE = random.Random(7).randbytes(24 * limits.MIB) + bytes(3 * limits.MIB) + b"the end"

# What the sender's side of a connection of this size passes: about 4 KiB of handshake and OPEN, 24 MiB of frames, 3 KiB of END;
# the receiver's: about 4 KiB of handshake, READY and ACCEPT, an ACK for each 8 MiB, 5 KiB of RECEIPT.
FROM_SENDER = [1, 300, 2_000, 3_000, 3_600, 5_000, 100_000, 5_000_000, 9_000_000, 17_000_000, 25_100_000, 25_170_000, 25_180_000]
FROM_RECEIVER = [1, 500, 2_000, 2_600, 2_900, 3_000, 3_100, 3_150, 3_300, 4_000, 6_000]

CUTS = [
    *(Cut(after, True) for after in FROM_SENDER),
    *(Cut(after, False) for after in FROM_RECEIVER),
    *(Cut(after, True, True) for after in FROM_SENDER[::3]),
    *(Cut(after, False, True) for after in FROM_RECEIVER[::3]),
]


@pytest.mark.parametrize(
    "cut", CUTS, ids=lambda cut: f"{'sender' if cut.from_sender else 'receiver'}-{cut.after_bytes}-{cut.is_reset}"
)
def test_a_cut_costs_nothing(cut: Cut, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path) -> None:
    """After the cut the core is at the receiver, or the spool has what the receiver has not; a flush completes it, once."""
    papers = papers_of(fleet.host)
    with cutting(receiver.addresses[0], cut) as proxy:
        outcome = send_bytes(CORE, papers, [proxy.address], spool=spool)
        before = published(tmp_path / "store")
    flushed = list(flush(spool, receiver.addresses, papers))

    assert (outcome.receipt is not None) != outcome.spooled
    assert proxy.was_cut or outcome.receipt is not None
    assert before in ([], [CORE])
    assert [result.failure for result in flushed] == ([None] if outcome.spooled else [])
    assert published(tmp_path / "store") == [CORE]
    assert spool.dump_ids() == []
    assert len(list(spool.receipts())) == 1


def test_a_flush_sends_only_what_the_receiver_has_not(fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path) -> None:
    """Frames that were acknowledged before the cut are not sent again: they are not even in the spool."""
    papers = papers_of(fleet.host)
    with cutting(receiver.addresses[0], Cut(20_000_000, True)) as proxy:
        outcome = send_bytes(CORE, papers, [proxy.address], spool=spool)
    flushed = list(flush(spool, receiver.addresses, papers))

    assert outcome.spooled
    assert [result.failure for result in flushed] == [None]
    assert 0 < flushed[0].sent_frames <= outcome.frames - 16
    assert published(tmp_path / "store") == [CORE]


def test_a_cut_behind_the_last_acknowledgement_costs_nothing(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame is acknowledged, the short last one too, and the receipt does not come: a flush sends no frame and has it."""
    monkeypatch.setattr(limits, "ACK_EVERY_BYTES", 1)
    papers = papers_of(fleet.host)
    monkeypatch.setattr(Session, "_commit", lambda *arguments: (_ for _ in ()).throw(UnreachableError("power is gone")))
    outcome = send_bytes(CORE, papers, receiver.addresses, spool=spool)
    monkeypatch.undo()
    (flushed,) = flush(spool, receiver.addresses, papers)

    assert outcome.spooled
    assert (flushed.failure, flushed.sent_frames) == (None, 0)
    assert published(tmp_path / "store") == [CORE]
    assert spool.dump_ids() == []
