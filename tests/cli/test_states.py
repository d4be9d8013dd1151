"""How a dump stands is said in the same words by every command, and they are those of docs/terminology.md."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from securecore.cli import state, terminal
from securecore.dump.manifest import OUTCOMES
from securecore.names import DumpId, HostName
from securecore.store.layout import Place, open_store
from securecore.store.relocation import move_dump
from tests.support.dumps import begin
from tests.support.receivers import new_dump_id
from tests.support.samples import Sample
from tests.support.stores import WEB, flip, give_up

DOCUMENT: Final = (Path(__file__).parents[2] / "docs" / "terminology.md").read_text("utf-8")


def complete(sample: Sample) -> object:
    """Return a dump that nothing is missing of."""
    return sample.dumps[0]


def truncated(sample: Sample) -> object:
    """Return one whose source ended early."""
    return sample.dumps[1]


def given_up(sample: Sample) -> object:
    """Return one whose sender did not come back."""
    return give_up(sample.fleet, sample.store, b"what came")


def coming_in(sample: Sample) -> object:
    """Return one whose sender has not said that this is all."""
    dump = new_dump_id()
    with open_store(str(sample.store)) as store:
        begin(store, dump, b"so far", host=HostName(WEB)).close()
    return dump


def unpublished(sample: Sample) -> object:
    """Return one whose commit was interrupted before its receipt."""
    dump = proved(sample)
    (sample.dump(sample.dumps[0], place="incoming") / "receipt").unlink()
    return dump


def proved(sample: Sample) -> object:
    """Return one whose commit was interrupted behind its receipt."""
    with open_store(str(sample.store)) as store:
        move_dump(store, HostName(WEB), sample.dumps[0], Place.HOSTS, Place.INCOMING)
    return sample.dumps[0]


def unpublished_and_truncated(sample: Sample) -> object:
    """Return one whose commit was interrupted, and that is incomplete for a reason of its own."""
    with open_store(str(sample.store)) as store:
        move_dump(store, HostName(WEB), sample.dumps[1], Place.HOSTS, Place.INCOMING)
    return sample.dumps[1]


def without_manifest(sample: Sample) -> object:
    """Return one whose manifest somebody has removed."""
    (sample.first / "manifest.jws").unlink()
    return sample.dumps[0]


def without_core(sample: Sample) -> object:
    """Return one whose core somebody has removed."""
    (sample.first / "core.zst").unlink()
    return sample.dumps[0]


def with_a_cut_core(sample: Sample) -> object:
    """Return one whose core is not all there any more."""
    os.truncate(sample.first / "core.zst", 10)
    return sample.dumps[0]


def with_anothers_papers(sample: Sample) -> object:
    """Return one beside which somebody has put what vouches for another."""
    for name in ("manifest.jws", "receipt"):
        shutil.copy(sample.first / name, sample.dump(sample.dumps[1]) / name)
    return sample.dumps[1]


def with_anothers_manifest(sample: Sample) -> object:
    """Return one that has its own receipt, and another's manifest."""
    shutil.copy(sample.first / "manifest.jws", sample.dump(sample.dumps[1]) / "manifest.jws")
    return sample.dumps[1]


def given_up_and_unproved(sample: Sample) -> object:
    """Return one that was given up, whose receipt does not hold."""
    dump = given_up(sample)
    assert isinstance(dump, DumpId)
    flip(sample.dump(dump) / "receipt", -20)
    return dump


def unpublished_and_without_manifest(sample: Sample) -> object:
    """Return one whose manifest was damaged before it was published."""
    dump = unpublished(sample)
    (sample.dump(sample.dumps[0], place="incoming") / "manifest.jws").write_bytes(b"x")
    return dump


def unpublished_and_without_core(sample: Sample) -> object:
    """Return one whose core went before it was published."""
    dump = unpublished(sample)
    (sample.dump(sample.dumps[0], place="incoming") / "core.zst").unlink()
    return dump


STATES: Final[dict[Callable[[Sample], object], tuple[str, int | None, int]]] = {
    complete: ("complete", 0, 0),
    truncated: ("incomplete (source-truncated)", 0, 7),
    given_up: ("incomplete (link lost)", 0, 7),
    coming_in: ("incomplete (still coming in)", 7, 7),
    unpublished: ("incomplete (not published yet)", 7, 7),
    proved: ("incomplete (not published yet)", 0, 7),
    unpublished_and_truncated: ("incomplete (source-truncated, not published yet)", 0, 7),
    without_manifest: ("incomplete (no sound manifest)", None, 6),
    without_core: ("incomplete (core missing)", None, 6),
    with_a_cut_core: ("incomplete (core damaged)", None, 6),
    with_anothers_papers: ("incomplete (no sound manifest)", None, 6),
    with_anothers_manifest: ("incomplete (no sound manifest)", None, 6),
    given_up_and_unproved: ("incomplete (link lost)", None, 7),
    unpublished_and_without_manifest: ("incomplete (not published yet, no sound manifest)", None, 6),
    unpublished_and_without_core: ("incomplete (not published yet, core missing)", None, 6),
}
"""Each with the exit codes of `verify`, None where it says what is broken, and of `extract`."""

SAYS_WHY: Final = (
    without_manifest, with_a_cut_core, with_anothers_papers, with_anothers_manifest, unpublished_and_without_manifest,
)  # fmt: skip
"""Those of which `extract` says what is wrong in their place."""


@pytest.mark.parametrize("make", STATES)
def test_every_command_says_it_in_the_same_words(make: Callable[[Sample], object], sample: Sample, tmp_path: Path) -> None:
    """`list` may say before them how much of the core is there; where something is broken, `verify` says that instead."""
    label, verified_code, extracted_code = STATES[make]
    dump = make(sample)
    catalogue = [name for name in sample.store.iterdir() if name.name.startswith("catalogue")]
    for path in catalogue:  # It was made before the dump was spoiled.
        path.unlink()

    row = next(line for line in sample("list").out.splitlines() if line.startswith(str(dump)[-8:]))
    shown, verified = sample("show", dump, "--no-analysis").out, sample.verify(dump)
    extracted = sample.extract(dump, tmp_path / "core")

    assert re.sub(r"\(\d+ %, ", "(", row).removesuffix(", no sound receipt").endswith(f"  {label}")
    assert any(line.split(maxsplit=1)[:1] == ["state"] and label in line for line in shown.splitlines())
    assert verified.code == (6 if verified_code is None else verified_code)
    if verified_code is not None:
        assert label in verified.out + verified.err
    assert extracted.code == extracted_code
    if label != "complete" and make not in SAYS_WHY:
        assert f"{str(dump)[-8:]} is {label}" in extracted.err
    documents = (sample("show", dump, "--no-analysis", "--json").document, *sample("list", "--json").document)
    assert {found["state"] for found in documents if found["id"] == str(dump)} == {label.split(" ")[0]}


@pytest.mark.parametrize("make", [truncated, given_up, coming_in, unpublished, unpublished_and_truncated])
def test_a_part_that_is_taken_out_is_labelled(make: Callable[[Sample], object], sample: Sample, tmp_path: Path) -> None:
    """With --partial the file is written, and on standard error stands what it is."""
    dump = make(sample)

    ran = sample.extract(dump, tmp_path / "core", "--partial")

    assert ran.code == 0
    assert ran.err == f"note: {str(dump)[-8:]} is {STATES[make][0]}\n"
    assert (tmp_path / "core").exists()


PAPERS: Final[dict[Callable[[Sample], object], str]] = {
    complete: "complete, no sound report, no sound receipt",
    truncated: "incomplete (source-truncated), no sound report, no sound receipt",
    unpublished: "incomplete (not published yet), no sound report",
    coming_in: "incomplete (still coming in), no sound report",
}
"""Of each how `list` says it when neither its report nor its receipt can be read."""


@pytest.mark.parametrize("make", PAPERS)
def test_papers_that_do_not_read_are_said_beside_the_state(make: Callable[[Sample], object], sample: Sample) -> None:
    """`list` names them behind it, `show` says in its evidence what is wrong with them; the state is that of the core."""
    dump = make(sample)
    (path,) = sample.store.glob(f"*/{WEB}/{dump}")
    for name in ("report.json", "receipt"):
        if (path / name).exists():
            (path / name).write_bytes(b"")
    for catalogue in sample.store.glob("catalogue*"):  # It was made before the dump was spoiled.
        catalogue.unlink()

    (row,) = (line for line in sample("list").out.splitlines() if line.startswith(str(dump)[-8:]))
    shown = sample("show", dump, "--no-analysis", "--json").document

    assert re.sub(r"\(\d+ %, ", "(", row).endswith(f"  {PAPERS[make]}")
    assert shown["state"] == PAPERS[make].split(" ")[0].rstrip(",")
    assert shown["evidence"]["report"] != "ok"
    assert shown["evidence"].get("receipt") != "ok"


def test_how_long_nothing_has_come_is_shown(sample: Sample) -> None:
    """Of a dump that is still coming in, or seems to be."""
    dump = coming_in(sample)
    os.utime(sample.store / "incoming" / WEB / str(dump) / "core.zst", (1e9, 1e9))

    out = sample("show", dump, "--no-analysis").out

    assert "incomplete (still coming in); the last frame came 2001-09-09 01:46:40 UTC" in out


@pytest.mark.parametrize("partial", [[], ["--partial"]])
def test_without_a_core_there_is_nothing_to_extract(partial: list[str], sample: Sample, tmp_path: Path) -> None:
    """No hint sends anybody for a part of it, or for a receiver; and nothing is in the log that did not happen."""
    dump = without_core(sample)

    ran = sample.extract(dump, tmp_path / "core", *partial)

    assert (ran.code, ran.out) == (6, "")
    assert "there is nothing to extract; `securecore verify` says what is left" in ran.err
    assert not (tmp_path / "core").exists()
    assert "extracted" not in [entry["event"] for entry in sample.entries()]


def test_the_document_has_every_word() -> None:
    """One row for each state, and each reason of a state; and no row that no command says."""
    section = DOCUMENT.partition("\n## States\n")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))
    reasons = {state.COMING_IN, state.UNPUBLISHED, state.GIVEN_UP, state.NO_MANIFEST, state.NO_CORE, state.OTHER_CORE}
    reasons.add(terminal.lost_beginning(3))
    assert rows == {"complete", *(f"incomplete ({reason})" for reason in {*OUTCOMES, *reasons} - {"complete"})}
