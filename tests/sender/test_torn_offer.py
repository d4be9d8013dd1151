"""A receiver that offers to keep the beginning of a frame: believed only where it is the frame's, by length and hash."""

from hashlib import sha256
from typing import Final

import pytest

from securecore import limits
from securecore.merkle import EMPTY_ROOT
from securecore.names import Address, DumpId
from securecore.sender.flush import flush
from securecore.sender.spool import Spool
from securecore.wire.messages import Accept, Data, Message, Ready, Rest
from tests.support.certificates import Fleet
from tests.support.custody import CORE
from tests.support.receivers import new_dump_id, papers_of, send_bytes
from tests.support.scripted import STORE, Peer, forge_receipt, scripted_receiver

NOWHERE: Final = Address("127.0.0.1:9")


@pytest.fixture
def frames(fleet: Fleet, spool: Spool) -> list[bytes]:
    """The frames of a dump that waits in the spool."""
    dump: DumpId = new_dump_id()
    send_bytes(CORE, papers_of(fleet.host), [NOWHERE], spool=spool, dump=dump)
    entry = spool.entry(dump)
    assert entry is not None
    try:
        reader = entry.reader()
        return [bytes(reader.frame(index)) for index in range(len(reader.entries))]
    finally:
        entry.close()


def offered(
    fleet: Fleet, spool: Spool, beginning: bytes, *, torn_bytes: int | None = None, features: str = "rest"
) -> list[Message]:
    """Return the first two frames that a flush sends to a receiver which offers *beginning*, once it is delivered."""
    heard: list[Message] = []

    def script(peer: Peer) -> None:
        peer.say(Ready(STORE, 1 << 24, features))
        peer.hear()
        peer.say(Accept(0, EMPTY_ROOT, len(beginning) if torn_bytes is None else torn_bytes, sha256(beginning).digest()))
        heard.extend((peer.hear(), peer.hear()))
        peer.say(forge_receipt(fleet.receiver, peer.hear_end()))

    with scripted_receiver(fleet.receiver, script) as scripted:
        (flushed,) = flush(spool, [scripted.address], papers_of(fleet.host))
    assert flushed.failure is None
    return heard


@pytest.mark.parametrize("length", [1, 5, 500_000, -1])
def test_only_the_rest_is_sent_of_a_frame_whose_beginning_is_there(
    length: int, fleet: Fleet, spool: Spool, frames: list[bytes]
) -> None:
    """The next frame is whole again."""
    heard = offered(fleet, spool, frames[0][:length])

    assert heard == [Rest(frames[0][length:]), Data(frames[1])]


LIES: Final = ("another beginning", "another length", "the whole frame", "more than the frame", "never announced")


@pytest.mark.parametrize("lie", LIES)
def test_a_whole_frame_is_sent_where_the_offer_is_another_than_its_beginning(
    lie: str, fleet: Fleet, spool: Spool, frames: list[bytes]
) -> None:
    """A receiver that lies, is wrong about what it has, or has not announced REST costs its own time and nothing else."""
    first = frames[0]
    if lie == "another beginning":
        heard = offered(fleet, spool, frames[1][:1000])
    elif lie == "another length":
        heard = offered(fleet, spool, first[:1000], torn_bytes=999)
    elif lie == "the whole frame":
        heard = offered(fleet, spool, first)
    elif lie == "more than the frame":
        heard = offered(fleet, spool, first, torn_bytes=limits.MAX_FRAME_BYTES - 1)
    else:
        heard = offered(fleet, spool, first[:1000], features="rests unrest")

    assert heard == [Data(first), Data(frames[1])]
