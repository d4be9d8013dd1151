"""`audit verify --state`: it goes on where it ended, finds what was put back or rewritten since, and takes no other file."""

import json
import os
import shutil
from pathlib import Path

import pytest

from securecore.audit.log_reading import AS_VERIFIED
from securecore.cli import verified_file
from tests.support.receivers import running_receiver
from tests.support.samples import GONE, Sample
from tests.support.stores import DB, WEB, flip


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where the verifier keeps the file; there is none yet."""
    (tmp_path / "verifier").mkdir(mode=0o700)
    return tmp_path / "verifier" / "verified.json"


def sizes(state: Path) -> list[int]:
    """Return the sizes of the logs that are remembered, in the order of their origins: receiver, db-2, web-1."""
    return [int(log["checkpoint"].split("\n")[1]) for log in json.loads(state.read_text("utf-8"))["logs"]]


def test_it_goes_on_where_it_ended(sample: Sample, state: Path, tmp_path: Path) -> None:
    """Each log and the receiver-wide one: what is new is verified, and remembered then."""
    first = sample.audit("--state", state)
    assert first.code == 0
    assert "is nothing in" in first.err
    assert AS_VERIFIED not in first.out
    before = sizes(state)
    assert before[1:] == [2, 4]
    assert state.stat().st_mode & 0o777 == 0o600

    with running_receiver(sample.fleet.receiver, sample.store):
        assert sample.extract(sample.dumps[0], tmp_path / "core").code == 0
    again = sample.audit("--state", state)

    assert again.code == 0
    assert "entries 0 to 3 were verified on 20" in again.out
    assert again.out.count(AS_VERIFIED) == 3
    assert sizes(state)[1:] == [2, 5]


def test_programs_are_told_too(sample: Sample, state: Path) -> None:
    """What was known of each log, and nothing without a file."""
    assert [found["verified_before"] for found in sample.audit("--json").document] == [None] * 3
    sample.audit("--state", state)
    found = sample.audit("--state", state, "--json").document
    assert [one["verified_before"]["entries"] for one in found if one["host"]] == [2, 4]
    assert all(one["verified_before"]["at"].endswith("Z") for one in found)


def test_a_store_put_back_whole_is_found(sample: Sample, state: Path, tmp_path: Path) -> None:
    """Dumps, logs, receipts and the receiver-wide log agree with each other; what is remembered stays as it was."""
    backup = tmp_path / "backup"
    shutil.copytree(sample.store, backup)
    with running_receiver(sample.fleet.receiver, sample.store):
        sample.extract(sample.dumps[0], tmp_path / "core")
    sample.audit("--state", state)
    remembered = sizes(state)
    shutil.rmtree(sample.store)
    shutil.copytree(backup, sample.store)
    assert sample.audit().code == 0

    for options in ([], ["--from-the-start"]):
        ran = sample.audit("--state", state, *options)
        assert ran.code == 6
        assert f"FAIL  {AS_VERIFIED}: the log has 4 entries, your verification of 20" in ran.out
        assert f"{DB}  ok  " in ran.out
        assert sizes(state) == remembered


def test_all_that_there_was_of_a_host_is_missed(sample: Sample, state: Path) -> None:
    """Its dumps, its log, and the receiver-wide log that names it."""
    sample.audit("--state", state)
    for place in (sample.store / "hosts" / WEB, sample.log(), sample.store / "audit" / "receiver"):
        shutil.rmtree(place)

    ran = sample.audit("--state", state)

    assert ran.code == 6
    assert f"{WEB}  BROKEN  0 entries" in ran.out
    assert sample.audit("--state", state, "--host", "web-1").code == 6
    found = {one["host"]: one for one in sample.audit("--state", state, "--json").document}
    for host in (WEB, None):
        assert AS_VERIFIED in [check["what"] for check in found[host]["checks"] if check["ok"] is False]


def test_what_is_in_the_store_is_looked_at_each_time(sample: Sample, state: Path) -> None:
    """A dump that old entries speak of is missed, and the log, which holds, is remembered all the same."""
    sample.audit("--state", state)
    before = state.read_bytes()
    shutil.rmtree(sample.first)

    ran = sample.audit("--state", state)

    assert ran.code == 6
    assert f"FAIL  {GONE}: 1 of 3 dumps is not" in ran.out
    assert state.read_bytes() != before


def test_an_old_entry_that_was_changed_is_found(sample: Sample, state: Path) -> None:
    """It is hashed each time, whatever was remembered of it."""
    sample.audit("--state", state)
    before = sizes(state)
    flip(sample.log() / "entries.jsonl", 40)

    ran = sample.audit("--state", state)

    assert ran.code == 6
    assert f"FAIL  {AS_VERIFIED}" in ran.out
    assert f"{DB}  ok  " in ran.out
    assert sizes(state) == before


def test_one_host_leaves_what_is_known_of_others(sample: Sample, state: Path) -> None:
    """Of db-2 nothing is forgotten."""
    sample.audit("--state", state)
    sample.audit("--state", state, "--host", "web-1")
    assert sizes(state)[1:] == [2, 4]


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff", b'{"format":"securecore-verified 2"}'])
def test_a_file_that_is_something_else_stays_as_it_is(text: bytes, sample: Sample, state: Path) -> None:
    """One line, a hint, and nothing is overwritten."""
    state.write_bytes(text)
    state.chmod(0o600)

    ran = sample.audit("--state", state)

    assert (ran.code, ran.out) == (3, "")
    assert f"securecore: {state}: is not what `audit verify --state` writes" in ran.err
    assert state.read_bytes() == text


def test_the_file_of_another_store_is_refused(sample: Sample, state: Path) -> None:
    """Its hosts are not this store's, whatever they are called."""
    sample.audit("--state", state)
    fields = json.loads(state.read_text("utf-8"))
    state.write_text(json.dumps(fields | {"store": "00000000-0000-4000-8000-000000000000"}), "utf-8")
    ran = sample.audit("--state", state)
    assert ran.code == 3
    assert "is of the logs of" in ran.err


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_no_witness(mode: int, sample: Sample, state: Path) -> None:
    """Whoever edits the store might edit it too."""
    sample.audit("--state", state)
    state.chmod(mode)
    ran = sample.audit("--state", state)
    assert ran.code == 3
    assert f"{state}: others than you may write it" in ran.err


def test_a_file_in_the_store_is_no_witness(sample: Sample, tmp_path: Path) -> None:
    """Also by way of a link."""
    (tmp_path / "link").symlink_to(sample.store / "audit")
    for path in (sample.store / "verified.json", tmp_path / "link" / "verified.json"):
        ran = sample.audit("--state", path)
        assert ran.code == 3
        assert "lies in the store" in ran.err
        assert not path.exists()


def test_a_link_or_a_directory_in_its_place_is_refused(sample: Sample, state: Path, tmp_path: Path) -> None:
    """What a link leads to is neither read nor written."""
    sample.audit("--state", state)
    remembered = state.read_bytes()
    link = tmp_path / "link.json"
    for target in (state, tmp_path / "nothing", link):
        link.symlink_to(target)
        ran = sample.audit("--state", link)
        assert (ran.code, ran.out) == (5, "")
        assert "cannot open 'link.json': not a regular file" in ran.err
        link.unlink()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert sample.audit("--state", tmp_path / "a" / "verified.json").code == 3
    assert sample.audit("--state", tmp_path).code == 2
    assert sample.audit("--state", "/").code == 2
    assert not (tmp_path / "nothing").exists()
    assert state.read_bytes() == remembered


def test_a_file_of_the_stores_owner_is_told(sample: Sample, state: Path) -> None:
    """It is taken, and the person knows what it is worth."""
    sample.audit("--state", state)
    ran = sample.audit("--state", state)
    assert ran.code == 0
    assert "belongs to the owner of the store, who could put both back" in ran.err


def test_a_directory_that_is_not_there_is_told_at_once(sample: Sample, state: Path) -> None:
    """Before anything is verified."""
    ran = sample.audit("--state", state.parent / "nowhere" / "verified.json")
    assert (ran.code, ran.out) == (3, "")
    assert "its directory cannot be opened: no such file or directory" in ran.err


def test_a_disk_that_refuses_leaves_the_file(sample: Sample, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is the old state or the new one."""
    sample.audit("--state", state)
    before = state.read_bytes()

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(verified_file.directory.os, "write", full)
    ran = sample.audit("--state", state)
    monkeypatch.undo()

    assert ran.code == 5
    assert state.read_bytes() == before
