"""`verify` and `audit verify`: what they find wrong with a store, in words, in JSON and in their exit code."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from securecore.audit.checkpoint import LogSigner
from securecore.audit.entry import extracted_entry
from securecore.audit.log import HostLog
from securecore.audit.log_verification import Entered
from securecore.audit.proof import TlogProof, parse_proof
from securecore.certs.identity_directory import load_log_key
from securecore.cli import holdings, verify
from securecore.errors import BrokenError, IncompleteError
from securecore.merkle import leaf_hash
from securecore.names import DumpId, HostName
from securecore.receiver import standalone
from securecore.receiver.server import utc_now
from securecore.store.layout import Store, open_store
from tests.support.certificates import DOMAIN, Fleet
from tests.support.receivers import running_receiver
from tests.support.stores import CORE, CUT_CORE, DB, WEB, Commands, fill_store, flip

GONE = "every dump that was received or given up is in the store"
UNLOGGED = "every dump in the store has its entry"
RECEIPTS = "every dump's receipt proves its entry"
EARLIER = "the log contains every earlier checkpoint"


class Sample(Commands):
    """A store with three dumps of web-1, the second of them incomplete, and one of db-2."""

    dumps: list[DumpId]

    @property
    def first(self) -> Path:
        """The directory of web-1's first dump."""
        return self.dump(self.dumps[0])

    def failed(self, host: str = WEB) -> list[str]:
        """Return the checks of ``audit verify`` that do not hold for a host."""
        (document,) = [found for found in self.audit("--json").document if found["host"] == host]
        return [check["what"] for check in document["checks"] if check["ok"] is False]


@pytest.fixture(scope="module")
def template(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DumpId]]:
    """The store that each test gets a copy of, and its dumps."""
    store = tmp_path_factory.mktemp("template") / "store"
    return store, fill_store(fleet, store, [("web-1", CORE), ("web-1", CUT_CORE), ("web-1", b"third"), ("db-2", b"other")])


@pytest.fixture
def sample(template: tuple[Path, list[DumpId]], fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sample:
    """A copy of the store that the test may spoil."""
    store, dumps = template
    shutil.copytree(store, tmp_path / "store")
    made = Sample(tmp_path / "store", fleet, capsys)
    made.dumps = dumps
    return made


def test_an_honest_store_of_several_hosts_is_ok(sample: Sample) -> None:
    """Both commands say ok for every host and dump and leave with 0, an incomplete dump among them."""
    verified, audited = sample.verify("--all"), sample.audit()

    assert (verified.code, audited.code) == (0, 0)
    assert verified.out.count("  ok  ") == 4
    assert "incomplete (source-truncated)" in verified.out
    assert [f"{host}  ok  " in audited.out for host in (WEB, DB)] == [True, True]
    assert "BROKEN" not in verified.out + audited.out
    assert "FAIL" not in audited.out
    documents = sample.audit("--json").document
    assert [(found["host"], found["ok"], found["entries"]) for found in documents] == [(DB, True, 1), (WEB, True, 3)]
    assert [len(found["checks"]) for found in documents] == [8, 8]
    assert all(found[what] == [] for found in documents for what in ("gone", "unlogged", "unproved"))
    assert [found["ok"] for found in sample.verify("--all", "--json").document] == [True] * 4


def test_an_honest_store_is_ok_while_its_receiver_runs_and_after_an_extraction(sample: Sample, tmp_path: Path) -> None:
    """Entries that are newer than every receipt are no contradiction."""
    with running_receiver(sample.fleet.receiver, sample.store):
        assert sample.extract(sample.dumps[0], tmp_path / "core").code == 0
        assert (sample.verify("--all").code, sample.audit().code) == (0, 0)
    assert [found["entries"] for found in sample.audit("--json").document] == [1, 4]


def test_one_host_of_several(sample: Sample) -> None:
    """`--host` leaves the others alone, broken or not."""
    shutil.rmtree(sample.log(DB))

    assert (sample.audit("--host", "web-1").code, sample.audit("--host", "db-2").code) == (0, 6)
    assert sample.audit().code == 6, "web-1, which is ok, comes after db-2"
    assert sample.verify("--all", "--host", "web-1").out.count("  ok  ") == 3


def test_an_incomplete_dump_whose_evidence_holds_is_not_broken(sample: Sample) -> None:
    """Named by itself too it is ok, and labelled."""
    ran = sample.verify(sample.dumps[1])

    assert ran.code == 0
    assert ran.out.splitlines()[-1].split()[1:5] == ["ok", WEB, "incomplete", "(source-truncated),"]
    (document,) = sample.verify(sample.dumps[1], "--json").document
    assert (document["ok"], document["outcome"]) == (True, "source-truncated")


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.parametrize(
    ("name", "at"), [("core.zst", 100), ("core.zst", -5), ("manifest.jws", 200), ("receipt", -8), ("report.json", 3)]
)
def test_a_flipped_bit_in_a_dump_is_exit_code_6(sample: Sample, name: str, at: int, json_too: bool) -> None:
    """Whether the dump is named or all are, and no other dump is said to be broken."""
    flip(sample.first / name, at)
    options = ["--json"] if json_too else []

    one, everything = sample.verify(sample.dumps[0], *options), sample.verify("--all", *options)

    assert (one.code, everything.code) == (6, 6)
    if json_too:
        assert [found["id"] for found in everything.document if not found["ok"]] == [str(sample.dumps[0])]
        assert any(check["ok"] is False for check in one.document[0]["checks"])
    else:
        assert everything.out.count("BROKEN") == 1
        assert everything.out.count("  ok  ") == 3
        assert "FAIL" in one.out


def test_one_frame_is_one_frame(sample: Sample) -> None:
    """Numbers and nouns agree in the details of the checks; where the only frame is damaged, no other is said to be intact."""
    details = {check["detail"] for check in sample.verify(sample.dumps[2], "--json").document[0]["checks"]}
    assert {"1 frame", "1 entry", "1 frame, 5 bytes"} <= details

    flip(sample.dump(sample.dumps[2]) / "core.zst", 10)
    ran = sample.verify(sample.dumps[2])
    assert ("BROKEN" in ran.out, "intact" in ran.out) == (True, False)


def test_a_damaged_frame_is_named(sample: Sample) -> None:
    """With its place in the plaintext, and what is left."""
    flip(sample.first / "core.zst", 100)

    ran = sample.verify("--all")

    assert "frame 0 of 12 (plaintext 0 B to 1.0 MiB)" in ran.out
    assert "the other 11 frames are intact" in ran.out
    found = next(found for found in sample.verify("--all", "--json").document if found["id"] == str(sample.dumps[0]))
    assert [(damage["first_frame"], damage["last_frame"]) for damage in found["damage"]] == [(0, 0)]


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.parametrize(("name", "at"), [("entries.jsonl", 40), ("entries.jsonl", -1), ("checkpoint", 80), ("checkpoint", -5)])
def test_a_flipped_bit_in_a_log_is_exit_code_6(sample: Sample, name: str, at: int, json_too: bool) -> None:
    """And the other host's log is still ok."""
    flip(sample.log() / name, at)

    ran = sample.audit(*["--json"] * json_too)

    assert ran.code == 6
    if json_too:
        assert [(found["host"], found["ok"]) for found in ran.document] == [(DB, True), (WEB, False)]
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
    assert f"FAIL  {GONE}: {len(gone)} of 3 dumps are gone: {', '.join(gone)}" in audited.out
    assert sample.failed() == [GONE]
    assert [found["gone"] for found in sample.audit("--json").document] == [[], gone]
    again = sample.verify("--all", "--json")
    assert (again.code, [found["id"] for found in again.document if not found["ok"]]) == (6, gone)


def test_a_log_rolled_back_to_what_a_stored_receipt_holds_is_found(sample: Sample) -> None:
    """One entry, and the checkpoint of the first dump's own receipt: the log agrees with itself, not with the other receipts."""
    lines = (sample.log() / "entries.jsonl").read_bytes().splitlines(keepends=True)
    (sample.log() / "entries.jsonl").write_bytes(lines[0])
    (sample.log() / "checkpoint").write_bytes(parse_proof((sample.first / "receipt").read_bytes()).checkpoint)

    ran = sample.audit()

    assert ran.code == 6
    assert "the log has 1 entries, a kept checkpoint says 3: it was put back to an earlier state" in ran.out
    assert sample.failed() == [EARLIER, UNLOGGED]
    assert [found["unlogged"] for found in sample.audit("--json").document] == [[], sorted(map(str, sample.dumps[1:3]))]


def test_a_checkpoint_put_back_alone_is_found(sample: Sample) -> None:
    """All entries are there, but what is signed is less than what was signed."""
    (sample.log() / "checkpoint").write_bytes(parse_proof((sample.first / "receipt").read_bytes()).checkpoint)

    assert (sample.audit().code, sample.failed()) == (6, [EARLIER])


def test_a_history_signed_again_is_found(sample: Sample) -> None:
    """Whoever has the log key and writes another log of the same length contradicts the stored receipts."""
    shutil.rmtree(sample.log())
    sample.log().mkdir(mode=0o700)
    rewrite_log(sample, [extracted_entry(utc_now(), dump, HostName(WEB), uid=0, user="root") for dump in sample.dumps[:3]])

    ran = sample.audit()

    assert ran.code == 6
    assert "the first 1 entries are not those of a kept checkpoint" in ran.out
    assert sample.failed() == [EARLIER, UNLOGGED]


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

    assert [(found["host"], found["ok"]) for found in sample.audit("--json").document] == [(DB, False), (WEB, False)]
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
    unproved = sample.audit("--json").document[1]["unproved"]
    assert [found["dump"] for found in unproved] == [str(sample.dumps[0])]


def test_another_dump_in_the_place_of_one_is_not_that_one(sample: Sample) -> None:
    """Published with a manifest, but not the one that was received: the dump that the log knows is gone."""
    shutil.rmtree(sample.first)
    shutil.copytree(sample.dump(sample.dumps[2]), sample.first)

    assert GONE in sample.failed()
    assert sample.verify("--all").code == BrokenError.exit_code


def test_a_dump_that_is_deleted_meanwhile_is_no_damage(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """One before it was looked at, one between the look at the log and the look at the store: the others are verified."""
    real_verify, real_held, deleted = verify.verify_dump, holdings.is_held, []

    def delete_once(dump: DumpId) -> None:
        if dump not in deleted:
            deleted.append(dump)
            delete(sample, dump)

    def verify_dump(*arguments: Any, **words: Any) -> Any:
        delete_once(sample.dumps[1])
        return real_verify(*arguments, **words)

    def is_held(store: Store, host: HostName, entered: Entered) -> bool:
        delete_once(sample.dumps[2])
        return real_held(store, host, entered)

    shutil.move(sample.dump(sample.dumps[2]), sample.store / "incoming" / WEB / str(sample.dumps[2]))
    (sample.store / "incoming" / WEB / str(sample.dumps[2]) / "receipt").unlink()
    monkeypatch.setattr(verify, "verify_dump", verify_dump)
    monkeypatch.setattr(holdings, "is_held", is_held)

    ran = sample.verify("--all", "--host", "web-1", "--json")

    assert [found["id"] for found in ran.document] == [str(sample.dumps[0])]
    assert (ran.code, deleted) == (0, [sample.dumps[1], sample.dumps[2]])


@pytest.mark.parametrize(("names", "why"), [(("receipt",), "proves it yet"), (("receipt", "manifest.jws"), "still coming in")])
def test_a_dump_that_is_still_coming_in_is_not_broken(sample: Sample, names: tuple[str, ...], why: str) -> None:
    """There is nothing yet that could hold: it is incomplete, in words, also to show and extract."""
    dump = sample.dumps[0]
    for name in names:
        (sample.first / name).unlink()
    shutil.move(sample.first, sample.store / "incoming" / WEB / str(dump))

    ran, extracted = sample.verify(dump), sample.extract(dump, sample.store.parent / "core")

    assert (ran.code, extracted.code) == (IncompleteError.exit_code, IncompleteError.exit_code)
    assert why in ran.err
    assert "is incomplete (" in extracted.err
    assert sample("show", dump, "--json", "--no-analysis").document["state"] == "incomplete"


def test_deleted_dumps_are_counted_by_themselves(sample: Sample) -> None:
    """They are not in the store, and the log says so."""
    delete(sample, sample.dumps[2])

    (document,) = [found for found in sample.audit("--json").document if found["host"] == WEB]
    assert [check["detail"] for check in document["checks"] if check["what"] == GONE] == ["2 dumps, and 1 more that were deleted"]


def delete(sample: Sample, dump: DumpId) -> None:
    """Delete a dump of web-1, as its operator does where no receiver runs."""
    with open_store(str(sample.store)) as store:
        standalone.delete_alone(store, HostName(WEB), dump, None, sample.fleet.receiver, utc_now())


def test_a_dump_that_no_log_knows_is_found(sample: Sample) -> None:
    """A copy under another id is in the store and in no log."""
    stranger = DumpId.make(1, bytes(10))
    shutil.copytree(sample.first, sample.dump(stranger))

    assert sample.audit().code == 6
    assert sample.failed() == [RECEIPTS, UNLOGGED]
    assert sample.audit("--json").document[1]["unlogged"] == [str(stranger)]


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


def test_a_dump_damaged_under_incoming_is_verified_too(sample: Sample) -> None:
    """Moved away from the published ones with its receipt, and one bit flipped: `verify --all` looks there too."""
    incoming = sample.dump(sample.dumps[0], place="incoming")
    incoming.parent.mkdir(mode=0o700, exist_ok=True)
    sample.first.rename(incoming)
    flip(incoming / "core.zst", 100)

    assert sample.verify("--all").code == 6


ODD_ENTRIES: dict[str, dict[str, Any]] = {
    "no time": {"time": ""},
    "a time in no calendar": {"time": "2026-13-01T00:00:00Z"},
    "a time without a zone": {"time": "2026-11-22T09:14:22"},
    "a time before the first year": {"time": "0001-01-01T00:00:00+23:59"},
    "a size that is a text": {"size": "many"},
    "a size beyond every unit": {"size": 10**400},
    "a program that is a number": {"program": 7},
    "a state that moves the cursor": {"state": "\x1b[2J"},
    "a host that is a number": {"host": 1},
    "another host": {"host": DB},
    "a number of its own": {"entry": None},
}


@pytest.mark.parametrize("name", ODD_ENTRIES)
def test_an_entry_that_no_receiver_wrote_is_shown_all_the_same(name: str, sample: Sample) -> None:
    """`audit log` shows what stands in the log, one line each, and says nothing of its truth; whose log it is, the store knows."""
    lines = [json.dumps(sample.entries()[0] | ODD_ENTRIES[name], sort_keys=True, separators=(",", ":")), ""]
    (sample.log() / "entries.jsonl").write_text("\n".join(lines))

    ran = sample("audit", "log", "--host", WEB)

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.replace("\n", "").isprintable()
    (row,) = sample("audit", "log", "--host", WEB, "--json").document
    assert (row["entry"], row["host"], row["event"]) == (0, WEB, "received")


@pytest.mark.parametrize("time", ["", "x", "2026-11-22T09:14:22", "0001-01-01T00:00:00+23:59"])
def test_a_receipt_whose_entry_has_no_moment_vouches_for_no_certificate(time: str, sample: Sample) -> None:
    """The receiver's own key signed it, so it proves its entry; but when the certificate must have been valid nobody knows."""
    key, _ = load_log_key(sample.fleet.receiver)
    (fields, *_), name = sample.entries(), f"collector.{DOMAIN}/securecore"
    line = json.dumps(fields | {"time": time}, sort_keys=True, separators=(",", ":")).encode()
    proof = TlogProof(0, (), LogSigner(name, key).sign(f"{name}/{WEB}", 1, leaf_hash(line)), line)
    (sample.first / "receipt").write_bytes(proof.encode())

    shown, verified = sample("show", sample.dumps[0]), sample.verify(sample.dumps[0])

    assert (shown.code, verified.code) == (0, 6)
    assert "time" in shown.out
    assert "Traceback" not in shown.err + verified.err


def test_an_empty_store_has_nothing_to_verify(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A receiver that nobody has sent anything to has an honest store."""
    with running_receiver(fleet.receiver, tmp_path / "store"):
        pass
    commands = Commands(tmp_path / "store", fleet, capsys)

    assert commands.audit() == (0, "no audit logs, and no dumps\n", "")
    assert commands.verify("--all") == (0, "", "")
    assert commands.audit("--json").document == commands.verify("--all", "--json").document == []
