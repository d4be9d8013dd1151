"""Giving a dump up whose sender does not come back: every frame that came is published, and the log says so."""

import errno
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from securecore.dump import directory
from securecore.errors import StorageError
from securecore.merkle import EMPTY_ROOT
from securecore.store.layout import create_store
from securecore.store.writer import IncomingDump
from tests.support.dumps import (
    REPORT,
    WEB,
    Keys,
    begin,
    dump_id,
    log_of,
)
from tests.support.old_dumps import AFTER, FRAMES, ID, INCOMING, ROOT, SENT, Life, published


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


@pytest.mark.parametrize(
    ("seconds", "last_at"),
    [(-(10**12), "1970-01-01T00:00:00.000Z"), (10**12, "9999-12-31T23:59:59.000Z"), ((1 << 63) - 1, "9999-12-31T23:59:59.000Z")],
)
def test_a_dump_of_a_time_that_no_calendar_holds_is_given_up(
    seconds: int, last_at: str, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a backup or a broken clock has made of its core's time ends neither the look nor the wait for its sender."""
    core = life.path / INCOMING / "core.zst"
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        found = real(path, **options)
        if path != "core.zst":
            return found
        return os.stat_result((*found[:8], seconds, *found[9:10]))

    # Not every file system keeps such a time; tests/store/test_file_times.py has one that does.
    monkeypatch.setattr(os, "stat", stat)
    life.caretaker.look()
    monkeypatch.undo()
    assert published(life)[2]["last_at"] == last_at
    assert not core.exists()
    life.end()


def test_a_dump_that_comes_from_the_future_is_given_up(tmp_path: Path, life: Life, keys: Keys) -> None:
    """A clock that was ahead when its last frame came would have it wait for years; one that was less ahead is waited for."""
    life.end()
    for now, places in ((datetime.now(UTC) - AFTER + timedelta(minutes=1), [(WEB, ID)]), (datetime.now(UTC) - 2 * AFTER, [])):
        behind = Life(tmp_path / "store", keys, now)
        behind.caretaker.look()
        assert behind.store.incoming() == places
        behind.end()


@pytest.mark.parametrize("call", ["dup", "listdir", "open", "fstat"])
def test_a_receiver_without_descriptors_keeps_its_caretaker(
    call: str, life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever cannot be opened or looked at is said in a line, and the next look deals with the dump."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, call, refuse)
    life.caretaker.look()
    monkeypatch.undo()
    assert "too many open files" in caplog.text
    life.caretaker.look()
    assert published(life)[0] == SENT
    life.end()
