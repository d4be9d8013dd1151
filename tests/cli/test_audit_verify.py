"""`audit verify`: a log that does not hold, and a store that is not what its logs say, in words, in JSON and in the exit code."""

import os
import shutil
from collections.abc import Callable

import pytest

from securecore.audit.checkpoint import LogSigner
from securecore.audit.entry import deleted_entry, extracted_entry
from securecore.audit.log import HostLog
from securecore.audit.proof import parse_proof
from securecore.certs.identity_directory import load_log_key
from securecore.cli import holdings
from securecore.errors import BrokenError
from securecore.names import DumpId, HostName
from securecore.receiver.server import utc_now
from securecore.store.layout import Place, Store
from tests.support.certificates import DOMAIN
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.samples import AS_SAID, EARLIER, GONE, RECEIPTS, UNLOGGED, Sample
from tests.support.stores import DB, WEB, flip


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.parametrize(("name", "at"), [("entries.jsonl", 40), ("entries.jsonl", -1), ("checkpoint", 80), ("checkpoint", -5)])
def test_a_flipped_bit_in_a_log_is_exit_code_6(sample: Sample, name: str, at: int, json_too: bool) -> None:
    """And the other host's log is still ok."""
    flip(sample.log() / name, at)

    ran = sample.audit(*["--json"] * json_too)

    assert ran.code == 6
    if json_too:
        assert [(found["host"], found["ok"]) for found in ran.document if found["host"]] == [(DB, True), (WEB, False)]
    else:
        assert f"{DB}  ok  " in ran.out
        assert f"{WEB}  BROKEN  " in ran.out


@pytest.mark.parametrize("remove_all", [False, True])
def test_a_removed_dump_is_noticed_by_both_commands(sample: Sample, remove_all: bool) -> None:
    """The log says what was received; what is gone is named, with exit code 6."""
    gone = sorted(map(str, sample.dumps[:3] if remove_all else sample.dumps[:1]))
    for dump in gone:
        shutil.rmtree(sample.store / "hosts" / WEB / dump)
    if remove_all:
        (sample.store / "hosts" / WEB).rmdir()

    verified, audited = sample.verify("--all"), sample.audit()

    assert (verified.code, audited.code) == (6, 6)
    assert [f"{dump[-8:]}  GONE  {WEB}" in verified.out for dump in gone] == [True] * len(gone)
    are = "are" if remove_all else "is"
    named = ", ".join(f"{dump} (it is not there)" for dump in gone)
    assert f"FAIL  {GONE}: {len(gone)} of 3 dumps {are} not: {named}"[:200] in audited.out
    assert sample.failed() == [GONE]
    assert [found["gone"] for found in sample.logs()] == [[], gone]
    again = sample.verify("--all", "--json")
    assert (again.code, [found["id"] for found in again.document if not found["ok"]]) == (6, gone)


@pytest.mark.parametrize("leaves", ["nothing", "a directory on its way out", "the dump on its way out"])
def test_a_deletion_that_nobody_has_signed_explains_nothing(leaves: str, sample: Sample) -> None:
    """Written by who has no log key and removed the dump: no command believes it, no receiver signs it or removes a dump by it."""
    dump, aside = sample.dumps[0], sample.dump(sample.dumps[0], place="deleting")
    aside.parent.mkdir(parents=True, mode=0o700)
    if leaves == "the dump on its way out":
        sample.first.rename(aside)
    else:
        shutil.rmtree(sample.first)
    if leaves == "a directory on its way out":
        aside.mkdir(mode=0o700)
    with (sample.log() / "entries.jsonl").open("ab") as entries:
        entries.write(deleted_entry(utc_now(), dump, HostName(WEB), uid=1000, user="anna", reason=None) + b"\n")
    is_lost = leaves != "the dump on its way out"
    expected = (6, 6, [GONE]) if is_lost else (0, 0, [])

    before = sample.audit().code, sample.verify("--all").code, sample.failed()
    with running_receiver(sample.fleet.receiver, sample.store) as receiver:
        assert send_bytes(b"one more", papers_of(sample.fleet.hosts["web-1"]), receiver.addresses, dump=new_dump_id()).receipt
    after = sample.audit().code, sample.verify("--all").code, sample.failed()

    assert before == after == expected
    assert sample.first.exists() is not is_lost
    assert [entry for entry in sample.entries() if entry["event"] == "deleted"] == []


def test_a_checkpoint_put_back_alone_is_found(sample: Sample) -> None:
    """All entries are there, but what is signed is less than what was signed."""
    (sample.log() / "checkpoint").write_bytes(parse_proof((sample.first / "receipt").read_bytes()).checkpoint)

    assert (sample.audit().code, sample.failed()) == (6, [EARLIER, AS_SAID])


def test_a_history_signed_again_is_found(sample: Sample) -> None:
    """Whoever has the log key and writes another log of the same length contradicts the stored receipts."""
    shutil.rmtree(sample.log())
    sample.log().mkdir(mode=0o700)
    dumps = [*sample.dumps[:3], sample.dumps[0]]
    rewrite_log(sample, [extracted_entry(utc_now(), dump, HostName(WEB), uid=0, user="root") for dump in dumps])

    ran = sample.audit()

    assert ran.code == 6
    assert "the log does not begin as it did under a kept checkpoint of 2 entries" in ran.out
    assert sample.failed() == [EARLIER, AS_SAID, UNLOGGED]


def rewrite_log(sample: Sample, entries: list[bytes]) -> None:
    """Append to web-1's log with the receiver's own key."""
    key, _ = load_log_key(sample.fleet.receiver)
    name = f"collector.{DOMAIN}/securecore"
    fd = os.open(sample.log(), os.O_RDONLY | os.O_DIRECTORY)
    log = HostLog.open(fd, f"{name}/{WEB}", LogSigner(name, key))
    log.append_all(entries)
    log.close()
    os.close(fd)


@pytest.mark.parametrize("keep_directory", [False, True])
def test_a_removed_log_is_found(sample: Sample, keep_directory: bool) -> None:
    """A host whose dumps are there and whose log is not is verified too, and broken."""
    shutil.rmtree(sample.log())
    if keep_directory:
        sample.log().mkdir(mode=0o700)

    ran = sample.audit()

    assert ran.code == 6
    assert f"{WEB}  BROKEN  0 entries" in ran.out
    assert ("checkpoint is missing" if keep_directory else "the audit log is missing") in ran.out
    assert {EARLIER, UNLOGGED} <= set(sample.failed())
    assert sample.audit("--host", "web-1").code == 6


def test_all_logs_removed_is_found(sample: Sample) -> None:
    """Without the whole directory of logs, each host with dumps is broken."""
    shutil.rmtree(sample.store / "audit")

    assert [(found["host"], found["ok"]) for found in sample.logs()] == [(DB, False), (WEB, False)]
    assert sample.audit().code == 6


def test_dumps_and_log_removed_but_for_the_hosts_directory_is_found(sample: Sample) -> None:
    """A host's directory is made when its first dump is published, so it is never there without a log."""
    shutil.rmtree(sample.log())
    for dump in sample.dumps[:3]:
        shutil.rmtree(sample.dump(dump))

    assert sample.audit().code == 6


@pytest.mark.parametrize("how", ["missing", "damaged", "another's"])
def test_a_receipt_that_does_not_hold_is_named(sample: Sample, how: str) -> None:
    """Each dump has its own receipt, and `audit verify` says whose does not hold."""
    receipt = sample.first / "receipt"
    spoil: dict[str, Callable[[], object]] = {
        "missing": receipt.unlink,
        "damaged": lambda: flip(receipt, -8),
        "another's": lambda: shutil.copy(sample.dump(sample.dumps[2]) / "receipt", receipt),
    }
    spoil[how]()

    ran = sample.audit()

    assert (ran.code, sample.failed()) == (6, [RECEIPTS])
    assert f"dump {sample.dumps[0]}: " in ran.out
    unproved = sample.logs()[1]["unproved"]
    assert [found["dump"] for found in unproved] == [str(sample.dumps[0])]


def test_another_dump_in_the_place_of_one_is_not_that_one(sample: Sample) -> None:
    """Published with a manifest, but not the one that was received: the dump that the log knows is gone."""
    shutil.rmtree(sample.first)
    shutil.copytree(sample.dump(sample.dumps[2]), sample.first)

    assert GONE in sample.failed()
    assert sample.verify("--all").code == BrokenError.exit_code


def test_deleted_dumps_are_counted_by_themselves(sample: Sample) -> None:
    """They are not in the store, and the log says so; one of them was deleted, two were."""
    sample.delete(sample.dumps[2])

    (document,) = [found for found in sample.logs() if found["host"] == WEB]
    assert [check["detail"] for check in document["checks"] if check["what"] == GONE] == ["2 dumps, and 1 more that was deleted"]


def put_back(sample: Sample, dump: DumpId) -> None:
    """Delete a dump and put a copy of it back, as whoever has a backup may do."""
    shutil.copytree(sample.dump(dump), sample.store.parent / "backup")
    sample.delete(dump)
    shutil.copytree(sample.store.parent / "backup", sample.dump(dump))


def test_a_deleted_dump_that_was_put_back_is_noticed_by_both_commands(sample: Sample) -> None:
    """Its papers hold, but the log says that it is not there any more, and who wanted that; also where it is verified alone."""
    dump = sample.dumps[0]
    put_back(sample, dump)

    audited, verified, one = sample.audit(), sample.verify("--all"), sample.verify("--all", "--json")
    alone, quick = sample.verify(dump), sample.verify(dump.short, "--quick", "--json")

    assert (audited.code, verified.code, one.code, alone.code, quick.code) == (6,) * 5
    assert sample.failed() == [UNLOGGED]
    assert f"published, and the log says that it was deleted: {dump}" in audited.out
    words = f"{dump.short}  BROKEN  {WEB}  the log says that it is in the store: it says that it was deleted"
    assert words in verified.out
    assert words in alone.out
    assert [found["id"] for found in one.document if not found["ok"]] == [str(dump)]
    assert [(found["id"], found["ok"]) for found in quick.document] == [(str(dump), False)]
    (document,) = [found for found in sample.logs() if found["host"] == WEB]
    assert document["restored"] == [str(dump)]


def test_a_dump_that_is_received_again_after_its_deletion_is_in_order(sample: Sample) -> None:
    """The deletion is not the newest that the log says of it."""
    put_back(sample, sample.dumps[0])
    incoming = sample.dump(sample.dumps[0], place="incoming")
    incoming.parent.mkdir(mode=0o700, exist_ok=True)
    sample.first.rename(incoming)
    (incoming / "receipt").unlink()
    with running_receiver(sample.fleet.receiver, sample.store):
        pass

    assert sample.first.exists()
    assert (sample.audit().code, sample.verify("--all").code) == (0, 0)


def test_a_dump_that_is_deleted_behind_the_look_at_the_store_was_not_put_back(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the dumps were listed, and the log says by now that it was deleted."""
    real, done = holdings.published_dumps, []

    def published_dumps(store: Store, host: HostName) -> list[DumpId]:
        found = real(store, host)
        if not done:
            done.append(sample.delete(sample.dumps[0]))
        return found

    monkeypatch.setattr(holdings, "published_dumps", published_dumps)

    assert sample.verify("--all", "--host", WEB).code == 0
    assert done


def test_a_dump_that_is_received_behind_the_look_at_the_log_was_not_put_back(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and the log says by then that it was received once more."""
    put_back(sample, sample.dumps[0])
    real, done, log = Store.find_place, [], sample.log() / "entries.jsonl"

    def find_place(store: Store, host: HostName, dump: DumpId) -> Place | None:
        if dump == sample.dumps[0] and not done:
            entries = log.read_bytes().splitlines(keepends=True)
            done.append(log.write_bytes(b"".join([*entries, entries[1]])))
        return real(store, host, dump)

    monkeypatch.setattr(Store, "find_place", find_place)

    assert sample.verify("--all", "--host", WEB).code == 0
    assert done


def test_a_dump_that_no_log_knows_is_found(sample: Sample) -> None:
    """A copy under another id is in the store and in no log."""
    stranger = DumpId.make(1, bytes(10))
    shutil.copytree(sample.first, sample.dump(stranger))

    assert sample.audit().code == 6
    assert sample.failed() == [RECEIPTS, UNLOGGED]
    assert sample.logs()[1]["unlogged"] == [str(stranger)]


def test_a_dump_that_a_crash_kept_from_being_published_is_not_gone(sample: Sample) -> None:
    """Its entry is written, its directory still under incoming: honest, as the next start of the receiver shows."""
    incoming = sample.dump(sample.dumps[2], place="incoming")
    incoming.parent.mkdir(mode=0o700, exist_ok=True)
    sample.dump(sample.dumps[2]).rename(incoming)
    assert (sample.verify("--all").code, sample.audit().code) == (0, 0)
    assert str(sample.dumps[2]) in {found["id"] for found in sample.verify("--all", "--json").document}
    (incoming / "receipt").unlink()
    assert (sample.verify("--all").code, sample.audit().code) == (0, 0)
    with running_receiver(sample.fleet.receiver, sample.store):
        pass

    assert sample.dump(sample.dumps[2]).is_dir()
    assert (sample.verify("--all").code, sample.audit().code) == (0, 0)


@pytest.mark.parametrize("name", ["core.zst", "manifest.jws"])
def test_a_dump_that_was_hollowed_out_under_incoming_is_gone(sample: Sample, name: str) -> None:
    """A directory of the right name does not stand for a dump: manifest and length are those of the entry."""
    incoming = sample.dump(sample.dumps[2], place="incoming")
    incoming.parent.mkdir(mode=0o700, exist_ok=True)
    sample.dump(sample.dumps[2]).rename(incoming)
    (incoming / name).write_bytes(b"")
    (incoming / "receipt").unlink()

    assert (sample.verify("--all").code, sample.audit().code) == (6, 6)
    assert sample.failed() == [GONE]


@pytest.mark.parametrize("place", ["hosts", "incoming"])
def test_a_dump_without_its_core_is_not_in_the_store(place: str, sample: Sample) -> None:
    """Its receipt is there and holds, and proves that there was one."""
    (sample.first / "core.zst").unlink()
    if place == "incoming":
        incoming = sample.dump(sample.dumps[0], place="incoming")
        incoming.parent.mkdir(mode=0o700, exist_ok=True)
        sample.first.rename(incoming)

    ran = sample.audit()

    assert (ran.code, sample.failed()) == (6, [GONE])
    assert f"1 of 3 dumps is not: {sample.dumps[0]} (core.zst is missing or empty)" in ran.out
    assert sample.logs()[1]["gone"] == [str(sample.dumps[0])]


def test_another_dumps_files_behind_a_receipt_are_not_that_dump(sample: Sample) -> None:
    """The receipt holds, and core and manifest, sound in themselves, are not those of its entry."""
    for name in ("core.zst", "manifest.jws", "report.json"):
        shutil.copy(sample.dump(sample.dumps[2]) / name, sample.first / name)

    ran = sample.audit()

    assert (ran.code, sample.failed()) == (6, [GONE])
    assert f"{sample.dumps[0]} (its manifest is not the one that was received)" in ran.out


def test_a_core_of_another_length_is_found_without_reading_it(sample: Sample) -> None:
    """That its bytes are the same is for `verify`; that they are as many is in the entry."""
    with (sample.first / "core.zst").open("ab") as file:
        file.write(b"x")

    ran, length = sample.audit(), sample.entries()[0]["stored_bytes"]

    assert (ran.code, sample.failed()) == (6, [GONE])
    assert f"{sample.dumps[0]} (core.zst has {length + 1} bytes, the entry says {length})" in ran.out


def test_numbers_and_nouns_agree(sample: Sample) -> None:
    """One and several of what is counted."""
    sample.delete(sample.dumps[1])
    sample.delete(sample.dumps[2])
    shutil.copytree(sample.first, sample.dump(DumpId.make(1, bytes(10))))

    out = sample.audit("--host", "web-1").out

    assert "1 dump, and 2 more that were deleted" in out
    assert "1 dump has no entry" in out
