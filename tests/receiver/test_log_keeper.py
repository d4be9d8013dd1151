"""What a receiver says in the receiver-wide log: a host before its first receipt, the rest together; what keeps it from that."""

import errno
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.introductions import Introduction
from securecore.audit.log import HostLogs
from securecore.audit.wide_log import WideLog
from securecore.dump.directory import disk_refused
from securecore.errors import StorageError
from securecore.names import HostName
from securecore.receiver import standalone
from securecore.receiver.commit import Committer, read_signed
from securecore.receiver.log_keeper import LogKeeper
from securecore.receiver.server import utc_now
from securecore.store.layout import Store, create_store, open_store
from securecore.store.writer import IncomingDump
from tests.support.certificates import Fleet, Hierarchy
from tests.support.disk import Disk, Killed
from tests.support.dumps import NOW, REPORT, WEB, Keys, begin, core_bytes, dump_id, log_of, logs_of, make_signer
from tests.support.entries import received
from tests.support.kernel import wait_until
from tests.support.receivers import running_receiver
from tests.support.stores import WEB as SENDER
from tests.support.stores import fill_store, flip

DB = HostName("db-2.example.org")
SHORT = SENDER.split(".")[0]
"""As the fleet calls the host."""
CORE = core_bytes(1, 10)


class Kept:
    """A store and who keeps its receiver-wide log, both of one process."""

    def __init__(self, path: Path, keys: Keys, hierarchy: Hierarchy) -> None:
        self.path, self.keys = path, keys
        self._signers = {WEB: keys.host, DB: make_signer(hierarchy, DB)}
        self.now_s = 0.0
        self.restart()

    def restart(self) -> None:
        """Be the next process, which has not begun yet."""
        self.store: Store = open_store(str(self.path))
        self.logs: HostLogs = logs_of(self.store, self.keys.log)
        self.keeper = LogKeeper(self.store, self.keys.log, lambda: NOW, ticks=lambda: self.now_s)
        self.keeper.follow(self.logs)
        self.committer = Committer(self.store, self.logs, lambda: NOW)

    def commit(self, number: int, host: HostName = WEB) -> bytes:
        """Receive a dump to its end, as a session does."""
        signer = self._signers[host]
        dump = begin(self.store, dump_id(number), CORE, host=host)
        try:
            token = signer.sign(signer.manifest(dump_id(number), self.store.store_id, CORE))
            return self.committer.finish(dump, read_signed(token), REPORT, signer.made.der)
        finally:
            dump.close()

    def dumps_said(self) -> list[tuple[str, int]]:
        """Return the same as said, with the dumps in place of the entries: a log's first entry is of the host's certificate."""
        return [(host, size - 1) for host, size in self.said()]

    def said(self) -> list[tuple[str, int]]:
        """Return what the log says: hosts and the sizes of their logs, in order."""
        entries = self.path / "audit" / "receiver" / "entries.jsonl"
        lines = entries.read_bytes().splitlines() if entries.exists() else []
        return [(entry["host"], entry["size"]) for entry in map(json.loads, lines)]

    def entries(self, host: HostName = WEB) -> list[dict[str, object]]:
        """Return a host's entries of dumps."""
        lines = (self.path / "audit" / str(host) / "entries.jsonl").read_bytes().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["event"] == "received"]

    def close(self) -> None:
        """End, in good order."""
        self.keeper.close()
        self.logs.close()
        self.store.close()


@pytest.fixture
def kept(tmp_path: Path, keys: Keys, hierarchy: Hierarchy) -> Iterator[Kept]:
    """A store without a dump, whose receiver has begun."""
    create_store(str(tmp_path / "store")).close()
    made = Kept(tmp_path / "store", keys, hierarchy)
    made.keeper.begin()
    yield made
    made.close()


def calls_of(kept: Kept, act: Callable[[], object]) -> list[str]:
    """Return the calls that change the store while *act* is done."""
    disk, calls = Disk(kept.path), list[str]()
    disk.before = calls.append
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        act()
    disk.close()
    return calls


def fsyncs(calls: list[str], place: str = "") -> int:
    """Return how many of the calls make something durable under a place."""
    return sum(call.split()[0] in ("fsync", "fdatasync") and place in call for call in calls)


def test_a_host_is_said_with_its_first_receipt_and_not_with_each(kept: Kept) -> None:
    """The first commit waits for it; the others make no call on that log, and as many fsyncs as they would without it."""
    first, second, third = (calls_of(kept, lambda number=number: kept.commit(number)) for number in (1, 2, 3))

    assert kept.dumps_said() == [(str(WEB), 1)]
    assert fsyncs(first, "audit/receiver") == 3, "the entry, the checkpoint, and the directory of both"
    assert [call for call in second + third if "audit/receiver" in call] == []
    kept.keeper.follow(logs_of(kept.store, kept.keys.log))
    kept.logs.on_checkpoint = lambda host, size, root: None
    assert fsyncs(calls_of(kept, lambda: kept.commit(4))) == fsyncs(second) == fsyncs(third)


def test_a_certificate_alone_is_not_said_and_the_first_receipt_waits_all_the_same(kept: Kept) -> None:
    """The entry of a certificate is signed when a dump begins: were it said, the log could be put back to it behind the receipt."""
    kept.keeper.begin()
    with kept.logs.using(WEB) as log:
        log.append_all([], Introduction(WEB, dump_id(1), kept.keys.host.made.der, NOW))
    kept.keeper.look()
    assert kept.said() == []
    kept.commit(1)
    assert kept.said() == [(str(WEB), 2)]


@pytest.mark.parametrize("is_written", [False, True], ids=["certificate alone", "entry behind the checkpoint"])
def test_a_start_before_the_first_receipt_does_not_say_the_host(is_written: bool, kept: Kept) -> None:
    """Neither when the certificate alone is signed, nor when a crash came before the checkpoint of the first dump."""
    with kept.logs.using(WEB) as log:
        log.append_all([], Introduction(WEB, dump_id(1), kept.keys.host.made.der, NOW))
    checkpoint = kept.path / "audit" / str(WEB) / "checkpoint"
    signed = checkpoint.read_bytes()
    dump = begin(kept.store, dump_id(1), CORE)
    dump.finish(kept.keys.host.sign(kept.keys.host.manifest(dump_id(1), kept.store.store_id, CORE)))
    dump.close()
    if is_written:
        kept.logs.on_checkpoint = lambda host, size, root: None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(IncomingDump, "put_receipt", fail_with(errno.EIO))
            assert kept.committer.roll_forward()[0][1] is not None
        checkpoint.write_bytes(signed)
    kept.restart()

    kept.keeper.begin()
    said_at_the_start = kept.said()

    assert kept.committer.roll_forward() == [(f"{dump_id(1)} of {WEB}", None)]
    assert (said_at_the_start, kept.said()) == ([], [(str(WEB), 2)])


def test_all_that_has_changed_is_said_at_once(kept: Kept) -> None:
    """However many hosts, with three fsyncs; what has not changed is not said again."""
    for number, host in ((1, WEB), (2, WEB), (3, DB), (4, DB), (5, WEB)):
        kept.commit(number, host)
    before = kept.dumps_said()

    calls = calls_of(kept, kept.keeper.look)

    assert before == [(str(WEB), 1), (str(WEB), 2), (str(DB), 1)], "with a new host go all that have grown"
    assert sorted(kept.dumps_said()[3:]) == [(str(DB), 2), (str(WEB), 3)]
    assert fsyncs(calls) == 3
    assert calls_of(kept, kept.keeper.look) == []


def test_entries_say_where_the_log_stands(kept: Kept) -> None:
    """The first of a host what was before it; each what is durable by then, so a receipt vouches for all hosts that are known."""
    kept.commit(1)
    kept.commit(2, DB)
    kept.commit(3)

    assert [entry["wide_size"] for entry in kept.entries()] == [0, 2]
    assert [entry["wide_size"] for entry in kept.entries(DB)] == [1]
    head = kept.keeper.find_head()
    assert head is not None
    assert (head.size, head.root.hex()) == (2, kept.entries()[1]["wide_root"])


def test_a_full_disk_gives_no_receipt_and_loses_none(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a host is refused while it cannot be said, and is given when it can; the entry is written once."""
    kept.commit(1, DB)
    with monkeypatch.context() as patch:
        patch.setattr(WideLog, "say", fail_with(errno.ENOSPC))
        with pytest.raises(StorageError, match="no space"):
            kept.commit(2)
        assert not (kept.path / "incoming" / str(WEB) / str(dump_id(2)) / "receipt").exists()
        kept.commit(3, DB)
        kept.keeper.look()

    assert kept.committer.roll_forward() == [(f"{dump_id(2)} of {WEB}", None)]
    assert len(kept.entries()) == 1
    assert kept.dumps_said() == [(str(DB), 1), (str(WEB), 1), (str(DB), 2)]


def fail_with(number: int) -> Callable[..., None]:
    """Return what a disk does that refuses with this error."""

    def fail(*arguments: object) -> None:
        error = OSError(number, {errno.ENOSPC: "No space left on device"}.get(number, "Input/output error"))
        raise disk_refused(error, "cannot write") from error

    return fail


def damage(kept: Kept, how: str) -> None:
    """Spoil the log between two processes."""
    kept.commit(1)
    kept.close()
    place = kept.path / "audit" / "receiver"
    if how == "a flipped bit":
        flip(place / "entries.jsonl", 40)
    elif how == "no checkpoint":
        (place / "checkpoint").unlink()
    elif how == "a directory planted":
        (place / "checkpoint").unlink()
        (place / "checkpoint").mkdir()
    elif how == "a file in its place":
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
        place.write_bytes(b"")
    kept.restart()


@pytest.mark.parametrize("how", ["a flipped bit", "no checkpoint", "a directory planted", "a file in its place"])
def test_a_damaged_log_stops_no_host_and_is_told(how: str, kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """Hosts deliver, new ones too; nothing is written to it; the receiver says so at once and each hour, not at each dump."""
    damage(kept, how)
    place = kept.path / "audit" / "receiver"
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()} if place.is_dir() else {}

    kept.keeper.begin()
    receipts = [kept.commit(2), kept.commit(3, DB)]
    kept.keeper.look()

    assert all(receipts)
    assert "wide_size" not in kept.entries()[1]
    assert caplog.text.count("receiver-wide log is damaged") == 1
    kept.now_s += limits.DAMAGED_WIDE_LOG_EVERY_S
    kept.keeper.look()
    assert caplog.text.count("receiver-wide log is damaged") == 2
    assert {path: path.read_bytes() for path in before} == before


def test_a_log_that_a_dying_disk_refuses_stops_no_host(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What does not pass by itself is damage; once it is mended, what was not said is."""
    with monkeypatch.context() as patch:
        patch.setattr(WideLog, "say", fail_with(errno.EIO))
        kept.commit(1)
        kept.commit(2)
    assert caplog.text.count("receiver-wide log is damaged") == 1

    kept.now_s += limits.DAMAGED_WIDE_LOG_EVERY_S
    kept.keeper.look()

    assert kept.dumps_said() == [(str(WEB), 2)]


def test_a_store_from_before_gets_the_log_with_all_its_hosts(kept: Kept) -> None:
    """At the start, before anything is received."""
    for host in (WEB, DB):
        with kept.logs.using(host) as log:
            log.on_checkpoint = lambda size, root: None
    kept.commit(1)
    kept.commit(2, DB)
    kept.commit(3, DB)
    assert kept.dumps_said() == []
    kept.restart()

    kept.keeper.begin()

    assert sorted(kept.dumps_said()) == [(str(DB), 2), (str(WEB), 1)]


def test_what_a_crash_left_unsaid_is_said_at_the_start(kept: Kept) -> None:
    """It was killed before it looked; a log without a sound checkpoint is passed over, and an empty one."""
    kept.commit(1)
    kept.commit(2)
    kept.commit(3, DB)
    log_of(kept.logs, HostName("empty.example.org"))
    flip(kept.path / "audit" / str(DB) / "checkpoint", 90)
    kept.restart()

    kept.keeper.begin()

    assert kept.dumps_said() == [(str(WEB), 1), (str(WEB), 2), (str(DB), 1)]


def test_a_start_says_no_more_than_a_power_cut_would_leave(kept: Kept) -> None:
    """Killed when the checkpoint of a host had its name, and that was not durable yet: the start makes it so before it says it."""
    kept.commit(1)
    calls = list[str]()

    def end_behind_the_rename(call: str) -> None:
        if calls and calls[-1] == f"rename audit/{WEB}/checkpoint":
            raise Killed
        calls.append(call)

    disk = Disk(kept.path)
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        disk.before = end_behind_the_rename
        with pytest.raises(Killed):
            kept.commit(2)
        disk.before = lambda call: None
        kept.restart()
        kept.keeper.begin()
        survivors = disk.survivors()
    disk.close()

    assert kept.dumps_said() == [(str(WEB), 1), (str(WEB), 2)]
    assert (survivors[f"audit/{WEB}/checkpoint"] or b"").split(b"\n")[1] == b"3"


def test_a_hosts_log_that_was_put_back_is_told_and_not_said(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """Sizes never go down. Its host delivers all the same, until its log is longer than it was, or ever."""
    kept.commit(1)
    place = kept.path / "audit" / str(WEB)
    old = {name: (place / name).read_bytes() for name in ("entries.jsonl", "checkpoint")}
    kept.commit(2)
    kept.commit(3)
    kept.close()
    for name, data in old.items():
        (place / name).write_bytes(data)
    kept.restart()

    kept.keeper.begin()
    kept.commit(4)
    kept.keeper.look()

    assert caplog.text.count(f"audit log was put back host={WEB} entries=2: the receiver-wide log says that it had 4") == 1
    assert kept.dumps_said() == [(str(WEB), 1), (str(WEB), 3)]


def test_a_hosts_log_that_is_gone_is_told(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """At the start."""
    kept.commit(1)
    kept.close()
    for path in (kept.path / "audit" / str(WEB)).iterdir():
        path.unlink()
    (kept.path / "audit" / str(WEB)).rmdir()
    kept.restart()

    kept.keeper.begin()

    assert f"audit log is gone host={WEB} entries=2" in caplog.text


def test_hosts_that_come_at_once_are_all_said(kept: Kept) -> None:
    """By whichever thread is first; none gets its receipt before."""
    hosts = [HostName(f"host-{number}.example.org") for number in range(16)]
    unsaid: list[HostName] = []

    def append(host: HostName) -> None:
        with kept.logs.using(host) as log:
            log.append(received(1))
        if (str(host), 1) not in kept.said():
            unsaid.append(host)

    threads = [threading.Thread(target=append, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert unsaid == []
    assert sorted(kept.said()) == sorted((str(host), 1) for host in hosts)


def test_a_running_receiver_says_it_by_itself_and_at_its_end(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread looks again and again, and a clean stop leaves nothing unsaid."""
    store = tmp_path / "store"
    fill_store(fleet, store, [(SHORT, CORE), (SHORT, CORE)])
    entries = store / "audit" / "receiver" / "entries.jsonl"
    assert [json.loads(line)["size"] for line in entries.read_bytes().splitlines()] == [2, 3]
    monkeypatch.setattr(limits, "WIDE_LOG_EVERY_S", 0.01)
    with running_receiver(fleet.receiver, store) as receiver:
        receiver._keeper.note(HostName("other.example.org"), 1, bytes(32))
        receiver._keeper.note(HostName("other.example.org"), 2, bytes(32))
        wait_until(lambda: entries.read_bytes().count(b"\n") == 4 or None)


def test_a_command_that_appends_alone_says_it(fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where no receiver runs: what it has appended, and what nobody has said yet."""
    (dump,) = fill_store(fleet, tmp_path / "store", [(SHORT, CORE)])
    with open_store(str(tmp_path / "store")) as store:
        standalone.delete_alone(store, HostName(SENDER), dump, None, fleet.receiver, utc_now())

    entries = tmp_path / "store" / "audit" / "receiver" / "entries.jsonl"
    assert [json.loads(line)["size"] for line in entries.read_bytes().splitlines()] == [2, 3]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
