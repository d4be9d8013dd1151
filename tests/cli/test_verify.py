"""`verify`: what it finds wrong with dumps, in words, in JSON and in its exit code."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.checkpoint import LogSigner
from securecore.audit.proof import TlogProof
from securecore.certs.identity_directory import load_log_key
from securecore.cli import terminal
from securecore.dump.reader import open_container
from securecore.errors import IncompleteError
from securecore.merkle import leaf_hash
from securecore.names import DumpId
from tests.support.certificates import DOMAIN, Fleet
from tests.support.receivers import running_receiver
from tests.support.samples import Sample
from tests.support.stores import DB, WEB, Commands, fill_store, flip


def test_an_honest_store_of_several_hosts_is_ok(sample: Sample) -> None:
    """Both commands say ok for every host and dump and leave with 0, an incomplete dump among them."""
    verified, audited = sample.verify("--all"), sample.audit()

    assert (verified.code, audited.code) == (0, 0)
    assert verified.out.count("  ok  ") == 4
    assert "incomplete (source-truncated)" in verified.out
    assert [f"{host}  ok  " in audited.out for host in (WEB, DB)] == [True, True]
    assert "BROKEN" not in verified.out + audited.out
    assert "FAIL" not in audited.out
    documents = sample.logs()
    assert [(found["host"], found["ok"], found["entries"]) for found in documents] == [(DB, True, 2), (WEB, True, 4)]
    assert [len(found["checks"]) for found in documents] == [10, 10]
    assert all(found[what] == [] for found in documents for what in ("gone", "unlogged", "unproved"))
    assert [found["ok"] for found in sample.verify("--all", "--json").document] == [True] * 4


def test_an_honest_store_is_ok_while_its_receiver_runs_and_after_an_extraction(sample: Sample, tmp_path: Path) -> None:
    """Entries that are newer than every receipt are no contradiction."""
    with running_receiver(sample.fleet.receiver, sample.store):
        assert sample.extract(sample.dumps[0], tmp_path / "core").code == 0
        assert (sample.verify("--all").code, sample.audit().code) == (0, 0)
    assert [found["entries"] for found in sample.logs()] == [2, 5]


def test_one_host_of_several(sample: Sample) -> None:
    """`--host` leaves the others alone, broken or not."""
    shutil.rmtree(sample.log(DB))

    assert (sample.audit("--host", "web-1").code, sample.audit("--host", "db-2").code) == (0, 6)
    assert sample.audit().code == 6, "web-1, which is ok, comes after db-2"
    assert sample.verify("--all", "--host", "web-1").out.count("  ok  ") == 3


def test_an_incomplete_dump_whose_evidence_holds_is_not_broken(sample: Sample) -> None:
    """Named by itself too it is ok, and labelled."""
    ran = sample.verify(sample.dumps[1])

    assert ran.code == 0
    assert ran.out.splitlines()[-1].split()[1:5] == ["ok", WEB, "incomplete", "(source-truncated),"]
    (document,) = sample.verify(sample.dumps[1], "--json").document
    assert (document["ok"], document["outcome"]) == (True, "source-truncated")


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.parametrize(
    ("name", "at"), [("core.zst", 100), ("core.zst", -5), ("manifest.jws", 200), ("receipt", -8), ("report.json", 3)]
)
def test_a_flipped_bit_in_a_dump_is_exit_code_6(sample: Sample, name: str, at: int, json_too: bool) -> None:
    """Whether the dump is named or all are, and no other dump is said to be broken."""
    flip(sample.first / name, at)
    options = ["--json"] if json_too else []

    one, everything = sample.verify(sample.dumps[0], *options), sample.verify("--all", *options)

    assert (one.code, everything.code) == (6, 6)
    if json_too:
        assert [found["id"] for found in everything.document if not found["ok"]] == [str(sample.dumps[0])]
        assert any(check["ok"] is False for check in one.document[0]["checks"])
    else:
        assert everything.out.count("BROKEN") == 1
        assert everything.out.count("  ok  ") == 3
        assert "FAIL" in one.out


def test_one_frame_is_one_frame(sample: Sample) -> None:
    """Numbers and nouns agree in the details of the checks; where the only frame is damaged, no other is said to be intact."""
    details = {check["detail"] for check in sample.verify(sample.dumps[2], "--json").document[0]["checks"]}
    assert {"1 frame", "1 entry", "1 frame, 5 bytes"} <= details

    flip(sample.dump(sample.dumps[2]) / "core.zst", 10)
    ran = sample.verify(sample.dumps[2])
    assert ("BROKEN" in ran.out, "intact" in ran.out) == (True, False)


def test_a_damaged_frame_is_named(sample: Sample) -> None:
    """With its place in the plaintext, and what is left."""
    flip(sample.first / "core.zst", 100)

    ran = sample.verify("--all")

    assert "frame 0 of 12 (plaintext 0 B to 1.0 MiB, bytes 0 to 1048575): " in ran.out
    assert "the other 11 frames are intact" in ran.out
    found = next(found for found in sample.verify("--all", "--json").document if found["id"] == str(sample.dumps[0]))
    assert [(damage["first_frame"], damage["last_frame"]) for damage in found["damage"]] == [(0, 0)]


@pytest.mark.parametrize(
    ("length", "of", "rest"),
    [
        (10, "frames 0 to 11 of 12", None),
        (2_500_000, "frames 2 to 11 of 12", "the other 2 frames are intact; `extract --partial` writes what is left\n"),
    ],
)
def test_a_core_cut_short_is_counted_by_what_was_signed(length: int, of: str, rest: str | None, sample: Sample) -> None:
    """Frames that are missing at the end were never among the intact ones, and nothing behind them is a hole."""
    os.truncate(sample.first / "core.zst", length)

    ran = sample.verify(sample.dumps[0])

    assert ran.code == 6
    assert of in ran.out
    assert rest in ran.out if rest is not None else "intact" not in ran.out


def test_a_hole_and_a_missing_end(sample: Sample) -> None:
    """Only the frame that is there and damaged is taken off those that were found."""
    os.truncate(sample.first / "core.zst", 2_500_000)
    flip(sample.first / "core.zst", 100)

    out = sample.verify(sample.dumps[0]).out

    assert "the other 1 frame is intact; `extract --partial` writes what is left, with a hole\n" in out


def test_every_damaged_place_is_named(sample: Sample) -> None:
    """Each with its bytes, in order; of very many the first are."""
    lengths = core_lengths(sample.first / "core.zst")
    for frame in (1, 4, 5, 11):
        flip(sample.first / "core.zst", sum(lengths[:frame]) + (lengths[frame] - 1))

    lines = sample.verify(sample.dumps[0]).out.splitlines()

    at = next(number for number, line in enumerate(lines) if "BROKEN" in line)
    assert "  frame 1 of 12 (plaintext 1.0 MiB to 2.0 MiB, bytes 1048576 to 2097151): " in lines[at]
    assert [line.split(": ")[0].strip() for line in lines[at + 1 :]] == [
        "frames 4 to 5 of 12 (plaintext 4.0 MiB to 6.0 MiB, bytes 4194304 to 6291455)",
        "frame 11 of 12 (plaintext 11.0 MiB to 11.0 MiB, bytes 11534336 to 11534342)",
        "the other 8 frames are intact; `extract --partial` writes what is left, with a hole",
    ]


def test_of_very_many_damaged_places_the_first_are_named(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And how many more there are; programs are told of all."""
    commands = Commands(tmp_path / "store", fleet, capsys)
    (dump,) = fill_store(fleet, commands.store, [("web-1", b"\x01" * (50 * limits.PIECE_BYTES))])
    core = commands.dump(dump) / "core.zst"
    lengths = core_lengths(core)
    for frame in range(0, 50, 2):
        flip(core, sum(lengths[: frame + 1]) - 1)

    ran = commands.verify(dump)

    assert ran.out.count(" of 50 (plaintext ") == 20
    assert "          and 5 more places; --json names them all\n" in ran.out
    assert len(commands.verify(dump, "--json").document[0]["damage"]) == 25


def core_lengths(path: Path) -> list[int]:
    """Return the stored lengths of a core's frames."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return [entry.stored for entry in open_container(fd).entries]
    finally:
        os.close(fd)


def test_ctrl_c_ends_it_at_once(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a core, with one line, the exit code of an interrupt, and no thread left."""
    before, seen = threading.active_count(), []
    # Whoever starts the tests in the background may have had this signal ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def update(progress: terminal.Progress, done: int, total: int | None = None) -> None:
        seen.append((done, total))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(terminal.Progress, "update", update)

    try:
        ran = sample.verify("--all", "--host", "web-1")
    finally:
        signal.signal(signal.SIGINT, handler)

    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "securecore: interrupted")
    assert seen == [(limits.PIECE_BYTES, 12 * limits.PIECE_BYTES)]
    assert threading.active_count() == before


@pytest.mark.parametrize("name", ["core.zst", "manifest.jws", "report.json"])
@pytest.mark.parametrize("is_logged", [True, False])
def test_what_was_damaged_before_it_was_published_is_broken(name: str, is_logged: bool, sample: Sample) -> None:
    """The receiver cannot publish it any more; without its damage it is only not there yet."""
    dump = sample.dumps[0]
    incoming = unpublish(sample, dump)
    if not is_logged:
        shutil.rmtree(sample.store / "audit" / WEB)
        shutil.rmtree(sample.store / "hosts" / WEB)
    whole, all_of_them = sample.verify(dump), sample.verify("--all")

    assert (whole.code, all_of_them.code) == (7, 0)
    said = "incomplete (not published yet); what can be checked without a receipt holds"
    assert f"{dump.short}  n/a  {WEB}  {said}" in all_of_them.out
    assert "FAIL" not in whole.out

    flip(incoming / name, 100 if name != "report.json" else 5)

    one, all_of_them = sample.verify(dump), sample.verify("--all")
    assert (one.code, all_of_them.code) == (6, 6)
    assert f"{dump.short}  BROKEN  {WEB}" in one.out
    assert f"{dump.short}  BROKEN  {WEB}" in all_of_them.out


def test_what_fails_is_told_before_what_could_not_be_checked(sample: Sample) -> None:
    """There is no receipt yet, which is in order; the core ought to be there."""
    (unpublish(sample, sample.dumps[0]) / "core.zst").unlink()

    said = "the core can be read: core.zst is missing"
    assert f"{sample.dumps[0].short}  BROKEN  {WEB}  {said}" in sample.verify("--all").out


def test_a_dump_of_which_frames_come_is_no_business_of_all(sample: Sample) -> None:
    """Without a manifest there is nothing that it could be held against."""
    (unpublish(sample, sample.dumps[2]) / "manifest.jws").unlink()

    assert sample.dumps[2].short not in sample.verify("--all", "--host", "db-2").out


def unpublish(sample: Sample, dump: DumpId) -> Path:
    """Put a dump where a commit that was interrupted before its receipt has left it."""
    incoming = sample.dump(dump, place="incoming")
    incoming.parent.mkdir(mode=0o700, exist_ok=True)
    sample.dump(dump).rename(incoming)
    (incoming / "receipt").unlink()
    return incoming


@pytest.mark.parametrize(("names", "why"), [(("receipt",), "not published yet"), (("receipt", "manifest.jws"), "still coming in")])
def test_a_dump_that_is_still_coming_in_is_not_broken(sample: Sample, names: tuple[str, ...], why: str) -> None:
    """There is nothing yet that could hold: it is incomplete, in words, also to show and extract."""
    dump = sample.dumps[0]
    for name in names:
        (sample.first / name).unlink()
    shutil.move(sample.first, sample.store / "incoming" / WEB / str(dump))

    ran, extracted = sample.verify(dump), sample.extract(dump, sample.store.parent / "core")

    assert (ran.code, extracted.code) == (IncompleteError.exit_code, IncompleteError.exit_code)
    assert why in ran.err
    assert "is incomplete (" in extracted.err
    assert sample("show", dump, "--json", "--no-analysis").document["state"] == "incomplete"


def test_a_dump_damaged_under_incoming_is_verified_too(sample: Sample) -> None:
    """Moved away from the published ones with its receipt, and one bit flipped: `verify --all` looks there too."""
    incoming = sample.dump(sample.dumps[0], place="incoming")
    incoming.parent.mkdir(mode=0o700, exist_ok=True)
    sample.first.rename(incoming)
    flip(incoming / "core.zst", 100)

    assert sample.verify("--all").code == 6


@pytest.mark.parametrize("time", ["", "x", "2026-11-22T09:14:22", "0001-01-01T00:00:00+23:59"])
def test_a_receipt_whose_entry_has_no_moment_vouches_for_no_certificate(time: str, sample: Sample) -> None:
    """The receiver's own key signed it, so it proves its entry; but when the certificate must have been valid nobody knows."""
    key, _ = load_log_key(sample.fleet.receiver)
    (fields, *_), name = sample.entries(), f"collector.{DOMAIN}/securecore"
    line = json.dumps(fields | {"time": time}, sort_keys=True, separators=(",", ":")).encode()
    proof = TlogProof(0, (), LogSigner(name, key).sign(f"{name}/{WEB}", 1, leaf_hash(line)), line)
    (sample.first / "receipt").write_bytes(proof.encode())

    shown, verified = sample("show", sample.dumps[0]), sample.verify(sample.dumps[0])

    assert (shown.code, verified.code) == (0, 6)
    assert "time" in shown.out
    assert "Traceback" not in shown.err + verified.err


def test_an_empty_store_has_nothing_to_verify(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A receiver that nobody has sent anything to has an honest store."""
    with running_receiver(fleet.receiver, tmp_path / "store"):
        pass
    commands = Commands(tmp_path / "store", fleet, capsys)

    assert commands.audit() == (0, "no audit logs, and no dumps\n", "")
    assert commands.verify("--all") == (0, "", "")
    assert commands.audit("--json").document == commands.verify("--all", "--json").document == []
