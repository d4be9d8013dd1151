"""Cores in files of other programs: looked at without unpacking more than what names the program that crashed."""

import gzip
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import zstandard

from securecore import limits
from securecore.cli.main import run
from tests.support.crash_cores import BUILD_ID, Crash
from tests.support.local_files import noise, small_disk, zstd_bomb

pytestmark = pytest.mark.slow

BLOCKS_OF_64_GIB: Final = 64 * limits.GIB // (128 * limits.KIB)


@pytest.fixture
def no_long_file() -> Iterator[None]:
    """No file of this process becomes longer than 2 GiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * limits.GIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """$TMPDIR is a disk of 1 MiB."""
    with small_disk(tmp_path / "small", "1m") as small:
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", str(small))
        yield small
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.usefixtures("no_long_file")
def test_a_bomb_is_unpacked_no_further_than_a_core_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 MiB of file that stand for 64 GiB behind a core: the core is recognised, and nothing as long as that was made."""
    bomb = tmp_path / "core.zst"
    bomb.write_bytes(zstandard.compress(Crash().write()) + zstd_bomb(BLOCKS_OF_64_GIB))

    assert run(["elf", "id", str(bomb)]) == 0
    assert BUILD_ID.hex() in capsys.readouterr().out


@pytest.mark.root
@pytest.mark.usefixtures("small_tmp")
def test_a_full_disk_keeps_enough_of_a_core(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What fits is looked at, and it has the answer: for a long core, and for a bomb that is no zeroes."""
    for name, data in {
        "core.gz": gzip.compress(Crash().write() + noise(3 * limits.MIB)),
        "core.zst": zstandard.compress(Crash().write()) + zstd_bomb(BLOCKS_OF_64_GIB, b"x"),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert run(["elf", "id", str(tmp_path / name)]) == 0
        assert BUILD_ID.hex() in capsys.readouterr().out


@pytest.mark.root
def test_a_disk_that_takes_too_little_is_named(small_tmp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program of a core cannot be told when its first page does not fit: exit code 5, and where to look."""
    # One page stays free: without it Python takes another directory than $TMPDIR.
    (small_tmp / "full").write_bytes(noise(limits.MIB - resource.getpagesize()))
    (tmp_path / "core.gz").write_bytes(gzip.compress(Crash().write()))

    assert run(["elf", "id", str(tmp_path / "core.gz")]) == 5
    message, hint = capsys.readouterr().err.splitlines()
    assert message == f"securecore: {tmp_path}/core.gz: cannot be unpacked in {small_tmp}: cannot write: no space left on device"
    assert hint == "  hint: $TMPDIR names another directory for it"
