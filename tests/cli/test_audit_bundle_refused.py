"""Bundles of evidence that does not hold, or under another root: none is made of the one, and none is believed under the other."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from securecore.cli import audit_prove
from securecore.cli.main import run
from tests.support.certificates import Fleet, make_fleet
from tests.support.samples import Sample
from tests.support.stores import WEB, flip
from tests.support.third_parties import Evidence


def break_the_manifest(sample: Sample) -> str:
    flip(sample.first / "manifest.jws", -5)
    return "cannot be proved: the manifest is signed"


def lose_the_manifest(sample: Sample) -> str:
    (sample.first / "manifest.jws").unlink()
    return "cannot be proved: the manifest is signed: manifest.jws is missing"


def swap_the_manifest(sample: Sample) -> str:
    shutil.copyfile(sample.dump(sample.dumps[2]) / "manifest.jws", sample.first / "manifest.jws")
    return "cannot be proved: the manifest speaks of this dump, host and store"


def change_the_report(sample: Sample) -> str:
    (sample.first / "report.json").write_bytes(b"{}")
    return "cannot be proved: the report is the one that was sent"


def lose_the_report(sample: Sample) -> str:
    (sample.first / "report.json").unlink()
    return "report.json is missing"


def lose_the_lists(sample: Sample) -> str:
    shutil.rmtree(sample.store / "crls")
    return "cannot be proved: the certificate was not revoked, by the lists of that time"


def change_the_log(sample: Sample) -> str:
    flip(sample.log() / "entries.jsonl", -4)
    return f"the audit log of {WEB} proves nothing: the log does not begin as it was signed"


def forge_the_checkpoint(sample: Sample) -> str:
    flip(sample.log() / "checkpoint", -5)
    return f"the audit log of {WEB} proves nothing: checkpoint "


def lose_the_log(sample: Sample) -> str:
    shutil.rmtree(sample.log())
    return f"the audit log of {WEB} says nothing of "


def lose_the_dump(sample: Sample) -> str:
    shutil.rmtree(sample.first)
    return "is not in the store, and its audit log says received"


@pytest.mark.parametrize(
    "damage",
    [
        break_the_manifest,
        lose_the_manifest,
        swap_the_manifest,
        change_the_report,
        lose_the_report,
        lose_the_lists,
        change_the_log,
        forge_the_checkpoint,
        lose_the_log,
        lose_the_dump,
    ],
)
def test_evidence_that_does_not_hold_makes_no_bundle(damage: Any, evidence: Evidence) -> None:
    """What is wrong is said instead, and no file is left behind."""
    words = damage(evidence.sample)
    ran = evidence.prove(evidence.sample.dumps[0], "--with-report")
    assert (ran.code, ran.out) == (6, "")
    assert words in ran.err
    assert "hint: " in ran.err
    assert not evidence.path.exists()


def test_a_dump_that_is_moved_on_meanwhile_is_looked_at_again(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's word on it had changed by the time that its files were read."""
    read, looks = audit_prove.prove_standing, []

    def outdated(*arguments: Any) -> Any:
        looks.append(arguments)
        (entry, other) = (read(*arguments), read(*arguments[:3], evidence.sample.dumps[2]))
        return entry if len(looks) > 1 else other

    monkeypatch.setattr(audit_prove, "prove_standing", outdated)
    assert evidence.prove(evidence.sample.dumps[0]).code == 0
    assert len(looks) == 2
    assert evidence.document()["id"] == str(evidence.sample.dumps[0])


def test_another_root_believes_none_of_it(evidence: Evidence, tmp_path: Path) -> None:
    """A PKI with the same names is another one."""
    evidence.prove(evidence.sample.dumps[0])
    other: Fleet = make_fleet(tmp_path / "other")
    ran = evidence.check("--root", other.host / "ca.pem")
    assert ran.code == 6
    assert "FAIL  the log key is a receiver's, under the root" in ran.out
    assert "-  BROKEN  the log key is a receiver's, under the root" in ran.out
    found = evidence.check("--json", "--root", other.host / "ca.pem").document
    assert (found["ok"], found["host"], found["is_signed_by_host"]) == (False, None, False)


def test_there_is_no_root_but_the_one_that_is_named(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one of the environment either."""
    evidence.prove(evidence.sample.dumps[0])
    monkeypatch.setenv("SECURECORE_ROOT", str(evidence.root))
    assert run(["audit", "check", str(evidence.path)]) == 2
    assert evidence.check("--root", evidence.path.parent / "none.pem").code == 4
