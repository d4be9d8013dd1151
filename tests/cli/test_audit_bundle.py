"""``audit prove`` and ``audit check``: evidence that leaves a store, and is checked where there is none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from securecore.dump.reader import open_container
from securecore.names import DumpId, HostName
from securecore.store.layout import open_store
from tests.support.dumps import begin
from tests.support.receivers import new_dump_id, running_receiver
from tests.support.stores import CORE, DB, WEB, flip, give_up
from tests.support.third_parties import Evidence

REPORT: Final = "the report is the one that was sent"


def left_out(document: dict[str, Any]) -> list[str]:
    """Return the checks that were not made."""
    return [check["what"] for check in document["checks"] if check["ok"] is None]


def test_who_has_the_root_alone_learns_who_sent_what_and_when(evidence: Evidence) -> None:
    """With the store gone: host, dump, receiver, length, root, time, and that the host has signed it."""
    dump = evidence.sample.dumps[0]
    made = evidence.prove(dump)
    assert (made.code, made.err) == (0, "")
    assert made.out == (
        f"{dump.short}  bundle of {WEB} written to {evidence.path}: FORMAT, log-key.jws, receipt, manifest.jws, crls\n"
    )
    entry = evidence.sample.entries()[0]
    shutil.rmtree(evidence.sample.store)
    ran = evidence.check()
    assert (ran.code, ran.err) == (0, "")
    assert f"{dump.short}  ok  {WEB}  complete, 11.0 MiB in 12 frames, signed by the host, received " in ran.out
    assert f"root  {entry['root']}" in ran.out
    found = evidence.document()
    expected = {"id": str(dump), "host": WEB, "receiver": f"collector.{WEB.partition('.')[2]}", "size": len(CORE), "frames": 12}
    assert expected.items() <= found.items()
    assert (found["logged_at"], found["root"], found["is_signed_by_host"]) == (entry["time"], entry["root"], True)
    assert (found["event"], found["deletion"], left_out(found)) == ("received", None, [REPORT])


def test_members_are_the_stores_files_byte_for_byte(evidence: Evidence) -> None:
    """But for the receipt: it proves the same entry under the log's newest checkpoint."""
    store, path = evidence.sample.store, evidence.sample.first
    evidence.prove(evidence.sample.dumps[0], "--with-report")
    bundle = evidence.read()
    assert bundle.log_key == (store / "log-key.jws").read_bytes()
    assert bundle.manifest == (path / "manifest.jws").read_bytes()
    assert bundle.report == (path / "report.json").read_bytes()
    (lists,) = (store / "crls").iterdir()
    assert bundle.lists == (lists.stem, lists.read_bytes())
    assert bundle.receipt.endswith(b"\n\n" + (evidence.sample.log() / "checkpoint").read_bytes())


def test_the_report_goes_along_only_when_it_is_asked_for(evidence: Evidence) -> None:
    """Words of the process stand in it."""
    evidence.prove(evidence.sample.dumps[0])
    assert evidence.read().report is None
    evidence.path.unlink()
    assert evidence.prove(evidence.sample.dumps[0], "--with-report").code == 0
    assert left_out(evidence.document()) == []


def test_the_same_evidence_makes_the_same_bundle(evidence: Evidence) -> None:
    """Also on standard output; and any part of an id means its dump."""
    dump = evidence.sample.dumps[0]
    assert evidence.prove(dump).code == 0
    first = evidence.path.read_bytes()
    evidence.path.unlink()
    assert evidence.prove(dump.short, "--host", "web-1").code == 0
    assert evidence.path.read_bytes() == first
    assert evidence.path.stat().st_mode & 0o777 == 0o600


def test_it_goes_through_pipes(evidence: Evidence) -> None:
    """From one command's standard output into the other's standard input, and nothing else on it."""
    program = [sys.executable, "-m", "securecore.cli.main", "audit"]
    command = [*program, "prove", str(evidence.sample.dumps[0]), "-o", "-", "--store", str(evidence.sample.store)]
    made = subprocess.run(command, capture_output=True, check=True)
    assert made.stderr.startswith(b"verified up to the store's own copy of the root")
    command = [*program, "check", "-", "--root", str(evidence.root)]
    assert b"  ok  " in subprocess.run(command, input=made.stdout, capture_output=True, check=True).stdout


def test_a_dump_that_is_incomplete_is_proved_as_what_it_is(evidence: Evidence) -> None:
    """Its host has said so, and signed it."""
    assert evidence.prove(evidence.sample.dumps[1]).code == 0
    assert "source-truncated, " in evidence.check().out
    assert evidence.document()["outcome"] == "source-truncated"


def test_of_a_dump_that_was_given_up_the_receivers_word_is_proved(evidence: Evidence) -> None:
    """And that nobody else's is, is said."""
    dump = give_up(evidence.sample.fleet, evidence.sample.store, CORE)
    assert evidence.prove(dump, "--with-report").code == 0
    assert evidence.read().manifest is None
    ran = evidence.check()
    assert ran.code == 0
    assert "given up " in ran.out
    assert "whose word alone it is" in ran.out
    found = evidence.document()
    assert (found["event"], found["is_signed_by_host"], found["size"]) == ("incomplete", False, len(CORE))


def test_of_a_deleted_dump_is_proved_that_it_was_there_and_went(evidence: Evidence) -> None:
    """By the log: its manifest and report are gone, and that is said."""
    dump = evidence.sample.dumps[0]
    evidence.sample.delete(dump)
    ran = evidence.prove(dump.short, "--with-report")
    assert (ran.code, ran.err) == (0, f"note: the report of {dump.short} was deleted with it\n")
    ran = evidence.check()
    assert ran.code == 0
    assert "whose word alone it is; deleted " in ran.out
    found = evidence.document()
    assert (found["event"], found["is_signed_by_host"], found["id"]) == ("received", False, str(dump))
    entry = evidence.sample.entries()[-1]
    assert found["deletion"] == {"logged_at": entry["time"], **{name: entry[name] for name in ("uid", "user", "reason")}}
    assert f" UTC by {entry['user'] or entry['uid']}\n" in ran.out


def test_a_bundle_from_before_a_deletion_still_holds(evidence: Evidence) -> None:
    """It says what was true then; nobody can prove to somebody without the log that nothing newer is in it."""
    assert evidence.prove(evidence.sample.dumps[0]).code == 0
    evidence.sample.delete(evidence.sample.dumps[0])
    assert evidence.document()["deletion"] is None


def test_it_is_made_beside_a_running_receiver(evidence: Evidence) -> None:
    """Which needs not be asked."""
    with running_receiver(evidence.sample.fleet.receiver, evidence.sample.store):
        assert evidence.prove(evidence.sample.dumps[0]).code == 0
    assert evidence.check().code == 0


def test_what_is_still_coming_in_has_nothing_to_prove(evidence: Evidence) -> None:
    """The log speaks of it when it was received, or given up."""
    dump = new_dump_id()
    with open_store(str(evidence.sample.store)) as store:
        begin(store, dump, CORE, host=HostName(WEB)).close()
    ran = evidence.prove(dump)
    assert (ran.code, ran.out) == (7, "")
    assert ran.err.startswith(f"securecore: {dump.short} is still coming in\n  hint: ")
    assert not evidence.path.exists()


def test_nor_has_what_was_deleted_before_it_had_come_in(evidence: Evidence) -> None:
    """But that."""
    dump = new_dump_id()
    with open_store(str(evidence.sample.store)) as store:
        begin(store, dump, CORE, host=HostName(WEB)).close()
    evidence.sample.delete(dump)
    ran = evidence.prove(dump)
    assert ran.code == 4
    assert f"{dump.short} was deleted before it had come in" in ran.err


def test_what_nobody_knows_is_not_found(evidence: Evidence) -> None:
    """No dump, no host."""
    assert evidence.prove(new_dump_id()).code == 4
    assert evidence.prove(evidence.sample.dumps[0], "--host", "nobody").code == 4
    assert not evidence.path.exists()


def test_nothing_is_written_over(evidence: Evidence) -> None:
    """The file that stands there stays."""
    evidence.path.write_bytes(b"mine")
    ran = evidence.prove(evidence.sample.dumps[0])
    assert (ran.code, ran.err.splitlines()[0]) == (5, f"securecore: {evidence.path}: already exists")
    assert evidence.path.read_bytes() == b"mine"


def test_a_bundle_that_is_none_is_one_line(evidence: Evidence) -> None:
    """Cut, continued, or something else; with the file's name, and as JSON where that is asked for."""
    evidence.prove(evidence.sample.dumps[0])
    whole = evidence.path.read_bytes()
    for data in (whole[:-1], whole + b"x", b"", b"not a tar"):
        evidence.path.write_bytes(data)
        ran = evidence.check()
        assert (ran.code, ran.out) == (6, "")
        assert ran.err.startswith(f"securecore: {evidence.path}: not a bundle: ")
    assert json.loads(evidence.check("--json").out)["error"]["exit_code"] == 6
    evidence.path.unlink()
    assert evidence.check().code == 4
    evidence.path.mkdir()
    assert evidence.check().code == 3


def test_a_core_is_checked_with_it(evidence: Evidence, tmp_path: Path) -> None:
    """As it lies in the store; a changed one, another one's, and one in plaintext are no such core."""
    sample = evidence.sample
    evidence.prove(sample.dumps[0])
    core = sample.first / "core.zst"
    ran = evidence.check("--core", core)
    assert ran.code == 0
    assert "ok    the frames give the signed Merkle root" in ran.out
    with core.open("rb") as file:
        (tmp_path / "plain").write_bytes(b"".join(open_container(file.fileno()).pieces()))
    flip(core, 2_000_000)
    ran = evidence.check("--core", core, "--json")
    assert (ran.code, ran.document["damage"][0]["first_frame"]) == (6, 1)
    assert evidence.check("--core", sample.dump(sample.dumps[2]) / "core.zst").code == 6
    assert (tmp_path / "plain").read_bytes() == CORE
    ran = evidence.check("--core", tmp_path / "plain")
    assert ran.code == 6
    assert "NOT PROVED" in ran.out
    assert "of plaintext nothing but the length can be compared" in ran.out


@pytest.mark.parametrize(("kind", "code"), [("missing", 4), ("directory", 3), ("fifo", 3)])
def test_what_is_no_file_is_no_core(kind: str, code: int, evidence: Evidence, tmp_path: Path) -> None:
    """Nothing waits for the other end of a FIFO."""
    evidence.prove(evidence.sample.dumps[0])
    if kind == "directory":
        (tmp_path / "core").mkdir()
    elif kind == "fifo":
        os.mkfifo(tmp_path / "core")
    assert evidence.check("--core", tmp_path / "core").code == code


def test_a_core_that_cannot_be_read_is_named(evidence: Evidence) -> None:
    """A regular file whose bytes the system refuses to give, as a bad disk does."""
    evidence.prove(evidence.sample.dumps[0])
    ran = evidence.check("--core", "/proc/self/mem")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == "securecore: /proc/self/mem: input/output error\n"


def test_hostile_names_are_shown_as_text(evidence: Evidence) -> None:
    """What members a bundle claims to have comes from a stranger."""
    evidence.path.write_bytes(b"\x1b[2Jx".ljust(512, b"\0") + bytes(1024))
    ran = evidence.check()
    assert ran.code == 6
    assert "\x1b" not in ran.err


def test_hosts_of_one_id_are_told_apart(evidence: Evidence) -> None:
    """Of another host the same command proves its own dump."""
    assert evidence.prove(evidence.sample.dumps[3], "--host", "db-2").code == 0
    assert (evidence.document()["host"], DumpId.parse(evidence.document()["id"])) == (DB, evidence.sample.dumps[3])
