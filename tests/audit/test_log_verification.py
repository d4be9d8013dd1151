"""Verification of a log: every entry that is changed, left out, put back or written twice is found and named."""

import os
import shutil
from pathlib import Path

import pytest

from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import Held, deleted_entry, extracted_entry, incomplete_entry, received_entry
from securecore.audit.log_verification import LogVerification, verify_log
from securecore.audit.proof import verify_receipt
from tests.support.dumps import (
    LOG_NAME,
    NOW,
    WEB,
    dump_id,
    log_of,
    logs_of,
    make_log_signer,
)
from tests.support.one_dump import CORE, ID, Stored, failed

ORDER = "no dump was received or given up twice"


def verify_own_log(stored: Stored, **changes: object) -> LogVerification:
    fd = stored.store.audit_directory(WEB, create=False)
    try:
        return verify_log(fd, origin_of(LOG_NAME, WEB), stored.log_signer.public_key, **changes)  # type: ignore[arg-type]
    finally:
        os.close(fd)


@pytest.fixture
def logged(stored: Stored) -> Stored:
    """A store whose log has six entries."""
    log = log_of(stored.logs, WEB)
    for number in range(5):
        log.append(extracted_entry(NOW, dump_id(number), WEB, uid=0, user="root"))
    return stored


def entries_file(stored: Stored) -> Path:
    return Path(stored.store.path) / "audit" / str(WEB) / "entries.jsonl"


def test_a_sound_log_verifies(logged: Stored) -> None:
    """Every check holds, and a receipt's checkpoint is contained."""
    receipt = verify_receipt((logged.path / "receipt").read_bytes(), origin_of(LOG_NAME, WEB), logged.log_signer.public_key)
    seen: list[tuple[int, int]] = []
    found = verify_own_log(logged, earlier=[receipt.checkpoint], progress=lambda done, total: seen.append((done, total)))
    assert found.ok, found.checks
    assert (found.size, found.unsigned, seen[-1]) == (6, 0, (6, 6))


@pytest.mark.slow
def test_a_flipped_bit_anywhere_in_the_log_is_found(logged: Stored) -> None:
    """No bit of the signed entries can change."""
    original = entries_file(logged).read_bytes()
    for at in range(len(original)):
        damaged = bytearray(original)
        damaged[at] ^= 1 << at % 8
        entries_file(logged).write_bytes(damaged)
        assert not verify_own_log(logged).ok


def test_a_shortened_log_is_found(logged: Stored) -> None:
    """A log with fewer entries than its checkpoint says does not verify."""
    lines = entries_file(logged).read_bytes().splitlines(keepends=True)
    entries_file(logged).write_bytes(b"".join(lines[:-1]))
    assert failed(verify_own_log(logged)) == ["the entries give the checkpoint's root"]
    entries_file(logged).unlink()
    assert "every entry is whole and canonical" in failed(verify_own_log(logged))


def test_a_log_rolled_back_whole_is_found_by_a_kept_receipt(logged: Stored) -> None:
    """When log and checkpoint are put back to an earlier state, they agree with each other, but not with a receipt given since."""
    directory = entries_file(logged).parent
    shutil.copytree(directory, directory.parent.parent / "backup")
    receipt = log_of(logged.logs, WEB).append(extracted_entry(NOW, ID, WEB, uid=0, user="root"))
    kept = verify_receipt(receipt, origin_of(LOG_NAME, WEB), logged.log_signer.public_key).checkpoint
    assert verify_own_log(logged, earlier=[kept]).ok
    shutil.rmtree(directory)
    shutil.copytree(directory.parent.parent / "backup", directory)
    assert verify_own_log(logged).ok
    assert failed(verify_own_log(logged, earlier=[kept])) == ["the log contains every earlier checkpoint"]


def test_a_rewritten_history_is_found_by_a_kept_receipt(logged: Stored) -> None:
    """A receiver that signs another history contradicts the receipts that it gave."""
    receipt = verify_receipt((logged.path / "receipt").read_bytes(), origin_of(LOG_NAME, WEB), logged.log_signer.public_key)
    logged.logs.close()
    shutil.rmtree(entries_file(logged).parent)
    for number in range(3):
        log_of(logs_of(logged.store, logged.log_signer), WEB).append(extracted_entry(NOW, dump_id(number), WEB, uid=0, user="root"))
    assert verify_own_log(logged).ok
    found = verify_own_log(logged, earlier=[receipt.checkpoint])
    assert failed(found) == ["the log contains every earlier checkpoint"]
    assert "does not begin as it did under a kept checkpoint" in found.checks[-1].detail


def test_an_append_under_way_is_not_damage(logged: Stored) -> None:
    """Entries that no checkpoint covers yet, and a line without its newline, are told and verify."""
    with entries_file(logged).open("ab") as file:
        file.write(extracted_entry(NOW, ID, WEB, uid=0, user="root") + b'\n{"event"')
    found = verify_own_log(logged)
    assert found.ok, found.checks
    assert (found.size, found.unsigned) == (6, 1)
    assert found.checks[1].detail == "7 entries, and one that is not whole yet"


def test_a_dump_received_twice_is_found(logged: Stored) -> None:
    """Two entries for one dump and one manifest are told."""
    with entries_file(logged).open("ab") as file:
        file.write(entries_file(logged).read_bytes().splitlines(keepends=True)[0])
    assert failed(verify_own_log(logged)) == [ORDER]


def test_a_long_history_verifies(logged: Stored) -> None:
    """Lost, received again, incomplete, deleted, given up once more when a part came back, and deleted again: all of it may be."""
    held = Held(1, 10, bytes(32), bytes(32), 50)
    lost = incomplete_entry(NOW, ID, WEB, logged.store.store_id, held, last_at=NOW)
    manifest = logged.signer.manifest(ID, logged.store.store_id, CORE)
    again = received_entry(NOW, manifest, b"another manifest", stored_bytes=1, certificate="")
    deleted = deleted_entry(NOW, ID, WEB, uid=0, user=None, reason=None)
    log_of(logged.logs, WEB).append_all([again, lost, deleted, lost, deleted, deleted])
    assert verify_own_log(logged).ok
    with entries_file(logged).open("ab") as file:
        file.write(lost + b"\n" + lost + b"\n")
    found = verify_own_log(logged)
    assert failed(found) == [ORDER]
    assert "is incomplete, and was incomplete before" in next(check.detail for check in found.checks if check.what == ORDER)


def test_a_missing_or_foreign_checkpoint(logged: Stored) -> None:
    """Without a checkpoint that our key signed, the root cannot be checked, and the log does not verify."""
    fd = logged.store.audit_directory(WEB, create=False)
    found = verify_log(fd, origin_of(LOG_NAME, WEB), make_log_signer().public_key)
    os.close(fd)
    assert (found.ok, found.checks[0].ok, found.checks[2].ok) == (False, False, None)
    (entries_file(logged).parent / "checkpoint").unlink()
    found = verify_own_log(logged)
    assert found.checks[0].detail == "checkpoint is missing"
