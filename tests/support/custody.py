"""A transfer to a receiver that a test has scripted, and what must be true of every one that fails: the core is still ours."""

import random
import threading
from typing import Final, NamedTuple

from securecore import limits
from securecore.errors import SecurecoreError
from securecore.names import DumpId
from securecore.sender.spool import Spool
from securecore.wire.messages import Message
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.receivers import Hold, new_dump_id, papers_of, send_bytes
from tests.support.scripted import Peer, Script, scripted_receiver

CORE: Final = random.Random(11).randbytes(2 * limits.PIECE_BYTES) + bytes(limits.PIECE_BYTES) + b"the end"
FRAMES: Final = 4
"""Frames of CORE: two of noise, one of zeroes, a short one."""


class Sent(NamedTuple):
    """How a transfer to a scripted receiver ended."""

    failure: SecurecoreError
    dump: DumpId
    acknowledged: int
    """Frames that the sender has let go of: the spool has all others."""


def send_to(
    script: Script,
    fleet: Fleet,
    spool: Spool,
    *,
    acknowledged: int | None = 0,
    core: bytes = CORE,
    hold_budget_s: float | None = None,
) -> Sent:
    """Send *core* to *script*, and hold what is true of every failure against it.

    The source pauses behind the first piece until the script is through, so that the sender cannot be ahead of it. *acknowledged*
    is how many frames the script vouches for; None where that is a matter of time.
    """
    spoken = threading.Event()

    def play(peer: Peer) -> None:
        peer.before_end = spoken.set
        try:
            script(peer)
        finally:
            spoken.set()

    dump = new_dump_id()
    with scripted_receiver(fleet.receiver, play) as scripted:
        outcome = send_bytes(
            core, papers_of(fleet.host), [scripted.address], spool=spool, dump=dump,
            hold=Hold(limits.PIECE_BYTES + 1, spoken), hold_budget_s=hold_budget_s,
        )  # fmt: skip

    assert outcome.receipt is None
    assert (outcome.spooled, outcome.spool_failure, outcome.size) == (True, None, len(core))
    assert outcome.failure is not None
    assert outcome.failure.message.isprintable()
    first, tail = kept(spool, dump)
    assert acknowledged in (None, first)
    assert tail == core[first * limits.PIECE_BYTES :]
    return Sent(outcome.failure, dump, first)


def kept(spool: Spool, dump: DumpId) -> tuple[int, bytes]:
    """Return the number of the first frame that the spool has of a dump, and the plaintext from there on."""
    entry = spool.entry(dump)
    assert entry is not None
    try:
        return entry.start.frontier.size, b"".join(entry.reader().pieces())
    finally:
        entry.close()


def held_open(state: State, *said: Message | bytes) -> Script:
    """Return the script that talks honestly up to *state* and then says *said*."""

    def script(peer: Peer) -> None:
        peer.reach(state)
        peer.say(*said)

    return script
