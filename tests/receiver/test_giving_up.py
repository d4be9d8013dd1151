"""Giving a dump up, and taking it back when its sender comes: no acknowledged frame is lost, nothing is written down twice."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import Held, deleted_entry, incomplete_entry
from securecore.audit.proof import verify_receipt
from securecore.dump import directory
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.reader import open_container
from securecore.errors import BrokenError, PeerError, SecurecoreError, StorageError
from securecore.merkle import EMPTY_ROOT, leaf_hash, root_of
from securecore.receiver.abandonment import Abandonment
from securecore.receiver.caretaker import Caretaker
from securecore.receiver.commit import Committer
from securecore.receiver.presence import Presence
from securecore.store.layout import Place, create_store, open_store
from securecore.store.recovery import open_incoming
from securecore.store.writer import AlreadyStored, IncomingDump
from tests.support.disk import Disk, run_until
from tests.support.dumps import (
    LOG_NAME,
    NOW,
    REPORT,
    WEB,
    Keys,
    begin,
    core_bytes,
    dump_id,
    frames_of,
    log_of,
    logs_of,
)
from tests.support.stores import flip

CORE = core_bytes(2, 40)
FRAMES = frames_of(CORE)
SENT = CORE[: 1 << 20]
"""What has come before the sender went away: one frame."""
ROOT = root_of([leaf_hash(FRAMES[0][0])])
ID = dump_id(1)
INCOMING, PUBLISHED = f"incoming/{WEB}/{ID}", f"hosts/{WEB}/{ID}"
AFTER = timedelta(days=7)
LATER = datetime.now(UTC) + timedelta(days=8)
"""When everything that a test writes is old."""


class Life:
    """One life of a receiver, eight days later, and what it does for one dump."""

    def __init__(self, path: Path, keys: Keys, now: datetime = LATER) -> None:
        self.path = path
        self.store = open_store(str(path))
        self.logs = logs_of(self.store, keys.log)
        self.presence = Presence()
        self.committer = Committer(self.store, self.logs, lambda: now)
        self.abandonment = Abandonment(self.store, self.logs, lambda: now)
        self.caretaker = Caretaker(self.store, self.committer, self.abandonment, self.presence, AFTER, lambda: now)
        self._keys = keys

    def start(self) -> list[SecurecoreError]:
        """Roll forward and look once, as a start does; return what stood in the way."""
        errors = [error for _, error in self.committer.roll_forward() if error is not None]
        self.caretaker.look()
        return errors

    def come_back(self) -> int:
        """Take the dump back and return how many frames are held, as a session does before ACCEPT."""
        self.abandonment.revoke(WEB, ID, REPORT)
        dump = open_incoming(self.store, WEB, ID, REPORT)
        try:
            return dump.frames
        finally:
            dump.close()

    def complete(self, on_accept: Callable[[int], None] = lambda frames: None) -> bytes:
        """Take the dump back, the frames that are missing, and END; return the receipt."""
        self.abandonment.revoke(WEB, ID, REPORT)
        try:
            dump = open_incoming(self.store, WEB, ID, REPORT)
        except AlreadyStored as stored:
            return stored.receipt
        try:
            if dump.has_manifest:
                return self.committer.commit(dump)
            on_accept(dump.frames)
            for frame in FRAMES[dump.frames :]:
                dump.append(*frame)
            dump.sync()
            token = self._keys.host.sign(self._keys.host.manifest(ID, self.store.store_id, CORE))
            return self.committer.finish(dump, token, REPORT, self._keys.host.made.der)
        finally:
            dump.close()

    def end(self) -> None:
        """Give back what the operating system takes from a process that ends."""
        self.logs.close()
        self.store.close()

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries of the host's log."""
        log = log_of(self.logs, WEB)
        receipts = [log.receipt_for(index) for index in range(log.size)]
        return [verify_receipt(text, log.origin, self._keys.log.public_key).fields for text in receipts]


@pytest.fixture
def life(tmp_path: Path, keys: Keys) -> Life:
    """A receiver whose store has a dump of one frame that is coming in."""
    with create_store(str(tmp_path / "store")) as store:
        begin(store, ID, SENT).close()
    return Life(tmp_path / "store", keys)


def published(life: Life) -> tuple[bytes, set[str], dict[str, Any]]:
    """Return the plaintext of the published dump, its files, and what its receipt proves."""
    with life.store.open_dump(WEB, ID) as files:
        assert files.is_published
        core = files.open_core()
        try:
            plain = b"".join(open_container(core).pieces())
        finally:
            os.close(core)
        receipt = verify_receipt(files.read_receipt() or b"", origin_of(LOG_NAME, WEB), life._keys.log.public_key)
        return plain, set(os.listdir(files.fd)), receipt.fields


def test_an_old_dump_is_published_as_incomplete(life: Life) -> None:
    """Frames first, as far as they came, with the receipt of an entry that says so, and no manifest."""
    life.caretaker.look()
    plain, names, entry = published(life)
    assert (plain, names) == (SENT, {"core.zst", "report.json", "receipt"})
    assert life.store.incoming() == []
    assert {key: entry[key] for key in ("event", "dump", "frames", "size", "root", "report_sha256", "program", "signal")} == {
        "event": "incomplete", "dump": str(ID), "frames": 1, "size": len(SENT), "root": ROOT.hex(),
        "report_sha256": sha256(REPORT).hexdigest(), "program": "nginx", "signal": 11,
    }  # fmt: skip
    assert entry["stored_bytes"] == (life.path / f"hosts/{WEB}/{ID}/core.zst").stat().st_size
    life.end()


def test_the_entry_says_when_the_last_frame_came(life: Life) -> None:
    """By the core's modification time, which neither giving up nor cutting a torn end changes."""
    core = life.path / f"incoming/{WEB}/{ID}/core.zst"
    with core.open("ab") as file:
        file.write(FRAMES[1][0][:-1])
    os.utime(core, (1_700_000_000, 1_700_000_000))
    life.caretaker.look()
    _, _, entry = published(life)
    assert entry["last_at"] == "2023-11-14T22:13:20.000Z"
    assert (life.path / f"hosts/{WEB}/{ID}/core.zst").stat().st_mtime == 1_700_000_000
    life.end()


def test_a_dump_without_a_whole_frame_is_given_up_too(tmp_path: Path, keys: Keys) -> None:
    """Its report was acknowledged, and says that something crashed: an empty core stands beside it."""
    with create_store(str(tmp_path / "store")) as store:
        begin(store, ID, b"").close()
    (tmp_path / f"store/incoming/{WEB}/{ID}/core.zst").write_bytes(FRAMES[0][0][:-1])
    life = Life(tmp_path / "store", keys)
    life.caretaker.look()
    plain, _, entry = published(life)
    assert (plain, entry["frames"], entry["size"], entry["root"]) == (b"", 0, 0, EMPTY_ROOT.hex())
    assert life.come_back() == 0
    life.end()


def test_what_was_never_acknowledged_is_removed_once_old(tmp_path: Path, keys: Keys) -> None:
    """A directory without a report stays while it is young, and goes when it is old; nothing is written about it."""
    with create_store(str(tmp_path / "store")) as store:
        IncomingDump.begin(store, WEB, ID, REPORT).close()
        (tmp_path / f"store/incoming/{WEB}/{dump_id(2)}").mkdir()
    young = Life(tmp_path / "store", keys, datetime.now(UTC))
    young.caretaker.look()
    assert len(young.store.incoming()) == 2
    young.end()
    life = Life(tmp_path / "store", keys)
    life.caretaker.look()
    assert life.store.incoming() == []
    assert life.store.audited_hosts() == []
    life.end()


def test_a_young_dump_stays(tmp_path: Path, life: Life, keys: Keys) -> None:
    """A last frame that is not older than the bound leaves the dump alone."""
    life.end()
    young = Life(tmp_path / "store", keys, datetime.now(UTC) + AFTER - timedelta(minutes=1))
    young.caretaker.look()
    assert young.store.incoming() == [(WEB, ID)]
    young.end()


def test_a_dump_that_a_session_has_stays(life: Life) -> None:
    """However old its last frame is: the session's claim, or its lock on the core, keeps the caretaker away."""
    with life.presence.claim(WEB, ID, lambda: None):
        life.caretaker.look()
        assert life.store.incoming() == [(WEB, ID)]
    dump = IncomingDump.resume(life.store, WEB, ID)
    life.caretaker.look()
    assert life.store.incoming() == [(WEB, ID)]
    dump.close()
    life.caretaker.look()
    assert life.store.incoming() == []
    life.end()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_sender_that_comes_while_its_dump_is_walked_is_first(at: int, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk ends before its next frame, or behind the last one, and nothing was written down."""
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.append(*FRAMES[1])
    dump.sync()
    dump.close()
    steps = iter(range(3))

    def come() -> None:
        if next(steps) == at:
            life.presence._claims[(WEB, ID)].interrupt()

    def resume(*arguments: Any, between: Callable[[], None]) -> IncomingDump:
        def before_frame() -> None:
            come()
            between()

        found = real(*arguments, between=before_frame)
        come()
        return found

    real = IncomingDump.resume
    monkeypatch.setattr(IncomingDump, "resume", resume)
    life.caretaker.look()
    monkeypatch.undo()
    assert life.store.incoming() == [(WEB, ID)]
    assert log_of(life.logs, WEB).size == 0
    assert life.come_back() == 2
    life.end()


def test_a_receiver_that_is_stopped_does_not_wait_for_a_walk(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping ends the walk before its next frame; the dump stays for the next start."""
    real = IncomingDump.resume

    def resume(*arguments: Any, between: Callable[[], None]) -> IncomingDump:
        life.caretaker.stop()
        return real(*arguments, between=between)

    monkeypatch.setattr(IncomingDump, "resume", resume)
    life.caretaker.look()
    assert life.store.incoming() == [(WEB, ID)]
    assert log_of(life.logs, WEB).size == 0
    life.end()


def test_a_full_disk_is_tried_again_at_the_next_look(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The dump stays as old as it was, with all its frames, and is given up when there is room."""
    core = life.path / INCOMING / "core.zst"
    os.utime(core, (1_700_000_000, 1_700_000_000))

    def fill_up(fd: int, data: bytes) -> None:
        os.write(fd, data[:5])
        raise StorageError("cannot write: no space left on device")

    log_of(life.logs, WEB)  # opened while there is room
    monkeypatch.setattr(directory, "write_all", fill_up)
    life.caretaker.look()
    monkeypatch.undo()
    assert "no space left on device" in caplog.text
    assert (core.stat().st_mtime, core.stat().st_size) == (1_700_000_000, len(FRAMES[0][0]) + 5)
    life.caretaker.look()
    assert published(life)[0] == SENT
    life.end()


def test_one_bad_dump_does_not_keep_the_others(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be given up stays and is named in the log; the next dump is published."""
    bad = life.path / f"incoming/{WEB}/{dump_id(0)}"
    bad.mkdir()
    (bad / "report.json").write_bytes(REPORT)
    (bad / "core.zst").symlink_to("/etc/passwd")
    life.caretaker.look()
    assert life.store.incoming() == [(WEB, dump_id(0))]
    assert f"cannot give up host={WEB} dump={dump_id(0)}" in caplog.text
    published(life)
    life.end()


def test_a_dump_whose_log_is_damaged_is_not_touched(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is appended to such a log, so the dump stays as it is, and is not even read."""
    directory_of_log = life.path / f"audit/{WEB}"
    directory_of_log.mkdir(0o700)
    (directory_of_log / "entries.jsonl").write_bytes(b"x\n")
    with (life.path / INCOMING / "core.zst").open("ab") as file:
        file.write(b"torn")
    before = (life.path / INCOMING / "core.zst").read_bytes()
    os.utime(life.path / INCOMING / "core.zst", (1_700_000_000, 1_700_000_000))
    life.caretaker.look()
    assert "checkpoint is missing" in caplog.text
    assert (life.path / INCOMING / "core.zst").read_bytes() == before
    life.end()


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


def test_a_dump_whose_core_is_gone_is_told_once(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to give up, and something is wrong with the disk. Once somebody has put it back, it is given up."""
    (life.path / INCOMING / "core.zst").unlink()
    os.utime(life.path / INCOMING, (1_700_000_000, 1_700_000_000))
    for _ in range(2):
        life.caretaker.look()
    assert caplog.text.count("core.zst is missing") == 1
    assert life.store.incoming() == [(WEB, ID)]
    (life.path / INCOMING / "core.zst").write_bytes(FRAMES[0][0])
    life.caretaker.look()
    assert published(life)[0] == SENT
    life.end()


def test_a_sender_that_comes_back_goes_on(life: Life) -> None:
    """It is told what is held, sends the rest, and the dump is received like any other; the log says both."""
    life.caretaker.look()
    held: list[int] = []
    receipt = life.complete(held.append)
    assert held == [1]
    plain, names, entry = published(life)
    assert (plain, entry["event"]) == (CORE, "received")
    assert names == {"core.zst", "report.json", "manifest.jws", "receipt"}
    assert verify_receipt(receipt, origin_of(LOG_NAME, WEB), life._keys.log.public_key).fields == entry
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


Survivors = dict[str, bytes | None]


def has_moved_back(before: Survivors) -> bool:
    """Whether the dump is under incoming, and there alone."""
    return INCOMING in before and PUBLISHED not in before


PROMISES: dict[str, tuple[str, Callable[[Survivors], bool]]] = {
    "the incomplete entry of a dump that is given up is written": (
        f"write audit/{WEB}/entries.jsonl",
        lambda before: before[f"{INCOMING}/core.zst"] == FRAMES[0][0] + seek_table([FrameEntry(len(FRAMES[0][0]), len(SENT))]),
    ),
    "the receipt of a dump that is taken back is removed": (f"unlink {INCOMING}/receipt", has_moved_back),
    "the seek table of a dump that is taken back is cut off": (
        f"ftruncate {INCOMING}/core.zst",
        lambda before: has_moved_back(before) and f"{INCOMING}/receipt" not in before,
    ),
}
"""By the first column of the table in docs/store.md, behind the rows of test_commit.py: the call, and what is durable before it."""


@pytest.mark.parametrize("promise", PROMISES)
def test_what_is_durable_when(promise: str, life: Life) -> None:
    """A power cut just before the call leaves what docs/store.md promises; and a receipt is there only with all that it proves."""
    call, holds = PROMISES[promise]
    steps: list[tuple[str, Survivors]] = []
    disk = Disk(life.path)
    disk.before = lambda call: steps.append((call, disk.survivors()))
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        life.caretaker.look()
        life.come_back()
    life.end()
    disk.close()
    assert [holds(before) for made, before in steps if made == call] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power cut"])
def test_ended_before_every_call(loses_power: bool, tmp_path: Path, keys: Keys) -> None:
    """Ended anywhere in giving up, and once more in what the next start does, nothing that was acknowledged is lost.

    Each start brings the dump among the published ones, with every frame that was ever acknowledged and the receipt of what it is;
    and whenever its sender comes back it goes on from there. No event stands in the log twice.
    """

    def work(life: Life) -> bytes:
        assert life.start() == []
        plain, names, entry = published(life)
        assert (entry["event"] == "received") == ("manifest.jws" in names)
        assert entry["size"] == len(plain)
        return plain

    def work_and_complete(life: Life) -> bytes:
        work(life)
        life.complete(lambda frames: accepted.append(frames))
        return work(life)

    fatal, is_through = 0, False
    while not is_through:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        with create_store(str(path)) as store:
            begin(store, ID, SENT).close()
        accepted: list[int] = []
        for number, deadline in enumerate((fatal, 1 + fatal % 11, None)):
            life, disk = Life(path, keys), Disk(path)
            plain = run_until(deadline, disk, lambda life=life: work_and_complete(life))
            is_through = is_through or (number == 0 and plain is not None)
            life.end()
            if loses_power:
                path = tmp_path / f"store-{fatal}-{number}"
                disk.restore(path)
            disk.close()
        assert plain == CORE
        assert all(frames >= 1 for frames in accepted)
        life = Life(path, keys)
        events = [entry["event"] for entry in life.entries()]
        assert events in (["incomplete", "received"], ["incomplete", "incomplete", "received"]), fatal
        life.end()
    assert fatal > 60


def test_a_sender_gone_for_good_after_every_call_of_coming_back(tmp_path: Path, keys: Keys) -> None:
    """Whatever coming back had done when the receiver died, the next start publishes the dump again, from the same entry."""
    fatal, is_through = 0, False
    while not is_through:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        with create_store(str(path)) as store:
            begin(store, ID, SENT).close()
        life = Life(path, keys)
        life.caretaker.look()
        disk = Disk(path)
        is_through = run_until(fatal, disk, life.come_back) is not None
        life.end()
        disk.restore(tmp_path / f"cut-{fatal}")
        disk.close()
        for left in (path, tmp_path / f"cut-{fatal}"):
            life = Life(left, keys)
            assert life.start() == []
            assert published(life)[0] == SENT
            assert [entry["event"] for entry in life.entries()] == ["incomplete"]
            life.end()
    assert fatal > 5
