"""A disk that damages a dump while it is coming in: said loudly, kept, and in the audit log; and its sender's rest arrives."""

import logging
import os
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import parse_incomplete
from securecore.audit.log_verification import verify_log
from securecore.sender.consignment import derived_id
from securecore.sender.flush import flush
from securecore.sender.spool import Spool
from securecore.store.writer import IncomingDump
from tests.receiver.test_caretaker import wait_for
from tests.support.certificates import Fleet
from tests.support.dumps import LOG_NAME, WEB
from tests.support.old_dumps import FRAMES, ID, INCOMING, ROOT, SENT, Life, published
from tests.support.receivers import papers_of, running_receiver
from tests.support.stores import Commands, flip, make_old, stored_cores
from tests.support.tails import FIRST, LABELLED, PIECES, keep_tail, put
from tests.support.tails import FRAMES as PARTS


@pytest.fixture
def damaged(life: Life) -> bytes:
    """What stands behind the first of two frames that were acknowledged, since the second is damaged."""
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.append(*FRAMES[1])
    dump.sync()
    dump.close()
    core = life.path / INCOMING / "core.zst"
    flip(core, len(FRAMES[0][0]))
    return core.read_bytes()[len(FRAMES[0][0]) :]


def test_a_damaged_dump_is_given_up_with_what_was_cut_off(damaged: bytes, life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """Its whole frames are published, the rest is kept beside them, and both the receiver's log and the audit say how much."""
    life.caretaker.look()
    plain, names, entry = published(life)
    assert plain == SENT
    assert names == {"core.zst", "core.damaged-1", "report.json", "receipt"}
    assert (life.path / f"hosts/{WEB}/{ID}/core.damaged-1").read_bytes() == damaged
    assert (entry["event"], entry["frames"], entry["damaged_bytes"]) == ("incomplete", 1, len(damaged))
    parse_incomplete(entry, ID, WEB, life.store.store_id)
    assert [record.levelno for record in caplog.records if "damaged host=" in record.message] == [logging.ERROR]
    assert f"damaged host={WEB} dump={ID} frame=1 kept={len(damaged)}" in caplog.text
    life.end()


def test_the_audit_says_it_too_where_a_session_has_cut(damaged: bytes, life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """Days later, when the dump is given up; the log has said it when it was found."""
    assert life.come_back() == 1
    life.caretaker.look()
    assert published(life)[2]["damaged_bytes"] == len(damaged)
    life.end()


def test_frames_that_were_lost_since_it_was_given_up_are_said(life: Life) -> None:
    """Given up with one frame, taken back, another acknowledged and then damaged: the same frames are not the same entry."""
    life.caretaker.look()
    assert "damaged_bytes" not in published(life)[2]
    assert life.come_back() == 1
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.append(*FRAMES[1])
    dump.sync()
    dump.close()
    flip(life.path / INCOMING / "core.zst", len(FRAMES[0][0]))
    life.caretaker.look()
    assert published(life)[2]["damaged_bytes"] == len(FRAMES[1][0])
    entries = [(entry["event"], entry["root"], entry.get("damaged_bytes")) for entry in life.entries()]
    assert entries == [("incomplete", ROOT.hex(), None), ("incomplete", ROOT.hex(), len(FRAMES[1][0]))]
    audit = life.store.audit_directory(WEB, create=False)
    assert verify_log(audit, origin_of(LOG_NAME, WEB), life.keys.log.public_key).ok
    os.close(audit)
    life.end()


def test_an_entry_that_says_the_same_damage_is_used_again(damaged: bytes, life: Life) -> None:
    """Also by the next life, which has read it from the log; and such a dump is taken back."""
    life.caretaker.look()
    life.end()
    life = Life(life.path, life.keys)
    assert life.come_back() == 1
    life.caretaker.look()
    assert [entry.get("damaged_bytes") for entry in life.entries()] == [len(damaged)]
    life.end()


def test_a_sender_that_has_all_of_it_makes_it_whole(damaged: bytes, life: Life) -> None:
    """From the damaged frame on; what was cut off stays beside a dump that is complete."""
    held: list[int] = []
    life.complete(held.append)
    assert held == [1]
    plain, names, entry = published(life)
    assert (entry["event"], "damaged_bytes" in entry) == ("received", False)
    assert names == {"core.zst", "core.damaged-1", "report.json", "manifest.jws", "receipt"}
    assert plain.startswith(SENT)
    life.end()


@pytest.mark.slow
def test_a_sender_that_has_only_the_rest_delivers_it_apart(
    fleet: Fleet, spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Under an id of its own (docs/wire.md), and its spool is empty; what this store alone has is still there, and is audited."""
    commands = Commands(tmp_path / "store", fleet, capsys)
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        dump = keep_tail(spool, receiver.store_id)
        put(receiver, fleet, dump, PIECES[:FIRST])
        place = commands.dump(dump, place="incoming")
        flip(place / "core.zst", len(PARTS[0]))
        kept = (place / "core.zst").read_bytes()[len(PARTS[0]) :]
        (flushed,) = flush(spool, receiver.addresses, papers_of(fleet.host))
    assert (flushed.failure, spool.dump_ids()) == (None, [])
    assert f"dump={dump} frame=1 kept={len(kept)}" in caplog.text
    assert (place / "core.damaged-1").read_bytes() == kept
    instead = str(derived_id(dump, FIRST))
    assert stored_cores(tmp_path / "store") == {instead: LABELLED}
    make_old(tmp_path / "store", dump)
    with running_receiver(fleet.receiver, tmp_path / "store"):
        wait_for(commands.dump(dump).exists)
    entries = [(entry["event"], entry["dump"], entry.get("damaged_bytes")) for entry in commands.entries()]
    assert entries == [("received", instead, None), ("incomplete", str(dump), len(kept))]
    assert (commands.dump(dump) / "core.damaged-1").read_bytes() == kept
    assert f"{len(kept) / limits.MIB:.1f} MiB cut off as damaged, in core.damaged-1" in commands("show", dump).out
    assert commands.audit().code == 0
    assert commands("delete", dump, "--identity", fleet.receiver).code == 0
    assert not commands.dump(dump).exists()
