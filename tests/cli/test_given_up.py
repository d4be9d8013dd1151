"""Dumps whose senders did not come back, as people meet them: listed, shown, verified, extracted as far as they go."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.audit.checkpoint import LogSigner
from securecore.audit.entry import deleted_entry
from securecore.audit.log import HostLogs
from securecore.certs.identity_directory import load_log_key
from securecore.dump.container import seek_table_bytes
from securecore.names import DumpId, HostName
from securecore.receiver.abandonment import Abandonment
from securecore.receiver.server import utc_now
from securecore.store.layout import Store, open_store
from securecore.store.writer import IncomingDump
from tests.support.certificates import Fleet
from tests.support.crash_cores import Crash
from tests.support.dumps import LOG_NAME, REPORT, frames_of, log_of, logs_of
from tests.support.stores import WEB, Commands, fill_store, flip, give_up

MIB = limits.MIB
SENT = random.Random(9).randbytes(3 * MIB)
"""Three frames: no ELF core."""
REST = b"what came later"


class Sample(Commands):
    """A store with a complete dump and one that was given up, both of web-1."""

    complete: DumpId
    given_up: DumpId

    @property
    def core(self) -> Path:
        """The core of the dump that was given up."""
        return self.dump(self.given_up) / "core.zst"

    def failed(self) -> list[str]:
        """Return the checks of ``audit verify`` that do not hold."""
        (document,) = self.logs()
        return [check["what"] for check in document["checks"] if check["ok"] is False]

    def gone(self) -> list[str]:
        """Return the dumps that ``verify --all`` and ``audit verify`` find gone; both find the same."""
        (document,) = self.logs()
        found = [found["id"] for found in self.verify("--all", "--json").document if len(found["checks"]) == 1]
        assert found == document["gone"]
        return found


@pytest.fixture(scope="module")
def template(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DumpId, DumpId]:
    """The store that each test gets a copy of, and its dumps."""
    store = tmp_path_factory.mktemp("template") / "store"
    (complete,) = fill_store(fleet, store, [("web-1", b"whole")])
    return store, complete, give_up(fleet, store, SENT)


@pytest.fixture
def sample(template: tuple[Path, DumpId, DumpId], fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sample:
    """A copy of the store that the test may spoil."""
    shutil.copytree(template[0], tmp_path / "store")
    made = Sample(tmp_path / "store", fleet, capsys)
    made.complete, made.given_up = template[1:]
    return made


def row_of(ran_rows: list[dict[str, Any]], dump: DumpId) -> dict[str, Any]:
    return next(row for row in ran_rows if row["id"] == str(dump))


def test_it_is_listed_as_incomplete(sample: Sample) -> None:
    """With what is there of it, and when its last frame came; for people the reason stands in words."""
    row = row_of(sample("list", "--json").document, sample.given_up)
    (_, entry) = sample.entries()
    assert {name: row[name] for name in ("state", "outcome", "size_bytes", "frames", "predicted_bytes", "program", "signal")} == {
        "state": "incomplete", "outcome": None, "size_bytes": len(SENT), "frames": 3, "predicted_bytes": None,
        "program": "nginx", "signal": 11,
    }  # fmt: skip
    assert (row["received_at"], row["given_up_at"]) == (entry["last_at"], entry["time"])
    assert "incomplete (link lost)" in sample("list").out
    assert row_of(sample("list", "--json").document, sample.complete)["given_up_at"] is None


def test_how_much_of_an_elf_core_is_there_is_said(sample: Sample) -> None:
    """The ELF header in the first frame tells how long the core would have been."""
    crash = Crash()
    core = crash.write()
    dump = give_up(sample.fleet, sample.store, core[: len(core) // 2])
    row = row_of(sample("list", "--json").document, dump)
    assert (row["size_bytes"], row["predicted_bytes"]) == (len(core) // 2, len(core))
    assert f"incomplete ({100 * (len(core) // 2) // len(core)} %, link lost)" in sample("list").out


def test_the_list_follows_a_dump_that_came_back(sample: Sample) -> None:
    """Given up, coming in again, and given up with more: each time the list says what is."""
    assert row_of(sample("list", "--json").document, sample.given_up)["frames"] == 3
    take_up_again(sample, REST)
    assert row_of(sample("list", "--json").document, sample.given_up)["frames"] is None
    give_up_again(sample)
    assert row_of(sample("list", "--json").document, sample.given_up)["frames"] == 4


def logs_in(sample: Sample, store: Store) -> HostLogs:
    """Return the store's audit logs, to be appended to."""
    key, _ = load_log_key(sample.fleet.receiver)
    return logs_of(store, LogSigner(LOG_NAME, key))


def take_up_again(sample: Sample, rest: bytes = b"") -> None:
    """Have the sender come back, send *rest*, and go away."""
    with open_store(str(sample.store)) as store:
        logs = logs_in(sample, store)
        Abandonment(store, logs, utc_now).revoke(HostName(WEB), sample.given_up, REPORT)
        logs.close()
        dump = IncomingDump.resume(store, HostName(WEB), sample.given_up)
        for frame in frames_of(rest):
            dump.append(*frame)
        dump.sync()
        dump.close()


def give_up_again(sample: Sample) -> None:
    """Have the dump given up once more."""
    with open_store(str(sample.store)) as store:
        logs = logs_in(sample, store)
        dump = IncomingDump.resume(store, HostName(WEB), sample.given_up)
        Abandonment(store, logs, utc_now).give_up(dump, utc_now())
        dump.close()
        logs.close()


def test_the_log_says_so_in_words(sample: Sample) -> None:
    """How many frames are held of what was given up; who deleted what, and why."""
    with open_store(str(sample.store)) as store:
        logs = logs_in(sample, store)
        entry = deleted_entry(utc_now(), sample.given_up, HostName(WEB), uid=7, user=None, reason="no room\x1b[2J")
        log_of(logs, HostName(WEB)).append(entry)
        logs.close()
    lines = sample("audit", "log").out.splitlines()
    assert lines[-2].endswith("3 frames held, its sender did not come back")
    assert lines[-1].endswith("by 7: no room?[2J")


def test_it_is_shown_with_what_vouches_for_it(sample: Sample) -> None:
    """Size, frames and root are the entry's, which the receipt proves; why it is incomplete and since when stands beside it."""
    ran = sample("show", sample.given_up, "--no-analysis")
    (_, entry) = sample.entries()
    assert "3.0 MiB in 3 frames" in ran.out
    assert f"incomplete (link lost); the last frame came {entry['last_at']}" in ran.out
    assert f"given up    {entry['time']}" in ran.out
    assert "receipt ok" in ran.out
    assert "manifest" not in ran.out
    document = sample("show", sample.given_up, "--json", "--no-analysis").document
    assert document["received_at"] == entry["last_at"], "as list has it"
    assert {name: document[name] for name in ("state", "given_up", "size_bytes", "frames", "root", "evidence", "entry")} == {
        "state": "incomplete", "given_up": True, "size_bytes": len(SENT), "frames": 3, "root": entry["root"],
        "evidence": {"receipt": "ok"}, "entry": 2,
    }  # fmt: skip


@pytest.mark.parametrize("which", ["given_up", "complete"])
def test_what_was_cut_off_as_damaged_is_shown(which: str, sample: Sample) -> None:
    """Also of a dump that was finished later: how much and where, and in what the dump takes, as it is listed."""
    dump = getattr(sample, which)
    stored = (sample.dump(dump) / "core.zst").stat().st_size
    plain = sample("show", dump, "--json", "--no-analysis").document
    assert (plain["stored_bytes"], plain["damaged_bytes"]) == (stored, 0)
    assert "damaged" not in sample("show", dump, "--no-analysis").out
    for number, length in enumerate((3 * MIB, 100), start=1):
        (sample.dump(dump) / f"core.damaged-{number}").write_bytes(bytes(length))
    document = sample("show", dump, "--json", "--no-analysis").document
    assert (document["stored_bytes"], document["damaged_bytes"]) == (stored + 3 * MIB + 100, 3 * MIB + 100)
    assert document["state"] == plain["state"]
    assert row_of(sample("list", "--json").document, dump)["stored_bytes"] == document["stored_bytes"]
    shown = sample("show", dump, "--no-analysis").out
    assert "damaged     3.0 MiB cut off as damaged, in core.damaged-1, core.damaged-2\n" in shown


def test_it_verifies_as_what_it_is(sample: Sample) -> None:
    """What came is held against the entry; that no certificate vouches for whose dump it is, is said, and is no failure."""
    ran = sample.verify(sample.given_up)
    assert ran.code == 0
    assert ran.out.splitlines()[-1].split() == [sample.given_up.short, "ok", WEB, "incomplete", "(link", "lost),", "3.0", "MiB"]
    assert "not checked: the host has signed nothing" in ran.out
    (document,) = sample.verify(sample.given_up, "--json").document
    assert (document["ok"], document["given_up"], document["outcome"]) == (True, True, None)
    assert [check["ok"] for check in document["checks"]] == [True] * 8 + [None] * 2
    assert (sample.verify("--all").code, sample.audit().code, sample.failed()) == (0, 0, [])


@pytest.mark.parametrize("quick", [[], ["--quick"]])
@pytest.mark.parametrize(
    ("name", "at"), [("core.zst", 100), ("core.zst", -5), ("receipt", -8), ("receipt", 100), ("report.json", 3)]
)
def test_a_flipped_bit_is_found(sample: Sample, name: str, at: int, quick: list[str]) -> None:
    """In any of its files, whether it is named or all are, and no other dump is said to be broken."""
    flip(sample.dump(sample.given_up) / name, at)
    one, everything = sample.verify(sample.given_up, *quick), sample.verify("--all", *quick, "--json")
    assert (one.code, everything.code) == (6, 6)
    assert "BROKEN" in one.out
    assert [found["id"] for found in everything.document if not found["ok"]] == [str(sample.given_up)]


def test_a_core_cut_short_is_found(sample: Sample) -> None:
    """A frame that is missing at the end is named, with the plaintext that it stood for."""
    data = sample.core.read_bytes()
    sample.core.write_bytes(data[: 2 * (len(data) - seek_table_bytes(3)) // 3])
    (document,) = sample.verify(sample.given_up, "--json").document
    assert [(lost["first_frame"], lost["last_frame"], lost["plain_end"]) for lost in document["damage"]] == [(2, 2, len(SENT))]


def test_a_received_dump_without_its_manifest_does_not_pass_for_one(sample: Sample) -> None:
    """Its receipt says that it was received, so a manifest is missing."""
    (sample.dump(sample.complete) / "manifest.jws").unlink()
    ran = sample.verify(sample.complete)
    assert ran.code == 6
    assert "manifest.jws is missing" in ran.out
    assert sample.extract(sample.complete, "-").code == 6


def test_a_manifest_beside_it_is_found(sample: Sample) -> None:
    """No crash puts one there: it is said by both commands."""
    shutil.copy(sample.dump(sample.complete) / "manifest.jws", sample.dump(sample.given_up))
    assert sample.verify(sample.given_up).code == 6
    assert sample.failed() == ["every dump's receipt proves its entry"]


def test_a_dump_whose_sender_is_back_is_where_the_log_says(sample: Sample) -> None:
    """While it is coming in again it is neither gone nor broken, with or without more frames, and when it is given up again."""
    for rest in (b"", REST):
        take_up_again(sample, rest)
        assert (sample.gone(), sample.failed()) == ([], [])
        give_up_again(sample)
        assert (sample.gone(), sample.failed()) == ([], [])
    assert [entry["event"] for entry in sample.entries()] == ["received", "incomplete", "incomplete"]
    assert sample.verify("--all").code == 0


def test_one_that_is_gone_is_named(sample: Sample) -> None:
    """By both commands, as one that was received."""
    shutil.rmtree(sample.dump(sample.given_up))
    assert sample.gone() == [str(sample.given_up)]
    assert (sample.verify("--all").code, sample.audit().code) == (6, 6)


def test_one_that_came_back_and_lost_frames_is_named(sample: Sample) -> None:
    """Under incoming the frames of the entry must come first; fewer are as bad as none."""
    take_up_again(sample)
    core = sample.dump(sample.given_up, place="incoming") / "core.zst"
    os.truncate(core, core.stat().st_size - 1)
    assert sample.gone() == [str(sample.given_up)]


def test_one_that_was_put_back_to_an_earlier_state_is_named(sample: Sample, tmp_path: Path) -> None:
    """Fewer frames under an older receipt, each true in its time, are not what the log says last."""
    shutil.copytree(sample.dump(sample.given_up), tmp_path / "kept")
    take_up_again(sample, REST)
    give_up_again(sample)
    shutil.rmtree(sample.dump(sample.given_up))
    shutil.copytree(tmp_path / "kept", sample.dump(sample.given_up))
    assert sample.gone() == [str(sample.given_up)]
    assert sample.failed() == ["every dump that was received or given up is in the store"]


@pytest.mark.parametrize("change", ["missing", "longer"])
def test_one_whose_core_is_not_the_entrys_is_named(sample: Sample, change: str) -> None:
    """While it is published with its receipt nothing may come to it; its first frames alone are not enough."""
    if change == "missing":
        sample.core.unlink()
    else:
        with sample.core.open("ab") as file:
            file.write(b"x")
    assert sample.failed() == ["every dump that was received or given up is in the store"]
    assert sample.logs()[0]["gone"] == [str(sample.given_up)]
    assert sample.verify("--all").code == 6


def test_a_deleted_one_may_be_gone(sample: Sample) -> None:
    """Its tombstone says so: neither command misses it."""
    shutil.rmtree(sample.dump(sample.given_up))
    with open_store(str(sample.store)) as store:
        logs = logs_in(sample, store)
        entry = deleted_entry(utc_now(), sample.given_up, HostName(WEB), uid=0, user="root", reason="old")
        log_of(logs, HostName(WEB)).append(entry)
        logs.close()
    assert (sample.gone(), sample.failed(), sample.verify("--all").code, sample.audit().code) == ([], [], 0, 0)


def test_it_is_extracted_only_when_a_part_is_asked_for(sample: Sample, tmp_path: Path) -> None:
    """Exit code 7 without --partial, and no file; with it all that came, and an entry that says who took it."""
    refused = sample.extract(sample.given_up, tmp_path / "core")
    assert refused.code == 7
    assert "is incomplete (link lost)" in refused.err
    assert not (tmp_path / "core").exists()
    assert sample.extract(sample.given_up, tmp_path / "core", "--partial").code == 0
    assert (tmp_path / "core").read_bytes() == SENT
    assert sample.entries()[-1]["event"] == "extracted"


@pytest.mark.parametrize("name", ["manifest.jws", "receipt"])
@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100])
def test_a_core_is_not_lost_with_its_papers(name: str, content: bytes | None, sample: Sample, tmp_path: Path) -> None:
    """A manifest or receipt that is gone or garbled is exit code 6; with --partial the core is written, and it is said."""
    dump, plain = (sample.complete, b"whole") if name == "manifest.jws" else (sample.given_up, SENT)
    path = sample.dump(dump) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused = sample.extract(dump, tmp_path / "core")
    assert (refused.code, (tmp_path / "core").exists()) == (6, False)
    assert "--partial writes what there is" in refused.err
    ran = sample.extract(dump, tmp_path / "core", "--partial")
    assert ran.code == 6
    assert "so nothing says whether this is all of it" in ran.err
    assert (tmp_path / "core").read_bytes() == plain


def test_a_damaged_frame_becomes_a_hole(sample: Sample, tmp_path: Path) -> None:
    """The frames around it are written, and which one is not is said."""
    flip(sample.core, 100)
    ran = sample.extract(sample.given_up, tmp_path / "core", "--partial")
    assert ran.code == 6
    assert "1 frame is damaged and became a hole: 0" in ran.err
    assert (tmp_path / "core").read_bytes() == bytes(MIB) + SENT[MIB:]


@pytest.mark.parametrize("which", ["given up", "complete"])
def test_without_a_sound_seek_table_the_frames_are_walked(which: str, sample: Sample, tmp_path: Path) -> None:
    """Only with --partial; all of them are found, and that the table does not hold is said. Without, the hint says so."""
    dump, plain = (sample.given_up, SENT) if which == "given up" else (sample.complete, b"whole")
    flip(sample.dump(dump) / "core.zst", -3)
    ran = sample.extract(dump, tmp_path / "core", "--partial")
    assert ran.code == 6
    assert "so the frames were looked for one after the other" in ran.err
    assert "are lost" not in ran.err
    assert (tmp_path / "core").read_bytes() == plain
    if which == "complete":
        refused = sample.extract(dump, tmp_path / "other")
        assert (refused.code, (tmp_path / "other").exists()) == (6, False)
        assert "--partial writes the frames that are found without it" in refused.err


def test_what_is_lost_behind_the_end_of_the_walk_is_said(sample: Sample, tmp_path: Path) -> None:
    """A core that is cut within its second frame: the first is written, the others are named with their plaintext."""
    os.truncate(sample.core, MIB + 1000)
    ran = sample.extract(sample.given_up, tmp_path / "core", "--partial")
    assert ran.code == 6
    assert "1 found; frames 1 to 2 are lost, plaintext 1.0 MiB to 3.0 MiB" in ran.err
    assert (tmp_path / "core").read_bytes() == SENT[:MIB]


def test_a_walk_that_finds_other_frames_than_were_stored_is_broken(sample: Sample, tmp_path: Path) -> None:
    """As many sound frames as the entry says, but not those: nothing is passed off as the dump."""
    frames = [frame for frame, _ in frames_of(SENT)]
    sample.core.write_bytes(frames[1] + frames[0] + frames[2])
    ran = sample.extract(sample.given_up, tmp_path / "core", "--partial")
    assert ran.code == 6
    assert "the frames are not those that were signed" in ran.err
