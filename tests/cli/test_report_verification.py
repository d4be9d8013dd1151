"""`audit report` and what was verified: no less than `audit verify` finds, and said where nobody overlooks it."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Fleet, make_fleet
from tests.support.chronicles import Chronicle
from tests.support.samples import Sample
from tests.support.stores import DB, WEB, flip


def page_of(sample: Sample, *arguments: object) -> tuple[int, str, str]:
    """Return the exit code of a report, its page, and what stood on standard error."""
    output = sample.store.parent / "report.html"
    output.unlink(missing_ok=True)
    ran = sample("audit", "report", "--root", sample.fleet.host / "ca.pem", "-o", output, *arguments)
    return ran.code, output.read_text("utf-8"), ran.err


def host_of(sample: Sample, name: str, *arguments: object) -> dict[str, Any]:
    """Return what a report says of one host."""
    document = sample("audit", "report", "--json", *arguments).document
    return dict(next(host for host in document["hosts"] if host["host"] == name))


def remove_host(sample: Sample, host: str) -> None:
    """Remove all that there is of a host, as if it had never been."""
    for place in ("hosts", "audit"):
        shutil.rmtree(sample.store / place / host)


def wide_log(sample: Sample) -> Path:
    """Return the directory of the receiver-wide log."""
    return sample.store / "audit" / "receiver"


def test_a_report_verifies_what_audit_verify_verifies(sample: Sample) -> None:
    """The same checks with the same outcome, of each host and of the receiver-wide log."""
    verified = {found["host"]: found for found in sample.audit("--json").document}
    told = sample("audit", "report", "--json").document

    assert {host["host"]: host["verification"]["checks"] for host in told["hosts"]} == {
        host: found["checks"] for host, found in verified.items() if host is not None
    }
    assert told["wide_log"]["checks"] == verified[None]["checks"]
    assert (told["wide_log"]["ok"], told["wide_log"]["entries"]) == (True, verified[None]["entries"])


def test_a_host_that_was_removed_whole_is_told(sample: Sample) -> None:
    """It stands among the hosts, its log does not hold, and the top of the page says so; asked for by name, too."""
    remove_host(sample, DB)

    document = sample("audit", "report", "--json").document
    code, page, _ = page_of(sample)

    assert code == 6
    assert {host["host"]: host["verification"]["ok"] for host in document["hosts"]} == {WEB: True, DB: False}
    assert document["wide_log"]["ok"] is False
    assert "2 of 3 logs do not hold" in page
    assert f"{DB} (its log is gone)" in page
    assert sample("audit", "report", "--csv").code == 6
    assert sample("audit", "report", "--json", "--host", "db-2").code == 6
    assert sample("audit", "report", "--json", "--host", "web-1").code == 0


def test_a_receiver_wide_log_that_does_not_hold_is_told(sample: Sample) -> None:
    """Though each host's own log does."""
    flip(wide_log(sample) / "entries.jsonl", 60)

    document = sample("audit", "report", "--json").document
    code, page, _ = page_of(sample)

    assert code == 6
    assert document["wide_log"]["ok"] is False
    assert "does not hold" in page.partition("</header>")[0]
    assert 'href="#wide-log"' in page.partition("</header>")[0]
    assert sample("audit", "report", "--csv").code == 6


@pytest.mark.parametrize("form", [("--csv",), ("-o",)])
def test_what_does_not_hold_is_said_at_the_terminal_too(form: tuple[str, ...], sample: Sample, tmp_path: Path) -> None:
    """Exit code 6 does not come alone: who only writes the file hears which log it is."""
    flip(sample.log(DB) / "entries.jsonl", 60)
    arguments = [*form, tmp_path / "report.html"] if form == ("-o",) else form

    ran = sample("audit", "report", "--root", sample.fleet.host / "ca.pem", *arguments)

    assert ran.code == 6
    assert f"{DB}: the log does not hold" in ran.err
    assert WEB not in ran.err


def test_what_was_found_broken_is_told_whatever_the_period_is(sample: Sample) -> None:
    """Until the dump holds again; who verified it, and what does not hold, stands with it."""
    core = sample.first / "core.zst"
    sound = core.read_bytes()
    flip(core, 100)
    assert sample.verify("--all", "--record", "--identity", sample.fleet.receiver).code == 6

    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"
    for since in ((), ("--since", tomorrow)):
        host = host_of(sample, WEB, *since)
        (row,) = host["broken"]["rows"]
        assert (host["broken"]["total"], row["dump"], row["result"]) == (1, str(sample.dumps[0]), "broken")
        assert "frame" in row["reason"]
        assert row["uid"] == os.getuid()
        assert host["totals"]["verified"] == (0 if since else 3)
    _, page, _ = page_of(sample)
    assert "1 dump found broken when verified last" in page.partition("</header>")[0]
    assert "verified 3 times" in page

    core.write_bytes(sound)
    assert sample.verify("--all", "--record", "--identity", sample.fleet.receiver).code == 0
    assert host_of(sample, WEB)["broken"] == {"rows": [], "total": 0}
    assert "found broken" not in page_of(sample)[1]


def test_a_broken_dump_that_was_deleted_is_nobodys_concern(sample: Sample) -> None:
    """It is not there any more."""
    flip(sample.first / "core.zst", 100)
    assert sample.verify("--all", "--record", "--identity", sample.fleet.receiver).code == 6
    sample.delete(sample.dumps[0])
    assert host_of(sample, WEB)["broken"]["total"] == 0


def test_papers_that_run_out_stand_at_the_top(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the last third of their life, as `doctor` has it: the receiver's first, then the hosts' that end first."""
    old = make_fleet(tmp_path / "fleet", now=datetime.now(UTC) - timedelta(days=80))
    with Chronicle(old, tmp_path / "store") as chronicle:
        chronicle.receive("web-1", datetime.now(UTC) - timedelta(days=79))
    sample = Sample(tmp_path / "store", old, capsys)

    document = sample("audit", "report", "--json", "--identity", old.receiver).document
    _, page, _ = page_of(sample, "--identity", old.receiver)

    day = document["hosts"][0]["certificate"]["not_after"][:10]
    assert {"host": WEB, "words": f"the certificate of its newest dump expires on {day}, in 9 days"} in document["notices"]
    assert document["notices"][0]["host"] is None
    assert document["notices"][0]["words"].startswith("the receiver's certificate expires on ")
    assert "To be looked at" in page.partition("</header>")[0]


def test_papers_that_last_are_no_notice(sample: Sample) -> None:
    """Nothing is to be looked at where nothing is."""
    assert sample("audit", "report", "--json", "--identity", sample.fleet.receiver).document["notices"] == []
    assert "To be looked at" not in page_of(sample)[1]


def test_certificates_are_told_in_words(sample: Sample) -> None:
    """Of the entry of a host's first certificate, its end; no digests of keys."""
    (row,) = [row for row in host_of(sample, WEB)["others"]["rows"] if row["event"] == "certificate"]
    assert " until 20" in row["detail"]
    assert "key_sha256" not in row["detail"]
