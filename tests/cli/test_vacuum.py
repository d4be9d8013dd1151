"""``securecore vacuum``: what it shows, what it deletes and what it leaves, and what it says of that."""

import os
from pathlib import Path

import pytest

from securecore import limits
from securecore.cli.main import run
from securecore.errors import StorageError
from securecore.names import DumpId, HostName
from securecore.receiver import deleter
from securecore.store import removal
from securecore.store.layout import Place, open_store
from tests.support.certificates import Fleet
from tests.support.dumps import begin
from tests.support.receivers import new_dump_id, running_receiver
from tests.support.stores import DB, WEB, Commands, fill_store, give_up

SMALL = b"the core of a process that crashed"
LARGE = os.urandom(3 << 20)


class Filled(Commands):
    """Commands on a store that holds four dumps of two hosts and in which nobody runs a receiver."""

    dumps: list[DumpId]

    def vacuum(self, *arguments: object) -> tuple[int, str, str]:
        """Run ``vacuum`` with the receiver's identity; return how it ended, its lines but for the table's, and what was wrong."""
        ran = self("vacuum", "--identity", self.fleet.receiver, *arguments)
        return ran.code, ran.out.splitlines()[-1] if ran.out else "", ran.err

    def left(self) -> list[DumpId]:
        """Return what is listed, the oldest first."""
        return [DumpId.parse(row["id"]) for row in reversed(self("list", "--json").document)]


@pytest.fixture
def filled(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Filled:
    """A store with dumps of web-1, db-2, web-1 and web-1, in this order; the third is large."""
    commands = Filled(tmp_path / "store", fleet, capsys)
    commands.dumps = fill_store(
        fleet, commands.store, [("web-1", SMALL), ("db-2", SMALL), ("web-1", LARGE), ("web-1", SMALL)]
    )  # fmt: skip
    return commands


def test_a_dry_run_shows_what_would_go_and_why_and_touches_nothing(filled: Filled) -> None:
    """A table of the oldest, then a sum; no identity is needed to look."""
    ran = filled("vacuum", "--keep-dumps", "2", "--dry-run", "--identity", filled.store / "none")
    header, first, second, last = ran.out.splitlines()
    assert header.split() == ["ID", "RECEIVED", "HOST", "SIZE", "WHY"]
    assert first.startswith(filled.dumps[0].short)
    assert first.endswith("store has more than 2 dumps")
    assert second.split()[3] == "db-2"
    assert last.startswith("would delete 2 dumps, ")
    assert "; 2 dumps, 3.0 MiB left" in last
    assert (ran.code, ran.err) == (0, "")
    assert filled.left() == filled.dumps


def test_what_is_shown_goes_and_the_log_says_why(filled: Filled) -> None:
    """Gone from the store and from the list; every other dump and all evidence hold."""
    assert filled.vacuum("--keep-dumps", "2")[0] == 0
    assert filled.left() == filled.dumps[2:]
    assert not filled.dump(filled.dumps[0]).exists()
    entry = filled.entries()[-1]
    assert (entry["event"], entry["dump"]) == ("deleted", str(filled.dumps[0]))
    assert (entry["reason"], entry["uid"]) == ("vacuum: store has more than 2 dumps", os.getuid())
    assert filled.entries(DB)[-1]["reason"] == "vacuum: store has more than 2 dumps"
    assert (filled.audit().code, filled.verify("--all").code) == (0, 0)
    assert filled.vacuum("--keep-dumps", "2")[:2] == (0, "nothing to delete; 2 dumps, 3.0 MiB left")


def test_bounds_of_each_host_and_of_one(filled: Filled) -> None:
    """Each host is brought to its own bound; with --host the others are neither counted nor touched."""
    code, words, _ = filled.vacuum("--host", "db-2", "--host-dumps", "0")
    assert (code, words.endswith(f"; 0 dumps, 0 B left of {DB}")) == (0, True)
    assert filled.left() == [filled.dumps[0], *filled.dumps[2:]]
    code, words, _ = filled.vacuum("--host-bytes", "1MiB")
    assert (code, words.startswith("deleted 2 dumps, 3.0 MiB freed; 1 dump, ")) == (0, True)
    assert filled.left() == filled.dumps[3:]


def test_ages(filled: Filled, fleet: Fleet) -> None:
    """What is younger than the one goes by no other bound, and what is older than the other goes."""
    assert filled.vacuum("--keep-dumps", "0", "--min-age", "1h")[1].startswith("nothing to delete; 4 dumps")
    assert filled.vacuum("--older-than", "1h")[1].startswith("nothing to delete; 4 dumps")
    old = give_up(fleet, filled.store, LARGE)
    assert filled.vacuum("--older-than", "1h")[1].startswith("deleted 1 dump, 3.0 MiB freed; 4 dumps")
    assert (filled.entries()[-1]["dump"], filled.entries()[-1]["reason"]) == (str(old), "vacuum: older than 1h")


def test_what_was_given_up_goes_like_the_others_and_what_is_coming_in_does_not(filled: Filled, fleet: Fleet) -> None:
    """An incomplete dump that is published goes; one whose sender may be back any moment counts for its host, and is named."""
    parted, coming = give_up(fleet, filled.store, LARGE), new_dump_id()
    with open_store(str(filled.store)) as store:
        begin(store, coming, LARGE, host=HostName(WEB)).close()
        assert filled.vacuum("--keep-dumps", "0")[0] == 0
        assert filled.vacuum("--host-bytes", "1KiB")[:2] == (0, "nothing to delete; 0 dumps, 0 B left; 1 dump, 3.0 MiB coming in")
        ran = filled("vacuum", "--host-dumps", "1", "--json", "--identity", fleet.receiver)
        assert ran.document["coming_in"] == {"dumps": 1, "stored_bytes": ran.document["coming_in"]["stored_bytes"]}
        assert filled.left() == [coming]
        assert store.find_place(HostName(WEB), coming) is Place.INCOMING
    assert str(parted) in [entry["dump"] for entry in filled.entries() if entry["event"] == "deleted"]


def test_what_comes_in_makes_its_host_s_oldest_go(filled: Filled) -> None:
    """A host whose quota is as large as its bound, or its parts, waits for no room that nobody makes."""
    with open_store(str(filled.store)) as store:
        begin(store, new_dump_id(), LARGE, host=HostName(WEB)).close()
    assert filled.vacuum("--host-bytes", "7MiB")[1].startswith("nothing to delete; 4 dumps")
    assert filled.vacuum("--host-bytes", "4MiB")[1].startswith("deleted 2 dumps, 3.0 MiB freed; 2 dumps, ")
    assert filled.left()[:2] == [filled.dumps[1], filled.dumps[3]]


def test_one_that_cannot_go_keeps_no_other(filled: Filled) -> None:
    """It is named with why, the exit code is its own, and all others are gone."""
    first = filled.dumps[0]
    with (
        open_store(str(filled.store)) as store,
        store.open_dump(HostName(WEB), first) as files,
        removal.kept_from_writers(first, files.fd),
    ):
        code, words, wrong = filled.vacuum("--keep-dumps", "0")
        ran = filled("vacuum", "--keep-dumps", "0", "--json", "--identity", filled.fleet.receiver)
    assert (code, wrong) == (14, f"securecore: {first.short} stays: dump {first} is being written\n")
    assert words.startswith("deleted 3 dumps, ")
    assert "; 1 dump, " in words
    (failed,) = ran.document["failed"]
    assert (ran.code, failed["id"], failed["error"]["name"]) == (14, str(first), "busy")
    assert filled.left() == filled.dumps[:1]


@pytest.mark.parametrize("is_listed", [True, False], ids=["listed before", "never listed"])
@pytest.mark.parametrize("receipt", [None, b"", bytes(limits.MAX_RECEIPT_BYTES + 1)], ids=["missing", "malformed", "unreadable"])
def test_a_dump_whose_receipt_cannot_be_read_goes_when_it_is_its_turn(
    receipt: bytes | None, is_listed: bool, filled: Filled
) -> None:
    """Its own time is in the host's log; where that of its directory was listed, it goes by that one."""
    first = filled.dump(filled.dumps[0])
    if is_listed:
        assert filled.left() == filled.dumps
    (first / "receipt").unlink()
    if receipt is not None:
        (first / "receipt").write_bytes(receipt)
    os.utime(first, (1e9, 1e9))

    code, words, wrong = filled.vacuum("--keep-dumps", "3")

    assert (code, wrong) == (0, "")
    assert words.startswith("deleted 1 dump, ")
    assert filled.left() == filled.dumps[1:]
    assert not first.exists()


def test_what_went_meanwhile_is_no_failure(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else deleted it between our look and our deed: it is neither ours nor left."""
    real = deleter.Deleter.delete

    def delete(self: deleter.Deleter, host: HostName, dumps: list[DumpId], reason: str) -> object:
        if filled.dump(filled.dumps[0]).exists():
            with open_store(str(filled.store)) as store:
                removal.set_aside(store, HostName(WEB), filled.dumps[0])
                removal.purge(store, HostName(WEB), filled.dumps[0])
        return real(self, host, dumps, reason)

    monkeypatch.setattr(deleter.Deleter, "delete", delete)
    code, words, wrong = filled.vacuum("--keep-dumps", "2")
    assert (code, wrong) == (0, "")
    assert words.startswith("deleted 1 dump, ")
    assert words.endswith("; 2 dumps, 3.0 MiB left")


def test_a_program_reads_the_same(filled: Filled) -> None:
    """One document: what went and why, what it freed, what is left."""
    ran = filled("vacuum", "--keep-dumps", "3", "--json", "--identity", filled.fleet.receiver)
    document = ran.document
    (row,) = document["deleted"]
    assert (row["id"], row["host"], row["reason"]) == (str(filled.dumps[0]), WEB, "store has more than 3 dumps")
    assert (document["dry_run"], document["failed"]) == (False, [])
    assert document["freed_bytes"] == row["stored_bytes"] > 0
    assert document["left"]["dumps"] == 3


def test_without_an_identity_nothing_goes(filled: Filled) -> None:
    """Who deletes is audited."""
    ran = filled("vacuum", "--keep-dumps", "0", "--identity", filled.store / "none")
    assert ran.code != 0
    assert "who deletes is audited" in ran.err
    assert filled.left() == filled.dumps


def test_where_nothing_is_to_go_a_timer_is_content(filled: Filled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A person is told that nothing was asked for; a timer may run before there is a store."""
    assert filled.vacuum("--min-age", "1d")[0] == 2
    assert filled.vacuum("--if-any") == (0, "nothing says what is to go", "")
    assert filled("vacuum", "--if-any", "--json").document["left"] is None
    assert Commands(tmp_path / "none", filled.fleet, capsys)("vacuum", "--if-any").code == 0
    assert filled.left() == filled.dumps


def configuration(path: Path, store: Path, fleet: Fleet, retention: str) -> Path:
    """Write a receiver's file."""
    path.write_text(f'version = 1\nstore = "{store}"\nidentity = "{fleet.receiver}"\n[retention]\n{retention}\n')
    return path


def test_what_the_file_says_is_done_and_options_win(
    filled: Filled, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds, store and identity are those of the file, unless an option says something else of one of them."""
    file = configuration(tmp_path / "receiver.toml", filled.store, fleet, "host_dumps = 1\nmin_age = '1d'")
    for options, last in (
        ([], "nothing to delete; 4 dumps"),
        (["--min-age", "1m", "--host-dumps", "4"], "nothing to delete; 4 dumps"),
        (["--older-than", "1h"], "nothing to delete; 4 dumps"),
    ):
        assert filled.vacuum("--config", file, *options)[1].startswith(last)
    monkeypatch.setenv("SECURECORE_STORE", str(tmp_path / "another"))
    for lifted in ("none", "0"):
        ran = filled("vacuum", "--config", file, "--min-age", lifted, "--dry-run")
        assert (ran.code, ran.out.splitlines()[-1].startswith("would delete 2 dumps, ")) == (0, True)
    configuration(file, filled.store, fleet, "host_dumps = 1\nmax_dumps = 1")
    # Who names a file means its store, whatever the environment says of another.
    assert run(["vacuum", "--config", str(file), "--host", "web-1", "--if-any"]) == 0
    assert "deleted 2 dumps" in capsys.readouterr().out
    assert filled.left() == [filled.dumps[1], filled.dumps[3]], "the store's bound is not for one host alone"


def test_who_names_a_host_hears_that_the_stores_bounds_are_not_for_it(filled: Filled, fleet: Fleet, tmp_path: Path) -> None:
    """The file has bounds, so nobody is to be told to write some there."""
    file = configuration(tmp_path / "receiver.toml", filled.store, fleet, "max_dumps = 1")
    ran = filled("vacuum", "--config", file, "--host", "web-1")
    assert ran.code == 2
    assert "nothing says what is to go of one host: " in ran.err
    assert "--keep-dumps" not in ran.err
    assert filled.vacuum("--config", file, "--host", "web-1", "--if-any") == (0, "nothing says what is to go of one host", "")
    assert filled.left() == filled.dumps


def test_the_machines_own_file_is_for_its_own_store(
    filled: Filled, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is looked at beside it, as a copy, loses nothing by rules that were not written for it."""
    file = configuration(tmp_path / "receiver.toml", tmp_path / "other", fleet, "max_dumps = 1")
    monkeypatch.setattr("securecore.cli.vacuum.CONFIGURATION", str(file))
    assert filled("vacuum").code == 2
    configuration(file, filled.store, fleet, "max_dumps = 1")
    assert filled("vacuum").code == 0
    assert filled.left() == filled.dumps[3:]


def test_the_running_receiver_deletes_in_the_name_of_who_asks(filled: Filled, fleet: Fleet) -> None:
    """No identity is needed: it has the log key, and the kernel's word for who asks."""
    with running_receiver(fleet.receiver, filled.store):
        ran = filled("vacuum", "--host-dumps", "1", "--identity", filled.store / "none")
    assert ran.code == 0
    assert filled.left() == [filled.dumps[1], filled.dumps[3]]
    assert (filled.entries()[-1]["reason"], filled.entries()[-1]["uid"]) == ("vacuum: host has more than 1 dump", os.getuid())


def test_more_than_a_batch_goes_in_several(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and by bytes; a dump larger than a batch goes by itself."""
    monkeypatch.setattr("securecore.limits.DELETION_BATCH_BYTES", 100)
    assert filled.vacuum("--keep-dumps", "0")[0] == 0
    assert filled.left() == []
    assert [entry["dump"] for entry in filled.entries() if entry["event"] == "deleted"] == [
        str(filled.dumps[number]) for number in (0, 2, 3)
    ]


def test_a_full_disk_keeps_all_of_them(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no entry can be written nothing goes, and the exit code says so."""

    def refuse(fd: int, data: bytes) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("securecore.audit.log.directory.write_all", refuse)
        code, words, wrong = filled.vacuum("--keep-dumps", "0")
    assert (code, words.startswith("deleted 0 dumps, 0 B freed; 4 dumps")) == (5, True)
    assert wrong.count("the disk is full") == 4
    assert filled.left() == filled.dumps
