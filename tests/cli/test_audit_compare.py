"""``audit compare``: whatever was done to a store behind its hosts' backs, the receipts that they kept contradict it."""

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from securecore.audit.checkpoint import LogSigner
from securecore.audit.entry import RECEIVED, encode, extracted_entry, parse_entry
from securecore.audit.log import HostLog
from securecore.audit.proof import parse_proof
from securecore.audit.wide_log import Tree, parse_said
from securecore.certs.identity_directory import load_log_key
from securecore.merkle import leaf_hash, root_of
from securecore.names import DumpId, HostName, StoreId
from securecore.pki.issue import issue_receiver, parse_address
from securecore.receiver.server import utc_now
from tests.support.certificates import DOMAIN, Fleet, make_fleet, no_passphrase
from tests.support.kept_receipts import deliver
from tests.support.receivers import running_receiver
from tests.support.samples import Sample
from tests.support.stores import DB, WEB, Ran, files_of, flip

NAME: Final = f"collector.{DOMAIN}/securecore"
"""The log key's."""


class Witnessed(Sample):
    """A store with three dumps of web-1 and one of db-2, and what both hosts have kept."""

    def __init__(self, place: Path, fleet: Fleet, capture: pytest.CaptureFixture[str]) -> None:
        super().__init__(place / "store", fleet, capture)
        self.web, self.db = place / "web-1/receipts.jsonl", place / "db-2/receipts.jsonl"

    def compare(self, *arguments: object) -> Ran:
        """Run ``audit compare`` with the fleet's root, and with the receipts of both hosts where none are named."""
        receipts = arguments if any("/" in str(one) or one == "-" for one in arguments) else (*arguments, self.web, self.db)
        return self("audit", "compare", *receipts, "--root", self.fleet.host / "ca.pem")

    def kinds(self, *arguments: object) -> dict[str, list[str | None]]:
        """Return what each receipt of both hosts contradicts, by host, and that the exit code says the same."""
        ran = self.compare("--json", *arguments)
        found: dict[str, list[str | None]] = {}
        for row in ran.document["receipts"]:
            found.setdefault(row["host"], []).append(row["contradicts"])
        assert (ran.code, ran.document["ok"]) in ((0, True), (6, False))
        assert ran.document["ok"] <= all(kind is None for kinds in found.values() for kind in kinds)
        return found

    def put_back_to_the_first(self) -> None:
        """Put web-1 back whole to what it was behind its first dump: logs, checkpoints, dumps and their receipts."""
        lines = (self.log() / "entries.jsonl").read_bytes().splitlines(keepends=True)
        (self.log() / "entries.jsonl").write_bytes(b"".join(lines[:2]))
        (self.log() / "checkpoint").write_bytes(parse_proof((self.first / "receipt").read_bytes()).checkpoint)
        for dump in self.dumps[1:3]:
            shutil.rmtree(self.dump(dump))
        self.put_the_wide_log_back()

    def put_the_wide_log_back(self, identity: Path | None = None) -> None:
        """Put the receiver-wide log back to the last state that web-1's log does not contradict.

        Nothing in the store is left to miss what was there then: db-2 is older than web-1.
        """
        place, lines = self.store / "audit/receiver", []
        if self.log().is_dir():
            lines = (self.log() / "entries.jsonl").read_bytes().splitlines()
        leaves = [leaf_hash(line) for line in lines]
        states = [Tree(size, root_of(leaves[:size])) for size in range(1, len(leaves) + 1)]

        def fits(entry: bytes) -> bool:
            said = parse_said(entry)
            return said is not None and (said[0] != HostName(WEB) or said[1] in states)

        entries = list(takewhile(fits, (place / "entries.jsonl").read_bytes().splitlines()))
        shutil.rmtree(place)
        place.mkdir(mode=0o700)
        append_to(place, NAME, entries, identity or self.fleet.receiver)

    def rewrite(self, change: Callable[[list[dict[str, Any]]], None], identity: Path | None = None) -> None:
        """Write web-1's log anew with the key of the receiver's identity, or of another, and each dump's receipt with it.

        What the receiver-wide log said of it since is gone.
        """
        entries = [parse_entry(line) for line in (self.log() / "entries.jsonl").read_bytes().splitlines()]
        change(entries)
        shutil.rmtree(self.log())
        self.log().mkdir(mode=0o700)
        for fields, receipt in zip(entries, append(self, [encode(fields) for fields in entries], identity), strict=True):
            directory = self.dump(DumpId.parse(str(fields["dump"])))
            if fields["event"] == RECEIVED and directory.is_dir():
                (directory / "receipt").write_bytes(receipt)
        self.put_the_wide_log_back(identity)


def append(kept: Witnessed, entries: list[bytes], identity: Path | None = None) -> list[bytes]:
    """Append to web-1's log with the key of the receiver's identity, as whoever has that can, and return the receipts."""
    return append_to(kept.log(), f"{NAME}/{WEB}", entries, identity or kept.fleet.receiver)


def append_to(place: Path, origin: str, entries: list[bytes], identity: Path) -> list[bytes]:
    """Append to a log with the key of a receiver's identity, and return the receipts."""
    key, _ = load_log_key(identity)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    log = HostLog.open(fd, origin, LogSigner(NAME, key))
    os.close(fd)
    try:
        return log.append_all(entries)
    finally:
        log.close()


@pytest.fixture(scope="module")
def made(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DumpId]]:
    """What each test gets a copy of. What db-2's log says of the receiver-wide log is older than web-1."""
    place = tmp_path_factory.mktemp("witnessed")
    other = deliver(fleet, place / "store", place / "db-2", [b"other"], "db-2")
    return place, deliver(fleet, place / "store", place / "web-1", [b"first", b"second", b"third"]) + other


@pytest.fixture
def kept(
    made: tuple[Path, list[DumpId]], fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Witnessed]:
    """A copy that the test may spoil; no command leaves a descriptor behind."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    found = Witnessed(tmp_path, fleet, capsys)
    found.dumps = made[1]
    before = os.listdir("/proc/self/fd")
    yield found
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_an_honest_store_contradicts_nothing(kept: Witnessed) -> None:
    """Each receipt is of its history, and nothing in the store is touched."""
    before = files_of(kept.store)

    ran = kept.compare()

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"{DB}  ok  1 receipt fits this store's log, of 2 entries", f"{WEB}  ok  3 receipts fit this store's log, of 4 entries",
    ]  # fmt: skip
    assert kept.kinds() == {WEB: [None] * 3, DB: [None]}
    assert files_of(kept.store) == before


def test_a_log_that_grows_keeps_its_receipts(kept: Witnessed, tmp_path: Path) -> None:
    """Beside a running receiver, and when dumps were extracted and deleted since; receipts of later dumps fit too."""
    append(kept, [extracted_entry(utc_now(), kept.dumps[0], HostName(WEB), uid=0, user="root")])
    kept.delete(kept.dumps[1])
    deliver(kept.fleet, kept.store, tmp_path / "web-1", [b"fourth"])
    with running_receiver(kept.fleet.receiver, kept.store):
        assert kept.kinds() == {WEB: [None] * 4, DB: [None]}


def test_every_receipt_of_a_document_says_what_it_is(kept: Witnessed) -> None:
    """Where it stands, whose it is, and the log that it was held against."""
    kept.put_back_to_the_first()

    document = kept.compare("--json").document

    assert (document["ok"], document["receiver"]) == (False, f"collector.{DOMAIN}")
    assert document["store"] in (kept.store / "FORMAT").read_text()
    assert document["receipts"][1] == {
        "receipt": f"{kept.web}:2",
        "host": WEB,
        "dump": str(kept.dumps[1]),
        "entry": 2,
        "checkpoint_size": 3,
        "ok": False,
        "contradicts": "shortened",
        "detail": "the log has 2 entries, this receipt was given when it had 3",
    }
    assert document["logs"][1] == {"host": WEB, "ok": True, "entries": 2, "problem": None}


def test_a_host_put_back_whole_to_an_older_checkpoint_is_found(kept: Witnessed) -> None:
    """The receiver really signed that, and all that is left in the store agrees with it: only what the host has kept does not."""
    kept.put_back_to_the_first()

    ran = kept.compare()

    assert kept.audit().code == 0
    assert ran.code == 6
    assert f"{WEB}  BROKEN  2 of 3 receipts do not fit this store's log, of 2 entries\n" in ran.out
    words = "shortened: the log has 2 entries, this receipt was given when it had 4"
    assert f"  {kept.web}:3  {kept.dumps[2].short}  {words}\n" in ran.out
    assert f"{DB}  ok  " in ran.out
    assert kept.kinds() == {WEB: [None, "shortened", "shortened"], DB: [None]}


def test_a_host_that_was_removed_is_found(kept: Witnessed) -> None:
    """Without dumps and without a log there is nothing in the store that could miss it; also where only it is asked about."""
    shutil.rmtree(kept.store / "hosts" / WEB)
    shutil.rmtree(kept.log())
    kept.put_the_wide_log_back()

    assert kept.audit().code == 0
    assert kept.kinds() == {WEB: ["unknown-host"] * 3, DB: [None]}
    assert kept.compare("--host", "web-1").code == 6
    assert f"unknown-host: the store has no log of {WEB}" in kept.compare().out


def test_an_entry_rewritten_and_signed_again_is_found(kept: Witnessed) -> None:
    """With the log key, and with the receipts in the store: from that entry on no receipt fits, and which one it was is told."""
    kept.rewrite(lambda entries: entries[2].update(program="innocent"))

    ran = kept.compare()

    assert kept.audit().code == 0
    assert kept.kinds() == {WEB: [None, "forked", "forked"], DB: [None]}
    assert f"{kept.dumps[1].short}  forked: entry 2 of the log is another than the one that this receipt proves" in ran.out
    assert f"{kept.dumps[2].short}  forked: the entry that this receipt proves is there, and another of the first 4" in ran.out


def test_an_entry_left_out_is_found(kept: Witnessed) -> None:
    """With its dump, and with all that came behind it signed again."""
    shutil.rmtree(kept.dump(kept.dumps[1]))
    kept.rewrite(lambda entries: entries.__delitem__(2))

    assert kept.audit().code == 0
    assert kept.kinds() == {WEB: [None, "forked", "shortened"], DB: [None]}


def test_entries_in_another_order_are_found(kept: Witnessed) -> None:
    """All of them are there, and signed; the dumps' are turned around, behind the certificate's.

    What they say of the receiver-wide log, which had named their host meanwhile, gives it away too.
    """
    kept.rewrite(lambda entries: entries.__setitem__(slice(1, None), entries[:0:-1]))

    assert kept.audit().code == 6
    assert kept.kinds() == {WEB: ["forked"] * 3, DB: [None]}


@pytest.mark.parametrize("name", ["core.zst", "manifest.jws"])
def test_a_dump_that_is_not_as_the_log_says_is_found(kept: Witnessed, name: str) -> None:
    """The log holds, and what it says was received is not there."""
    (kept.first / name).unlink()

    assert kept.kinds() == {WEB: ["dump", None, None], DB: [None]}
    assert f"{kept.dumps[0].short}  dump: its dump is not in the store as the log says: " in kept.compare().out


def test_a_dump_that_was_put_back_is_found(kept: Witnessed, tmp_path: Path) -> None:
    """The log says that it was deleted."""
    shutil.copytree(kept.first, tmp_path / "backup")
    kept.delete(kept.dumps[0])
    assert kept.kinds() == {WEB: [None] * 3, DB: [None]}
    shutil.copytree(tmp_path / "backup", kept.first)

    assert kept.kinds() == {WEB: ["dump", None, None], DB: [None]}
    assert "dump: the log says that its dump was deleted, and it is there" in kept.compare().out


def test_another_store_of_the_same_receiver_is_found(kept: Witnessed, tmp_path: Path) -> None:
    """One that began anew under the same name; and one that only calls itself another."""
    other = Witnessed(tmp_path / "other", kept.fleet, kept._capture)
    deliver(kept.fleet, other.store, tmp_path / "other/web-1", [b"again"])
    (kept.store / "FORMAT").write_text(f"securecore-store 1\n{StoreId.make(bytes(16))}\n")

    assert other.kinds(kept.web, kept.db) == {WEB: ["another-store"] * 3, DB: ["another-store"]}
    assert kept.kinds() == {WEB: ["another-store"] * 3, DB: ["another-store"]}


@pytest.fixture
def neighbour(kept: Witnessed, tmp_path: Path) -> Path:
    """Receipts of web-1 by another receiver."""
    made = make_fleet(tmp_path / "backup", receiver="backup")
    deliver(made, tmp_path / "store of backup", tmp_path / "of-backup", [b"elsewhere"])
    return tmp_path / "of-backup/receipts.jsonl"


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


class Reissued(NamedTuple):
    """A store of a fleet of its own, and another receiver's identity under the same root."""

    kept: Witnessed
    identity: Path


@pytest.fixture
def reissue(own_fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Reissued]:
    """Has a host's dumps stored, and then an identity issued for a receiver, whose statement takes the place of the store's."""

    def make(name: str) -> Reissued:
        kept = Witnessed(tmp_path, own_fleet, capsys)
        kept.dumps = deliver(own_fleet, kept.store, tmp_path / "web-1", [b"first", b"second"])
        identity = tmp_path / "reissued"
        addresses = [parse_address("127.0.0.1")]
        issue_receiver(own_fleet.pki, HostName(f"{name}.{DOMAIN}"), addresses, identity, no_passphrase, utc_now())
        shutil.copy(identity / "log-key.jws", kept.store / "log-key.jws")
        return Reissued(kept, identity)

    return make


def test_a_store_that_calls_itself_another_receivers_is_found(reissue: Callable[[str], Reissued]) -> None:
    """Whoever can write it may put the statement of any receiver of the fleet there; it is nobody's secret."""
    kept, _ = reissue("backup")

    assert kept.kinds(kept.web) == {WEB: ["another-receiver"] * 2}


def test_another_key_of_the_same_receiver_does_not_make_the_log_its_own(reissue: Callable[[str], Reissued]) -> None:
    """The receipts fit its entries, but nothing in the store says whose word its checkpoint is, or has theirs handed over to it."""
    kept, _ = reissue("collector")

    ran = kept.compare(kept.web)

    assert (ran.code, kept.kinds(kept.web)) == (6, {WEB: ["another-key"] * 2})
    assert "the log does not hold by itself: checkpoint is not signed by the log's key" in ran.out


def test_a_history_rewritten_under_a_new_key_of_the_same_receiver_is_found(reissue: Callable[[str], Reissued]) -> None:
    """A receipt comes with the statement of the key that signed it: where the log departs from it that is said, else the key."""
    kept, identity = reissue("collector")
    kept.rewrite(lambda entries: entries[2].update(program="innocent"), identity)

    assert kept.audit().code == 0
    assert kept.kinds(kept.web) == {WEB: ["another-key", "forked"]}


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


def test_a_log_that_does_not_hold_by_itself_is_broken(kept: Witnessed) -> None:
    """Though every receipt fits what is there."""
    flip(kept.log() / "checkpoint", -5)

    ran = kept.compare()

    assert ran.code == 6
    assert f"{WEB}  BROKEN  3 receipts fit this store's log, of 4 entries\n" in ran.out
    assert "\n  the log does not hold by itself: checkpoint " in ran.out


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
