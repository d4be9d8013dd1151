"""A dump that was deleted: whoever asks for it by its id hears when that was, who did it and why."""

import shutil
from pathlib import Path

import pytest

from securecore.audit.entry import deleted_entry
from securecore.errors import BrokenError, NotFoundError, StorageError
from securecore.names import DumpId, HostName
from securecore.receiver import standalone
from securecore.receiver.server import utc_now
from securecore.store import removal
from securecore.store.layout import Place, Store, open_store
from securecore.store.reading import DumpFiles
from securecore.store.relocation import move_dump
from tests.support.dumps import begin
from tests.support.receivers import new_dump_id
from tests.support.samples import Sample
from tests.support.stores import DB, WEB, Ran, flip

COMMANDS = ("show", "verify", "extract", "delete", "elf id")


def ask(sample: Sample, command: str, text: object, tmp_path: Path) -> Ran:
    """Run a command on a dump."""
    if command == "extract":
        return sample.extract(text, tmp_path / "core")
    if command == "delete":
        return sample("delete", text, "--identity", sample.fleet.receiver)
    return sample.verify(text) if command == "verify" else sample(*command.split(), text)


def _refused(store: Store, host: HostName, dump: DumpId) -> None:
    raise StorageError(f"cannot remove dump {dump}: input/output error")


def delete(sample: Sample, dump: DumpId, reason: str, host: str = WEB) -> None:
    """Delete a dump for a reason."""
    with open_store(str(sample.store)) as store:
        standalone.delete_alone(store, HostName(host), dump, reason, sample.fleet.receiver, utc_now())


@pytest.mark.parametrize("command", COMMANDS)
def test_it_tells_of_its_tombstone(command: str, sample: Sample, tmp_path: Path) -> None:
    """When, by whom and why, with the exit code of what is not found; also by an end of its id."""
    delete(sample, sample.dumps[0], "customer data, ticket 4711")
    entry = sample.entries()[-1]
    when = entry["time"].replace("T", " ")[:19]

    for text in (sample.dumps[0], sample.dumps[0].short):
        ran = ask(sample, command, text, tmp_path)

        assert (ran.code, ran.out) == (NotFoundError.exit_code, "")
        assert ran.err.splitlines() == [
            f"securecore: {sample.dumps[0].short} of {WEB} was deleted {when} UTC by {entry['user']}: customer data, ticket 4711",
            f"  hint: `securecore audit log {sample.dumps[0].short}` has its history",
        ]
    assert not (tmp_path / "core").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["hosts", "incoming"])
def test_who_asks_hears_of_a_host_whose_dumps_could_not_be_looked_at(
    command: str, place: str, sample: Sample, tmp_path: Path
) -> None:
    """It may have one that is meant too: what can't be undone is not done to another one, unless its whole id was named."""
    dump, other = sample.dumps[0], "db-9.hosts.test.example"
    (sample.store / place).mkdir(mode=0o700, exist_ok=True)
    (sample.store / place / other).touch()
    problem = f"cannot open '{other}': not a directory"

    ran = ask(sample, command, dump.short, tmp_path)

    if command != "delete":
        assert f"note: dumps may be left out: {problem}\n" in ran.err
        return
    assert (ran.code, ran.out) == (StorageError.exit_code, "")
    assert ran.err.splitlines() == [
        f"securecore: cannot tell whether '{dump.short}' means one dump alone: {problem}",
        "  hint: name the dump by its whole id, as `securecore list --json` has it",
    ]
    assert sample.dump(dump).exists()
    assert ask(sample, command, dump, tmp_path).code == 0
    assert not sample.dump(dump).exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_deletion_that_is_not_signed_explains_nothing(command: str, sample: Sample, tmp_path: Path) -> None:
    """Whoever can write the store removes a dump and writes the line: the dump is missing, and for `verify` that is damage."""
    dump = sample.dumps[0]
    shutil.rmtree(sample.dump(dump))
    with (sample.log() / "entries.jsonl").open("ab") as entries:
        entries.write(deleted_entry(utc_now(), dump, HostName(WEB), uid=1000, user="anna", reason=None) + b"\n")

    ran = ask(sample, command, dump, tmp_path)

    assert ran.code == (BrokenError if command == "verify" else NotFoundError).exit_code
    assert f"{dump.short} of {WEB} is not in the store, and its audit log says received" in ran.err


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_deletion_under_way_is_told_as_one(command: str, sample: Sample, tmp_path: Path) -> None:
    """Its entry is there and not signed yet, and the dump is out of sight."""
    dump = sample.dumps[0]
    with open_store(str(sample.store)) as store:
        removal.set_aside(store, HostName(WEB), dump)
    with (sample.log() / "entries.jsonl").open("ab") as entries:
        entries.write(deleted_entry(utc_now(), dump, HostName(WEB), uid=1000, user="anna", reason=None) + b"\n")

    ran = ask(sample, command, dump, tmp_path)

    assert ran.code == NotFoundError.exit_code
    assert f"{dump.short} of {WEB} is being deleted" in ran.err


@pytest.mark.parametrize("command", ["show", "extract"])
def test_one_that_is_deleted_while_it_is_read(
    command: str, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are removed under our eyes: that is not told as damage."""
    real, done = DumpFiles.read_manifest, []

    def read_manifest(files: DumpFiles) -> bytes | None:
        if not done:
            done.append(True)
            sample.delete(sample.dumps[0])
        return real(files)

    monkeypatch.setattr(DumpFiles, "read_manifest", read_manifest)

    ran = ask(sample, command, sample.dumps[0], tmp_path)

    assert (ran.code, ran.out, done) == (NotFoundError.exit_code, "", [True])
    assert f"{sample.dumps[0].short} of {WEB} was deleted" in ran.err


def test_programs_are_told_too(sample: Sample) -> None:
    """In the error's message."""
    sample.delete(sample.dumps[0])

    error = sample("show", sample.dumps[0], "--json").document["error"]

    assert (error["name"], error["exit_code"]) == ("not-found", 4)
    assert error["message"].endswith("no reason given")


def test_a_reason_moves_no_cursor(sample: Sample) -> None:
    """Whoever deletes chooses the words."""
    delete(sample, sample.dumps[0], "\x1b[2Jgone")

    assert "?[2Jgone" in sample("show", sample.dumps[0]).err


def test_a_dump_that_is_there_comes_first(sample: Sample) -> None:
    """Two that were deleted begin alike with one that is there: that one is meant."""
    sample.delete(sample.dumps[0])
    sample.delete(sample.dumps[1])

    ran = sample("show", "01", "--host", "web-1", "--no-analysis")

    assert (ran.code, ran.err) == (0, "")
    assert str(sample.dumps[2]) in ran.out


def test_several_that_were_deleted(sample: Sample) -> None:
    """All ids begin alike: what is meant is said, and how many there are."""
    for dump in sample.dumps[:3]:
        sample.delete(dump)

    ran = sample("show", "01", "--host", "web-1")

    assert ran.code == NotFoundError.exit_code
    assert "'01' means 3 dumps that are not in the store any more" in ran.err
    assert all(f"{dump.short} of {WEB} was deleted" in ran.err for dump in sample.dumps[:3])


def test_another_hosts_tombstones_do_not_count(sample: Sample) -> None:
    """With --host only that host's log is read."""
    sample.delete(sample.dumps[0])

    assert "no dump of" in sample("show", sample.dumps[0], "--host", DB).err


def test_one_that_nobody_deleted_is_told_apart(sample: Sample) -> None:
    """The log says that it was received: where it is, is a question for `verify --all`."""
    shutil.rmtree(sample.first)

    ran = sample("show", sample.dumps[0])

    assert ran.code == NotFoundError.exit_code
    assert f"{sample.dumps[0].short} of {WEB} is not in the store, and its audit log says received" in ran.err
    assert "`securecore verify --all` names all that is missing" in ran.err


def test_to_verify_one_that_nobody_deleted_is_to_find_damage(sample: Sample) -> None:
    """The exit code of `verify --all`, which finds it too."""
    shutil.rmtree(sample.first)

    one, all_of_them = sample.verify(sample.dumps[0]), sample.verify("--all")

    assert (one.code, all_of_them.code) == (BrokenError.exit_code, BrokenError.exit_code)
    assert f"{sample.dumps[0].short} of {WEB} is not in the store, and its audit log says received" in one.err


def test_one_whose_files_could_not_be_removed(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refused the end of it; that it was deleted is in the log all the same."""
    with monkeypatch.context() as failing:
        failing.setattr(removal, "purge", _refused)
        with pytest.raises(StorageError):
            delete(sample, sample.dumps[0], "ticket 4711")
    assert sample.dump(sample.dumps[0], place="deleting").exists()

    ran = sample("show", sample.dumps[0])

    assert ran.code == NotFoundError.exit_code
    assert f"{sample.dumps[0].short} of {WEB} was deleted " in ran.err
    assert "ticket 4711" in ran.err


@pytest.mark.parametrize("host", [WEB, DB])
def test_one_that_was_still_coming_in_and_is_on_its_way_out(host: str, sample: Sample) -> None:
    """No log says anything of it yet."""
    dump = new_dump_id()
    with open_store(str(sample.store)) as store:
        begin(store, dump, b"so far", host=HostName(host)).close()
        move_dump(store, HostName(host), dump, Place.INCOMING, Place.DELETING)
    shutil.rmtree(sample.log(DB))

    ran = sample("show", dump.short)

    assert ran.code == NotFoundError.exit_code
    assert f"{dump.short} of {host} is being deleted" in ran.err


def test_what_stands_in_another_hosts_place_hides_no_tombstone(sample: Sample) -> None:
    """Nor does it hide the dumps that are there."""
    sample.delete(sample.dumps[0])
    for place in ("audit", "hosts", "deleting"):
        path = sample.store / place / DB
        shutil.rmtree(path, ignore_errors=True)
        path.write_bytes(b"")

    assert f"{sample.dumps[0].short} of {WEB} was deleted" in sample("show", sample.dumps[0]).err
    assert sample("show", sample.dumps[1], "--no-analysis").code == 0


def test_one_that_is_on_its_way_out(sample: Sample) -> None:
    """Readers do not look there any more, and the log does not say so yet."""
    with open_store(str(sample.store)) as store:
        move_dump(store, HostName(WEB), sample.dumps[0], Place.HOSTS, Place.DELETING)

    assert f"{sample.dumps[0].short} of {WEB} is being deleted" in sample("show", sample.dumps[0]).err


@pytest.mark.parametrize("spoiled", ["changed", "directory", "missing"])
def test_a_log_that_cannot_be_read_tells_of_nothing(spoiled: str, sample: Sample) -> None:
    """Then an id that means nothing is no more than that."""
    sample.delete(sample.dumps[0])
    entries = sample.log() / "entries.jsonl"
    if spoiled == "changed":
        flip(entries, -3)
    else:
        entries.unlink()
        if spoiled == "directory":
            entries.mkdir()

    ran = sample("show", sample.dumps[0])

    assert ran.code == NotFoundError.exit_code
    assert ran.err.startswith("securecore: ")


def test_what_never_was_is_not_found(sample: Sample) -> None:
    """In the words of every other name that means nothing."""
    assert "no dump has an id that begins or ends with 'ffffffff'" in sample("show", "ffffffff").err
