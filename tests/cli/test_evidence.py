"""`show`: what it finds wrong with what vouches for a dump, without reading the core."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.certificates import make_fleet
from tests.support.samples import Sample
from tests.support.stores import flip, give_up


def show(sample: Sample, dump: object, *arguments: object) -> dict[str, Any]:
    """Return what `show` says of a dump."""
    document: dict[str, Any] = sample("show", dump, "--no-analysis", "--json", *arguments).document
    return document


def replace_report(sample: Sample) -> None:
    """Say that another program crashed."""
    (sample.first / "report.json").write_text('{"program":"sshd","signal":6}')


def cut_core(sample: Sample) -> None:
    """Leave only the beginning of the core."""
    os.truncate(sample.first / "core.zst", 10)


def remove_receipt(sample: Sample) -> None:
    """Take away what proves that it was received."""
    (sample.first / "receipt").unlink()


def take_anothers_manifest(sample: Sample) -> None:
    """Have another dump's manifest vouch for it."""
    shutil.copy(sample.dump(sample.dumps[2]) / "manifest.jws", sample.first / "manifest.jws")


def take_anothers_receipt(sample: Sample) -> None:
    """Have another dump's receipt vouch for it."""
    shutil.copy(sample.dump(sample.dumps[2]) / "receipt", sample.first / "receipt")


SPOILED: Final[dict[Callable[[Sample], None], tuple[str, str]]] = {
    replace_report: ("report", "it is not the one that was sent"),
    cut_core: ("core", "it has 10 bytes, the entry says "),
    remove_receipt: ("receipt", "missing"),
    take_anothers_manifest: ("manifest", "it is of another dump, "),
    take_anothers_receipt: ("receipt", "it is of another dump, "),
}


def test_a_sound_dump_has_sound_evidence(sample: Sample) -> None:
    """Two marks, and the report and the length of the core are named only where something is wrong with them."""
    assert show(sample, sample.dumps[0])["evidence"] == {"manifest": "ok", "receipt": "ok", "revocation": "ok"}


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_does_not_hold_is_said(spoil: Callable[[Sample], None], sample: Sample) -> None:
    """Each in its own mark, for programs and for people."""
    name, words = SPOILED[spoil]
    spoil(sample)

    assert show(sample, sample.dumps[0])["evidence"][name].startswith(words)
    assert f"{name}: {words}" in sample("show", sample.dumps[0], "--no-analysis").out


def test_under_another_root_no_manifest_is_sound(sample: Sample, tmp_path: Path) -> None:
    """What nobody vouches for is not called complete."""
    other = make_fleet(tmp_path / "other")

    document = show(sample, sample.dumps[0], "--root", other.host / "ca.pem")

    assert document["state"] == "incomplete"
    assert set(document["evidence"]) == {"manifest", "receipt"}
    assert "ok" not in document["evidence"].values()


def test_a_report_of_a_dump_that_was_given_up_is_held_against_its_entry(sample: Sample) -> None:
    """There is no manifest that has its digest."""
    dump = give_up(sample.fleet, sample.store, b"what came")
    assert "report" not in show(sample, dump)["evidence"]

    (sample.dump(dump) / "report.json").write_text(json.dumps({"program": "sshd"}))

    assert show(sample, dump)["evidence"]["report"] == "it is not the one that was sent"


def test_a_receipt_that_does_not_hold_leaves_the_words_as_they_are(sample: Sample) -> None:
    """Its entry still says how the dump came to be; the evidence says that nothing proves it."""
    dump = give_up(sample.fleet, sample.store, b"what came")
    flip(sample.dump(dump) / "receipt", -20)

    shown = sample("show", dump, "--no-analysis").out

    assert "incomplete (link lost)" in shown
    assert "receipt: " in shown
