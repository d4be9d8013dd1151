"""A log that was verified before: its first entries are hashed and not parsed, and what is wrong with it is found all the same."""

import os
import shutil
from pathlib import Path

import pytest

from securecore.audit import log_reading
from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import extracted_entry
from securecore.audit.log_reading import AS_VERIFIED, SAME_KEYS
from securecore.audit.log_verification import LogVerification, verify_log
from securecore.audit.verified import Verified, VerifiedLogs
from tests.support.dumps import LOG_NAME, NOW, WEB, dump_id, log_of, logs_of
from tests.support.entries import deleted, incomplete
from tests.support.one_dump import Stored, failed

ORIGIN = origin_of(LOG_NAME, WEB)
ROOT = "the entries give the checkpoint's root"


def verify(stored: Stored, verified: Verified | None = None, *, from_the_start: bool = False) -> LogVerification:
    fd = stored.store.audit_directory(WEB, create=False)
    try:
        key = stored.log_signer.public_key
        return verify_log(fd, ORIGIN, key, verified=verified, from_the_start=from_the_start)
    finally:
        os.close(fd)


def remember(stored: Stored, found: LogVerification) -> Verified:
    """Return what is remembered of a log that holds."""
    assert found.ok, found.checks
    assert found.note is not None
    logs = VerifiedLogs(stored.store.store_id, LOG_NAME)
    logs.take(found.note, NOW)
    verified = logs.find(ORIGIN)
    assert verified is not None
    return verified


def append(stored: Stored, first: int, count: int) -> None:
    entries = [extracted_entry(NOW, dump_id(number), WEB, uid=0, user="root") for number in range(first, first + count)]
    log_of(stored.logs, WEB).append_all(entries)


def log_directory(stored: Stored) -> Path:
    return Path(stored.store.path) / "audit" / str(WEB)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The entries whose form is looked at."""
    seen: list[bytes] = []
    real = log_reading.parse_entry

    def parse_entry(entry: bytes) -> object:
        seen.append(entry)
        return real(entry)

    monkeypatch.setattr(log_reading, "parse_entry", parse_entry)
    return seen


def test_only_new_entries_are_parsed(stored: Stored, parsed: list[bytes]) -> None:
    """And it says which ones were verified when; all else is found as from the start."""
    append(stored, 0, 5)
    verified = remember(stored, verify(stored))
    append(stored, 5, 2)
    whole = verify(stored)
    parsed.clear()

    found = verify(stored, verified)

    assert found.ok, found.checks
    assert len(parsed) == 2
    (entries,) = [check.detail for check in found.checks if check.what == "every entry is whole and canonical"]
    assert entries == "8 entries; entries 0 to 5 were verified on 2026-11-22, and only hashed now"
    assert found._replace(checks=[]) == whole._replace(checks=[])
    others = [check for check in found.checks if check.what not in (AS_VERIFIED, SAME_KEYS) and check.detail != entries]
    assert [(check.what, check.detail) for check in others] == [
        (check.what, check.detail) for check in whole.checks if "canonical" not in check.what
    ]
    assert remember(stored, found).size == 8


def test_nothing_new_is_verified_too(stored: Stored, parsed: list[bytes]) -> None:
    """Its checkpoint, its root and what it says of dumps."""
    verified = remember(stored, verify(stored))
    parsed.clear()
    assert verify(stored, verified).ok
    assert parsed == []


def test_from_the_start_parses_all_and_holds_it_against_what_was_verified(stored: Stored, parsed: list[bytes]) -> None:
    """Nothing is taken for known, and the witness is heard."""
    append(stored, 0, 5)
    verified = remember(stored, verify(stored))
    parsed.clear()

    found = verify(stored, verified, from_the_start=True)
    assert (found.ok, len(parsed)) == (True, 6)
    assert "verified on" not in found.checks[1].detail

    other = verified._replace(root=bytes(32))
    assert failed(verify(stored, other, from_the_start=True)) == [AS_VERIFIED]


def test_a_log_that_was_put_back_is_found(stored: Stored) -> None:
    """It agrees with itself, with its checkpoint and with every receipt that is left; not with what was verified."""
    append(stored, 0, 1)
    shutil.copytree(log_directory(stored), log_directory(stored).parent.parent / "backup")
    append(stored, 1, 3)
    verified = remember(stored, verify(stored))
    shutil.rmtree(log_directory(stored))
    shutil.copytree(log_directory(stored).parent.parent / "backup", log_directory(stored))
    assert verify(stored).ok

    found = verify(stored, verified)

    assert failed(found) == [AS_VERIFIED]
    (words,) = [check.detail for check in found.checks if check.what == AS_VERIFIED]
    assert words == "the log has 2 entries, your verification of 2026-11-22 says 5: it was put back to an earlier state"
    assert found.note is None


@pytest.mark.parametrize("more", [0, 4])
def test_a_log_that_was_rewritten_and_signed_again_is_found(stored: Stored, more: int) -> None:
    """As long as before or longer, whoever has the log key."""
    append(stored, 0, 3)
    verified = remember(stored, verify(stored))
    stored.logs.close()
    shutil.rmtree(log_directory(stored))
    stored.logs = logs_of(stored.store, stored.log_signer)
    append(stored, 100, verified.size + more)
    assert verify(stored).ok

    found = verify(stored, verified)

    assert failed(found) == [AS_VERIFIED]
    (words,) = [check.detail for check in found.checks if check.what == AS_VERIFIED]
    begins = "the log does not begin as it did under your verification of 2026-11-22 of 4 entries"
    assert words == f"{begins}: one of the entries 0 to 3 is another, or gone"
    assert "verified on" not in found.checks[1].detail
    assert found.note is None


def test_whatever_is_done_to_the_log_is_found_as_from_the_start(stored: Stored) -> None:
    """Each bit of old and new entries: the same checks fail, and the witness contradicts where it must."""
    verified = remember(stored, verify(stored))
    append(stored, 0, 1)
    path = log_directory(stored) / "entries.jsonl"
    original = path.read_bytes()
    old_bytes = original.index(b"\n") + 1
    for at in [*range(0, len(original), 23), old_bytes - 1, len(original) - 1]:
        damaged = bytearray(original)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        alone, continued = verify(stored), verify(stored, verified)
        assert not alone.ok
        assert set(failed(continued)) - {AS_VERIFIED} == set(failed(alone))
        assert (AS_VERIFIED in failed(continued)) == (at < old_bytes)
        assert continued.note is None
    path.unlink()
    assert set(failed(verify(stored, verified))) == {*failed(verify(stored)), AS_VERIFIED}
    shutil.rmtree(log_directory(stored))
    log_directory(stored).mkdir(mode=0o700)
    assert AS_VERIFIED in failed(verify(stored, verified))


def test_what_was_said_before_counts_for_what_is_said_after(stored: Stored) -> None:
    """A dump that is given up once more, as the old entries say already, is found by the new entry."""
    log_of(stored.logs, WEB).append_all([incomplete(7, b"\x07" * 32), deleted(8)])
    verified = remember(stored, verify(stored))
    with (log_directory(stored) / "entries.jsonl").open("ab") as file:
        file.write(incomplete(7, b"\x07" * 32) + b"\n")

    found = verify(stored, verified)

    assert failed(found) == ["no dump was received or given up twice"]
    assert found.note is None


def test_a_checkpoint_that_does_not_hold_is_not_remembered(stored: Stored) -> None:
    """Entries that agree with what was verified are not enough."""
    append(stored, 0, 2)
    verified = remember(stored, verify(stored))
    checkpoint = log_directory(stored) / "checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5] + b"AAA=\n")

    found = verify(stored, verified)

    assert not found.ok
    assert found.note is None
    assert "the checkpoint is signed with the log's key" in failed(found)
    assert ROOT not in failed(found), "nothing says what it should be"
