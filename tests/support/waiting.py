"""Dumps that wait in a spool, and receivers that a flush of it may meet."""

from pathlib import Path
from typing import Final

from securecore.merkle import EMPTY_ROOT, Frontier
from securecore.names import Address, DumpId, StoreId
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd, EntryStart
from securecore.wire.messages import Accept, Message, Open, Ready
from tests.support.certificates import Fleet
from tests.support.custody import CORE
from tests.support.receivers import new_dump_id, papers_of, send_bytes
from tests.support.scripted import STORE, Peer, Script, forge_receipt

NOWHERE: Final = Address("127.0.0.1:9")
LOST: Final = StoreId.make(b"\x01" * 16)


def wait_in(spool: Spool, fleet: Fleet) -> DumpId:
    """Put a whole dump into the spool."""
    dump = new_dump_id()
    send_bytes(CORE, papers_of(fleet.host), [NOWHERE], spool=spool, dump=dump)
    return dump


def begin_elsewhere(spool: Spool, store: StoreId = LOST, frames: int = 2) -> DumpId:
    """Put the tail of a dump into the spool, whose first *frames* frames went to *store*: one that nobody here has."""
    before = Frontier.from_peaks(frames, [bytes(32)] * frames.bit_count())
    entry = spool.begin(EntryStart(new_dump_id(), 1, store, before), b"{}")
    entry.finish(EntryEnd(frames << 20, None, "complete", 5))
    entry.close()
    return entry.start.dump


def serving(identity: Path, unwanted: DumpId, answer: Message | None) -> Script:
    """Return the script of an honest receiver that gives *answer* to the OPEN of *unwanted*, or goes."""

    def script(peer: Peer) -> None:
        peer.say(Ready(STORE, 1 << 24))
        opened = peer.hear()
        assert isinstance(opened, Open)
        if opened.dump != unwanted:
            peer.say(Accept(0, EMPTY_ROOT))
            peer.say(forge_receipt(identity, peer.hear_end()))
        elif answer is not None:
            peer.say(answer)

    return script


def silent_after_ready(peer: Peer) -> None:
    """Greet, and then say nothing until the sender has gone."""
    peer.say(Ready(STORE, 1 << 24))
    peer.stay()
