"""What is done to a store behind its receiver's back: which command finds it, and by which words. SECURITY.md has the table."""

import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from securecore import limits
from securecore.audit.checkpoint import LogSigner, parse_checkpoint
from securecore.audit.entry import deleted_entry, encode, extracted_entry, parse_entry
from securecore.certs import jws
from securecore.dump.manifest import MANIFEST_TYP, parse_manifest
from securecore.names import DumpId, HostName
from securecore.sender.spool import create_spool
from tests.support.certificates import Fleet
from tests.support.processes import SECURECORE, receiving
from tests.support.stores import CORE, DB, WEB, Commands, Ran, flip

pytestmark = pytest.mark.slow

COMMANDS: Final = ("verify --all", "audit verify", "audit compare")
"""What looks for it; ``audit compare`` with the receipts that both hosts have kept."""

HOSTS: Final = {WEB: "web-1", DB: "db-2"}
FIRST, SECOND, THIRD, OTHER = range(4)
"""The dumps: three of web-1, and one of db-2, which came before them."""
CORES: Final = (CORE, b"the second", b"the third", b"another host's")


class Scene(Commands):
    """A store, what it was when web-1's first dump was its newest, and the receipts that both hosts have kept."""

    def __init__(self, place: Path, fleet: Fleet, capture: pytest.CaptureFixture[str]) -> None:
        super().__init__(place / "store", fleet, capture)
        self.place = place
        self.before = place / "before"
        self.dumps = [self._dump_of(*key) for key in ((WEB, 0), (WEB, 1), (WEB, 2), (DB, 0))]

    def _dump_of(self, host: str, number: int) -> DumpId:
        line = (self.place / host / "receipts.jsonl").read_text().splitlines()[number]
        return DumpId.parse(json.loads(line)["dump"])

    def of(self, number: int) -> Path:
        """Return the directory of a dump."""
        return self.dump(self.dumps[number], DB if number == OTHER else WEB)

    @property
    def entries_path(self) -> Path:
        """web-1's entries: of its certificate, and of its dumps in order."""
        return self.log() / "entries.jsonl"

    def edit_entries(self, change: Callable[[list[bytes]], list[bytes]]) -> None:
        """Change web-1's entries."""
        self.entries_path.write_bytes(b"".join(change(self.entries_path.read_bytes().splitlines(keepends=True))))

    def put_back(self, *names: str) -> None:
        """Put files and directories back to what they were."""
        for name in names:
            shutil.rmtree(self.store / name)
            shutil.copytree(self.before / name, self.store / name)

    def swap(self, one: Path, other: Path) -> None:
        """Put two directories each in the other's place."""
        one.rename(self.place / "aside")
        other.rename(one)
        (self.place / "aside").rename(other)

    def run(self, command: str) -> Ran:
        """Run one of COMMANDS with the fleet's root."""
        receipts = [self.place / host / "receipts.jsonl" for host in HOSTS] if command == "audit compare" else []
        return self(*command.split(), *receipts, "--root", self.fleet.host / "ca.pem")

    def named(self, words: str) -> str:
        """Return a case's words with the names of this store."""
        names = {
            "OTHER-HOST": DB,
            "HOST": WEB,
            "OTHER-DUMP": str(self.dumps[OTHER]),
            "SECOND": str(self.dumps[SECOND]),
            "DUMP": str(self.dumps[FIRST]),
            "ID": self.dumps[FIRST].short,
        }
        return re.sub("|".join(names), lambda found: names[found[0]], words)


def edit_an_entry(scene: Scene) -> None:
    """Have it say that another program crashed; it is canonical still."""

    def change(lines: list[bytes]) -> list[bytes]:
        return [*lines[:2], encode({**parse_entry(lines[2][:-1]), "program": "innocent"}) + b"\n", *lines[3:]]

    scene.edit_entries(change)


def append_entry(scene: Scene, entry: bytes) -> None:
    """Write an entry behind all others, that no checkpoint covers."""
    with scene.entries_path.open("ab") as file:
        file.write(entry + b"\n")


def append_a_deletion(scene: Scene) -> None:
    """Say that a dump was deleted, which is there."""
    append_entry(scene, deleted_entry(now(), scene.dumps[FIRST], HostName(WEB), uid=0, user="root", reason="innocent"))


def append_a_reception(scene: Scene) -> None:
    """Say that a dump was received that never was: the entry of another host's, with its host changed."""
    (line,) = [line for line in (scene.log(DB) / "entries.jsonl").read_bytes().splitlines() if b'"received"' in line]
    append_entry(scene, encode({**parse_entry(line), "host": WEB}))


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def put_the_log_back(scene: Scene) -> None:
    """Put the host's log back to an older checkpoint, which the receiver has signed."""
    scene.put_back(f"audit/{WEB}")


def put_all_back(scene: Scene) -> None:
    """Put back all that there is: every log, and the dumps of that time. No file in the store knows better."""
    scene.put_back("audit", f"hosts/{WEB}")
    (scene.store / "catalogue.sqlite").unlink()


def remove_a_host(scene: Scene) -> None:
    """Remove all that there is of a host."""
    for place in ("hosts", "audit", "incoming"):
        shutil.rmtree(scene.store / place / DB, ignore_errors=True)


def swap_hosts(scene: Scene) -> None:
    """Give each of two hosts the other's dump, under the id that it has."""
    there = [scene.dump(scene.dumps[FIRST], DB), scene.dump(scene.dumps[OTHER], WEB)]
    scene.of(FIRST).rename(there[0])
    scene.of(OTHER).rename(there[1])


def replace_the_manifest(scene: Scene) -> None:
    """Put another one there that the host has signed, for the same dump and content; its key may be in somebody's hands."""
    path, identity = scene.of(FIRST) / "manifest.jws", scene.fleet.hosts["web-1"]
    before = jws.parse(path.read_bytes(), limits.MAX_MANIFEST_BYTES)
    other = parse_manifest(before.payload)._replace(sender="another program")
    path.write_bytes(jws.sign(other.encode(), (identity / "key.pem").read_bytes(), before.chain_der, MANIFEST_TYP))


def edit_the_catalogue(scene: Scene) -> None:
    """Have it say that a dump is incomplete."""
    with closing(sqlite3.connect(scene.store / "catalogue.sqlite")) as connection, connection:
        connection.execute("UPDATE dumps SET state = 'incomplete' WHERE id = ?", [str(scene.dumps[FIRST])])


def sign_with_another_key(scene: Scene) -> None:
    """Sign the log as it is with another key under the same name."""
    path = scene.log() / "checkpoint"
    found = parse_checkpoint(path.read_bytes())
    signer = LogSigner(found.origin.removesuffix(f"/{WEB}"), Ed25519PrivateKey.generate())
    path.write_bytes(signer.sign(found.origin, found.size, found.root))


class Case(NamedTuple):
    """A change, and what finds it.

    In the words HOST and OTHER-HOST are hosts, DUMP and SECOND are dumps of HOST, OTHER-DUMP is OTHER-HOST's, and ID is the end of
    DUMP as people see it.
    """

    change: Callable[[Scene], object]
    found: dict[str, str]
    """By command, what it says; the others of COMMANDS find nothing."""


FORKED: Final = "the log does not begin as it did under a kept checkpoint of 3 entries: entry 2 is another, or gone"
FORKED_SINCE: Final = "forked: entry 2 of the log is another than the one that this receipt proves"
REPLACED: Final = "DUMP (its manifest is not the one that was received)"
REPLACED_SINCE: Final = "ID  dump: its dump is not in the store as the log says: its manifest is not the one that was received"

CASES: Final[dict[str, Case]] = {
    "An entry edited": Case(edit_an_entry, {"audit verify": FORKED, "audit compare": FORKED_SINCE}),
    "An entry removed": Case(
        lambda scene: scene.edit_entries(lambda lines: [*lines[:2], *lines[3:]]),
        {"audit verify": FORKED, "audit compare": FORKED_SINCE},
    ),
    "Entries reordered": Case(
        lambda scene: scene.edit_entries(lambda lines: [*lines[:2], lines[3], lines[2]]),
        {"audit verify": FORKED, "audit compare": FORKED_SINCE},
    ),
    "An entry appended, of a deletion": Case(
        append_a_deletion,
        {
            "verify --all": "the log says that it is in the store: it says that it was deleted",
            "audit verify": "published, and the log says that it was deleted: DUMP",
            "audit compare": "ID  dump: the log says that its dump was deleted, and it is there",
        },
    ),
    "An entry appended, of a reception": Case(
        append_a_reception,
        {
            "verify --all": "GONE  HOST  not in the store as the audit log says: it is not there",
            "audit verify": "1 of 4 dumps is not: OTHER-DUMP (it is not there)",
        },
    ),
    "A host's log put back to an older checkpoint": Case(
        put_the_log_back,
        {
            "audit verify": "the log has 2 entries, a kept checkpoint says 4: it was put back to an earlier state",
            "audit compare": "shortened: the log has 2 entries, this receipt was given when it had 4",
        },
    ),
    "The same, with all other logs and all dumps": Case(
        put_all_back, {"audit compare": "shortened: the log has 2 entries, this receipt was given when it had 4"}
    ),
    "A host removed, with all that there is of it": Case(
        remove_a_host,
        {
            "audit verify": "every host that it names has its log, as it says: OTHER-HOST (its log is gone)",
            "audit compare": "unknown-host: the store has no log of OTHER-HOST",
        },
    ),
    "Dumps swapped between hosts": Case(
        swap_hosts,
        {
            "verify --all": "the manifest's host is HOST, not OTHER-HOST",
            "audit verify": "1 of 3 dumps is not: DUMP (it is not there)",
            "audit compare": "ID  dump: its dump is not in the store as the log says: it is not there",
        },
    ),
    "Dumps swapped between ids": Case(
        lambda scene: scene.swap(scene.of(FIRST), scene.of(SECOND)),
        {
            "verify --all": "the manifest's dump is SECOND, not DUMP",
            "audit verify": REPLACED,
            "audit compare": REPLACED_SINCE,
        },
    ),
    "A bit of a core flipped": Case(
        lambda scene: flip(scene.of(FIRST) / "core.zst", limits.PIECE_BYTES + 1000),
        {
            "verify --all": "ID  BROKEN  HOST  frame 1 of 12 (plaintext 1.0 MiB to 2.0 MiB, bytes 1048576 to 2097151): stored bytes"
            " are damaged",
        },
    ),
    "A manifest replaced by another valid one": Case(
        replace_the_manifest,
        {
            "verify --all": "ID  BROKEN  HOST  the entry agrees with the manifest: audit entry says manifest_sha256 is",
            "audit verify": REPLACED,
            "audit compare": REPLACED_SINCE,
        },
    ),
    "A checkpoint signed by another key": Case(
        sign_with_another_key,
        {
            "audit verify": "the checkpoint is signed with the log's key: checkpoint is not signed by the log's key",
            "audit compare": "the log does not hold by itself: checkpoint is not signed by the log's key",
        },
    ),
    "A row of the catalogue edited": Case(
        edit_the_catalogue, {"audit verify": "DUMP (state is listed as 'incomplete', by its files it is 'complete')"}
    ),
}
"""Each kind of change, as the table has it."""


def send(core: bytes, place: Path, host: str, to: str, fleet: Fleet) -> None:
    """Have a host send a core and keep the receipt."""
    if not (place / host).exists():
        create_spool(str(place / host), bytes(16))
    words = ["send", "-", "--to", to, "--identity", fleet.hosts[HOSTS[host]], "--spool", place / host]
    subprocess.run([*SECURECORE, *map(str, words)], input=core, capture_output=True, check=True)


@pytest.fixture(scope="module")
def made(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each case gets a copy of: receiver and senders were processes of their own."""
    place = tmp_path_factory.mktemp("made")
    for cores in ([(DB, OTHER), (WEB, FIRST)], [(WEB, SECOND), (WEB, THIRD)]):
        with receiving(fleet.receiver, place / "store") as receiver:
            for host, number in cores:
                send(CORES[number], place, host, str(receiver.addresses[0]), fleet)
            receiver.popen.terminate()
            assert receiver.popen.wait() == 0
        if not (place / "before").exists():
            shutil.copytree(place / "store", place / "before")
    subprocess.run([*SECURECORE, "list", "--store", str(place / "store")], capture_output=True, check=True)
    return place


@pytest.fixture
def scene(made: Path, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Scene:
    """A copy that the case may spoil."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Scene(tmp_path, fleet, capsys)


def test_a_store_that_nobody_has_touched_holds(scene: Scene) -> None:
    """Each command says so of both hosts, so what it finds below is the change."""
    for command in COMMANDS:
        ran = scene.run(command)
        assert (command, ran.code, ran.err) == (command, 0, "")
        assert [f"  ok  {host}  " in ran.out or f"{host}  ok  " in ran.out for host in HOSTS] == [True, True]
    assert "the catalogue lists every dump as its files say: 3 dumps" in scene.run("audit verify").out


@pytest.mark.parametrize("what", CASES)
def test_what_was_changed_is_found_and_named(what: str, scene: Scene) -> None:
    """By exit code 6 and words that point at it, of these commands and of no other."""
    case = CASES[what]
    case.change(scene)

    ran = {command: scene.run(command) for command in COMMANDS}

    assert {command: one.code for command, one in ran.items()} == {one: 6 if one in case.found else 0 for one in COMMANDS}
    assert [said for command, words in case.found.items() if (said := scene.named(words)) not in ran[command].out] == []
    assert all("BROKEN" in ran[command].out or "GONE" in ran[command].out for command in case.found)


def test_an_entry_that_nobody_has_signed_is_told(scene: Scene) -> None:
    """One that says nothing of where a dump stands contradicts nothing, and may be what a crash has left: it is no evidence."""
    append_entry(scene, extracted_entry(now(), scene.dumps[FIRST], HostName(WEB), uid=0, user="somebody"))

    ran = scene.run("audit verify")

    assert (ran.code, scene.run("verify --all").code) == (0, 0)
    assert f"{WEB}  ok  4 entries, 1 more not yet under a checkpoint" in ran.out
