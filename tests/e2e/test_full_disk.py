"""Disks fill up in the middle of dumps, at either end and at both: what fits somewhere is kept, and room heals the rest."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import BusyError, StorageError, UnreachableError
from securecore.sender.spool_limits import UNBOUND
from tests.support.certificates import Fleet
from tests.support.checker import check
from tests.support.file_systems import BLOCK_BYTES, fill, grow
from tests.support.floorless import FLOORLESS
from tests.support.kernel import wait_until
from tests.support.local_files import noise, small_disk
from tests.support.processes import receiving
from tests.support.senders import NOWHERE, sending

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")]

MIB = limits.MIB
STEPS = 4
"""Blocks left for a commit: none for the manifest, one for it but none for the checkpoint, and enough, as it frees one itself."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one acknowledgement (8 MiB) and a half."""
    with small_disk(tmp_path / "small", "12m") as small:
        yield small


def test_store_that_fills_up_leaves_the_rest_to_the_spool_until_there_is_room(disk: Path, fleet: Fleet, tmp_path: Path) -> None:
    """Crashes and flushes end with "busy" meanwhile; what was acknowledged stays at the receiver and is not sent again."""
    store = disk / "store"
    with (
        receiving(fleet.receiver, store, "-v", program=FLOORLESS) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        codes = [web.crash(noise(24 * MIB, 1)).end(), web.crash(noise(3 * MIB, 2)).end()]
        full = web.flush(*receiver.addresses)
        starts = [json.loads(path.read_bytes())["first_frame"] for path in sorted(web.spool.glob("dumps/*/entry.json"))]
        meanwhile = check(store, root(fleet), spools=[web.spool], truths=web.truths(store))
        grow(disk, "64m")
        codes.append(web.crash(noise(MIB, 3)).end())
        roomy = web.flush(*receiver.addresses)
        truths = web.truths(store)
    assert codes == [BusyError.exit_code, BusyError.exit_code, 0]
    assert (full.returncode, roomy.returncode) == (BusyError.exit_code, 0), (full, roomy)
    assert starts == [8, 0]
    assert meanwhile == []
    assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []


def test_store_without_a_block_to_spare_at_each_step_of_a_commit_gives_a_receipt_or_none(
    disk: Path, fleet: Fleet, tmp_path: Path
) -> None:
    """All frames are there, and then so many blocks are left: the handler ends with 0 and a receipt, or the spool has the dump."""
    store = disk / "store"
    with (
        receiving(fleet.receiver, store, program=FLOORLESS) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        ends = []
        for blocks in range(STEPS):
            crash = web.crash(noise(MIB, blocks) + b"the end")
            # The pump holds a piece until the next one has begun or the source has ended, so the last one is not there yet.
            wait_until(lambda: web.held_bytes(store) >= MIB or None)
            filler = fill(disk, blocks)
            ends.append((crash.end(), len(web.receipts())))
            assert check(store, root(fleet), spools=[web.spool]) == []
            filler.unlink()
            # Half of what a full disk has left behind is taken up here, the other half once all are there.
            if blocks % 2:
                assert web.flush(*receiver.addresses).returncode == 0
        last = web.flush(*receiver.addresses)
        truths = web.truths(store)
    assert ends == [(BusyError.exit_code, 0), (BusyError.exit_code, 0), (0, 3), (0, 4)]
    assert last.returncode == 0
    assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []


def test_store_without_inodes_takes_no_dump_and_then_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    """There is room for bytes, but not for one more file: the dump waits in the spool."""
    with small_disk(tmp_path / "small", "8m,nr_inodes=64") as disk:
        store = disk / "store"
        with (
            receiving(fleet.receiver, store, program=FLOORLESS) as receiver,
            sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
        ):
            assert web.crash(noise(MIB, 1)).end() == 0
            taken = exhaust_inodes(disk)
            assert web.crash(noise(MIB, 2)).end() == BusyError.exit_code
            assert check(store, root(fleet), spools=[web.spool], truths=web.truths(store)) == []
            for path in taken:
                path.unlink()
            assert web.flush(*receiver.addresses).returncode == 0
            truths = web.truths(store)
        assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []


@pytest.mark.parametrize(
    "has_receiver",
    [
        pytest.param(False, id="spool"),
        pytest.param(True, id="store-and-spool"),
    ],
)
def test_spool_that_fills_up_keeps_what_fits_and_says_what_it_is(
    disk: Path, fleet: Fleet, tmp_path: Path, has_receiver: bool
) -> None:
    """The handler ends with "storage" and lets the process go; the beginning arrives later, and not as if it were all.

    Where the store fills up first, that beginning is what it has acknowledged, with what the spool has taken behind it.
    """
    with small_disk(tmp_path / "store-disk", "12m") as store_disk:
        store = store_disk / "store"
        with (
            receiving(fleet.receiver, store, program=FLOORLESS) as receiver,
            sending(disk / "web", fleet.host, NOWHERE) as web,
        ):
            web.change(spool_limits=UNBOUND)
            if has_receiver:
                web.send_to(*receiver.addresses)
                fill(disk, 3 * MIB // BLOCK_BYTES)
            assert web.crash(noise(40 * MIB, 1)).end() == StorageError.exit_code
            second = web.crash(noise(3 * MIB, 2))
            assert second.end() == StorageError.exit_code
            if not has_receiver:
                # There was no room for a frame of it, so it was not begun.
                assert second.find(web.spool / "dumps") is None
                web.crashes.remove(second)
            assert check(store, root(fleet), spools=[web.spool]) == []
            grow(disk, "64m")
            grow(store_disk, "64m")
            web.send_to(NOWHERE)
            assert web.crash(noise(2 * MIB, 3)).end() == UnreachableError.exit_code
            assert web.flush(*receiver.addresses).returncode == 0
            truths = web.truths(store)
        assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []


def test_receipt_that_finds_no_room_in_the_spool_spoils_no_other(fleet: Fleet, tmp_path: Path) -> None:
    """The spool's disk fills up in the middle of a receipt's line: the dump is delivered, and later lines are whole."""
    store = tmp_path / "store"
    with (
        small_disk(tmp_path / "small", "2m") as disk,
        receiving(fleet.receiver, store) as receiver,
        sending(disk / "web", fleet.host, *receiver.addresses) as web,
    ):
        assert web.crash(noise(MIB, 1)).end() == 0
        filler = fill(disk)
        # A line has some 3 KiB: within two crashes one of them needs a block that is not there.
        assert [web.crash(noise(MIB, seed)).end() for seed in (2, 3)] == [0, 0]
        assert len(web.receipts()) < len(web.crashes)
        filler.unlink()
        assert web.crash(noise(MIB, 4)).end() == 0
        truths = web.truths(store)
        assert web.receipts()[-1]["dump"] == truths[-1].dump
        assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []


def exhaust_inodes(disk: Path) -> list[Path]:
    """Make files until the file system has no inode left, and return them."""
    made: list[Path] = []
    while True:
        try:
            path = disk / f"file-{len(made)}"
            path.touch()
            made.append(path)
        except OSError:
            return made


def root(fleet: Fleet) -> bytes:
    """Return the root that an auditor trusts."""
    return (fleet.host / "ca.pem").read_bytes()
