"""A commit that the disk refused is finished by the caretaker; what cannot be finished is left to a person."""

from datetime import UTC, datetime
from typing import Any

import pytest

from securecore.errors import StorageError
from securecore.store.writer import IncomingDump
from tests.support.dumps import (
    WEB,
    Keys,
)
from tests.support.old_dumps import CORE, ID, INCOMING, SENT, Life, published
from tests.support.stores import put_back


def test_a_commit_that_the_disk_refused_is_finished_at_the_next_look(life: Life, keys: Keys) -> None:
    """However young it is: it is not given up but received, for its sender has said all that it had to say."""
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.finish(keys.host.sign(keys.host.manifest(ID, life.store.store_id, SENT)))
    with life.presence.claim(WEB, ID, lambda: None):
        life.caretaker.look()
    assert life.store.incoming() == [(WEB, ID)]
    dump.close()
    life.end()
    young = Life(life.path, keys, datetime.now(UTC))
    young.caretaker.look()
    plain, names, entry = published(young)
    assert (plain, entry["event"]) == (SENT, "received")
    assert "manifest.jws" in names
    assert len(young.entries()) == 1
    young.end()


def test_giving_up_is_finished_at_the_next_look(life: Life, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that the disk refused is done when it takes it; the entry is not written again."""

    def refuse(*arguments: Any) -> None:
        raise StorageError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("securecore.store.writer.move_dump", refuse)
        life.caretaker.look()
    assert life.store.incoming() == [(WEB, ID)]
    life.end()
    young = Life(life.path, keys, datetime.now(UTC))
    young.caretaker.look()
    assert published(young)[0] == SENT
    assert [entry["event"] for entry in young.entries()] == ["incomplete"]
    young.end()


def test_a_damaged_log_is_not_the_dumps_fault(life: Life, keys: Keys) -> None:
    """Once somebody has mended it, the next look finishes the dump."""
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.finish(keys.host.sign(keys.host.manifest(ID, life.store.store_id, SENT)))
    dump.close()
    log = life.path / f"audit/{WEB}"
    log.mkdir(0o700)
    (log / "entries.jsonl").write_bytes(b"x\n")
    life.caretaker.look()
    assert life.store.incoming() == [(WEB, ID)]
    (log / "entries.jsonl").unlink()
    life.caretaker.look()
    assert published(life)[0] == SENT
    life.end()


@pytest.mark.parametrize("name", ["core.zst", "manifest.jws"])
def test_what_was_put_back_with_its_time_is_finished(
    name: str, life: Life, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """As a backup does it (rsync -a), in place of a file that the disk has damaged: no length and no time tells the two apart."""
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.finish(keys.host.sign(keys.host.manifest(ID, life.store.store_id, SENT)))
    dump.close()
    path = life.path / INCOMING / name
    sound = path.read_bytes()
    put_back(path, sound[:30] + bytes([sound[30] ^ 1]) + sound[31:])
    for _ in range(2):
        life.caretaker.look()
    assert caplog.text.count(f"cannot finish host={WEB} dump={ID}") == 1
    put_back(path, sound)
    life.caretaker.look()
    assert published(life)[0] == SENT
    life.end()


def test_what_cannot_be_finished_is_told_once(life: Life, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    """A manifest that does not hold is for a person to look at: the dump stays, and is not read again at every look."""
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.finish(keys.host.sign(keys.host.manifest(ID, life.store.store_id, CORE)))
    dump.close()
    for _ in range(2):
        life.caretaker.look()
    assert caplog.text.count(f"cannot finish host={WEB} dump={ID}") == 1
    assert life.store.incoming() == [(WEB, ID)]
    life.end()
