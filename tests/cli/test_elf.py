"""Pairing cores and programs at the command line."""

import gzip
import json
import os
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from securecore.dump.compression import Compressor
from securecore.report import CrashReport
from tests.support.certificates import Fleet
from tests.support.commands import Securecore
from tests.support.crash_cores import BUILD_ID, Crash
from tests.support.processes import SECURECORE
from tests.support.programs import Section, program_file, write_program
from tests.support.receivers import papers_of, running_receiver, send_bytes

pytestmark = pytest.mark.slow


def test_id_prints_what_names_a_program(securecore: Securecore, tmp_path: Path) -> None:
    """Aligned for people, nulls for programs where there is nothing."""
    path = program_file(tmp_path, "app", uuid=b"build-77\n")

    code, text, _ = securecore("elf", "id", path)
    document = json.loads(securecore("elf", "id", path, "--json")[1])

    assert (code, text) == (0, f"build-id   {BUILD_ID.hex()}\n.uuid      build-77\ndebuglink  -\n")
    assert document == {
        "file": str(path), "kind": "program", "build_id": BUILD_ID.hex(), "uuid": "build-77", "debuglink": None,
        "debuglink_crc32": None,
    }  # fmt: skip


def pack(core: Path, ending: str) -> Path:
    """Compress a core as gzip and zlib do."""
    path, data = core.with_name(core.name + ending), core.read_bytes()
    path.write_bytes(gzip.compress(data) if ending == ".gz" else zlib.compress(data))
    return path


def foreign_zstd(core: Path) -> Path:
    """Compress a core as the zstd program does: one frame, which no reader at an offset can use."""
    path = core.with_name("foreign.zst")
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=False).compress(core.read_bytes() + bytes(3 << 20)))
    return path


def test_id_of_a_core_is_that_of_the_program_that_crashed(securecore: Securecore, tmp_path: Path) -> None:
    """As the kernel wrote it, and compressed."""
    core, stored = tmp_path / "core", tmp_path / "core.zst"
    core.write_bytes(Crash().write())
    stored.write_bytes(Compressor().frame(Crash().write()))

    packed = pack(core, ".gz"), pack(core, ".zlib"), foreign_zstd(core)
    for path in (core, stored, *packed):
        code, text, _ = securecore("elf", "id", path)
        assert (code, text.split("\n")[:2]) == (0, ["core of    /usr/sbin/nginx", f"build-id   {BUILD_ID.hex()}"])
        assert json.loads(securecore("elf", "id", path, "--json")[1])["kind"] == "core"


def test_a_hostile_section_moves_no_cursor(securecore: Securecore, tmp_path: Path) -> None:
    """Control characters of a file stay in it."""
    link = b"\x1b[2J\r\n.debug\0\0\0\0" + bytes(8)
    path = tmp_path / "app"
    path.write_bytes(write_program([Section(b".gnu_debuglink", link), Section(b".uuid", b"\x1b]0;x\x07")]))

    code, text, _ = securecore("elf", "id", path)

    assert code == 0
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.fixture
def stored(fleet: Fleet, tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """Sends a core with a report; returns store and id."""

    def send(core: bytes, report: CrashReport) -> tuple[Path, str]:
        with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
            outcome = send_bytes(core, papers_of(fleet.host), receiver.addresses, report=report)
        assert outcome.receipt is not None
        return tmp_path / "store", str(outcome.receipt["dump"])

    return send


@pytest.mark.parametrize(
    ("build_id", "uuid", "code", "words"),
    [
        (BUILD_ID, None, 0, f"yes: both have build-id {BUILD_ID.hex()}\n"),
        (bytes(20), None, 9, f"no: build-ids differ: {BUILD_ID.hex()} crashed, the program is {bytes(20).hex()}\n"),
        (None, b"build-77", 0, "yes: both have .uuid build-77\n"),
        (None, b"build-78", 9, "no: .uuid sections differ: build-77 crashed, the program is build-78\n"),
    ],
)
def test_a_stored_dump_is_matched_where_it_lies(
    build_id: bytes | None, uuid: bytes | None, code: int, words: str, stored: Any, securecore: Securecore, tmp_path: Path
) -> None:
    """By the build-id in the compressed core, else by the stamp in the report; no extraction, and none in the log."""
    store, dump = stored(Crash().write(), CrashReport(uuid="build-77"))
    path = program_file(tmp_path, "app", build_id, uuid)

    answer = securecore("elf", "match", dump, path, "--store", store)
    document = json.loads(securecore("elf", "match", dump, path, "--store", store, "--json")[1])

    assert answer == (code, words, "")
    assert (document["match"], document["core"]["report_uuid"]) == (code == 0, "build-77")
    entries = json.loads(securecore("audit", "log", "--store", store, "--json")[1])
    assert [entry["event"] for entry in entries] == ["certificate", "received"]


def test_a_core_in_a_file_is_matched_with_the_report_beside_it(securecore: Securecore, tmp_path: Path) -> None:
    """As the kernel wrote it or compressed; the report by its name, or named."""
    core = Crash(image=b"no image").write()
    (tmp_path / "core.1.zst").write_bytes(Compressor().frame(core))
    (tmp_path / "core.1.json").write_bytes(CrashReport(uuid="build-77").encode())
    (tmp_path / "core").write_bytes(core)
    path = program_file(tmp_path, "app", None, b"build-77")

    beside = securecore("elf", "match", tmp_path / "core.1.zst", path)
    named = securecore("elf", "match", tmp_path / "core", path, "--report", tmp_path / "core.1.json")
    alone = securecore("elf", "match", tmp_path / "core", path)

    assert beside == named == (0, "yes: both have .uuid build-77\n", "")
    assert (alone[0], "neither the core nor its report names the program" in alone[2]) == (4, True)


@pytest.mark.parametrize(
    ("words", "code"), [(b"{", 6), (b"[]", 6), (b"{}" + b" " * 70_000, 3)], ids=["no JSON", "no object", "too long"]
)
def test_a_broken_report_is_broken_when_it_was_named_and_else_a_note(
    words: bytes, code: int, securecore: Securecore, tmp_path: Path
) -> None:
    """A file that only lies beside the core keeps nobody from the core's own build-id; nobody is a peer here."""
    (tmp_path / "core.1").write_bytes(Crash().write())
    (tmp_path / "core.json").write_bytes(words)
    path = program_file(tmp_path, "app")

    found = securecore("elf", "match", tmp_path / "core.1", path)
    named = securecore("elf", "match", tmp_path / "core.1", path, "--report", tmp_path / "core.json")

    assert (found[0], found[1].split("\n")[0]) == (0, f"yes: both have build-id {BUILD_ID.hex()}")
    assert found[1].split("\n")[1].startswith(f"  note: the report beside it cannot be used: {tmp_path}/core.json: ")
    assert (named[0], named[2].startswith(f"securecore: {tmp_path}/core.json: ")) == (code, True)


def test_a_report_that_is_not_there_is_not_found(securecore: Securecore, tmp_path: Path) -> None:
    """As every other file that was named."""
    (tmp_path / "core").write_bytes(Crash().write())
    ran = securecore("elf", "match", tmp_path / "core", program_file(tmp_path, "app"), "--report", tmp_path / "none")
    assert ran == (4, "", f"securecore: {tmp_path}/none: no such file\n")


@pytest.mark.parametrize("name", ["core.4711", "none/9c41d07e", "core.gz", "./9c41d07e"])
@pytest.mark.parametrize("words", [["id", "CORE"], ["match", "CORE", "/proc/self/exe"]], ids=["id", "match"])
def test_a_file_that_is_not_there_is_looked_for_in_no_store(words: list[str], name: str, securecore: Securecore) -> None:
    """What cannot be an id is a path that was mistyped."""
    code, _, err = securecore("elf", *(name if word == "CORE" else word for word in words))
    assert (code, err.split("\n")[0]) == (4, f"securecore: {name}: no such file")


@pytest.mark.parametrize("ending", ["", ".zst", ".gz"])
def test_a_core_cut_before_its_program_is_said_to_be_cut(ending: str, securecore: Securecore, tmp_path: Path) -> None:
    """The program may have a build-id for all we know: to build it with one is no advice."""
    core, cut = Crash().write(), tmp_path / f"core{ending}"
    data = core[: core.index(b"\x7fELF", 4)]
    cut.write_bytes({"": data, ".zst": Compressor().frame(data), ".gz": gzip.compress(data)}[ending])

    code, _, err = securecore("elf", "match", cut, program_file(tmp_path, "app"))
    message, hint = err.splitlines()

    assert (code, message.endswith("; the core is cut, and the program's first page is not in it")) == (4, True)
    assert hint == "  hint: no build-id of the program's could be in that core; a report that has it is named with --report"


def test_id_of_a_dump_in_a_store(stored: Any, securecore: Securecore) -> None:
    """By its id, as `match` takes it, with what only the report knows."""
    store, dump = stored(Crash().write(), CrashReport(uuid="build-77"))

    code, text, _ = securecore("elf", "id", dump[-8:], "--store", store, "--host", "web-1")
    document = json.loads(securecore("elf", "id", dump, "--store", store, "--json")[1])

    assert (code, text) == (
        0, f"core of    /usr/sbin/nginx\nbuild-id   {BUILD_ID.hex()}\n.uuid      build-77\ndebuglink  -\n",
    )  # fmt: skip
    assert (document["dump"], document["kind"], document["uuid"]) == (dump, "core", "build-77")


@pytest.mark.parametrize("name", ["20261124T065359Z-app-4711.gz", "20261124T065359Z-app-4711.truncated.gz"])
def test_a_core_of_local_mode_is_matched_also_when_it_was_cut(name: str, securecore: Securecore, tmp_path: Path) -> None:
    """What names the program stands at the core's beginning; the report lies under the same stem."""
    core = Crash().write() + os.urandom(2 << 20)
    data = gzip.compress(core)
    path = tmp_path / name
    path.write_bytes(data[: len(data) // 2] if "truncated" in name else data)
    (tmp_path / "20261124T065359Z-app-4711.json").write_bytes(CrashReport(uuid="build-77").encode())

    matched = securecore("elf", "match", path, program_file(tmp_path, "app", uuid=b"build-77"), "--json")
    document = json.loads(matched[1])

    assert (matched[0], document["core"]["core_build_id"], document["core"]["report_uuid"]) == (0, BUILD_ID.hex(), "build-77")


@pytest.mark.parametrize(
    "data",
    [b"", b"no core at all " * 10, gzip.compress(b"no core at all " * 10), zlib.compress(b"")],
    ids=["empty", "text", "gzip of text", "zlib of nothing"],
)
def test_what_holds_no_core_is_none(data: bytes, securecore: Securecore, tmp_path: Path) -> None:
    """Plain or compressed: one line."""
    (tmp_path / "core.gz").write_bytes(data)
    code, _, words = securecore("elf", "match", tmp_path / "core.gz", program_file(tmp_path, "app"))
    assert (code, words.split("\n")[0]) == (6, f"securecore: {tmp_path}/core.gz: not a core")


def test_a_dump_that_nobody_can_analyse_is_matched_by_its_report(stored: Any, securecore: Securecore, tmp_path: Path) -> None:
    """A core that is no ELF core: the sender's word is all there is."""
    store, dump = stored(b"no core", CrashReport(build_id=BUILD_ID.hex()))
    matched = securecore("elf", "match", dump, program_file(tmp_path, "app"), "--store", store)
    unnamed = securecore("elf", "match", dump, program_file(tmp_path, "app", None, b"x"), "--store", store)

    assert matched[0] == 0
    assert (unnamed[0], "the core could not be analysed" in unnamed[2]) == (4, True)


def test_show_prints_the_stamp_and_says_when_report_and_core_disagree(stored: Any, securecore: Securecore) -> None:
    """`.uuid` beside the build-id; a sender that names another build than its core does is seen at a glance."""
    store, dump = stored(Crash().write(), CrashReport(uuid="build-77", build_id="00ff"))
    _, text, _ = securecore("show", dump, "--store", store)

    assert f"build-id {BUILD_ID.hex()}\n" in text
    assert "  .uuid       build-77\n" in text
    assert "  analysis    the report gives build-id 00ff\n" in text


@pytest.mark.parametrize("words", ["id FIFO", "stamp FIFO", "match FIFO app", "match core FIFO"])
def test_a_fifo_keeps_nobody_waiting(words: str, tmp_path: Path) -> None:
    """Where a core or a program should be lies a FIFO that nobody writes to: exit code 6, at once."""
    os.mkfifo(tmp_path / "FIFO")
    (tmp_path / "core").write_bytes(Crash().write())
    program_file(tmp_path, "app")
    verb, *files = words.split()
    command = [*SECURECORE, "elf", verb, *(str(tmp_path / file) for file in files)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (ran.returncode, ran.stdout) == (6, "")
    assert ran.stderr.startswith(f"securecore: {tmp_path / 'FIFO'}: not a ")
