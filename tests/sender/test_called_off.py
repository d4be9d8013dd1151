"""A handler's deadline while a receiver takes its time: the core goes to the spool wherever that may hold it, else it is cut.

Real transfers to scripted receivers; the deadline comes when the script says so, behind a part of the core.
"""

import math
import os
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, cast

import pytest

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.sender.ahead import PIECES
from securecore.sender.allowance import Allowance
from securecore.sender.custody import Custody
from securecore.sender.lifetime import Lifetime
from securecore.sender.parcel import Outcome
from securecore.sender.pump import Pump
from securecore.sender.spool import create_spool, open_spool
from securecore.sender.spool_limits import SpoolLimits
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.custody import kept
from tests.support.elf import Segment, write_core
from tests.support.kernel import wait_until
from tests.support.local_files import noise
from tests.support.receivers import Hold, new_dump_id, papers_of, send_bytes
from tests.support.scripted import Peer, forge_receipt, scripted_receiver

MIB: Final = limits.MIB
CORE: Final = write_core([Segment(b"the quick brown fox " * (5 * MIB))])
"""100 MiB, of which a spool keeps some KiB. By the rule for a wire that is merely slow it may take all of them."""
LEAST: Final = 6 * MIB
"""A quota for what is in memory of it, as it is, and no more than that."""


class Deadline:
    """A lifetime whose time is up when a test says so."""

    def __init__(self) -> None:
        self.ends_at = self.piece_s = math.inf
        self.cut: str | None = None
        self.decided = threading.Event()
        """Set once source or wire has been given up."""
        self.call_off: Callable[[], None] = lambda: None

    def attend(self, call_off: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Keep what is called when the time is up."""
        self.call_off = call_off

    def end_source(self) -> None:
        """Let the source end where it is, as cut."""
        self.cut = "the handler's time is up"
        self.decided.set()


def send_slowly(fleet: Fleet, place: Path, quota: int) -> tuple[Outcome, bytes | None]:
    """Send CORE with a deadline behind its first pieces, and return how that ended and what the spool then has of it."""
    deadline, dump = Deadline(), new_dump_id()

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        deadline.call_off()
        try:
            peer.say(forge_receipt(fleet.receiver, peer.hear_end()))
        finally:
            deadline.decided.set()

    create_spool(str(place / "spool"), bytes(16))
    bounds = SpoolLimits(floor_share=0.0, max_bytes=quota)
    with closing(open_spool(str(place / "spool"), bounds)) as spool, scripted_receiver(fleet.receiver, script) as scripted:
        outcome = send_bytes(
            CORE, papers_of(fleet.host), [scripted.address], spool=spool, dump=dump, hold=Hold(3 * MIB, deadline.decided),
            lifetime=cast(Lifetime, deadline),
        )  # fmt: skip
        return outcome, kept(spool, dump)[1] if outcome.spooled else None


def test_a_core_that_the_spool_may_hold_goes_there_whole(fleet: Fleet, tmp_path: Path) -> None:
    """There is room for what is in memory, and nobody knows that the rest would not fit: its source is read to the end."""
    outcome, held = send_slowly(fleet, tmp_path, LEAST)

    assert (outcome.source_failure, outcome.spool_failure, outcome.spooled) == (None, None, True)
    assert held == CORE


def test_a_core_that_the_spool_cannot_hold_is_cut_for_the_wire(fleet: Fleet, tmp_path: Path) -> None:
    """Not even a frame fits: what is here by then is the receiver's."""
    outcome, held = send_slowly(fleet, tmp_path, MIB)

    assert (outcome.source_failure, held) == ("the handler's time is up", None)
    assert outcome.receipt is not None


@pytest.mark.parametrize(
    ("quota", "is_wire_given_up"), [((PIECES - 1) * MIB, False), ((PIECES + 2) * MIB, True)], ids=["some of it", "all of it"]
)
def test_what_is_read_already_has_room_before_the_wire_is_given_up(quota: int, is_wire_given_up: bool, tmp_path: Path) -> None:
    """Pieces that nobody has taken yet are in memory, and a cut keeps them: the spool must hold them as they are, noise maybe.

    The source is 40 MiB, of which eleven pieces are read; of the rest it may turn out that it takes next to nothing.
    """
    core = write_core([Segment(noise(40 * MIB))])
    pump, deadline = Pump(Compressor), Deadline()
    create_spool(str(tmp_path / "spool"), bytes(16))
    reading, writing = os.pipe()
    writer = threading.Thread(target=write_all, args=(writing, core))
    reader = threading.Thread(target=pump.read, args=(reading,))
    with closing(open_spool(str(tmp_path / "spool"), SpoolLimits(floor_share=0.0, max_bytes=quota))) as spool:
        custody = Custody(new_dump_id(), b"{}", 0, spool)
        allowance = Allowance(pump, custody, None, cast(Lifetime, deadline))
        writer.start()
        reader.start()
        wait_until(lambda: pump.held_s or None)
        allowance.call_off()
        allowance.left_s()
        custody.close()
        pump.stop()
        held = sum(frame.plain for frame in pump.frames())
        reader.join()
        os.close(reading)
        writer.join()

    assert held >= PIECES * MIB
    assert (allowance.is_over, deadline.decided.is_set()) == (is_wire_given_up, not is_wire_given_up)


def write_all(fd: int, data: bytes) -> None:
    """Write to a pipe whose reader may let go early."""
    with suppress(BrokenPipeError), os.fdopen(fd, "wb", buffering=0) as file:
        file.write(data)
