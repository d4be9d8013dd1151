"""A link that is slow, far and cut again and again: what is sent arrives in the end, and what came once is not sent again.

Rates and deadlines are those of a link of 256 kbit/s, made faster by the same factor.
"""

import random
import time
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender.flush import flush
from securecore.sender.patience import Patience
from securecore.sender.spool import Spool
from tests.support.certificates import Fleet
from tests.support.proxies import Link, bad_link
from tests.support.receivers import papers_of, send_bytes, wait_until_idle
from tests.support.stores import published

pytestmark = pytest.mark.slow

NOWHERE: Final = Address("127.0.0.1:9")
CORE: Final = random.Random(31).randbytes(3 * limits.MIB) + b"the end"
SLOW: Final = Link(limits.MIB * 3 // 4, latency_s=0.02)
"""A frame takes 1.3 seconds, several times what it may stand still here."""
STILL_S: Final = 0.5
"""Beside it a receiver on a busy machine has its fsyncs to make, before it can answer."""


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends have less time for silence than a frame takes on the link, and less than the sockets' buffers take to drain."""
    for name in ("PROGRESS_DEADLINE_S", "IDLE_DEADLINE_S", "RECEIPT_DEADLINE_S"):
        monkeypatch.setattr(limits, name, STILL_S)


@pytest.mark.usefixtures("short_deadlines")
def test_a_slow_link_is_not_a_stalled_one(fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path) -> None:
    """No frame, and no receipt behind all of them, comes in the time for silence; each does in its own."""
    papers = papers_of(fleet.host)
    send_bytes(CORE, papers, [NOWHERE], spool=spool)
    with bad_link(receiver.addresses[0], SLOW) as link:
        began = time.monotonic()
        flushed = list(flush(spool, [link.address], papers))
        took_s = time.monotonic() - began

    assert [result.failure for result in flushed] == [None]
    assert took_s > 3 * STILL_S
    assert published(tmp_path / "store") == [CORE]


@pytest.mark.usefixtures("short_deadlines")
def test_a_person_who_sends_a_file_waits_for_a_slow_link(
    fleet: Fleet, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a spool and with a full ring: the acknowledgement that makes room is waited for while anything moves."""
    monkeypatch.setattr(limits, "RING_BYTES", limits.MIB)
    monkeypatch.setattr(limits, "ACK_EVERY_S", STILL_S / 4)
    with bad_link(receiver.addresses[0], SLOW) as link:
        outcome = send_bytes(CORE, papers_of(fleet.host), [link.address])

    assert outcome.failure is None
    assert published(tmp_path / "store") == [CORE]


def test_a_crashed_process_does_not_wait_for_a_slow_link(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves all the time, and is slower than the core: when the budget is used up, the rest is in the spool."""
    monkeypatch.setattr(limits, "RING_BYTES", limits.MIB)
    core, papers = random.Random(32).randbytes(16 * limits.MIB), papers_of(fleet.host)
    with bad_link(receiver.addresses[0], Link(limits.MIB)) as link:
        outcome = send_bytes(core, papers, [link.address], spool=spool, hold_budget_s=STILL_S)
    flushed = list(flush(spool, receiver.addresses, papers))

    assert outcome.spooled
    assert outcome.failure is not None
    assert outcome.failure.message == "the receiver is slower than the core: the rest waits in the spool"
    assert [result.failure for result in flushed] == [None]
    assert published(tmp_path / "store") == [core]


@pytest.mark.parametrize("cut_after", [250_000, 700_000])
def test_a_link_that_is_cut_in_every_frame_brings_a_core_all_the_same(
    cut_after: int, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """No connection lives as long as one frame takes. Each brings what it can, and little is sent twice."""
    papers = papers_of(fleet.host)
    send_bytes(CORE, papers, [NOWHERE], spool=spool)
    with bad_link(receiver.addresses[0], Link(200 * limits.MIB, cut_after_bytes=cut_after)) as link:
        for _ in range(3 * len(CORE) // cut_after + 3):
            if all(result.failure is None for result in flush(spool, [link.address], papers)):
                break
            # Whoever comes back at once cuts short a session that has not read yet what has reached its host.
            wait_until_idle(receiver)
        passed = link.passed

    assert published(tmp_path / "store") == [CORE]
    assert spool.dump_ids() == []
    # Beside the core, for each connection: a handshake of 4 KiB, and a TLS record that was cut.
    assert sum(passed) < len(CORE) + len(passed) * 32 * limits.KIB


def test_deadlines_of_the_configuration_hold_for_a_flush(fleet: Fleet, receiver: Receiver, spool: Spool) -> None:
    """A far receiver is reached with a deadline that fits, and not with another."""
    papers = papers_of(fleet.host)
    send_bytes(b"core", papers, [NOWHERE], spool=spool)
    with bad_link(receiver.addresses[0], Link(limits.MIB, latency_s=0.1)) as link:
        (late,) = flush(spool, [link.address], papers, patience=Patience(0.15, 5, 5))
        (delivered,) = flush(spool, [link.address], papers, patience=Patience(20, 5, 5))

    assert late.failure is not None
    assert "did not answer in time" in late.failure.message
    assert delivered.failure is None
