"""Several receivers, in order: who gets a new dump, and who the rest of one whose receiver has died in the middle."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.errors import BusyError
from securecore.names import Address, DumpId
from securecore.receiver.server import Receiver
from securecore.sender.flush import flush
from securecore.sender.parcel import Papers
from securecore.sender.spool import Spool
from securecore.store.layout import open_store
from tests.support.certificates import Fleet
from tests.support.local_files import noise
from tests.support.proxies import Cut, cutting
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes, wait_until_idle
from tests.support.tails import FIRST, FRAMES, PIECES, keep_tail, put

pytestmark = pytest.mark.slow

NOWHERE: Final = Address("127.0.0.1:9")
CORE: Final = noise(14 * limits.MIB)
"""More than one ACK_EVERY_BYTES: the first receiver has made some of it durable when it dies."""
ENOUGH: Final = 11 * limits.MIB
"""Bytes after which it dies."""


@pytest.fixture
def other(fleet: Fleet, tmp_path: Path) -> Iterator[Receiver]:
    """The second receiver, with a store of its own: tmp_path/other."""
    with running_receiver(fleet.receiver, tmp_path / "other") as running:
        yield running


@pytest.fixture
def papers(fleet: Fleet) -> Papers:
    """What the host shows."""
    return papers_of(fleet.host)


def complete(path: Path) -> list[DumpId]:
    """Return the published dumps of a store."""
    with open_store(str(path)) as store:
        return [dump for host in store.host_names() for dump in store.dump_ids(host)]


def copy_and_send_to_a_dying(receiver: Receiver, others: list[Address], papers: Papers, spool: Spool) -> DumpId:
    """Send a dump, with a copy, to a receiver that dies in the middle while *others* stand behind it in the order; return it."""
    dump = new_dump_id()
    with cutting(receiver.addresses[0], Cut(ENOUGH, from_sender=True)) as proxy:
        outcome = send_bytes(CORE, papers, [proxy.address, *others], spool=spool, dump=dump, keeps_copy=True)
    assert (outcome.spooled, outcome.spool_failure) == (True, None)
    wait_until_idle(receiver)
    return dump


def test_a_new_dump_goes_to_the_first_that_takes_it(
    papers: Papers, receiver: Receiver, other: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """The order is the order of the settings, also when several are there."""
    dumps = [new_dump_id() for _ in range(3)]
    send_bytes(b"x", papers, [*receiver.addresses, *other.addresses], spool=spool, dump=dumps[0])
    send_bytes(b"x", papers, [*other.addresses, *receiver.addresses], spool=spool, dump=dumps[1])
    send_bytes(b"x", papers, [NOWHERE, *other.addresses], spool=spool, dump=dumps[2])

    assert complete(tmp_path / "store") == [dumps[0]]
    assert sorted(map(str, complete(tmp_path / "other"))) == sorted(map(str, dumps[1:]))


def begin_at(receiver: Receiver, fleet: Fleet, store: Path, spool: Spool) -> DumpId:
    """Leave the rest of a dump in the spool, whose beginning the receiver has acknowledged."""
    with open_store(str(store)) as opened:
        dump = keep_tail(spool, opened.store_id)
    put(receiver, fleet, dump, PIECES[:FIRST])
    return dump


def test_the_rest_waits_for_the_receiver_that_has_the_beginning(
    fleet: Fleet, papers: Papers, receiver: Receiver, other: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """The other one is there and gets no part of it; when the first is back, it gets what it has not, wherever it stands."""
    dump = begin_at(receiver, fleet, tmp_path / "store", spool)

    (waiting,) = flush(spool, [NOWHERE, *other.addresses], papers)
    (flushed,) = flush(spool, [*other.addresses, *receiver.addresses], papers)

    assert isinstance(waiting.failure, BusyError)
    assert "has another store than the one that holds the beginning" in waiting.failure.message
    assert (flushed.failure, flushed.lost_frames, flushed.sent_frames) == (None, 0, len(FRAMES) - FIRST)
    assert complete(tmp_path / "other") == []
    assert complete(tmp_path / "store") == [dump]


def test_what_waits_for_one_receiver_keeps_nothing_from_the_other(
    fleet: Fleet, papers: Papers, receiver: Receiver, other: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """A dump of which nobody has anything goes to whoever is there."""
    torn, fresh = begin_at(receiver, fleet, tmp_path / "store", spool), new_dump_id()
    send_bytes(b"x", papers, [NOWHERE], spool=spool, dump=fresh)

    list(flush(spool, [NOWHERE, *other.addresses], papers))

    assert complete(tmp_path / "other") == [fresh]
    assert spool.dump_ids() == [torn]


def test_a_whole_copy_waits_for_nobody(
    papers: Papers, receiver: Receiver, other: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """With spool mode "whole" the next flush takes all of it to the receiver that is there."""
    dump = copy_and_send_to_a_dying(receiver, other.addresses, papers, spool)

    (flushed,) = flush(spool, [NOWHERE, *other.addresses], papers)

    assert (flushed.failure, flushed.lost_frames) == (None, 0)
    assert complete(tmp_path / "other") == [dump]


def test_a_whole_copy_goes_on_where_a_receiver_has_a_part(
    papers: Papers, receiver: Receiver, other: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """The first receiver is back: nothing that it has is sent again."""
    dump = copy_and_send_to_a_dying(receiver, other.addresses, papers, spool)

    (flushed,) = flush(spool, receiver.addresses, papers)

    assert flushed.failure is None
    assert flushed.sent_frames < len(CORE) // limits.PIECE_BYTES - 7
    assert complete(tmp_path / "store") == [dump]
