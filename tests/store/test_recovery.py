"""What start-up, and a sender that comes back, make of dumps that were coming in."""

import os

import pytest

from securecore.dump import container
from securecore.errors import BrokenError, BusyError, PeerError, StorageError
from securecore.store.layout import Store
from securecore.store.recovery import Leftovers, open_incoming, sweep_incoming
from securecore.store.writer import AlreadyStored, IncomingDump
from tests.support.dumps import REPORT, WEB, begin, core_bytes, dump_id, dump_path, frames_of
from tests.support.stores import flip

CORE = core_bytes()


def test_sweep_sorts_what_a_crash_left(store: Store) -> None:
    """Unacknowledged dumps are removed, dumps with a manifest are named to be committed, the others wait for their sender."""
    IncomingDump.begin(store, WEB, dump_id(1), REPORT).close()
    begin(store, dump_id(2), CORE).close()
    finished = begin(store, dump_id(3), CORE)
    finished.finish(b"manifest")
    finished.close()
    dump_path(store, dump_id(4), "incoming").mkdir()
    found = sweep_incoming(store)
    found.removed.sort(key=lambda item: str(item[1]))
    assert found == Leftovers([(WEB, dump_id(3))], [], [(WEB, dump_id(2))], [(WEB, dump_id(1)), (WEB, dump_id(4))], [])
    assert sorted(map(str, (identifier for _, identifier in store.incoming()))) == sorted(map(str, (dump_id(2), dump_id(3))))
    assert sweep_incoming(store) == Leftovers([(WEB, dump_id(3))], [], [(WEB, dump_id(2))], [], [])


@pytest.mark.parametrize("at", [-1, -20, -41])
def test_a_seek_table_in_parts_is_held_against_the_frames(store: Store, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """A dump with a manifest is taken up again when every part of its table is the one of its frames."""
    monkeypatch.setattr(container, "_PART_BYTES", 16)
    finished = begin(store, dump_id(1), CORE)
    finished.finish(b"manifest")
    finished.close()
    resumed = IncomingDump.resume(store, WEB, dump_id(1))
    assert resumed.has_manifest
    resumed.close()
    flip(dump_path(store, dump_id(1), "incoming") / "core.zst", at)
    with pytest.raises(BrokenError, match="damaged though its manifest was durable"):
        IncomingDump.resume(store, WEB, dump_id(1))


def test_a_dump_whose_core_is_gone_is_told(store: Store) -> None:
    """Its report was acknowledged, and no crash removes a core alone: for a person to look at, and kept."""
    begin(store, dump_id(1), CORE).close()
    (dump_path(store, dump_id(1), "incoming") / "core.zst").unlink()
    (stuck,) = sweep_incoming(store).stuck
    assert (stuck[:2], "core.zst is missing" in stuck[2].message) == ((WEB, dump_id(1)), True)
    assert store.incoming() == [(WEB, dump_id(1))]


def test_sweep_of_an_empty_store(store: Store) -> None:
    """Nothing is found where nothing is."""
    assert sweep_incoming(store) == Leftovers([], [], [], [], [])


def test_a_dump_in_both_places_is_left_alone(store: Store) -> None:
    """A dump that is both published and coming in is for a person to look at; the others are dealt with."""
    begin(store, dump_id(1), CORE).close()
    begin(store, dump_id(2), CORE).close()
    dump_path(store, dump_id(1)).mkdir(parents=True)
    found = sweep_incoming(store)
    assert found.partial == [(WEB, dump_id(2))]
    assert [(host, identifier, type(error)) for host, identifier, error in found.stuck] == [(WEB, dump_id(1), BrokenError)]
    assert dump_path(store, dump_id(1), "incoming").is_dir()


def test_open_incoming_begins_resumes_and_tells(store: Store) -> None:
    """One call serves a sender's OPEN: a new dump, one that was cut, one never acknowledged, one that is published."""
    incoming = open_incoming(store, WEB, dump_id(1), REPORT)
    assert incoming.frames == 0
    incoming.append(*frames_of(CORE)[0])
    incoming.close()
    incoming = open_incoming(store, WEB, dump_id(1), REPORT)
    assert incoming.frames == 0, "what was never synced is thrown away"
    incoming.append(*frames_of(CORE)[0])
    incoming.sync()
    incoming.close()
    with pytest.raises(PeerError):
        open_incoming(store, WEB, dump_id(1), b"{}")
    incoming = open_incoming(store, WEB, dump_id(1), REPORT)
    assert incoming.frames == 1
    incoming.finish(b"manifest")
    incoming.put_receipt(b"receipt")
    incoming.publish()
    with pytest.raises(AlreadyStored):
        open_incoming(store, WEB, dump_id(1), REPORT)


def test_a_dump_that_is_being_begun_is_not_thrown_away(store: Store) -> None:
    """A second session for a dump that another one has just begun is told to come back."""
    first = open_incoming(store, WEB, dump_id(1), REPORT)
    with pytest.raises(BusyError):
        open_incoming(store, WEB, dump_id(1), REPORT)
    first.sync()
    first.close()


def test_strangers_among_the_files_stop_the_removal(store: Store) -> None:
    """A directory within a dump's is not ours: the removal ends there and is told."""
    path = dump_path(store, dump_id(1), "incoming")
    (path / "kept").mkdir(parents=True)
    stuck = sweep_incoming(store).stuck
    assert [(identifier, type(error)) for _, identifier, error in stuck] == [(dump_id(1), StorageError)]
    assert (path / "kept").is_dir()
    assert os.listdir(path) == ["kept"]
