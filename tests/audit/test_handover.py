"""A log that goes on under the next log key: the same tree, and what the key before has signed stays provable beside it."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from securecore.audit.checkpoint import LogSigner, origin_of, parse_checkpoint, verify_checkpoint
from securecore.audit.handover import hand_over, last_checkpoint_name
from securecore.audit.log import HostLog, HostLogs
from securecore.audit.log_verification import LogVerification, verify_log
from securecore.audit.proof import verify_receipt
from securecore.audit.statement import LogKey
from securecore.audit.succession import verify_log_keys
from securecore.errors import BrokenError
from tests.support.certificates import Hierarchy
from tests.support.disk import Disk, run_until
from tests.support.dumps import WEB
from tests.support.entries import ENTRIES, received
from tests.support.log_keys import Dynasty, make_dynasty

GOES_ON: Final = "the log goes on from what earlier log keys have signed last"


@pytest.fixture
def keys(own_hierarchy: Hierarchy) -> Dynasty:
    """Three log keys."""
    return make_dynasty(own_hierarchy, 3)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a log stands."""
    (tmp_path / "log").mkdir(mode=0o700)
    return tmp_path / "log"


@contextmanager
def opened(place: Path, signer: LogSigner) -> Iterator[HostLog]:
    """Open the log while the block runs."""
    with directory_of(place) as fd:
        log = HostLog.open(fd, origin_of(signer.name, WEB), signer)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def directory_of(place: Path) -> Iterator[int]:
    """Give a descriptor of a directory."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def log_key_of(keys: Dynasty, hierarchy: Hierarchy) -> LogKey:
    """Return the key in use as a verifier knows it."""
    return verify_log_keys(keys.lines[-1].statement, keys.history, hierarchy.anchors).key


def verified(place: Path, log_key: LogKey) -> LogVerification:
    """Return what holds of the log."""
    with directory_of(place) as fd:
        return verify_log(fd, origin_of(log_key.name, WEB), log_key.public_key, log_key=log_key)


def failed(found: LogVerification) -> list[str]:
    """Return the checks that do not hold."""
    return [check.what for check in found.checks if check.ok is False]


def test_a_log_goes_on_under_the_next_key(place: Path, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """Three keys, an entry under each: one tree, whose last checkpoint is the newest key's; each receipt holds by its own key, and

    by the newest with those before it.
    """
    receipts = []
    for at in range(3):
        with opened(place, keys.signer(at)) as log:
            receipts.append(log.append(ENTRIES[at]))
    origin, log_key = origin_of(keys.name, WEB), log_key_of(keys, own_hierarchy)
    for at, receipt in enumerate(receipts):
        assert verify_receipt(receipt, origin, keys.public_keys[at]).leaf_index == at
        assert verify_receipt(receipt, origin, log_key.public_key, log_key.earlier).checkpoint.size == at + 1
    checkpoint = verify_checkpoint((place / "checkpoint").read_bytes(), origin, log_key.public_key)
    assert checkpoint.size == 3
    with pytest.raises(BrokenError, match="not signed by the log's key"):
        verify_receipt(receipts[0], origin, log_key.public_key)
    found = verified(place, log_key)
    assert found.ok
    assert GOES_ON in [check.what for check in found.checks]


def test_what_the_key_before_signed_last_is_kept(place: Path, keys: Dynasty) -> None:
    """Byte for byte, beside the checkpoint of the next key, which has the same size and root and no entry more."""
    with opened(place, keys.signer(0)) as log:
        log.append_all(ENTRIES[:2])
    note, entries = (place / "checkpoint").read_bytes(), (place / "entries.jsonl").read_bytes()
    with opened(place, keys.signer(1)):
        pass
    origin = origin_of(keys.name, WEB)
    assert (place / last_checkpoint_name(origin, keys.public_keys[0])).read_bytes() == note
    now = verify_checkpoint((place / "checkpoint").read_bytes(), origin, keys.public_keys[1])
    assert (now.size, now.root) == (2, parse_checkpoint(note).root)
    assert (place / "entries.jsonl").read_bytes() == entries


def test_interrupted_at_any_call_it_is_done_again(place: Path, keys: Dynasty, tmp_path: Path) -> None:
    """Before each call that changes the disk the process ends, or the power: the log opens, with both checkpoints."""
    with opened(place, keys.signer(0)) as log:
        log.append_all(ENTRIES[:2])
    note, origin, fatal = (place / "checkpoint").read_bytes(), origin_of(keys.name, WEB), 0
    done = None
    while done is None:
        fatal += 1
        work = Path(shutil.copytree(place, tmp_path / f"killed-{fatal}"))
        disk = Disk(work)
        with directory_of(work) as fd:
            done = run_until(fatal, disk, lambda fd=fd: hand_over(fd, origin, keys.signer(1)) or "done")
        disk.restore(tmp_path / f"cut-{fatal}")
        disk.close()
        for left in (work, tmp_path / f"cut-{fatal}"):
            with opened(left, keys.signer(1)) as log:
                assert log.size == 2
            assert (left / last_checkpoint_name(origin, keys.public_keys[0])).read_bytes() == note
            verify_checkpoint((left / "checkpoint").read_bytes(), origin, keys.public_keys[1])
    assert fatal > 8


def test_a_key_that_nothing_leads_to_takes_no_log_over(place: Path, keys: Dynasty) -> None:
    """A log key that was stated, and never handed over to, finds the log refused, and leaves it as it was."""
    with opened(place, keys.signer(0)) as log:
        log.append(ENTRIES[0])
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(BrokenError, match="not signed by the log's key"), opened(place, LogSigner(keys.name, keys.keys[2])):
        pass
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_a_checkpoint_that_only_claims_to_be_the_old_keys_is_not_signed_anew(place: Path, keys: Dynasty) -> None:
    """Else whoever can write the store had any history signed by waiting for the next key."""
    with opened(place, keys.signer(0)) as log:
        log.append(ENTRIES[0])
    text, blank, line = (place / "checkpoint").read_bytes().partition(b"\n\n")
    (place / "checkpoint").write_bytes(text.replace(b"\n1\n", b"\n2\n") + blank + line)
    with pytest.raises(BrokenError, match="wrong signature"), opened(place, keys.signer(1)):
        pass


def test_an_open_log_is_handed_over_between_two_entries(place: Path, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """While threads append, the key changes twice: no entry is lost or refused, and each receipt is of one of the keys."""
    place.rename(place.with_name(str(WEB)))
    root = place.with_name(str(WEB)).parent
    logs = HostLogs(keys.signer(0), lambda host: os.open(root / str(host), os.O_RDONLY | os.O_DIRECTORY))
    receipts: list[bytes] = []
    half, over = threading.Event(), threading.Event()

    def append(first: int) -> None:
        for number in range(first, first + 40):
            with logs.using(WEB) as log:
                receipts.append(log.append(received(number)))
            if number == first + 10:
                half.set()
        over.set()

    threads = [threading.Thread(target=append, args=(first,)) for first in (100, 200, 300)]
    for thread in threads:
        thread.start()
    half.wait(60)
    for at in (1, 2):
        logs.use(keys.signer(at))
        logs.hand_over(WEB)
    for thread in threads:
        thread.join()
    logs.close()
    log_key, origin = log_key_of(keys, own_hierarchy), origin_of(keys.name, WEB)
    assert len(receipts) == 120
    for receipt in receipts:
        verify_receipt(receipt, origin, log_key.public_key, log_key.earlier)
    found = verified(root / str(WEB), log_key)
    assert (found.ok, found.size) == (True, 120)


def test_a_log_that_nobody_has_open_is_handed_over_too(tmp_path: Path, place: Path, keys: Dynasty) -> None:
    """Without its entries being read."""
    with opened(place, keys.signer(0)) as log:
        log.append(ENTRIES[0])
    place.rename(tmp_path / str(WEB))
    logs = HostLogs(keys.signer(1), lambda host: os.open(tmp_path / str(host), os.O_RDONLY | os.O_DIRECTORY))
    logs.hand_over(WEB)
    logs.close()
    verify_checkpoint((tmp_path / str(WEB) / "checkpoint").read_bytes(), origin_of(keys.name, WEB), keys.public_keys[1])


def test_a_history_that_was_rewritten_with_the_new_key_contradicts_the_old_keys_last_word(
    place: Path, keys: Dynasty, own_hierarchy: Hierarchy
) -> None:
    """Whoever has the key in use can sign any log; what the one before has signed last is still there to deny it."""
    with opened(place, keys.signer(0)) as log:
        log.append_all(ENTRIES[:2])
    with opened(place, keys.signer(2)):
        pass
    for name in ("checkpoint", "entries.jsonl"):
        (place / name).unlink()
    with opened(place, LogSigner(keys.name, keys.keys[2])) as log:
        log.append_all([ENTRIES[1], ENTRIES[2]])
    assert failed(verified(place, log_key_of(keys, own_hierarchy))) == [GOES_ON]


def test_the_old_key_signs_nothing_that_counts_any_more(place: Path, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """A thief of a key that was replaced puts his own history in the log's place: its checkpoint is not the key's in use."""
    with opened(place, keys.signer(0)) as log:
        log.append_all(ENTRIES[:2])
    shutil.rmtree(place)
    place.mkdir(mode=0o700)
    with opened(place, keys.signer(0)) as log:
        log.append(ENTRIES[2])
    found = verified(place, log_key_of(keys, own_hierarchy))
    assert failed(found)[0] == "the checkpoint is signed with the log's key"


def test_a_key_hands_a_log_over_once(place: Path, keys: Dynasty) -> None:
    """What it has signed since, as a thief of it can, is not signed by the next one."""
    with opened(place, keys.signer(0)) as log:
        log.append(ENTRIES[0])
    stolen = place.with_name("stolen")
    shutil.copytree(place, stolen)
    with opened(place, keys.signer(1)):
        pass
    with opened(stolen, keys.signer(0)) as log:
        log.append(ENTRIES[1])
    for name in ("checkpoint", "entries.jsonl"):
        shutil.copy(stolen / name, place)
    with pytest.raises(BrokenError, match="has handed this log over before"), opened(place, keys.signer(1)):
        pass


@pytest.mark.parametrize("is_in_chain", [True, False], ids=["wrong", "outside"])
def test_a_last_checkpoint_that_does_not_hold_is_named(
    is_in_chain: bool, place: Path, keys: Dynasty, own_hierarchy: Hierarchy
) -> None:
    """One that its key has not signed, and one of a key outside of the chain."""
    with opened(place, keys.signer(0)) as log:
        log.append(ENTRIES[0])
    with opened(place, keys.signer(2)):
        pass
    origin = origin_of(keys.name, WEB)
    stranger = LogSigner(keys.name, Ed25519PrivateKey.generate())
    key = keys.public_keys[1] if is_in_chain else stranger.public_key
    (place / last_checkpoint_name(origin, key)).write_bytes(stranger.sign(origin, 0, bytes(32)))
    found = verified(place, log_key_of(keys, own_hierarchy))
    assert failed(found) == [GOES_ON]
    detail = next(check.detail for check in found.checks if check.what == GOES_ON)
    assert ("outside of the chain" in detail) != is_in_chain
