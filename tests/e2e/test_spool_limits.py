"""A spool at its quota, and at its disk's floor: refused in words, nothing half stored, and it works again after a flush."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.cli.main import run
from securecore.errors import StorageError, UnreachableError
from securecore.sender.spool_limits import SpoolLimits
from tests.support.certificates import Fleet
from tests.support.checker import check
from tests.support.elf import Segment, write_core
from tests.support.file_systems import fill
from tests.support.local_files import noise, small_disk
from tests.support.receivers import running_receiver
from tests.support.senders import NOWHERE, Sender, sending

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a handler another user")]

MIB = limits.MIB
SPOOLED, DECLINED = UnreachableError.exit_code, StorageError.exit_code
LARGE = write_core([Segment(noise(40 * MIB))])
"""A core that is more than the spools here may take."""
HUGE = write_core([Segment(noise(40 * MIB), filesz=1 << 40)])
"""One that would be even if there were nothing but zeroes in it."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    with small_disk(tmp_path / "small", "24m") as small:
        yield small


def root(fleet: Fleet) -> bytes:
    """Return the root that an auditor trusts."""
    return (fleet.host / "ca.pem").read_bytes()


def reports(web: Sender, store: Path) -> list[dict[str, Any]]:
    """Return the reports of the published dumps, in the order of their crashes."""
    found = [json.loads(path.read_bytes()) for path in web.published(store).glob("*/report.json")]
    return sorted(found, key=lambda report: int(report["crashed_at"]))


def declined(web: Sender, core: bytes) -> int:
    """Have a crash that is expected to be kept nowhere; return its exit code."""
    crash = web.crash(core)
    code = crash.end()
    web.crashes.remove(crash)
    return code


def test_a_spool_at_its_quota_declines_until_it_was_flushed(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in it stays whole; what does not fit leaves nothing there, is counted, and told by the next dump."""
    store = tmp_path / "store"
    with running_receiver(fleet.receiver, store) as receiver, sending(tmp_path / "web", fleet.host, NOWHERE) as web:
        web.change(spool_limits=SpoolLimits(max_bytes=31 * MIB // 10, floor_share=0.0))
        codes = [web.crash(noise(MIB, 1)).end(), web.crash(noise(MIB, 2)).end(), declined(web, HUGE)]
        codes += [web.crash(noise(MIB // 8, 3)).end(), declined(web, noise(MIB, 4))]
        left = web.spooled()
        assert run(["spool", "list", "--settings", str(web.settings)]) == 0
        told = capsys.readouterr().out.splitlines()[-2:]
        meanwhile = check(store, root(fleet), spools=[web.spool], truths=web.truths(store))
        flushed = web.flush(*receiver.addresses)
        codes += [web.crash(noise(MIB, 5)).end()]
        web.send_to(*receiver.addresses)
        codes += [web.crash(noise(MIB, 6)).end()]
        again = web.flush(*receiver.addresses)
        truths = web.truths(store)

    assert codes == [SPOOLED, SPOOLED, DECLINED, SPOOLED, DECLINED, SPOOLED, 0]
    assert len(left) == 3
    assert told[0] == "3 dumps, 2.1 MiB of 3.1 MiB"
    assert told[1].startswith("storm limits: 1 lost since 20")
    assert meanwhile == []
    assert (flushed.returncode, again.returncode) == (0, 0), (flushed, again)
    # The third crash told of the one before it, the fourth that was taken of the other one.
    assert [report.get("lost") for report in reports(web, store)] == [None, None, 1, 1, None]
    assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []


def test_a_spool_with_all_its_dumps_declines_the_next_one(fleet: Fleet, tmp_path: Path) -> None:
    """A quota of dumps; a receiver that is there is no matter of the spool's."""
    store = tmp_path / "store"
    with running_receiver(fleet.receiver, store) as receiver, sending(tmp_path / "web", fleet.host, NOWHERE) as web:
        web.change(spool_limits=SpoolLimits(max_dumps=2, floor_share=0.0))
        codes = [web.crash(b"1").end(), web.crash(b"2").end(), declined(web, b"3")]
        web.send_to(*receiver.addresses)
        codes += [web.crash(b"4").end()]
        truths = web.truths(store)

    assert codes == [SPOOLED, SPOOLED, DECLINED, 0]
    assert web.spooled() == []
    assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []


def test_a_dump_that_outgrows_the_quota_is_kept_as_far_as_it_fits_and_labelled(fleet: Fleet, tmp_path: Path) -> None:
    """Nobody could know it before: the handler says so, and what arrives later is not passed off as all of it."""
    store = tmp_path / "store"
    with running_receiver(fleet.receiver, store) as receiver, sending(tmp_path / "web", fleet.host, NOWHERE) as web:
        web.change(spool_limits=SpoolLimits(max_bytes=6 * MIB, floor_share=0.0))
        code = web.crash(LARGE).end()
        (name,) = web.spooled()
        kept = (web.spool / "dumps" / name / "core.zst").stat().st_size
        flushed = web.flush(*receiver.addresses)
        truths = web.truths(store)
        (manifest,) = web.published(store).glob("*/manifest.jws")

    assert code == DECLINED
    assert 4 * MIB < kept <= 6 * MIB
    assert flushed.returncode == 0
    assert manifest.exists()
    assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []
    assert run(["extract", name, "--store", str(store), "-o", str(tmp_path / "whole")]) != 0


def test_a_spool_at_its_disks_floor_leaves_it_to_the_others_until_it_was_flushed(disk: Path, fleet: Fleet, tmp_path: Path) -> None:
    """So much stays free whatever crashes; there is no entry of what was declined."""
    store = tmp_path / "store"
    with running_receiver(fleet.receiver, store) as receiver, sending(disk / "web", fleet.host, NOWHERE) as web:
        web.change(spool_limits=SpoolLimits(floor_share=0.25, floor_bytes=21 * MIB))
        codes = [web.crash(noise(MIB, 1)).end(), web.crash(noise(MIB, 2)).end(), declined(web, noise(MIB, 3))]
        free, left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize, web.spooled()
        filler = fill(disk)
        codes += [declined(web, noise(MIB, 4))]
        flushed = web.flush(*receiver.addresses)
        filler.unlink()
        codes += [web.crash(noise(MIB, 5)).end()]
        again = web.flush(*receiver.addresses)
        truths = web.truths(store)

    assert codes == [SPOOLED, SPOOLED, DECLINED, DECLINED, SPOOLED]
    assert free >= 21 * MIB
    assert len(left) == 2
    assert (flushed.returncode, again.returncode) == (0, 0), (flushed, again)
    assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []
