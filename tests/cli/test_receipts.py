"""``securecore receipts``: what a host was given, listed as it stands and verified with nothing but the root."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.cli.main import run
from securecore.names import Address, DumpId
from securecore.sender.settings import Settings
from tests.support.certificates import Fleet, make_fleet, make_hierarchy
from tests.support.dumps import NOW
from tests.support.kept_receipts import Notary, deliver, entries
from tests.support.stores import WEB, Ran, flip


class Keeping:
    """A spool with the receipts of two dumps, and the commands that look at them."""

    def __init__(self, place: Path, fleet: Fleet, dumps: list[DumpId], capture: pytest.CaptureFixture[str]) -> None:
        self.spool, self.log = place / "spool", place / "spool/receipts.jsonl"
        self.fleet, self.dumps, self._capture = fleet, dumps, capture
        self.root = fleet.host / "ca.pem"

    def listed(self, *arguments: object) -> Ran:
        """Run ``receipts list``."""
        return self._run("list", *arguments)

    def verify(self, *arguments: object) -> Ran:
        """Run ``receipts verify`` with the fleet's root."""
        return self._run("verify", "--root", self.root, *arguments)

    def lines(self) -> list[dict[str, Any]]:
        """Return the log's lines."""
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]

    def rewrite(self, *lines: object) -> None:
        """Put other lines into the log: objects, or bytes as they are."""
        encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        self.log.write_bytes(b"".join(line + b"\n" for line in encoded))

    def part(self) -> Path:
        """Part the log as logrotate does, and return what it is called then."""
        return self.log.rename(self.log.with_name("receipts.jsonl-20261122"))

    def _run(self, *arguments: object) -> Ran:
        words = ["receipts", *map(str, arguments)]
        if not any(Path(word).name.startswith("receipts") for word in words[1:]):
            words += ["--spool", str(self.spool)]
        code = run(words)
        output = self._capture.readouterr()
        return Ran(code, output.out, output.err)


@pytest.fixture(scope="module")
def template(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DumpId]]:
    """The spool that each test gets a copy of, and its dumps."""
    place = tmp_path_factory.mktemp("keeping")
    return place, deliver(fleet, place / "store", place / "spool", [b"first", b"another"])


@pytest.fixture
def keeping(
    template: tuple[Path, list[DumpId]], fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Keeping]:
    """A copy that the test may spoil, and no descriptor is left over by any command."""
    shutil.copytree(template[0] / "spool", tmp_path / "spool")
    before = os.listdir("/proc/self/fd")
    yield Keeping(tmp_path, fleet, template[1], capsys)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_receipts_are_listed(keeping: Keeping) -> None:
    """When it was received, by whom, whose dump it is, which entry says so, and how large it is."""
    ran, rows = keeping.listed(), keeping.listed("--json").document

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0].split() == ["RECEIVED", "RECEIVER", "HOST", "DUMP", "ENTRY", "SIZE"]
    assert [line.split()[-6:] for line in ran.out.splitlines()[1:]] == [
        [row["receiver"], "web-1", keeping.dumps[at].short, str(at + 1), str(size), "B"]
        for at, (row, size) in enumerate(zip(rows, (5, 7), strict=True))
    ]
    assert [(row["receipt"], row["host"], row["dump"], row["entry"], row["size_bytes"]) for row in rows] == [
        ("receipts.jsonl:1", WEB, str(keeping.dumps[0]), 1, 5), ("receipts.jsonl:2", WEB, str(keeping.dumps[1]), 2, 7),
    ]  # fmt: skip
    assert [row["received_at"] for row in rows] == [line["received_at"] for line in keeping.lines()]


def test_receipts_that_hold_are_counted(keeping: Keeping) -> None:
    """Of each log, with exit code 0; in JSON each by itself."""
    ran, document = keeping.verify(), keeping.verify("--json").document

    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"2 receipts hold of log {keeping.lines()[0]['origin']}\n"
    assert (document["ok"], document["contradictions"], document["torn"]) == (True, [], [])
    assert [(row["dump"], row["entry"], row["ok"], row["problem"]) for row in document["receipts"]] == [
        (str(dump), at, True, None) for at, dump in enumerate(keeping.dumps, 1)
    ]


def test_the_root_is_the_identity_s_where_none_is_named(keeping: Keeping, tmp_path: Path) -> None:
    """Spool and identity are those of the settings, as for the other commands on the spool."""
    settings = Settings((Address("127.0.0.1:9"),), str(keeping.fleet.host), str(keeping.spool), 1000, 1000)
    path = tmp_path / "handler.json"
    path.write_bytes(settings.encode())
    path.chmod(0o600)

    assert run(["receipts", "verify", "--settings", str(path)]) == 0
    assert run(["receipts", "list", "--settings", str(path)]) == 0


def test_without_a_root_there_is_nothing_to_verify_up_to(
    keeping: Keeping, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there are no settings either, that is said, with what to give."""
    code = run(["receipts", "verify", "--spool", str(keeping.spool), "--settings", str(tmp_path / "none.json")])

    assert (code, "hint: give --root CA.PEM" in capsys.readouterr().err) == (3, True)


def test_a_spool_without_receipts_has_none(keeping: Keeping) -> None:
    """That is no fault."""
    keeping.log.unlink()

    assert (keeping.listed().out, keeping.verify().out) == ("no receipts\n", "no receipts\n")
    assert (keeping.listed("--json").document, keeping.verify("--json").document["receipts"]) == ([], [])
    assert (keeping.listed().code, keeping.verify().code) == (0, 0)


def test_a_receipt_that_does_not_hold_is_named(keeping: Keeping) -> None:
    """With its line and its dump, and the others are verified all the same."""
    first, second = keeping.lines()
    keeping.rewrite(first | {"receipt": first["receipt"].replace("index 1", "index 0")}, second)

    ran, document = keeping.verify(), keeping.verify("--json")

    assert (ran.code, document.code) == (6, 6)
    assert f"receipts.jsonl:1  {keeping.dumps[0].short}  BROKEN  receipt does not lead to the root" in ran.out
    assert "1 receipt holds of log" in ran.out
    assert [row["ok"] for row in document.document["receipts"]] == [False, True]


def test_a_damaged_line_is_named(keeping: Keeping) -> None:
    """It does not hold, and the others are listed and verified all the same."""
    first, second = keeping.lines()
    keeping.rewrite(first, b"\x00" * 40, second)

    listed, verified = keeping.listed(), keeping.verify()

    assert (listed.code, verified.code) == (0, 6)
    assert [line.split()[-3] for line in listed.out.splitlines()[1:]] == ["1", "2"]
    assert listed.err == "note: receipts.jsonl:2: the line is not JSON\n"
    assert "receipts.jsonl:2  BROKEN  the line is not JSON" in verified.out
    assert "2 receipts hold" in verified.out


@pytest.mark.parametrize("cut", [1, 400, -20])
def test_a_line_that_a_crash_has_torn_was_never_a_receipt(keeping: Keeping, cut: int) -> None:
    """It is told, and nothing is wrong."""
    whole = keeping.log.read_bytes()
    keeping.log.write_bytes(whole + whole.splitlines()[0][:cut])

    ran = keeping.verify()

    assert (ran.code, "2 receipts hold" in ran.out) == (0, True)
    assert ran.err.startswith("note: receipts.jsonl:3: the last line is not whole")
    assert keeping.verify("--json").document["torn"] == ["receipts.jsonl:3"]


def test_another_root_vouches_for_nothing(keeping: Keeping, tmp_path: Path) -> None:
    """Each receipt is verified up to the root that is named."""
    keeping.root = make_fleet(tmp_path / "strangers").host / "ca.pem"

    assert keeping.verify().code == 6
    assert keeping.verify().out.count("BROKEN  the log key's statement does not hold: ") == 2


def test_a_receiver_that_began_its_log_anew_gives_itself_away(keeping: Keeping, template: tuple[Path, list[DumpId]]) -> None:
    """The same entry of the same log is two: its receipts contradict each other, though each holds."""
    deliver(keeping.fleet, template[0] / "another store", keeping.spool, [b"again"])

    ran, document = keeping.verify(), keeping.verify("--json").document

    assert ran.code == 6
    assert "receipts.jsonl:1 and receipts.jsonl:3  BROKEN  contradict each other: entry 1 is two entries, of stores " in ran.out
    assert "3 receipts hold" in ran.out
    assert [(one["first_entry"], one["last_entry"], one["receipts"]) for one in document["contradictions"]] == [
        (1, 1, ["receipts.jsonl:1", "receipts.jsonl:3"])
    ]


def test_a_receiver_that_rewrote_its_log_is_caught_by_its_next_receipt(
    keeping: Keeping, template: tuple[Path, list[DumpId]], tmp_path: Path
) -> None:
    """It signed another history of the same length: what it proves next does not go with what it proved before."""
    store = tmp_path / "store"
    shutil.copytree(template[0] / "store", store)
    entered = store / "audit" / WEB / "entries.jsonl"
    before = entered.read_bytes().splitlines(keepends=True)
    shutil.rmtree(store / "audit" / WEB)
    shutil.rmtree(store / "hosts" / WEB)
    deliver(keeping.fleet, store, tmp_path / "aside", [b"invented"])
    with entered.open("ab") as log:
        log.write(before[-1])
    deliver(keeping.fleet, store, keeping.spool, [b"the next one"])

    ran = keeping.verify()

    after = entered.read_bytes().splitlines(keepends=True)
    assert (before[1] != after[1], before[2] == after[2]) == (True, True)
    assert ran.code == 6
    assert "receipts.jsonl:1 and receipts.jsonl:3  BROKEN  contradict each other: entries 0 to 1 have two hashes" in ran.out


def test_files_are_listed_and_verified_where_there_is_no_spool(keeping: Keeping) -> None:
    """By whoever was handed them and has the root; each receipt is named by its file and line."""
    aside = keeping.spool.parent / "receipts-of-web-1"
    shutil.move(keeping.log, aside)
    shutil.rmtree(keeping.spool)

    listed, verified = keeping.listed(aside, "--json"), keeping.verify(aside, "--json")

    assert (listed.code, listed.err, verified.code, verified.err) == (0, "", 0, "")
    names = [f"{aside}:1", f"{aside}:2"]
    assert [row["receipt"] for row in listed.document] == [row["receipt"] for row in verified.document["receipts"]] == names
    assert [row["dump"] for row in listed.document] == [str(dump) for dump in keeping.dumps]
    assert keeping.verify(aside).out.startswith("2 receipts hold of log ")


def test_a_rewritten_log_is_caught_across_files(keeping: Keeping, template: tuple[Path, list[DumpId]]) -> None:
    """A log that was parted between the two histories hides nothing: neither part has both, together they contradict each other."""
    before = keeping.part()
    deliver(keeping.fleet, template[0] / "a third store", keeping.spool, [b"again"])

    assert (keeping.verify(before).code, keeping.verify(keeping.log).code) == (0, 0)
    for files in ((before, keeping.log), (keeping.log, before)):
        ran = keeping.verify(*files)
        assert ran.code == 6
        assert f"{files[0]}:1 and {files[1]}:1  BROKEN  contradict each other: entry 1 is two entries, of stores " in ran.out
        assert "3 receipts hold" in ran.out


def test_receipts_come_through_a_pipe(keeping: Keeping) -> None:
    """As of a file that was compressed when it was put aside."""
    command = [sys.executable, "-m", "securecore.cli.main", "receipts"]
    for words, shown in ((["list"], b"web-1"), (["verify", "--root", str(keeping.root)], b"2 receipts hold of log ")):
        ran = subprocess.run([*command, *words, "-"], input=keeping.log.read_bytes(), capture_output=True, check=True)
        assert (shown in ran.stdout, ran.stderr) == (True, b"")


def test_proofs_are_verified_with_the_statement_that_is_named(
    keeping: Keeping, template: tuple[Path, list[DumpId]], tmp_path: Path
) -> None:
    """As a store keeps them: nothing in a tlog-proof says whose key it is."""
    store, proofs = template[0] / "store", tmp_path / "receipts"
    proofs.write_bytes(b"".join((store / "hosts" / WEB / str(dump) / "receipt").read_bytes() for dump in keeping.dumps))
    alone = keeping.verify(proofs)
    assert (alone.code, alone.out.count("BROKEN  the log key's statement is not with it, and none was named")) == (6, 2)

    ran = keeping.verify(proofs, "--log-key", store / "log-key.jws")

    assert (ran.code, ran.out) == (0, f"2 receipts hold of log {keeping.lines()[0]['origin']}\n")
    for path, words in ((store / "ca.pem", "not a signed statement: "), (strangers_statement(tmp_path), "was signed by ")):
        ran = keeping.verify(proofs, "--log-key", path)
        assert (ran.code, ran.out) == (6, "")
        assert ran.err.startswith(f"securecore: {path}: ")
        assert words in ran.err


def strangers_statement(place: Path) -> Path:
    """Return the statement of another fleet's log key."""
    return make_fleet(place / "strangers").receiver / "log-key.jws"


def test_files_that_hold_no_receipts_are_told(keeping: Keeping, tmp_path: Path) -> None:
    """What is not there, what cannot be read, and what is something else, in one line; and one place at a time is meant."""
    strange = tmp_path / "receipts.txt"
    strange.write_bytes(b"a line\n" * 200)
    for path, code, words in (
        (tmp_path / "receipts.none", 4, "no such file"),
        (tmp_path / "receipts.d", 3, "is a directory"),
        (strange, 3, "no receipts in it"),
    ):
        (tmp_path / "receipts.d").mkdir(exist_ok=True)
        for ran in (keeping.listed(path), keeping.verify(path)):
            assert (ran.code, ran.out) == (code, "")
            assert ran.err.startswith(f"securecore: {path}: {words}\n")
    assert keeping.listed(keeping.log, "--spool", keeping.spool).code == 2


def test_a_files_name_moves_no_cursor(keeping: Keeping) -> None:
    """It may have come out of somebody else's archive."""
    hostile = keeping.log.rename(keeping.spool / "receipts\x1b[2J")
    hostile.write_bytes(hostile.read_bytes().replace(b"index 1", b"index 0") * 2 + b"{}\n{")

    for ran in (keeping.listed(hostile), keeping.verify(hostile)):
        assert "receipts?[2J" in ran.out + ran.err
        assert "\x1b" not in ran.out + ran.err


def test_of_many_contradictions_a_person_is_told_the_first(keeping: Keeping, tmp_path: Path) -> None:
    """A receiver that began anew makes one of each receipt that follows: they are counted, and a program gets all of them."""
    notary, file = Notary.make(make_hierarchy(now=NOW)), tmp_path / "receipts"
    file.write_bytes(b"".join(notary.line(entries(size, history)) for history in ("", "anew") for size in range(1, 16)))
    keeping.root = tmp_path / "root.pem"
    keeping.root.write_bytes(notary.hierarchy.root.certificate.public_bytes(Encoding.PEM))

    ran, document = keeping.verify(file), keeping.verify(file, "--json").document

    told = [line for line in ran.out.splitlines() if "contradict each other: " in line]
    assert [line.split()[:3] for line in told] == [[f"{file}:{at}", "and", f"{file}:{at + 15}"] for at in range(1, 11)]
    assert ran.out.count("          of log ") == 1
    assert f"          of log {notary.signer.name}/{WEB}, with 5 more\n" in ran.out
    assert (ran.code, len(document["contradictions"])) == (6, 15)


@pytest.mark.parametrize("name", ["dump", "host", "receiver", "received_at", "gone"])
def test_what_a_line_says_moves_no_cursor(keeping: Keeping, name: str) -> None:
    """Whoever can write the log writes text and nothing else on a terminal."""
    first, second = keeping.lines()
    keeping.rewrite(first | {name: "\x1b[2J\r\n\x9b"}, second)

    for ran in (keeping.listed(), keeping.verify()):
        assert not set(ran.out + ran.err) & set("\x1b\r\x9b")


@pytest.mark.parametrize("value", [None, 7, [], {"a": 1}, True, 1e400, "\ud800", "x" * 100_000], ids=lambda value: f"{value!a:.9}")
@pytest.mark.parametrize("name", ["dump", "host", "receiver", "origin", "index", "received_at", "receipt", "log_key", "gone"])
def test_a_line_may_say_anything(keeping: Keeping, name: str, value: object) -> None:
    """It is listed or named, verified or refused, and nothing else happens."""
    first, second = keeping.lines()
    keeping.rewrite(first | {name: value}, second)

    assert keeping.listed().code == 0
    assert keeping.listed("--json").code == 0
    assert keeping.verify().code in (0, 6)
    assert len(keeping.verify("--json").document["receipts"]) == 2


def test_a_flipped_bit_is_found(keeping: Keeping) -> None:
    """Of the proof, wherever it is."""
    flip(keeping.log, keeping.log.read_bytes().index(b'"receipt":"') + 40)

    assert keeping.verify().code == 6


def test_help_loads_no_cryptography() -> None:
    """`securecore receipts --help` answers at once."""
    program = "import sys; from securecore.cli.main import run; run(['receipts', '--help']); print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
