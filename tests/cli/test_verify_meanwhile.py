"""`verify` beside a receiver at work: what is deleted, or comes in again, while it is looked at is not called broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from securecore.audit.checkpoint import LogSigner
from securecore.audit.log_verification import Entered
from securecore.certs.identity_directory import load_log_key
from securecore.cli import holdings, verify
from securecore.names import DumpId, HostName
from securecore.receiver.abandonment import Abandonment
from securecore.receiver.server import utc_now
from securecore.store.layout import Store, open_store
from securecore.store.reading import DumpFiles
from tests.support.certificates import Fleet
from tests.support.dumps import LOG_NAME, REPORT, logs_of
from tests.support.samples import Sample
from tests.support.stores import WEB, Commands, fill_store, give_up


@pytest.fixture
def at_the_look(monkeypatch: pytest.MonkeyPatch) -> Callable[[DumpId, Callable[[], object]], None]:
    """Have something done once, between the opening of a dump and the reading of its files."""
    real = verify.verify_dump

    def arrange(dump: DumpId, act: Callable[[], object]) -> None:
        done = []

        def verify_dump(fd: int, expected: Any, *arguments: Any, **words: Any) -> Any:
            if expected.dump_id == dump and not done:
                done.append(act())
            return real(fd, expected, *arguments, **words)

        monkeypatch.setattr(verify, "verify_dump", verify_dump)

    return arrange


Arrange = Callable[[DumpId, Callable[[], object]], None]


def test_the_dump_under_verification_is_deleted(sample: Sample, at_the_look: Arrange) -> None:
    """With --all it is no damage, and the others are verified; by itself it is not found any more, with its tombstone."""
    at_the_look(sample.dumps[0], lambda: sample.delete(sample.dumps[0]))
    ran = sample.verify("--all")
    assert (ran.code, ran.out.count("  ok  ")) == (0, 3)
    assert f"{sample.dumps[0].short}  n/a  {WEB}  deleted meanwhile" in ran.out

    at_the_look(sample.dumps[2], lambda: sample.delete(sample.dumps[2]))
    ran = sample.verify(sample.dumps[2])
    assert (ran.code, ran.out) == (4, "")
    assert f"{sample.dumps[2].short} of {WEB} was deleted " in ran.err


def test_programs_are_told_of_the_others(sample: Sample, at_the_look: Arrange) -> None:
    """The deleted one is none of the dumps of the store."""
    at_the_look(sample.dumps[0], lambda: sample.delete(sample.dumps[0]))

    ran = sample.verify("--all", "--json")

    assert (ran.code, [found["ok"] for found in ran.document]) == (0, [True] * 3)
    assert str(sample.dumps[0]) not in [found["id"] for found in ran.document]


def test_a_dump_that_somebody_else_removes_is_gone(sample: Sample, at_the_look: Arrange) -> None:
    """No log says that it was deleted."""
    at_the_look(sample.dumps[0], lambda: sample.first.rename(sample.store / "elsewhere"))

    ran = sample.verify("--all")

    assert ran.code == 6
    assert f"{sample.dumps[0].short}  GONE  {WEB}" in ran.out


def test_a_dump_that_is_damaged_where_it_stands_is_broken(sample: Sample, at_the_look: Arrange) -> None:
    """What is removed from a directory that stays at its place was not removed by us."""
    at_the_look(sample.dumps[0], (sample.first / "receipt").unlink)

    ran = sample.verify("--all")

    assert ran.code == 6
    assert f"{sample.dumps[0].short}  BROKEN  {WEB}" in ran.out


def test_a_dump_is_deleted_between_the_look_at_the_log_and_the_look_at_the_store(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood under incoming without a receipt, and its entry said that it was received: it is not missed."""
    dump, real, deleted = sample.dumps[2], holdings.find_problem, []

    def find_problem(store: Store, host: HostName, entered: Entered) -> str | None:
        if not deleted:
            deleted.append(sample.delete(dump))
        return real(store, host, entered)

    incoming = sample.dump(dump, place="incoming")
    incoming.parent.mkdir(mode=0o700, exist_ok=True)
    sample.dump(dump).rename(incoming)
    (incoming / "receipt").unlink()
    monkeypatch.setattr(holdings, "find_problem", find_problem)

    ran = sample.verify("--all", "--host", "web-1", "--json")

    assert (ran.code, len(deleted)) == (0, 1)
    assert {found["id"] for found in ran.document} == {str(sample.dumps[0]), str(sample.dumps[1])}


@pytest.fixture
def given_up(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Commands, DumpId]:
    """A store with a dump that was given up, and another one."""
    commands = Commands(tmp_path / "store", fleet, capsys)
    fill_store(fleet, commands.store, [("web-1", b"another")])
    return commands, give_up(fleet, commands.store, b"what came")


def take_back(commands: Commands, dump: DumpId) -> None:
    """Have the sender of a dump that was given up come back."""
    key, _ = load_log_key(commands.fleet.receiver)
    with open_store(str(commands.store)) as store:
        logs = logs_of(store, LogSigner(LOG_NAME, key))
        Abandonment(store, logs, utc_now).revoke(HostName(WEB), dump, REPORT)
        logs.close()


def test_the_dump_under_verification_is_taken_back(given_up: tuple[Commands, DumpId], at_the_look: Arrange) -> None:
    """Its receipt goes and its seek table is cut off, in good order: it is coming in again."""
    commands, dump = given_up
    at_the_look(dump, lambda: take_back(commands, dump))

    ran = commands.verify("--all")

    assert ran.code == 0
    assert f"{dump.short}  n/a  {WEB}  its sender is back, and it is coming in again" in ran.out
    assert commands.verify(dump).code == 7


def test_a_dump_that_was_about_to_be_taken_back_is_taken_back(given_up: tuple[Commands, DumpId], at_the_look: Arrange) -> None:
    """It stands under incoming with its receipt, where nothing moves it when its sender goes on."""
    commands, dump = given_up
    incoming = commands.dump(dump, place="incoming")
    incoming.parent.mkdir(mode=0o700, exist_ok=True)
    commands.dump(dump).rename(incoming)
    at_the_look(dump, lambda: take_back(commands, dump))

    ran = commands.verify("--all")

    assert (ran.code, "BROKEN" in ran.out) == (0, False)


def test_the_dump_under_verification_is_removed_behind_the_last_check(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it held: its core is not called missing, because nobody looks again."""
    real = verify.verify_dump

    def verify_dump(fd: int, expected: Any, *arguments: Any, **words: Any) -> Any:
        found = real(fd, expected, *arguments, **words)
        if expected.dump_id == sample.dumps[0]:
            sample.delete(sample.dumps[0])
        return found

    monkeypatch.setattr(verify, "verify_dump", verify_dump)

    ran = sample.verify("--all")

    assert ran.code == 0
    assert f"{sample.dumps[0].short}  ok  {WEB}  complete, " in ran.out


@pytest.mark.parametrize("command", ["show", "extract", "extract --partial", "list"])
def test_a_dump_is_taken_back_while_another_command_reads_it(
    command: str, given_up: tuple[Commands, DumpId], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at again where it stands now: still coming in, and nothing of it is damaged."""
    commands, dump = given_up
    real, done = DumpFiles.read_manifest, []

    def read_manifest(files: DumpFiles) -> bytes | None:
        if files.dump_id == dump and files.is_published and not done:
            done.append(True)
            take_back(commands, dump)
        return real(files)

    monkeypatch.setattr(DumpFiles, "read_manifest", read_manifest)

    if command == "show":
        said = commands("show", dump, "--no-analysis").out
    elif command == "list":
        said = next(line for line in commands("list").out.splitlines() if line.startswith(dump.short))
    else:
        said = commands.extract(dump, tmp_path / "core", *command.split()[1:]).err

    assert done
    assert "incomplete (still coming in)" in said
    assert "damage" not in said
