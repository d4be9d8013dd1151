"""`audit report`: what logs say as a page, as JSON and as CSV, and what was verified of it."""

import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509

from securecore.cli.main import run
from securecore.cli.overview import crashes, reading
from securecore.cli.wide_log import NONE_YET
from tests.support.certificates import Fleet, make_fleet
from tests.support.chronicles import HOSTILE, Chronicle
from tests.support.reports import DAY, NOW, Report
from tests.support.samples import Sample
from tests.support.stores import DB, WEB, flip


def test_a_host_is_told_as_its_log_has_it(report: Report) -> None:
    """What came, how big, what is incomplete, what was refused, taken out and deleted; one dump counts once."""
    web = report.host("web-1")
    totals = web["totals"]

    assert (totals["entries"], totals["dumps"], totals["unfinished"]) == (13, 7, 1)
    assert totals["plain_bytes"] == 3000 + 4 * 4 + 9000 + 4
    assert (totals["refused"], totals["extracted"], totals["deleted"], totals["other"]) == (43, 1, 2, 1)
    assert [row["state"] for row in web["arrivals"]["rows"]] == ["deleted", "incomplete", *["complete"] * 4, "deleted"]
    assert [(row["event"], row["program"]) for row in web["unfinished"]["rows"]] == [("received", "python3")]
    assert [(row["event"], row["user"], row["reason"]) for row in web["acts"]["rows"]] == [
        ("deleted", "root", None), ("deleted", "root", "customer data, ticket 4711"), ("extracted", "anna", None),
    ]  # fmt: skip
    assert [(found["name"], found["refusals"]) for found in web["refusal_codes"]] == [("QUOTA", 42), ("NOT_ALLOWED", 1)]
    assert [(row["event"], row["detail"]) for row in web["others"]["rows"]] == [("resumed", "goes on, 12 frames held")]


def test_programs_that_crash_most_come_first(report: Report) -> None:
    """With how often, and with which signals."""
    rows = report.host("web-1")["programs"]["rows"]
    assert [(row["name"], row["dumps"], row["signals"]) for row in rows] == [
        ("nginx", 5, [[11, 4], [6, 1]]), ("java", 1, [[6, 1]]), ("python3", 1, [[11, 1]]),
    ]  # fmt: skip
    assert rows[0]["largest_bytes"] == 3000


def test_what_is_still_coming_in_is_told_though_no_log_has_it(report: Report) -> None:
    """Of the host that has a log, and not as published."""
    db = report.host("db-2")
    assert (db["coming_in_total"], [row["program"] for row in db["coming_in"]]) == (1, [HOSTILE["markup"]])
    assert db["totals"]["dumps"] == len(HOSTILE)


def crl_of(report: Report) -> bytes:
    """Return the receiver's revocation lists."""
    return (report.fleet.receiver / "crl.pem").read_bytes()


def test_certificates_and_lists_are_told_with_their_ends(report: Report) -> None:
    """The host's from its newest manifest, the receiver's two, and each CA's list."""
    document = report.make()
    life = {host["host"]: host["certificate"] for host in document["hosts"]}

    assert {name: (found["name"], found["days_left"]) for name, found in life.items()} == {DB: (DB, 68), WEB: (WEB, 68)}
    assert [found["of"] for found in document["certificates"]] == ["receiver, at present", "receiver, vouching for the log key"]
    lists = re.findall(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", crl_of(report), re.DOTALL)
    due = {x509.load_pem_x509_crl(one).next_update_utc for one in lists}
    assert {datetime.fromisoformat(found["next_update"]) for found in document["revocation_lists"]} == due
    assert len(document["revocation_lists"]) == len(lists) == 3
    assert document["identity_problem"] is None


def test_an_identity_of_another_receiver_is_not_taken_for_this_one_s(report: Report, tmp_path: Path) -> None:
    """Nor one of another fleet: it is said, and the rest of the report stands."""
    other = make_fleet(tmp_path / "other", receiver="another")

    ran = report("audit", "report", "--json", "--root", report.fleet.host / "ca.pem", "--identity", other.receiver)

    assert ran.code == 0
    assert ran.document["identity_problem"]
    assert (ran.document["revocation_lists"], len(ran.document["certificates"])) == ([], 1)


def test_without_an_identity_the_rest_is_told(report: Report, tmp_path: Path) -> None:
    """The page says what is not known."""
    ran = report("audit", "report", "--json", "--root", report.fleet.host / "ca.pem", "--identity", tmp_path / "nowhere")
    assert (ran.code, ran.document["revocation_lists"]) == (0, [])
    assert "no such file" in ran.document["identity_problem"]


def test_since_leaves_out_what_is_told_and_never_what_is_verified(report: Report) -> None:
    """The log is verified from its first entry on."""
    web = report.host("web-1", "--since", "12d")
    assert web["totals"]["dumps"] == 0
    assert [row["event"] for row in web["acts"]["rows"]] == ["deleted", "deleted"]
    assert (web["verification"]["ok"], web["verification"]["entries"]) == (True, 13)
    assert web["certificate"] is not None
    assert {row["event"] for row in report.rows("--host", "web-1", "--since", "12d")} == {"refused", "deleted", "resumed"}


def test_one_host_may_be_asked_for(report: Report) -> None:
    """By the beginning of its name; an unknown one is exit code 4, and no file is made."""
    assert [host["host"] for host in report.make("--host", "db-2")["hosts"]] == [DB]
    output = report.store.parent / "none.html"
    assert report.run("--host", "db-9", "-o", output).code == 4
    assert not output.exists()


def test_sums_are_those_of_the_hosts(report: Report) -> None:
    """And all share one axis."""
    document = report.make()
    for name, total in document["totals"].items():
        assert total == sum(host["totals"][name] for host in document["hosts"]), name
    assert len({(host["timeline"]["starts_at"], host["timeline"]["width_s"]) for host in document["hosts"]}) == 1
    counts = [list(map(sum, zip(*rows, strict=True))) for rows in zip(
        *(host["timeline"]["counts"] for host in document["hosts"]), strict=True)]  # fmt: skip
    assert document["timeline"]["counts"] == counts


DAMAGE: dict[str, Callable[[Report], object]] = {
    "entry": lambda report: flip(report.log() / "entries.jsonl", 60),
    "checkpoint": lambda report: flip(report.log() / "checkpoint", -5),
    "log gone": lambda report: shutil.rmtree(report.log()),
    "a file in its place": lambda report: (shutil.rmtree(report.log()), report.log().write_bytes(b"")),
    "dump gone": lambda report: shutil.rmtree(next(path for path in (report.store / "hosts" / WEB).iterdir())),
    "no entries": lambda report: (report.log() / "entries.jsonl").unlink(),
    "entries cut": lambda report: os.truncate(report.log() / "entries.jsonl", 900),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_log_that_does_not_hold_is_told_and_is_exit_code_6(report: Report, damage: str) -> None:
    """The report is written all the same, says so at its top and with the host, and the other host's log still holds."""
    DAMAGE[damage](report)

    ran, page = report.run("--json"), report.page()

    assert ran.code == 6
    assert {host["host"]: host["verification"]["ok"] for host in ran.document["hosts"]} == {WEB: False, DB: True}
    assert "1 of 2 logs does not hold" in page
    assert "This log does not hold" in page
    assert {row["verified"] for row in report.rows("--host", "web-1")} <= {"no"}
    assert {row["verified"] for row in report.rows("--host", "db-2")} == {"yes"}
    assert report.run("--csv").code == 6


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_log_key_that_is_not_proved_verifies_nothing(report: Report, how: str) -> None:
    """What the files say is told, as not verified."""
    statement = report.store / "log-key.jws"
    if how == "damaged":
        flip(statement, 300)
    else:
        statement.unlink()

    ran, page = report.run("--json"), report.page()

    assert (ran.code, ran.document["receiver"]) == (6, None)
    assert [host["verification"]["ok"] for host in ran.document["hosts"]] == [None, None]
    assert ran.document["totals"]["dumps"] == 7 + len(HOSTILE)
    assert "The logs could not be verified" in page
    assert {row["verified"] for row in report.rows()} == {"no"}


def test_a_root_that_is_not_ours_verifies_nothing(report: Report, own_fleet: Fleet) -> None:
    """The report says that the key is not known."""
    ran = report.run("--json", root=own_fleet.host / "ca.pem")
    assert (ran.code, ran.document["receiver"]) == (6, None)
    assert ran.document["log_key_problem"]


def test_the_stores_own_root_is_called_no_proof(report: Report) -> None:
    """On the page and on stderr; with a root of one's own neither says so."""
    output = report.store.parent / "own.html"
    ran = report("audit", "report", "-o", output)
    assert ran.code == 0
    assert "the store's own copy of the root" in ran.err
    assert "no proof against whoever can write the store" in output.read_text("utf-8")
    assert "no proof against whoever can write the store" not in report.page()


def test_a_store_from_before_the_receiver_wide_log_is_said_to_have_none(report: Report) -> None:
    """Then a host that is missing whole is not missed: that is no damage, and no silence either."""
    document, page = report.make(), report.page()

    assert (document["wide_log"]["ok"], document["wide_log"]["problem"]) == (None, NONE_YET)
    assert "is not missed here" in page
    assert "All 2 logs hold" in page
    assert "no host is missing whole" not in page


def test_an_entry_behind_the_checkpoint_is_told_as_not_verified(report: Report) -> None:
    """It is whole, and no signature covers it yet."""
    with (report.log(DB) / "entries.jsonl").open("ab") as log:
        log.write((report.log(DB) / "entries.jsonl").read_bytes().splitlines(keepends=True)[0].replace(b'"received"', b'"odd"'))
    (db,) = report.make("--host", "db-2")["hosts"]
    assert (db["unverified"], db["verification"]["ok"]) == (1, True)
    assert "1 entry more that no checkpoint covered yet" in report.page("--host", "db-2")
    assert [row["verified"] for row in report.rows("--host", "db-2")] == ["yes"] * len(HOSTILE) + ["no"]


ODD: dict[str, bytes] = {
    "no JSON": b"{",
    "nothing": b"",
    "not canonical": b'{"time": "t", "event": "received"}',
    "no time": b'{"event":"received","time":"t"}',
    "a time before 1970": b'{"event":"received","time":"0001-01-01T00:00:00+23:59"}',
    "a time to come": b'{"event":"deleted","time":"9999-12-31T00:00:00Z","user":7}',
    "numbers without end": b'{"event":"received","others":-1,"signal":%d,"size":%d,"time":"t"}' % (10**400, 10**400),
    "words for numbers": b'{"code":"x","event":"refused","others":"many","time":"2026-11-22T09:14:22Z","uid":"root"}',
    "an unknown code": b'{"code":999,"event":"refused","others":3,"time":"2026-11-22T09:14:22Z"}',
    "an event of markup": b'{"event":"<script>","time":"2026-11-22T09:14:22Z"}',
    "a program that is a number": b'{"event":"received","program":7,"time":"2026-11-22T09:14:22Z"}',
}


@pytest.mark.parametrize("name", ODD)
def test_a_line_that_no_receiver_wrote_is_told_all_the_same(name: str, report: Report) -> None:
    """In each form, without a traceback; and the log is called broken, for the line is not signed as it stands."""
    lines = (report.log() / "entries.jsonl").read_bytes().splitlines()
    lines[2] = ODD[name]
    (report.log() / "entries.jsonl").write_bytes(b"\n".join(lines) + b"\n")

    assert report.run("--json").code == 6
    assert len(report.rows("--host", "web-1")) == len(lines)
    assert "<script>" not in report.page()


def test_no_more_is_listed_than_a_page_bears(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of each kind; the rest is counted, and said to be in the CSV."""
    monkeypatch.setattr(reading, "_LISTED", 2)
    monkeypatch.setattr(reading, "_LEAST", 1)
    web = report.host("web-1")

    assert [len(web[kind]["rows"]) for kind in ("arrivals", "acts", "refusals", "unfinished")] == [2, 2, 2, 1]
    assert [web[kind]["total"] for kind in ("arrivals", "acts", "refusals", "unfinished")] == [7, 3, 2, 1]
    assert [row["program"] for row in web["arrivals"]["rows"]] == ["java", "python3"]
    assert "The newest 2 of 7" in report.page()


def test_more_names_than_are_told_apart_are_counted_together(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that invents names uses no memory up; the report says that it does not tell them all apart."""
    monkeypatch.setattr(crashes, "MOST_NAMES", 3)
    programs = report.host("db-2")["programs"]

    assert [row["dumps"] for row in programs["rows"]] == [1, 1, 1]
    assert (programs["is_exact"], programs["other_dumps"]) == (False, len(HOSTILE) - 3)
    assert "more names than are told apart" in report.page("--host", "db-2")


def test_a_dump_that_was_given_up_and_came_back_is_one_dump(report: Report, tmp_path: Path) -> None:
    """It is complete by the newest entry, its crash counts once, and its size is what was received in the end."""
    with Chronicle(report.fleet, tmp_path / "again") as chronicle:
        given_up = chronicle.give_up("web-1", NOW - DAY, "java", core=b"c" * 100)
        entries = (tmp_path / "again/audit" / WEB / "entries.jsonl").read_bytes()
        fields = json.loads(entries) | {"event": "received", "state": "complete", "size": 300, "stored_bytes": 50}
        chronicle.append("web-1", json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
    report.store = tmp_path / "again"
    web = report.host("web-1")

    assert (web["totals"]["dumps"], web["totals"]["unfinished"], web["totals"]["plain_bytes"]) == (1, 0, 300)
    assert [(row["dump"], row["state"]) for row in web["arrivals"]["rows"]] == [(str(given_up), "complete")]
    assert [row["dumps"] for row in web["programs"]["rows"]] == [1]


def test_an_empty_store_has_a_report(report: Report, tmp_path: Path) -> None:
    """It says that there is nothing."""
    with Chronicle(report.fleet, tmp_path / "empty"):
        pass
    report.store = tmp_path / "empty"
    assert "Nothing to verify" in report.page()
    assert (report.make()["hosts"], report.rows()) == ([], [])


def test_a_host_whose_first_dump_is_coming_in_needs_no_log(report: Report, tmp_path: Path) -> None:
    """Nothing is broken there, and nothing verified."""
    with Chronicle(report.fleet, tmp_path / "first") as chronicle:
        chronicle.begin("web-1", NOW)
    report.store = tmp_path / "first"
    ran = report.run("--json")
    (web,) = ran.document["hosts"]
    assert (ran.code, web["verification"]["ok"], web["coming_in_total"]) == (0, None, 1)


def test_a_directory_that_is_not_there_is_said(report: Report) -> None:
    """Exit code 5, as for any disk that does not take a file."""
    assert report.run("-o", report.store.parent / "nowhere/report.html").code == 5


def test_nothing_in_the_store_is_changed(report: Report) -> None:
    """Reading leaves no trace: a copy on a read-only disk can be reported on."""

    def look() -> dict[str, tuple[int, int]]:
        return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in report.store.rglob("*")}

    before = look()
    report.page()
    report.run("--csv")
    assert look() == before


def test_a_store_that_a_receiver_filled_is_told_as_list_tells_it(sample: Sample) -> None:
    """The same dumps, sizes and states, from the logs alone."""
    listed = {row["id"]: (row["state"], row["size_bytes"], row["program"]) for row in sample("list", "--json").document}
    document = sample("audit", "report", "--json").document
    rows = [row for host in document["hosts"] for row in host["arrivals"]["rows"]]
    assert {row["dump"]: (row["state"], row["size_bytes"], row["program"]) for row in rows} == listed


def test_help_says_what_exit_code_6_means(capsys: pytest.CaptureFixture[str]) -> None:
    """The report is written then."""
    assert run(["audit", "report", "--help"]) == 0
    assert "Exit code 6" in capsys.readouterr().out
