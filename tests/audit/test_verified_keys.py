"""A verifier's state and log keys: what an earlier key has signed is taken along the chain, and a key outside of it is seen."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.handover import last_checkpoint_name
from securecore.audit.log import HostLog
from securecore.audit.log_reading import AS_VERIFIED, SAME_KEYS
from securecore.audit.log_verification import Holdings, LogVerification, verify_log
from securecore.audit.statement import LogKey, verify_statement
from securecore.audit.succession import verify_log_keys
from securecore.audit.verified import Verified, VerifiedLogs
from securecore.audit.wide_verification import HostsLogs, Said, WideVerification, verify_wide_log
from securecore.names import StoreId
from tests.support.certificates import Hierarchy
from tests.support.dumps import NOW, WEB, dump_id
from tests.support.entries import ENTRIES
from tests.support.log_keys import Dynasty, make_dynasty

GOES_ON: Final = "the log goes on from what earlier log keys have signed last"
SAID: Final = "the log has all that the receiver-wide log says of it"
HOSTS: Final = HostsLogs([], {}, [], [])


@pytest.fixture
def keys(own_hierarchy: Hierarchy) -> Dynasty:
    """Three log keys, each of which has handed over to the next."""
    return make_dynasty(own_hierarchy, 3)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a log stands."""
    (tmp_path / "log").mkdir(mode=0o700)
    return tmp_path / "log"


@contextmanager
def directory_of(place: Path) -> Iterator[int]:
    """Give a descriptor of a directory."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def append(place: Path, signer: LogSigner, origin: str, *entries: bytes) -> None:
    """Open a log with a key, which takes it over, and write entries."""
    with directory_of(place) as fd:
        log = HostLog.open(fd, origin, signer)
    try:
        if entries:
            log.append_all(list(entries))
    finally:
        log.close()


def key_at(keys: Dynasty, hierarchy: Hierarchy, at: int, trusted: tuple[str, ...] = ()) -> LogKey:
    """Return one of the keys with those before it, as a verifier knows it."""
    return verify_log_keys(keys.lines[at].statement, keys.history, hierarchy.anchors, trusted=trusted).key


def verify(place: Path, log_key: LogKey, verified: Verified | None = None, **more: Any) -> LogVerification:
    """Return what holds of web-1's log."""
    with directory_of(place) as fd:
        origin = origin_of(log_key.name, WEB)
        return verify_log(fd, origin, log_key.public_key, log_key=log_key, verified=verified, **more)


def verify_wide(place: Path, log_key: LogKey, verified: Verified | None = None) -> WideVerification:
    """Return what holds of the receiver-wide log."""
    with directory_of(place) as fd:
        return verify_wide_log(fd, log_key.name, log_key.public_key, Said(), HOSTS, log_key=log_key, verified=verified)


def remember(found: LogVerification | WideVerification, name: str) -> Verified:
    """Return what is remembered of a log that holds."""
    assert found.ok, found.checks
    assert found.note is not None
    logs = VerifiedLogs(StoreId.parse("00000000-0000-4000-8000-000000000000"), name)
    logs.take(found.note, NOW)
    verified = logs.find(found.origin)
    assert verified is not None
    return verified


def failed(found: LogVerification | WideVerification) -> list[str]:
    """Return the checks that do not hold."""
    return [check.what for check in found.checks if check.ok is False]


def detail(found: LogVerification | WideVerification, what: str) -> str:
    """Return what a check says."""
    (words,) = [check.detail for check in found.checks if check.what == what]
    return words


def test_what_an_earlier_key_has_signed_is_taken_along_the_chain(place: Path, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """Over one rekeying, and over two at once; the newest key's checkpoint is remembered then."""
    origin = origin_of(keys.name, WEB)
    append(place, keys.signer(0), origin, ENTRIES[0])
    first = remember(verify(place, key_at(keys, own_hierarchy, 0)), keys.name)
    assert detail(verify(place, key_at(keys, own_hierarchy, 0), first), SAME_KEYS) == "by the key in use"
    append(place, keys.signer(1), origin, ENTRIES[1])
    append(place, keys.signer(2), origin, ENTRIES[2])
    log_key = key_at(keys, own_hierarchy, 2)

    found = verify(place, log_key, first)

    assert found.ok, found.checks
    assert detail(found, SAME_KEYS) == "by a key before the one in use"
    assert GOES_ON in [check.what for check in found.checks]
    assert "entry 0 was verified on" in found.checks[1].detail
    newest = remember(found, keys.name)
    assert newest.size == 3
    assert detail(verify(place, log_key, newest), SAME_KEYS) == "by the key in use"


def test_the_receiver_wide_log_is_taken_along_too(place: Path, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """It is one log more, under the name of the key; and a key outside of the chain is seen there as well."""
    append(place, keys.signer(0), keys.name)
    append(place, keys.signer(0), keys.name, ENTRIES[0])
    first = remember(verify_wide(place, key_at(keys, own_hierarchy, 0)), keys.name)
    append(place, keys.signer(1), keys.name)
    assert verify_wide(place, key_at(keys, own_hierarchy, 1), first).ok
    alone = verify_statement(keys.lines[1].statement, own_hierarchy.anchors)
    found = verify_wide(place, alone, first)
    assert SAME_KEYS in failed(found)
    assert found.note is None


def test_a_key_outside_of_the_chain_is_seen_by_the_state_alone(place: Path, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """The TLS key's thief signs the same entries with a log key of his own, and removes all of the one before: all else holds."""
    origin = origin_of(keys.name, WEB)
    append(place, keys.signer(0), origin, ENTRIES[0])
    verified = remember(verify(place, key_at(keys, own_hierarchy, 0)), keys.name)
    (place / "checkpoint").unlink()
    (place / "entries.jsonl").unlink()
    append(place, LogSigner(keys.name, keys.keys[2]), origin, ENTRIES[0])
    alone = verify_statement(keys.lines[2].statement, own_hierarchy.anchors)
    assert verify(place, alone).ok

    for from_the_start in (False, True):
        found = verify(place, alone, verified, from_the_start=from_the_start)
        assert failed(found) == [SAME_KEYS]
        words = detail(found, SAME_KEYS)
        assert words.startswith("under your verification of 2026-11-22, checkpoint is not signed by the log's key, ")
        assert found.note is None, "what is remembered stays the old key's"


def test_a_store_put_back_to_the_key_before_is_seen(place: Path, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """Nothing was written since the rekeying, so that the entries are the same."""
    origin = origin_of(keys.name, WEB)
    append(place, keys.signer(0), origin, ENTRIES[0])
    backup = shutil.copytree(place, place.with_name("backup"))
    append(place, keys.signer(1), origin)
    verified = remember(verify(place, key_at(keys, own_hierarchy, 1)), keys.name)
    assert verify(backup, key_at(keys, own_hierarchy, 0)).ok
    assert failed(verify(backup, key_at(keys, own_hierarchy, 0), verified)) == [SAME_KEYS]


def test_a_lost_key_counts_for_who_trusts_the_one_after(place: Path, own_hierarchy: Hierarchy) -> None:
    """Else it is outside of the chain, and the words say that it is said to be lost."""
    keys = make_dynasty(own_hierarchy).enthrone(is_lost=True)
    origin = origin_of(keys.name, WEB)
    append(place, keys.signer(0), origin, ENTRIES[0])
    verified = remember(verify(place, key_at(keys, own_hierarchy, 0)), keys.name)
    append(place, keys.signer(1), origin, ENTRIES[1])

    assert verify(place, key_at(keys, own_hierarchy, 1, (keys.verifier_key(1),)), verified).ok
    found = verify(place, key_at(keys, own_hierarchy, 1), verified)
    assert SAME_KEYS in failed(found)
    assert detail(found, SAME_KEYS).endswith("which is said to be lost and has signed no succession")


def test_a_state_that_was_edited_is_no_witness(place: Path, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """Its checkpoint's signature is verified each time."""
    append(place, keys.signer(0), origin_of(keys.name, WEB), ENTRIES[0])
    log_key = key_at(keys, own_hierarchy, 0)
    verified = remember(verify(place, log_key), keys.name)
    for edited in (verified.note.replace(b"\n1\n", b"\n2\n"), b"none", b""):
        found = verify(place, log_key, verified._replace(note=edited))
        assert failed(found) == [SAME_KEYS]


def test_a_log_that_departed_is_read_again_with_all_that_is_known_of_it(
    place: Path, keys: Dynasty, own_hierarchy: Hierarchy
) -> None:
    """What earlier keys have signed last, what the receiver-wide log says and what the store has are held against it then too."""
    origin = origin_of(keys.name, WEB)
    append(place, keys.signer(0), origin, ENTRIES[0])
    verified = remember(verify(place, key_at(keys, own_hierarchy, 0)), keys.name)
    append(place, keys.signer(1), origin)
    last = (place / last_checkpoint_name(origin, keys.public_keys[0])).read_bytes()
    for name in ("checkpoint", "entries.jsonl"):
        (place / name).unlink()
    append(place, keys.signer(1), origin, ENTRIES[1], ENTRIES[2])
    (place / last_checkpoint_name(origin, keys.public_keys[0])).write_bytes(last)
    log_key = key_at(keys, own_hierarchy, 1)
    store = Holdings({}, {}, [(dump_id(1), "it is torn")], lambda absent: {}, lambda deleted: [], lambda digest: None, None)
    known = {"said": [(1, verified.root)], "holdings": store}

    found = verify(place, log_key, verified, **known)

    assert failed(found) == [AS_VERIFIED, GOES_ON, SAID, "every dump's receipt proves its entry"]
    assert found.checks == verify(place, log_key, verified, from_the_start=True, **known).checks
    assert found.said_problem is not None


def test_a_receiver_wide_log_that_departed_is_read_again_so(place: Path, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """It has the same two checks."""
    append(place, keys.signer(0), keys.name, ENTRIES[0])
    verified = remember(verify_wide(place, key_at(keys, own_hierarchy, 0)), keys.name)
    append(place, keys.signer(1), keys.name)
    for name in ("checkpoint", "entries.jsonl"):
        (place / name).unlink()
    append(place, keys.signer(1), keys.name, ENTRIES[1], ENTRIES[2])
    found = verify_wide(place, key_at(keys, own_hierarchy, 1), verified)
    assert failed(found) == [AS_VERIFIED, GOES_ON]
