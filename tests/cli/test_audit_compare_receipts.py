"""Which receipts ``audit compare`` takes for witnesses and which not, and how it and ``audit report`` tell what they say."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.certificates import DOMAIN, make_fleet
from tests.support.kept_receipts import deliver
from tests.support.stores import DB, WEB, Ran
from tests.support.witnessed import Witnessed


def test_receipts_of_another_receiver_are_of_no_log_here(kept: Witnessed, neighbour: Path) -> None:
    """They are not passed over, or a store in another's place would contradict nothing; who knows better names the receiver."""
    ran = kept.compare(kept.web, neighbour)

    assert kept.kinds(kept.web, neighbour) == {WEB: [None, None, None, "another-receiver"]}
    assert f"{WEB}  ok  3 receipts fit" in ran.out
    assert f"another-receiver: it is backup.{DOMAIN}'s, this store is collector.{DOMAIN}'s" in ran.out
    assert "--receiver NAME compares those of one" in ran.err
    assert kept.compare(kept.web, neighbour, "--receiver", "collector").code == 0
    assert kept.compare(kept.web, neighbour, "--receiver", f"Collector.{DOMAIN}.").code == 0
    assert kept.compare(kept.web, neighbour, "--receiver", "backup").code == 6


@pytest.mark.parametrize(
    "option", [["--host", "web-2"], ["--receiver", "coll"], ["--host", "web-1", "--receiver", "b"], ["--host", ""]]
)
def test_nothing_to_compare_is_no_success(kept: Witnessed, option: list[str]) -> None:
    """Where no receipt is of those that are meant, or there is none at all."""
    ran = kept.compare(*option)

    assert (ran.code, "no receipt" in ran.err) == (4, True)
    assert kept.compare("/dev/null").code == 4


def test_a_host_is_compared_alone(kept: Witnessed) -> None:
    """What is wrong with another one is not looked at."""
    kept.put_back_to_the_first()

    assert kept.compare("--host", "db-2").code == 0
    assert kept.compare("--host", WEB).code == 6


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("form", ["proofs", "one proof each", "log"])
def test_receipts_are_known_by_their_content(
    kept: Witnessed, form: str, piped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proofs as a store has them, alone or one behind the other, and logs as hosts have them; from files or standard input."""
    proofs = [(kept.dump(dump) / "receipt").read_bytes() for dump in kept.dumps[:3]]
    texts = {"proofs": [b"".join(proofs)], "one proof each": proofs, "log": [kept.web.read_bytes()]}[form]
    paths = [tmp_path / f"kept-{number}" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text)
    kept.put_back_to_the_first()

    if piped:
        with standard_input(paths[-1], monkeypatch):
            found = kept.kinds(*paths[:-1], "-")
    else:
        found = kept.kinds(*paths)

    assert found == {WEB: [None, "shortened", "shortened"]}


@contextmanager
def standard_input(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a file as standard input while the block runs; pytest has put something else into its place."""
    spare = os.dup(0)
    with path.open("rb") as source:
        os.dup2(source.fileno(), 0)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(source))
        try:
            yield
        finally:
            os.dup2(spare, 0)
            os.close(spare)


def test_a_receipt_that_does_not_hold_is_told_apart(kept: Witnessed) -> None:
    """It contradicts itself and not the store; the others are compared all the same, and so are those around a damaged line."""
    lines = kept.web.read_bytes().splitlines(keepends=True)
    kept.web.write_bytes(lines[0] + lines[1].replace(b"index 2", b"index 1") + b"nothing\n" + lines[2])

    ran = kept.compare()

    assert ran.code == 6
    assert kept.kinds() == {WEB: [None, "damaged", None], None: ["damaged"], DB: [None]}
    assert f"{kept.web}:2  -  damaged: receipt does not lead to the root of its checkpoint" in ran.out
    assert f"{kept.web}:3  -  damaged: the line is not JSON" in ran.out


def test_a_torn_line_was_never_a_receipt(kept: Witnessed) -> None:
    """It is told, and no fault."""
    with kept.web.open("ab") as log:
        log.write(b'{"dump":"')

    ran = kept.compare()

    assert (ran.code, ran.err) == (0, f"note: {kept.web}:4: the last line is not whole\n")


def test_a_receipt_signed_by_nobody_of_ours_is_no_witness(kept: Witnessed, tmp_path: Path) -> None:
    """Whoever makes receipts of his own cannot bring a store into disrepute as shortened or forked."""
    stranger = make_fleet(tmp_path / "strangers")
    deliver(stranger, tmp_path / "their-store", tmp_path / "theirs", [b"invented"])

    assert kept.kinds(tmp_path / "theirs/receipts.jsonl") == {WEB: ["damaged"]}


@pytest.mark.parametrize("what", ["missing", "directory", "garbage"])
def test_what_is_no_file_of_receipts_is_refused(kept: Witnessed, what: str, tmp_path: Path) -> None:
    """In one line, however much of it there is."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "garbage").write_bytes(b"x\n" * 200_000)

    ran = kept.compare(tmp_path / what)

    assert (ran.code, ran.out, ran.err.count("\n") <= 2) == (4 if what == "missing" else 3, "", True)


def test_names_move_no_cursor(kept: Witnessed, tmp_path: Path) -> None:
    """A file's, or what a line says."""
    path = tmp_path / "\x1b[2J"
    path.write_bytes(b'{"receipt":"\\u001b[2J"}\n\x1b[2J\n' + kept.web.read_bytes()[:-50])

    ran = kept.compare(path)

    assert ran.code == 6
    assert "\x1b" not in ran.out + ran.err


def test_without_a_root_of_ones_own_that_is_said(kept: Witnessed) -> None:
    """The store's copy proves nothing against whoever can write the store."""
    ran = kept("audit", "compare", kept.web)

    assert (ran.code, "verified up to the store's own copy of the root" in ran.err) == (0, True)


def report(kept: Witnessed, *arguments: object) -> Ran:
    """Run ``audit report`` with the fleet's root and the receipts of both hosts."""
    receipts = ("--receipts", kept.web, "--receipts", kept.db)
    return kept("audit", "report", *receipts, "--root", kept.fleet.host / "ca.pem", *arguments)


def test_a_report_with_receipts_tells_what_they_contradict(kept: Witnessed, tmp_path: Path) -> None:
    """The logs hold, for all of the store was put back; what hosts have kept stands at the page's top all the same."""
    kept.put_back_to_the_first()

    ran, drawn = report(kept, "--json"), report(kept, "-o", tmp_path / "report.html")

    found = ran.document["witnesses"]
    assert (ran.code, drawn.code) == (6, 6)
    assert (found["receipts"], found["hosts"]) == (4, [DB, WEB])
    assert [(one["host"], one["dump"], one["kind"]) for one in found["contradictions"]] == [
        (WEB, str(dump), "shortened") for dump in kept.dumps[1:3]
    ]
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "2 of 4 receipts do not fit" in page.partition("</header>")[0]
    assert f"{kept.web}:3" in page
    assert "2 receipts do not fit this store's logs" in drawn.err
    assert report(kept, "--json", "--host", "db-2").code == 0


def test_a_report_says_whether_receipts_were_compared(kept: Witnessed, neighbour: Path, tmp_path: Path) -> None:
    """And which, those of another receiver like `audit compare`; CSV has no line for any."""
    ran = report(kept, "--json")
    assert report(kept, "-o", tmp_path / "with.html").code == 0
    assert kept("audit", "report", "-o", tmp_path / "without.html").code == 0

    assert (ran.code, ran.document["witnesses"]) == (0, {"receipts": 4, "hosts": [DB, WEB], "contradictions": []})
    assert "All 4 receipts fit" in (tmp_path / "with.html").read_text("utf-8")
    assert "No receipts were compared" in (tmp_path / "without.html").read_text("utf-8")
    assert kept("audit", "report", "--json").document["witnesses"] is None
    assert report(kept, "--json", "--receipts", neighbour).code == 6
    assert report(kept, "--json", "--receipts", neighbour, "--receiver", "collector").code == 0
    assert report(kept, "--csv").code == 2
    assert kept("audit", "report", "--json", "--receipts", "/dev/null").code == 4
