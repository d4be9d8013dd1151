"""Spooled tails: the rest of a dump whose beginning a store has acknowledged."""

import random
from typing import Final

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId, StoreId
from securecore.receiver.server import Receiver
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd, EntryStart
from tests.support.certificates import Fleet
from tests.support.hands import REPORT, Hand
from tests.support.receivers import new_dump_id, wait_until_idle

CORE: Final = random.Random(3).randbytes(5 * limits.PIECE_BYTES) + b"the end"
PIECES: Final = [CORE[at : at + limits.PIECE_BYTES] for at in range(0, len(CORE), limits.PIECE_BYTES)]
FRAMES: Final = [bytes(Compressor().frame(piece)) for piece in PIECES]
FIRST: Final = 3
"""Frames 0 to 2 were acknowledged, the spool has those from here on."""
LABELLED: Final = bytes(FIRST * limits.PIECE_BYTES) + CORE[FIRST * limits.PIECE_BYTES :]
"""The core as it can still be delivered."""


def keep_tail(spool: Spool, store: StoreId, first: int = FIRST, end: EntryEnd | None = None, dump: DumpId | None = None) -> DumpId:
    """Put the frames from *first* on into the spool, as a handler does whose receiver has acknowledged those before."""
    before = Frontier()
    before.extend(map(leaf_hash, FRAMES[:first]))
    start = EntryStart(dump or new_dump_id(), 1_795_338_860_050, store if first else None, before)
    entry = spool.begin(start, REPORT)
    for frame in FRAMES[first:]:
        entry.append(frame)
    entry.finish(end or EntryEnd(len(CORE), len(CORE), "complete", 5))
    entry.close()
    return start.dump


def put(receiver: Receiver, fleet: Fleet, dump: DumpId, pieces: list[bytes]) -> None:
    """Let the receiver hold these pieces of a dump that has no end yet."""
    hand = Hand(fleet.host, receiver.addresses)
    hand.open(dump)
    for piece in pieces:
        hand.send(piece)
    hand.close()
    wait_until_idle(receiver)
