"""Taking a dump back that was given up, when its sender comes: no acknowledged frame is lost."""

import pytest

from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import Held, deleted_entry, incomplete_entry
from securecore.audit.proof import verify_receipt
from securecore.errors import BrokenError, PeerError
from securecore.store.layout import Place
from securecore.store.writer import IncomingDump
from tests.support.dumps import (
    LOG_NAME,
    NOW,
    REPORT,
    WEB,
    log_of,
)
from tests.support.old_dumps import CORE, FRAMES, ID, PUBLISHED, Life, published
from tests.support.stores import flip


def test_a_sender_that_comes_back_goes_on(life: Life) -> None:
    """It is told what is held, sends the rest, and the dump is received like any other; the log says both."""
    life.caretaker.look()
    held: list[int] = []
    receipt = life.complete(held.append)
    assert held == [1]
    plain, names, entry = published(life)
    assert (plain, entry["event"]) == (CORE, "received")
    assert names == {"core.zst", "report.json", "manifest.jws", "receipt"}
    assert verify_receipt(receipt, origin_of(LOG_NAME, WEB), life.keys.log.public_key).fields == entry
    assert [entry["event"] for entry in life.entries()] == ["incomplete", "received"]
    life.end()


def test_coming_back_without_a_frame_is_not_written_down_again(life: Life) -> None:
    """The dump is given up again with the entry that is there; with another frame it gets another entry."""
    for _ in range(3):
        life.caretaker.look()
        published(life)
        assert life.come_back() == 1
    assert [entry["frames"] for entry in life.entries()] == [1]
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.append(*FRAMES[1])
    dump.sync()
    dump.close()
    life.caretaker.look()
    assert published(life)[0] == CORE[: 2 << 20]
    assert [entry["frames"] for entry in life.entries()] == [1, 2]
    life.end()


def test_another_report_does_not_take_a_dump_back(life: Life) -> None:
    """Who opens it with another report is refused, and the dump stays published."""
    life.caretaker.look()
    with pytest.raises(PeerError, match="another report"):
        life.abandonment.revoke(WEB, ID, b"{}")
    published(life)
    life.end()


def test_a_dump_that_was_received_and_lost_its_manifest_is_not_taken_back(life: Life) -> None:
    """The log says that it was received: it stays published for a person to look at, and no frame is added to it."""
    life.complete()
    (life.path / f"hosts/{WEB}/{ID}/manifest.jws").unlink()
    life.abandonment.revoke(WEB, ID, REPORT)
    assert published(life)[0] == CORE
    (life.path / f"hosts/{WEB}/{ID}").rename(life.path / f"incoming/{WEB}/{ID}")
    with pytest.raises(BrokenError, match="was not given up by the audit log"):
        life.abandonment.revoke(WEB, ID, REPORT)
    life.end()


@pytest.mark.parametrize("at", [0, -1], ids=["no frame any more", "another frame"])
def test_a_dump_that_was_damaged_since_is_not_taken_back(at: int, life: Life) -> None:
    """Sound frames behind the damage were acknowledged: nothing is cut off, the dump stays published, its sender is refused."""
    dump = IncomingDump.resume(life.store, WEB, ID)
    for frame in FRAMES[1:]:
        dump.append(*frame)
    dump.sync()
    dump.close()
    life.caretaker.look()
    core = life.path / PUBLISHED / "core.zst"
    begins = len(FRAMES[0][0])
    flip(core, begins if at == 0 else begins + len(FRAMES[1][0]) - 1)
    damaged = core.read_bytes()
    for _ in range(2):
        with pytest.raises(BrokenError, match="damaged since"):
            life.abandonment.revoke(WEB, ID, REPORT)
        assert core.read_bytes() == damaged
        assert life.store.incoming() == []
    life.end()


def test_a_part_that_came_after_a_deletion_is_given_up(life: Life) -> None:
    """Its sender had more of it, came back and went for good: it is published as incomplete, once more."""
    held = Held(1, 1, bytes(32), bytes(32), 1)
    log = log_of(life.logs, WEB)
    log.append(incomplete_entry(NOW, ID, WEB, life.store.store_id, held, last_at=NOW))
    log.append(deleted_entry(NOW, ID, WEB, uid=0, user=None, reason=None))
    life.caretaker.look()
    assert life.store.incoming() == []
    assert life.store.find_place(WEB, ID) is Place.HOSTS
    assert log.size == 3
    life.end()
