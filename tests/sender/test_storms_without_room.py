"""The storm limits on a disk that has no room, or no inodes: they hold all the same, where their state was prepared."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from securecore.errors import BrokenError, StorageError
from securecore.sender import storm_limits, storms
from securecore.sender.admission import StormLimit
from securecore.sender.buckets import Untaken
from securecore.sender.spool import Spool, create_spool, open_spool
from tests.support.file_systems import fill
from tests.support.kernel import OWNER
from tests.support.local_files import small_disk
from tests.support.storm_states import ADMISSION, CRASH, NOW, admit, counted, state_of


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[tuple[Spool, Path]]:
    """A spool on a disk of its own, with the function that fills it to the last block left to its reader."""
    with small_disk(tmp_path / "disk", "2m,nr_inodes=100") as disk:
        create_spool(str(disk / "spool"), bytes(16))
        opened = open_spool(str(disk / "spool"))
        yield opened, disk
        opened.close()


def test_a_full_disk_switches_no_limit_off(full_disk: tuple[Spool, Path]) -> None:
    """Whoever can fill the spool's file system has no more crashes taken by that; the state may become as large as it can."""
    spool, disk = full_disk
    assert admit(spool) is None
    fill(disk)
    assert [admit(spool) for _ in range(4)] == [None] * 2 + ["program"] * 2
    crashes = [CRASH._replace(uid=number % 200, executable_inode=1 << 60 | number) for number in range(600)]
    verdicts = [storms.admit(spool.fd, ADMISSION._replace(host=StormLimit(0, 1)), crash, lambda: NOW).limit for crash in crashes]

    most = (storm_limits.MAX_STORM_PROGRAMS + 1, storm_limits.MAX_STORM_USERS + 1)
    assert (len(counted(disk).programs), len(counted(disk).users)) == most
    assert "user" in verdicts
    storms.count_declined(spool.fd)
    storms.lose(spool.fd, ADMISSION, CRASH, Untaken(), lambda: NOW)
    assert (counted(disk).declined, counted(disk).lost) == (1, 1)
    assert sorted(os.listdir(disk / "spool")) == ["FORMAT", "dumps", "storms.json"]


def test_a_disk_without_inodes_switches_no_limit_off(full_disk: tuple[Spool, Path]) -> None:
    """Nor does one whose blocks are free, but where no file can be made."""
    spool, disk = full_disk
    admit(spool)
    with suppress(OSError):
        for number in range(100):
            (disk / str(number)).touch()

    assert [admit(spool) for _ in range(4)] == [None] * 2 + ["program"] * 2


def test_a_state_that_was_prepared_limits_from_the_first_crash_on(full_disk: tuple[Spool, Path]) -> None:
    """Set-up leaves it for the handler's user, and what is there already as it is."""
    spool, disk = full_disk
    storms.prepare(spool.fd, OWNER)
    fill(disk)
    assert (disk / "spool" / "storms.json").stat().st_uid == OWNER[0]
    assert [admit(spool) for _ in range(4)] == [None] * 3 + ["program"]

    before = (disk / "spool" / "storms.json").read_bytes()
    storms.prepare(spool.fd, OWNER)
    assert (disk / "spool" / "storms.json").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_no_file_that_takes_the_place_of_a_prepared_state_is_given_away(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose spool it is can put a second name of a file of root's there, the moment that the state has its own."""
    precious, real = tmp_path / "precious", os.rename
    precious.touch()

    def rename(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        real(state_of(tmp_path), tmp_path / "state")
        os.link(precious, state_of(tmp_path))

    monkeypatch.setattr(os, "rename", rename)
    storms.prepare(spool.fd, OWNER)

    assert (precious.stat().st_uid, (tmp_path / "state").stat().st_uid) == (0, OWNER[0])


def test_a_state_that_a_killed_handler_has_torn_on_a_full_disk_begins_anew_there(full_disk: tuple[Spool, Path]) -> None:
    """The damaged one gives its room, for there is none to keep it in; a link or a second name in its place gives nothing."""
    spool, disk = full_disk
    admit(spool)
    fill(disk)
    state, damaged = disk / "spool" / "storms.json", disk / "spool" / "storms.json.damaged"
    with state.open("r+b") as file:
        file.write(b"}" * 20)
    with pytest.raises(BrokenError):
        admit(spool)
    assert [admit(spool) for _ in range(4)] == [None] * 3 + ["program"]
    assert not damaged.exists()

    precious = disk / "spool" / "precious"
    os.rename(state, precious)
    os.link(precious, damaged)
    before = precious.read_bytes()
    with pytest.raises(StorageError, match="no space left"):
        admit(spool)
    assert precious.read_bytes() == before
