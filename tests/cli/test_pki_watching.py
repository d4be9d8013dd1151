"""`securecore pki status` and `log verify` as a timer and a person run them."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from securecore.cli.authority import watching
from securecore.errors import BrokenError
from tests.support.certificates import DOMAIN, HOST_NAME
from tests.support.pki_commands import Runner, fails


@pytest.fixture
def pki(pki: Runner) -> Runner:
    """A runner in a PKI with one host, named by the environment, in an empty directory."""
    assert pki("issue", "host", "web-1", "--out", "w").code == 0
    return pki


@pytest.mark.parametrize(("days", "code", "word"), [(0, 0, "OK"), (62, 2, "CRITICAL"), (21, 1, "WARNING")])
def test_the_exit_code_is_that_of_a_monitoring_plug_in(
    days: int, code: int, word: str, pki: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first line says it, as such systems show it; below it stands what is to be done."""
    monkeypatch.setattr(watching, "now", lambda: datetime.now(UTC) + timedelta(days=days))
    ran = pki("status")
    assert (ran.code, ran.out.partition(" ")[0], ran.err) == (code, word, "")
    assert ("WHAT TO DO" in ran.out) == (code != 0)
    document = json.loads(pki("status", "--json").out)
    assert document["level"] == word.lower()
    assert len(document["items"]) == 7


def test_all_shows_what_needs_nothing(pki: Runner) -> None:
    """A line for each."""
    lines = pki("status", "--all").out.splitlines()
    assert len(lines) == 9
    assert any(HOST_NAME in line for line in lines)


def test_the_log_is_verified_from_a_noted_place(pki: Runner) -> None:
    """What an earlier run told to note is taken as it was printed; a ledger that was put back is found."""
    first = pki("log", "verify")
    noted = first.out.partition("to note: ")[2].partition("\n")[0]
    kept = Path("fleet-pki/ledger.jsonl").read_bytes()
    assert (first.code, len(first.out.splitlines())) == (0, 5)
    pki("issue", "host", "db-2", "--out", "d")
    second = pki("log", "verify", "--noted", noted)
    assert second.code == 0
    noted = second.out.partition("to note: ")[2].partition("\n")[0]
    Path("fleet-pki/ledger.jsonl").write_bytes(kept)
    ran = pki("log", "verify", "--noted", noted)
    assert ran.code == BrokenError.exit_code
    assert "lines are missing at its end" in ran.out
    assert "hint: it has forgotten what came since: pki/runbooks/after-a-restore.md\n" in ran.out
    assert [one["ok"] for one in json.loads(pki("log", "verify", "--noted", noted, "--json").out)][:2] == [True, False]
    fails(pki("log", "verify", "--noted", "junk"), 2, "--noted is LINES:DIGEST")


@pytest.mark.parametrize("missing", [("hosts/crl.pem", "crl.pem"), ("crl.pem",)])
def test_a_revocation_that_no_receiver_can_have_yet_is_critical(missing: tuple[str, ...], pki: Runner) -> None:
    """It was recorded, and then the run was killed or the disk was full. The command that is named ends it."""
    before = {name: Path("fleet-pki", name).read_bytes() for name in missing}
    assert pki("revoke", "web-1", "--reason", "keyCompromise").code == 0
    assert pki("status").code == 0
    for name, data in before.items():
        Path("fleet-pki", name).write_bytes(data)
    ran = pki("status")
    assert (ran.code, ran.out.splitlines()[0]) == (2, "CRITICAL - 1 of 6 need something")
    assert "run `securecore pki crl` and distribute it" in ran.out
    assert pki("crl").code == 0
    assert pki("status").code == 0


def put_back(pki: Runner) -> None:
    """Revoke web-1 and put the PKI back from a backup that was made before; its list is at hand as crl.pem."""
    shutil.copytree("fleet-pki", "backup")
    assert pki("token", "db-2").code == 0
    shutil.copy("fleet-pki/ledger.jsonl", "backup/ledger.jsonl")
    assert pki("revoke", "web-1", "--reason", "keyCompromise").code == 0
    assert pki("status", "--note", "noted").code == 0
    shutil.copy("fleet-pki/crl.pem", "crl.pem")
    shutil.rmtree("fleet-pki")
    shutil.copytree("backup", "fleet-pki")


def test_a_monitoring_system_hears_that_an_old_copy_was_put_back(pki: Runner) -> None:
    """In the first line, with the runbook below, each time until somebody notes anew; programs have it as a field."""
    put_back(pki)
    for _ in range(2):
        ran = pki("status", "--note", "noted")
        assert (ran.code, ran.out.splitlines()[1]) == (2, "what to do: pki/runbooks/after-a-restore.md")
        assert re.match(r"CRITICAL - the ledger: it has \d+ lines, and \d+ were noted: lines are missing at its end\n", ran.out)
    assert json.loads(pki("status", "--json", "--note", "noted").out)["lost"].startswith("the ledger: it has")
    assert (json.loads(pki("status", "--json").out)["lost"], pki("status").code) == (None, 0)
    fails(pki("status", "--note", "fleet-pki/noted"), 3, "would bring it along")


def test_a_restored_pki_learns_from_a_receivers_list(pki: Runner) -> None:
    """What was learned is told line by line, then what comes next, which works; a second run finds nothing new."""
    put_back(pki)
    learned = pki("learn", "crl.pem")
    assert learned.code == 0
    assert re.search(rf"learned that [0-9a-f]+, host {HOST_NAME}, was revoked on 20\d\d-\d\d-\d\d \(keyCompromise\)\n", learned.out)
    assert "learned that CRL 2 of the hosts-ca was signed\n" in learned.out
    assert re.search(rf"recalled token [0-9a-f]{{16}} for db-2.{DOMAIN}: it may have been used\n", learned.out)
    assert "next: securecore pki crl --now" in learned.out
    assert "hosts-ca: CRL 3, 1 revoked" in pki("crl", "--now").err
    assert pki("learn", "crl.pem").out == "nothing new in 1 file\n"
    assert "hosts-ca: CRL 42, 1 revoked" in pki("crl", "--after", "41").err
    fails(pki("crl", "--after", "9999999"), 8, "not numbered after 9999999", "inspect")
    fails(pki("crl", "--after", "-1"), 2, "--after")
    fails(pki("learn", "w/key.pem"), 8, "w/key.pem: holds no list and no certificate", "crl.pem")
    fails(pki("learn", "gone.pem"), 4, "gone.pem")
    fails(pki("learn"), 2, "FILES")
    assert pki("log", "verify").code == 0


def test_a_ca_is_replaced_in_three_commands(pki: Runner) -> None:
    """Each says what comes next; the wrong one is refused in a line."""
    fails(pki("rotate-ca", "hosts", "switch"), 8, "no rotation of the hosts-ca was started", "`start`")
    started = pki("rotate-ca", "hosts", "start")
    assert f"copy {Path.cwd() / 'fleet-pki' / 'ca.pem'} and" in started.out
    assert "securecore pki rotate-ca hosts switch" in started.out
    assert pki("rotate-ca", "hosts", "switch").code == 0
    fails(pki("rotate-ca", "hosts", "finish"), 8, f"1 have no certificate of the new CA yet: {HOST_NAME}", "--force")
    assert pki("renew", "web-1", "--out", "reply.pem").code == 0
    assert pki("rotate-ca", "hosts", "finish").code == 0
    assert pki("log", "verify").code == 0
    assert "hosts-ca: CRL" in pki("crl", "--now").err
