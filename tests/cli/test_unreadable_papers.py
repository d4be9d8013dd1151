"""A file of a dump that cannot be read is that dump's own trouble: the others are verified, and the rest of it is shown."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from tests.support.samples import GONE, RECEIPTS, Sample
from tests.support.stores import DB, WEB

PAPERS: Final = ("receipt", "manifest.jws", "report.json")


def make_link(path: Path) -> None:
    """Put a link there, to the file itself under another name."""
    path.rename(path.parent / "moved")
    path.symlink_to("moved")


def make_directory(path: Path) -> None:
    """Put a directory there."""
    path.unlink()
    path.mkdir()


def make_fifo(path: Path) -> None:
    """Put a FIFO there, whose other end never comes."""
    path.unlink()
    os.mkfifo(path)


def make_long(path: Path) -> None:
    """Make it longer than any file of its kind may be."""
    path.write_bytes(bytes(limits.MAX_RECEIPT_BYTES + limits.MAX_MANIFEST_BYTES + limits.MAX_REPORT_BYTES))


SPOILED: Final[dict[str, Callable[[Path], None]]] = {
    "directory": make_directory, "link": make_link, "FIFO": make_fifo, "too long": make_long,
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", [*PAPERS, "core.zst"])
def test_verify_says_so_of_that_dump_and_goes_on(name: str, how: str, sample: Sample) -> None:
    """Exit code 6, one dump broken, and three verified."""
    SPOILED[how](sample.first / name)

    ran, one = sample.verify("--all"), sample.verify(sample.dumps[0])

    assert (ran.code, ran.err, one.code) == (6, "", 6)
    assert f"{sample.dumps[0].short}  BROKEN  {WEB}" in ran.out
    assert (ran.out.count("BROKEN"), ran.out.count("  ok  "), ran.out.count("GONE")) == (1, 3, 0)


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", PAPERS)
def test_show_says_so_and_shows_the_rest(name: str, how: str, sample: Sample) -> None:
    """What cannot be read is evidence that does not hold."""
    SPOILED[how](sample.first / name)

    ran = sample("show", sample.dumps[0], "--no-analysis")
    evidence = sample("show", sample.dumps[0], "--no-analysis", "--json").document["evidence"]

    assert (ran.code, ran.err) == (0, "")
    assert str(sample.dumps[0]) in ran.out
    assert evidence[name.split(".")[0]] != "ok"


@pytest.mark.parametrize("how", SPOILED)
def test_a_core_without_its_manifest_comes_out_as_a_part(how: str, sample: Sample, tmp_path: Path) -> None:
    """Exit code 6 either way; with --partial the core is written."""
    SPOILED[how](sample.first / "manifest.jws")

    refused = sample.extract(sample.dumps[0], tmp_path / "no")
    taken = sample.extract(sample.dumps[0], tmp_path / "core", "--partial")

    assert (refused.code, taken.code) == (6, 6)
    assert "so nothing says whether this is all of it" in taken.err
    assert (tmp_path / "core").exists()
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize(("name", "fails"), [("receipt", RECEIPTS), ("manifest.jws", GONE)])
def test_audit_verify_says_so_and_compares_the_others(name: str, fails: str, how: str, sample: Sample) -> None:
    """That another dump is gone is not hidden behind it."""
    SPOILED[how](sample.first / name)
    shutil.rmtree(sample.dump(sample.dumps[2]))

    ran = sample.audit()

    assert ran.code == 6
    assert sample.failed() == sorted({fails, GONE}, key=[RECEIPTS, GONE].index)
    assert f"{sample.dumps[2]} (it is not there)" in ran.out
    assert str(sample.dumps[0]) in ran.out


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_directory_is_no_dump(kind: str, sample: Sample) -> None:
    """In a dump's place it is broken, with the others verified."""
    sample.first.rename(sample.store / "moved")
    if kind == "file":
        sample.first.write_bytes(b"")
    else:
        sample.first.symlink_to(sample.store / "moved")

    ran = sample.verify("--all")

    assert (ran.code, ran.err) == (6, "")
    assert (ran.out.count("BROKEN"), ran.out.count("  ok  ")) == (1, 3)
    assert "the dump can be opened" in ran.out
    assert sample.audit().code == 6


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize(("place", "code"), [("hosts", 6), ("audit", 0)])
def test_what_stands_in_a_hosts_place_is_that_hosts_trouble(place: str, code: int, kind: str, sample: Sample) -> None:
    """Its dumps are missing, or its log is; the other host is verified by both commands."""
    path = sample.store / place / WEB
    path.rename(sample.store / "moved")
    if kind == "file":
        path.write_bytes(b"")
    else:
        path.symlink_to(sample.store / "moved")

    verified, audited = sample.verify("--all"), sample.audit()

    assert (verified.code, audited.code) == (code, 6)
    assert (verified.err, audited.err) == ("", "")
    assert f"  ok  {DB}" in verified.out
    assert f"{DB}  ok  " in audited.out
    assert f"{WEB}  BROKEN  " in audited.out
