"""A store near its file system's floor: refused in words at both ends, nothing half stored, and it goes on once there is room."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore import limits
from securecore.cli.main import run
from securecore.errors import BusyError
from securecore.receiver.policy import Floor, Policy
from tests.support.certificates import Fleet
from tests.support.checker import check
from tests.support.file_systems import fill
from tests.support.local_files import noise, small_disk
from tests.support.receivers import running_receiver
from tests.support.senders import sending

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")]

MIB = limits.MIB
TOLD = "the receiver's disk is as full as it may be; vacuum or a larger disk makes room"
TOO_LARGE = "this dump may need more than the receiver's disk has left; vacuum or a larger disk makes room"
POLICY = Policy(floor=Floor(share=0.25, free_bytes=16 * MIB))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of which half is to stay free."""
    with small_disk(tmp_path / "small", "32m") as small:
        yield small


def root(fleet: Fleet) -> bytes:
    """Return the root that an auditor trusts."""
    return (fleet.host / "ca.pem").read_bytes()


def test_a_store_near_its_floor_goes_on_when_a_dump_is_deleted(
    disk: Path, fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is never filled up: a dump of unknown size is stopped in its middle, others go on, what was acknowledged stays."""
    store = disk / "store"
    with (
        caplog.at_level(logging.INFO),
        running_receiver(fleet.receiver, store, policy=POLICY) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        codes = [web.crash(noise(size, seed)).end() for seed, size in enumerate((7 * MIB, 7 * MIB, MIB))]
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        held, starts = web.held_bytes(store), [json.loads(path.read_bytes()) for path in web.spool.glob("dumps/*/entry.json")]
        full = web.flush(*receiver.addresses)
        meanwhile = check(store, root(fleet), spools=[web.spool], truths=web.truths(store))
        first = min(web.published(store).iterdir(), key=lambda dump: dump.name)
        assert run(["delete", first.name, "--store", str(store)]) == 0
        later = web.flush(*receiver.addresses)
        entries = [json.loads(line) for line in (store / "audit" / web.host / "entries.jsonl").read_bytes().splitlines()]
    assert codes == [0, BusyError.exit_code, 0]
    assert 18 * MIB < free < 21 * MIB
    assert 4 * MIB < held < 6 * MIB
    assert [start["first_frame"] for start in starts] == [held // MIB]
    assert full.returncode == BusyError.exit_code
    assert TOO_LARGE in full.stderr
    assert "may need more than the" in caplog.text
    assert meanwhile == []
    assert later.returncode == 0, later
    assert [entry["code"] for entry in entries if entry["event"] == "refused"] == [202]
    assert check(store, root(fleet), spools=[web.spool], is_settled=True) == []


def test_a_disk_that_is_full_to_the_last_block_refuses_in_the_same_words(
    disk: Path, fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else has filled it: there is no room for the audit entry, and the host is refused all the same."""
    store = disk / "store"
    with (
        running_receiver(fleet.receiver, store, policy=POLICY) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        first = web.crash(noise(MIB, 1)).end()
        filler = fill(disk)
        second, full = web.crash(noise(MIB, 2)).end(), web.flush(*receiver.addresses)
        left = list(web.incoming(store).iterdir())
        filler.unlink()
        later = web.flush(*receiver.addresses)
        truths = web.truths(store)
    assert [first, second, full.returncode, later.returncode] == [0, BusyError.exit_code, BusyError.exit_code, 0]
    assert TOLD in full.stderr
    assert left == []
    assert "refusal not audited" in caplog.text
    assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []
