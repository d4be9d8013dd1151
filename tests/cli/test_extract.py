"""`extract`: the core comes out byte for byte, the log says so first, and nothing that is less passes for all of it."""

import json
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.log import HostLog
from securecore.cli.main import run
from securecore.dump.reader import DumpReader
from securecore.errors import StorageError
from securecore.names import DumpId
from tests.support.certificates import Fleet
from tests.support.hands import Hand
from tests.support.processes import ROOT, SECURECORE
from tests.support.receivers import new_dump_id, running_receiver
from tests.support.stores import CORE, CUT_CORE, WEB, Commands, fill_store, flip

MIB = limits.PIECE_BYTES


class Sample(Commands):
    """A store with a complete dump and an incomplete one."""

    whole: DumpId
    cut: DumpId

    def extractions(self) -> list[tuple[str, int, str | None]]:
        """Return what the log says of extractions: dump, uid, user."""
        return [(entry["dump"], entry["uid"], entry["user"]) for entry in self.entries() if entry["event"] == "extracted"]


@pytest.fixture(params=["with a receiver", "without a receiver"])
def sample(request: pytest.FixtureRequest, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Sample]:
    """The store of one test, with a receiver running on it or with none."""
    made = Sample(tmp_path / "store", fleet, capsys)
    made.whole, made.cut = fill_store(fleet, made.store, [("web-1", CORE), ("web-1", CUT_CORE)])
    if request.param == "without a receiver":
        yield made
    else:
        with running_receiver(fleet.receiver, made.store):
            yield made


def me(dump: DumpId) -> tuple[str, int, str | None]:
    """Return the entry of an extraction by this process."""
    return (str(dump), os.getuid(), pwd.getpwuid(os.getuid()).pw_name)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the umask while the block runs."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_a_core_comes_out_byte_for_byte_and_the_log_says_who_took_it(sample: Sample, tmp_path: Path) -> None:
    """Exit code 0, one line, one entry, and the log still verifies."""
    ran = sample.extract(sample.whole, tmp_path / "core")

    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{sample.whole.short}  11.0 MiB written to {tmp_path / 'core'}\n"
    assert (tmp_path / "core").read_bytes() == CORE
    assert sample.extractions() == [me(sample.whole)]
    assert sample.audit().code == 0


def test_the_entry_comes_before_the_first_byte(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the entry is being written there is no output yet."""
    append, seen = HostLog.append, []

    def watched(log: HostLog, entry: bytes) -> bytes:
        seen.append((json.loads(entry)["event"], (tmp_path / "core").exists()))
        return append(log, entry)

    monkeypatch.setattr(HostLog, "append", watched)

    assert sample.extract(sample.whole, tmp_path / "core").code == 0
    assert seen == [("extracted", False)]


def test_what_cannot_be_logged_is_not_extracted(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be written costs the extraction: nothing comes out."""

    def refuse(log: HostLog, entry: bytes) -> bytes:
        raise StorageError("cannot write: no space left on device")

    monkeypatch.setattr(HostLog, "append", refuse)

    ran = sample.extract(sample.whole, tmp_path / "core")

    assert (ran.code, ran.out) == (5, "")
    assert "cannot write: no space left on device" in ran.err
    assert not (tmp_path / "core").exists()


def test_a_broken_log_is_not_extracted_from(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged log is never appended to, so its dumps do not come out."""
    made = Commands(tmp_path / "store", fleet, capsys)
    (dump,) = fill_store(fleet, made.store, [("web-1", CORE)])
    flip(made.log() / "entries.jsonl", 40)

    ran = made.extract(dump, tmp_path / "core")

    assert (ran.code, ran.out) == (6, "")
    assert not (tmp_path / "core").exists()


def test_without_receiver_and_identity_nothing_comes_out(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody could sign the entry; the hint says what is missing. A host's identity has no log key either."""
    made = Commands(tmp_path / "store", fleet, capsys)
    (dump,) = fill_store(fleet, made.store, [("web-1", CORE)])

    for identity in (tmp_path / "missing", fleet.host):
        ran = made("extract", dump, "-o", tmp_path / "core", "--identity", identity)

        assert (ran.code, ran.out) == (4, "")
        assert "who extracts is audited" in ran.err
        assert not (tmp_path / "core").exists()
    assert [entry["event"] for entry in made.entries()] == ["received"]


def test_an_incomplete_dump_comes_out_only_when_it_is_asked_for(sample: Sample, tmp_path: Path) -> None:
    """Exit code 7, no file and no entry; with --partial what there is."""
    ran = sample.extract(sample.cut, tmp_path / "core")

    assert (ran.code, ran.out) == (7, "")
    assert ran.err.splitlines()[0] == f"securecore: {sample.cut.short} is incomplete (source-truncated)"
    assert "--partial" in ran.err.splitlines()[1]
    assert not (tmp_path / "core").exists()
    assert sample.extractions() == []

    assert sample.extract(sample.cut, tmp_path / "core", "--partial").code == 0
    assert (tmp_path / "core").read_bytes() == CUT_CORE
    assert sample.extractions() == [me(sample.cut)]


def test_a_dump_without_an_end_comes_out_only_when_it_is_asked_for(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was sent of a dump that is still coming in, or was cut, is labelled as that."""
    made, dump = Sample(tmp_path / "store", fleet, capsys), new_dump_id()
    with running_receiver(fleet.receiver, made.store) as receiver:
        hand = Hand(fleet.host, receiver.addresses)
        hand.open(dump)
        hand.send(CORE[:MIB])
        hand.send(CORE[MIB : 2 * MIB])
        hand.close()

    refused, taken = made.extract(dump, tmp_path / "no"), made.extract(dump, tmp_path / "core", "--partial")

    assert (refused.code, taken.code) == (7, 0)
    assert "is incomplete (still coming in)" in refused.err
    assert not (tmp_path / "no").exists()
    assert (tmp_path / "core").read_bytes() == CORE[: 2 * MIB]
    assert made.extractions() == [me(dump)]


def test_standard_output_can_be_a_pipe(sample: Sample) -> None:
    """`-o -` writes the core and nothing else."""
    command = [sys.executable, "-m", "securecore.cli.main", "extract", str(sample.whole), "-o", "-"]
    options = ["--store", str(sample.store), "--identity", str(sample.fleet.receiver)]

    ran = subprocess.run([*command, *options], capture_output=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == CORE
    assert sample.extractions() == [me(sample.whole)]


@pytest.mark.parametrize("options", [[], ["--stored"], ["--partial"]], ids=" ".join)
def test_a_reader_of_the_core_that_has_gone_is_no_fault(options: list[str], sample: Sample) -> None:
    """`extract -o - | head` ends like other commands whose reader has gone, without a word, and not as at a full disk."""
    command = [sys.executable, "-m", "securecore.cli.main", "extract", str(sample.whole), "-o", "-", *options]
    places = ["--store", str(sample.store), "--identity", str(sample.fleet.receiver)]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        ran = subprocess.run([*command, *places], stdout=gone, stderr=subprocess.PIPE, check=False)

    assert (ran.returncode, ran.stderr) == (141, b"")


def test_a_file_is_sparse_and_its_owners_alone(sample: Sample, tmp_path: Path) -> None:
    """The eight pieces of zeroes take no room, and no umask opens the file to others."""
    with umask(0):
        assert sample.extract(sample.whole, tmp_path / "core").code == 0

    status = (tmp_path / "core").stat()
    assert status.st_mode & 0o777 == 0o600
    assert status.st_size == len(CORE)
    assert status.st_blocks * 512 < 4 * MIB


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_what_stands_there_is_not_touched(sample: Sample, tmp_path: Path, kind: str) -> None:
    """A file is never overwritten and no link is followed; there is no entry either, because nothing was extracted."""
    (tmp_path / "file").write_bytes(b"precious")
    output = tmp_path / ("file" if kind == "file" else "link")
    if kind != "file":
        output.symlink_to(tmp_path / ("file" if kind == "link" else "nowhere"))

    ran = sample.extract(sample.whole, output)

    assert (ran.code, ran.out) == (5, "")
    assert "already exists" in ran.err
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()
    assert sample.extractions() == []


def test_what_appears_meanwhile_is_not_touched(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or link that somebody plants between our look and our write is refused all the same."""
    append = HostLog.append

    def plant(log: HostLog, entry: bytes) -> bytes:
        (tmp_path / "core").symlink_to(tmp_path / "planted")
        return append(log, entry)

    monkeypatch.setattr(HostLog, "append", plant)

    ran = sample.extract(sample.whole, tmp_path / "core")

    assert (ran.code, ran.out) == (5, "")
    assert "already exists" in ran.err
    assert not (tmp_path / "planted").exists()


def test_half_a_core_never_has_the_name_of_a_whole_one(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is being written, nothing stands there: a kill -9 leaves nothing that looks like a core."""
    decode, seen = DumpReader.decode, []

    def watched(reader: DumpReader, index: int, frame: bytes) -> bytes:
        seen.append((tmp_path / "core").exists())
        return decode(reader, index, frame)

    monkeypatch.setattr(DumpReader, "decode", watched)

    assert sample.extract(sample.whole, tmp_path / "core").code == 0
    assert set(seen) == {False}
    assert [path.name for path in tmp_path.glob("*core*")] == ["core"]
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_leaves_no_file(sample: Sample, tmp_path: Path) -> None:
    """Half a core is taken away again; the entry stays, because somebody had the core in hand."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode(errors='replace').strip()}")
    try:
        ran = sample.extract(sample.whole, small / "core")
        left = list(small.iterdir())
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)

    assert (ran.code, ran.out, left) == (5, "", [])
    assert "no space left on device" in ran.err
    assert sample.extractions() == [me(sample.whole)]


def test_a_damaged_frame_leaves_no_file(sample: Sample, tmp_path: Path) -> None:
    """The frame is named, with exit code 6."""
    flip(sample.dump(sample.whole) / "core.zst", MIB + 1000)

    ran = sample.extract(sample.whole, tmp_path / "core")

    assert (ran.code, ran.out) == (6, "")
    assert ran.err.startswith("securecore: frame 1: ")
    assert "--partial" in ran.err
    assert not (tmp_path / "core").exists()


def test_a_damaged_frame_becomes_a_hole_when_it_is_asked_for(sample: Sample, tmp_path: Path) -> None:
    """Everything else is there, at its place; it is still exit code 6, and the frame is named."""
    flip(sample.dump(sample.whole) / "core.zst", MIB + 1000)

    ran = sample.extract(sample.whole, tmp_path / "core", "--partial")

    assert (ran.code, ran.out) == (6, "")
    assert ran.err == f"securecore: {sample.whole.short}: 1 frame is damaged and became a hole: 1\n"
    assert (tmp_path / "core").read_bytes() == CORE[:MIB] + bytes(MIB) + CORE[2 * MIB :]


def test_only_the_named_hosts_dump_is_meant(sample: Sample, tmp_path: Path) -> None:
    """`--host` goes before the id, and an id that is nowhere is not found."""
    assert sample.extract(new_dump_id(), tmp_path / "core").code == 4
    assert sample.extract(sample.whole, tmp_path / "core", "--host", WEB).code == 0


def test_what_is_stored_comes_out_as_it_stands_and_is_audited(sample: Sample, tmp_path: Path) -> None:
    """Byte for byte, in a file of its owner's and through a pipe; `zstd -d` makes the core of it."""
    stored = (sample.dump(sample.whole) / "core.zst").read_bytes()

    ran = sample.extract(sample.whole, tmp_path / "core.zst", "--stored")

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith(f"written to {tmp_path / 'core.zst'}, as stored\n")
    assert (tmp_path / "core.zst").read_bytes() == stored
    assert stat.S_IMODE((tmp_path / "core.zst").stat().st_mode) == 0o600
    assert subprocess.run(["zstd", "-dc", tmp_path / "core.zst"], capture_output=True, check=True).stdout == CORE
    assert sample.extractions() == [me(sample.whole)]
    places = ["--store", str(sample.store), "--identity", str(sample.fleet.receiver)]
    piped = subprocess.run(
        [*SECURECORE, "extract", str(sample.whole), "--stored", "-o", "-", *places],
        capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    assert piped.stdout == stored
    assert sample.extractions() == [me(sample.whole)] * 2


def test_what_is_stored_is_what_a_third_party_checks(sample: Sample, tmp_path: Path) -> None:
    """`audit check --core` proves it together with the bundle; of an incomplete dump too."""
    for dump, partial in ((sample.whole, ()), (sample.cut, ("--partial",))):
        core, bundle, root = tmp_path / f"{dump}.zst", tmp_path / f"{dump}.tar", sample.fleet.host / "ca.pem"
        assert sample.extract(dump, core, "--stored", *partial).code == 0
        assert sample("audit", "prove", dump, "--root", root, "-o", bundle).code == 0
        assert run(["audit", "check", str(bundle), "--root", str(root), "--core", str(core)]) == 0


def test_stored_frames_that_were_not_signed_leave_no_file(sample: Sample, tmp_path: Path) -> None:
    """Nothing is written but with --partial, which copies what there is and says so."""
    core = sample.dump(sample.whole) / "core.zst"
    flip(core, MIB + 1000)

    refused = sample.extract(sample.whole, tmp_path / "refused", "--stored")
    partial = sample.extract(sample.whole, tmp_path / "partial", "--stored", "--partial")

    assert (refused.code, (tmp_path / "refused").exists()) == (6, False)
    assert "the frames are not those that were signed" in refused.err
    assert (partial.code, "not those that were signed" in partial.err) == (6, True)
    assert (tmp_path / "partial").read_bytes() == core.read_bytes()
