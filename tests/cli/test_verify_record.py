"""`verify --record`: who verified what, and what was found, in the host's log; without it nothing is written."""

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.errors import PeerError, StorageError
from securecore.names import DumpId, HostName
from securecore.receiver import control, findings
from securecore.receiver.findings import Finding
from securecore.store.layout import open_store
from tests.support.dumps import dump_id
from tests.support.receivers import running_receiver
from tests.support.samples import Sample
from tests.support.stores import DB, WEB, files_of, flip

ME = pwd.getpwuid(os.getuid()).pw_name


def recorded(sample: Sample, host: str = WEB) -> list[tuple[str, str, Any]]:
    """Return what a host's log says of verifications."""
    entries = [entry for entry in sample.entries(host) if entry["event"] == "verified"]
    assert all((entry["uid"], entry["user"]) == (os.getuid(), ME) for entry in entries)
    return [(entry["dump"], entry["result"], entry["problem"]) for entry in entries]


def record(sample: Sample, *arguments: object) -> Any:
    """Run `verify --record` with the receiver's identity."""
    return sample.verify(*arguments, "--record", "--identity", sample.fleet.receiver)


@pytest.mark.parametrize("runs", [False, True], ids=["no receiver", "beside a receiver"])
def test_what_was_found_of_every_dump_is_on_record(runs: bool, sample: Sample) -> None:
    """By the receiver that runs, else under the store's lock: each with who it was, and what does not hold."""
    flip(sample.first / "core.zst", 100)
    if runs:
        with running_receiver(sample.fleet.receiver, sample.store):
            ran = sample.verify("--all", "--record")
    else:
        ran = record(sample, "--all")
    assert ran.code == 6
    broken, *whole = recorded(sample)
    assert broken[:2] == (str(sample.dumps[0]), "broken")
    assert "plaintext 0 B to 1.0 MiB, bytes 0 to 1048575" in str(broken[2])
    assert whole == [(str(dump), "ok", None) for dump in sample.dumps[1:3]]
    assert recorded(sample, DB) == [(str(sample.dumps[3]), "ok", None)]
    assert sample.audit().code == 0


def test_one_dump_is_recorded_by_itself(sample: Sample) -> None:
    """The others are not spoken of; where the dump stands is not changed by it, and the entry is shown."""
    assert record(sample, sample.dumps[0]).code == 0
    assert recorded(sample) == [(str(sample.dumps[0]), "ok", None)]
    shown = sample("audit", "log", "--host", WEB).out.splitlines()[-1].split(maxsplit=6)
    assert shown[4:] == ["verified", sample.dumps[0].short, f"all of it holds, by {ME}"]
    assert (sample.verify("--all").code, sample.audit().code) == (0, 0)


def test_a_dump_that_is_gone_is_recorded(sample: Sample) -> None:
    """With --all: that it is not there is what was found."""
    for path in sample.first.iterdir():
        path.unlink()
    sample.first.rmdir()
    assert record(sample, "--all").code == 6
    (found,) = [each for each in recorded(sample) if each[1] == "broken"]
    assert found == (str(sample.dumps[0]), "broken", "not in the store as the audit log says: it is not there")


@pytest.mark.parametrize("runs", [False, True], ids=["no receiver", "beside a receiver"])
def test_a_host_whose_log_takes_nothing_keeps_no_other_from_being_verified(runs: bool, sample: Sample) -> None:
    """Its log is gone, or damaged: all others are verified and recorded, and the end says of which host nothing is."""
    flip(sample.log(DB) / "entries.jsonl", 40)
    flip(sample.first / "core.zst", 100)
    if runs:
        with running_receiver(sample.fleet.receiver, sample.store):
            ran = sample.verify("--all", "--record")
    else:
        ran = record(sample, "--all")
    assert ran.code == 6
    assert [dump.short in ran.out for dump in sample.dumps] == [True] * 4
    assert [dump for dump, _, _ in recorded(sample)] == [str(dump) for dump in sample.dumps[:3]]
    assert f"not recorded of {DB}: " in ran.err
    assert "are not those that were signed" in ran.err


def test_without_record_nothing_is_written(sample: Sample) -> None:
    """Not a byte; and no identity is asked for."""
    before = files_of(sample.store)
    assert sample.verify("--all", "--identity", "/nowhere").code == 0
    assert files_of(sample.store) == before
    assert recorded(sample) == []


def test_who_may_not_append_is_told_what_to_do(sample: Sample, tmp_path: Path) -> None:
    """Without a receiver and its identity the outcome is printed, and the record is an error."""
    ran = sample.verify(sample.dumps[0], "--record", "--identity", tmp_path / "nothing")
    assert ran.code == 4
    assert "  ok  " in ran.out
    assert "name its identity with --identity" in ran.err
    assert recorded(sample) == []


def test_a_dump_that_its_log_does_not_know_gets_no_entry_and_the_others_do(sample: Sample) -> None:
    """A copy under an id of its own: it is broken, and the command says that it is not recorded."""
    stranger = DumpId.make(1, bytes(10))
    sample.first.rename(sample.first.with_name(str(stranger)))
    ran = record(sample, "--all")
    assert ran.code == 6
    assert f"not recorded: the audit log does not know {stranger.short}" in ran.err
    assert {dump for dump, _, _ in recorded(sample)} == set(map(str, sample.dumps[:3]))


def test_a_receiver_takes_no_findings_of_a_host_that_it_does_not_know(sample: Sample) -> None:
    """No log is made for a name."""
    with running_receiver(sample.fleet.receiver, sample.store), open_store(str(sample.store)) as store:
        with pytest.raises(Exception, match="no audit log of"):
            control.ask_to_record(store, HostName("db-9.hosts.test.example"), [Finding(sample.dumps[0], None)])
        assert not (sample.store / "audit" / "db-9.hosts.test.example").exists()


def test_many_findings_share_their_writes(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request holds as many as it has room for, each is written once, in order."""
    words = "ü" * limits.MAX_WORDS
    found = [Finding(sample.dumps[0], words)] * 3 + [Finding(sample.dumps[1], None)] * 100
    batches = list(findings.batches(found))
    assert [each for batch in batches for each in batch] == found
    assert [len(batch) for batch in batches] == [2, 64, 37]
    with running_receiver(sample.fleet.receiver, sample.store), open_store(str(sample.store)) as store:
        for batch in batches:
            assert control.ask_to_record(store, HostName(WEB), batch) == []
    assert [problem for _, _, problem in recorded(sample)] == [finding.problem for finding in found]


MALFORMED = {
    "nothing": None,
    "an empty list": [],
    "no pairs": ["x"],
    "a dump that is none": [["../x", None]],
    "a number": [[7, None]],
    "words that are none": [[str(dump_id(1)), 7]],
    "too many words": [[str(dump_id(1)), "x" * (limits.MAX_WORDS + 1)]],
    "too many": [[str(dump_id(1)), None]] * (limits.DELETION_BATCH + 1),
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_malformed_findings_are_refused(value: object) -> None:
    """Whatever stands in the request."""
    with pytest.raises(PeerError):
        findings.read(value)


def test_an_answer_that_says_nothing_is_no_record(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver of an earlier version knows no such request; one that answers oddly is not believed."""
    monkeypatch.setattr(control, "_ask", lambda store, request: control._Answer({"ok": True}, []))
    with open_store(str(sample.store)) as store, pytest.raises(StorageError, match="of what it knows"):
        control.ask_to_record(store, HostName(WEB), [Finding(sample.dumps[0], None)])
