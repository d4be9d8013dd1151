"""`compress` and `decompress`: what goes in comes out, and a file that is there is whole."""

import errno
import gzip
import json
import os
import pty
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.cli.main import run
from securecore.dump.reader import open_container
from tests.support.elf import Segment, write_core
from tests.support.local_files import KINDS, filter_through, heap, noise, pack_pieces, small_disk

PLAIN: Final = write_core([Segment(heap(2 * limits.MIB)), Segment(bytes(3 * limits.MIB)), Segment(noise(70_000))])
SECURECORE: Final = [sys.executable, "-m", "securecore.cli.main"]


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A core that somebody has at hand."""
    path = tmp_path / "core.4711"
    path.write_bytes(PLAIN)
    return path


def piped(arguments: list[str], data: bytes) -> "subprocess.CompletedProcess[bytes]":
    """Run a command as a filter."""
    return subprocess.run([*SECURECORE, *arguments], input=data, capture_output=True, check=False)


def names_in(directory: Path) -> list[str]:
    """Return all names in a directory, hidden ones too."""
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_core_comes_back_byte_for_byte(kind: str, core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Default names: FILE.KIND beside FILE, which is kept, and FILE again once it is out of the way."""
    assert run(["compress", str(core), "--format", kind]) == 0
    assert names_in(tmp_path) == ["core.4711", f"core.4711.{kind}"]
    assert capsys.readouterr().out.startswith(f"{core}.{kind}  5.")
    core.unlink()
    assert run(["decompress", f"{core}.{kind}"]) == 0

    assert core.read_bytes() == PLAIN
    assert names_in(tmp_path) == ["core.4711", f"core.4711.{kind}"]


def test_the_default_can_be_read_at_any_offset(core: Path) -> None:
    """zst is the container of the store: any offset without the rest, and zstd reads it as one stream."""
    assert run(["compress", str(core)]) == 0
    compressed = Path(f"{core}.zst")
    fd = os.open(compressed, os.O_RDONLY)
    try:
        assert open_container(fd).read_at(limits.MIB - 3, 9000) == PLAIN[limits.MIB - 3 :][:9000]
    finally:
        os.close(fd)
    assert filter_through(["zstd", "-dcq"], compressed.read_bytes()) == PLAIN


@pytest.mark.parametrize(("kind", "judge"), [("gz", gzip.decompress), ("zlib", zlib.decompress)])
@pytest.mark.parametrize("level", ["1", "9"])
def test_threads_make_one_standard_stream(kind: str, judge: Callable[[bytes], bytes], level: str, core: Path) -> None:
    """What several threads compress at once is in order, and its checksum is that of the whole."""
    assert run(["compress", str(core), "--format", kind, "--level", level]) == 0
    assert judge(Path(f"{core}.{kind}").read_bytes()) == PLAIN


def test_a_higher_level_is_smaller(core: Path) -> None:
    """--level is passed on, for each format."""
    for kind in KINDS:
        sizes = []
        for level in ("1", "9"):
            assert run(["compress", str(core), "--format", kind, "--level", level, "-o", f"{core}.{level}.{kind}"]) == 0
            sizes.append(Path(f"{core}.{level}.{kind}").stat().st_size)
        assert sizes[1] < sizes[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_both_are_filters(kind: str) -> None:
    """- is standard input, and then standard output is the default."""
    packed = piped(["compress", "-", "--format", kind], PLAIN)
    unpacked = piped(["decompress", "-"], packed.stdout)

    assert (packed.returncode, packed.stderr) == (0, b"")
    assert (unpacked.returncode, unpacked.stderr, unpacked.stdout) == (0, b"", PLAIN)


@pytest.mark.slow
def test_a_filter_says_that_its_input_was_cut() -> None:
    """What came before it is out already; the exit code says that it is not all."""
    data = gzip.compress(PLAIN)
    answer = piped(["decompress", "-"], data[:-3])

    assert (answer.returncode, answer.stderr) == (6, b"securecore: -: the file is cut off\n")
    assert PLAIN.startswith(answer.stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_core() -> None:
    """300 MiB through both filters, one behind the other, in less than 64 MiB each: the interpreter, and a few pieces."""
    # VmHWM and not ru_maxrss, which a process inherits from whoever started it (exec_mmap in fs/exec.c).
    program = (
        "import sys\nfrom securecore.cli.main import run\ncode = run(sys.argv[1:])\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(code, status['VmHWM'].split()[0], file=sys.stderr)\n"
    )
    piece = noise(limits.MIB)
    with (
        subprocess.Popen([sys.executable, "-c", program, "compress", "-"], stdin=-1, stdout=-1, stderr=-1) as packer,
        subprocess.Popen([sys.executable, "-c", program, "decompress", "-"], stdin=packer.stdout, stdout=-3, stderr=-1) as unpacker,
    ):
        assert packer.stdin is not None
        for _ in range(300):
            packer.stdin.write(piece)
        packer.stdin.close()
        for process in (packer, unpacker):
            assert process.stderr is not None
            code, resident_kib = map(int, process.stderr.read().split())
            assert (code, resident_kib < 64 * limits.KIB) == (0, True)


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_nothing_is_overwritten(command: str, core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file, a link that leads nowhere or a directory in the way: exit code 5, and it stays what it was."""
    (tmp_path / "in.gz").write_bytes(gzip.compress(PLAIN))
    target = tmp_path / "target"
    for plant in (lambda: target.write_bytes(b"mine"), lambda: target.symlink_to(tmp_path / "nowhere"), target.mkdir):
        plant()
        before = target.lstat()
        assert run([command, str(tmp_path / "in.gz"), "-o", str(target)]) == 5
        assert "already exists" in capsys.readouterr().err
        assert (target.lstat().st_ino, target.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        target.rmdir() if target.is_dir() else target.unlink()
    assert names_in(tmp_path) == ["core.4711", "in.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_leaves_nothing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gzCoredump wrote a short file and left with 0: here it is exit code 6, a line that names the file, and no output."""
    data = pack_pieces(kind, [PLAIN[: limits.MIB], PLAIN[limits.MIB : 2 * limits.MIB]])
    for length in [0, 1, 5, 100, len(data) // 2, len(data) - 1]:
        (tmp_path / f"cut.{kind}").write_bytes(data[:length])
        assert run(["decompress", str(tmp_path / f"cut.{kind}")]) == 6
        message, *hints = capsys.readouterr().err.splitlines()
        assert message.startswith(f"securecore: {tmp_path}/cut.{kind}: ")
        # Of a byte or two nothing tells what they began.
        hint = f"  hint: `securecore decompress - < {tmp_path}/cut.{kind} > OUT` writes what is there"
        assert hints == ([hint] if length > 1 else [])
        assert names_in(tmp_path) == [f"cut.{kind}"]


@pytest.mark.parametrize("length", [4, 63, 100, limits.MIB, len(PLAIN) - 1])
def test_a_core_that_was_cut_is_not_compressed_as_whole(
    length: int, core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its headers say that there was more: exit code 7 and no file; --partial takes it, and says what it is."""
    core.write_bytes(PLAIN[:length])

    assert run(["compress", str(core)]) == 7
    message, hint = capsys.readouterr().err.splitlines()
    assert message.startswith(f"securecore: {core}: the core is cut: it ends ")
    assert hint == "  hint: --partial compresses what there is"
    assert names_in(tmp_path) == ["core.4711"]
    assert run(["compress", str(core), "--partial", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["outcome"], document["size_bytes"]) == ("source-truncated", length)
    assert document["predicted_size"] == (len(PLAIN) if length > 232 else None)  # the ELF header and three program headers


@pytest.mark.parametrize("data", [b"", b"\x7f", b"\x7fEL", b"\x7fELF" + bytes(100), b"some text\n"])
def test_what_is_no_core_is_compressed_as_ever(data: bytes, core: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing says how long it must be."""
    core.write_bytes(data)
    assert run(["compress", str(core), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["outcome"], document["predicted_size"]) == ("complete", None)


@pytest.mark.slow
def test_a_filter_says_that_its_core_was_cut() -> None:
    """What is read is out already, as a good file; the exit code says that it is not all."""
    answer = piped(["compress", "-"], PLAIN[:-1])
    assert (answer.returncode, answer.stderr.startswith(b"securecore: -: the core is cut: ")) == (7, True)
    assert piped(["decompress", "-"], answer.stdout).stdout == PLAIN[:-1]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_nothing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gzCoredump left a part and exit code 0: here it is exit code 5 and no file, compressing and decompressing."""
    (tmp_path / "noise").write_bytes(noise(5 * limits.MIB))
    assert run(["compress", str(tmp_path / "noise"), "--format", kind]) == 0
    with small_disk(tmp_path / "small", "2m") as small:
        assert run(["compress", str(tmp_path / "noise"), "--format", kind, "-o", str(small / "out")]) == 5
        assert "no space left on device" in capsys.readouterr().err
        assert run(["decompress", str(tmp_path / f"noise.{kind}"), "-o", str(small / "out")]) == 5
        assert names_in(small) == []


@pytest.mark.slow
def test_a_full_device_is_an_error_of_a_filter() -> None:
    """Standard output that takes nothing: exit code 5."""
    with open("/dev/full", "wb") as full:
        for arguments, data in ((["compress", "-"], PLAIN), (["decompress", "-"], gzip.compress(PLAIN))):
            answer = subprocess.run([*SECURECORE, *arguments], input=data, stdout=full, stderr=subprocess.PIPE, check=False)
            assert (answer.returncode, b"no space left" in answer.stderr) == (5, True)


@pytest.mark.parametrize(("command", "data"), [("compress", PLAIN), ("decompress", gzip.compress(PLAIN))])
def test_a_reader_that_has_gone_is_no_fault_of_a_filter(command: str, data: bytes) -> None:
    """`decompress - | head` ends without a word, as programs do by SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        answer = subprocess.run([*SECURECORE, command, "-"], input=data, stdout=gone, stderr=subprocess.PIPE, check=False)

    assert (answer.returncode, answer.stderr) == (141, b"")


@pytest.mark.parametrize("call", ["fsync", "link", "close"])
@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_a_failing_end_leaves_nothing(
    command: str, call: str, core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that says only at the end that it has lost something: exit code 5, no file."""
    (tmp_path / "in.gz").write_bytes(gzip.compress(PLAIN))
    real = getattr(os, call)

    def fail(*arguments: object, **options: object) -> object:
        # Other descriptors are closed as well: the one that counts is that of the file.
        if call == "close" and not os.readlink(f"/proc/self/fd/{arguments[0]}").endswith(" (deleted)"):
            return real(*arguments, **options)
        if call == "close":
            real(*arguments)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        assert run([command, str(tmp_path / "in.gz"), "-o", str(tmp_path / "out")]) == 5
    assert "input/output error" in capsys.readouterr().err
    assert names_in(tmp_path) == ["core.4711", "in.gz"]


def test_files_are_private_whatever_the_umask_is(core: Path, tmp_path: Path) -> None:
    """A core holds secrets: 0600."""
    before = os.umask(0)
    try:
        run(["compress", str(core)])
        run(["decompress", f"{core}.zst", "-o", str(tmp_path / "again")])
    finally:
        os.umask(before)

    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("core.4711.zst", "again")] == [0o600, 0o600]


@pytest.mark.parametrize("kind", KINDS)
def test_zeroes_become_holes(kind: str, tmp_path: Path) -> None:
    """A core of a few used pages takes a few blocks, as the kernel would write it; its end is in its place."""
    plain = b"x" * 4096 + bytes(20 * limits.MIB)
    (tmp_path / f"core.{kind}").write_bytes(
        pack_pieces(kind, [plain[at : at + limits.MIB] for at in range(0, len(plain), limits.MIB)])
    )

    assert run(["decompress", str(tmp_path / f"core.{kind}")]) == 0
    assert (tmp_path / "core").read_bytes() == plain
    assert (tmp_path / "core").stat().st_blocks * 512 < limits.MIB


def test_programs_read_one_document(core: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json: what became of what, in bytes; errors too."""
    assert run(["compress", str(core), "--format", "gz", "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert run(["decompress", f"{core}.gz", "-o", f"{core}.2", "--json"]) == 0
    unpacked = json.loads(capsys.readouterr().out)
    assert run(["decompress", str(core), "-o", f"{core}.3", "--json"]) == 6
    refused = json.loads(capsys.readouterr().out)

    stored = Path(f"{core}.gz").stat().st_size
    assert (packed["output"], packed["format"], packed["size_bytes"]) == (f"{core}.gz", "gz", len(PLAIN))
    assert (packed["stored_bytes"], unpacked["stored_bytes"]) == (stored, stored)
    assert (unpacked["format"], unpacked["size_bytes"]) == ("gz", len(PLAIN))
    assert refused["error"]["message"].endswith("neither zstd nor gzip nor zlib: unknown first bytes")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["compress", "CORE", "-o", "-"], ["decompress", "CORE", "-o", "-"], ["compress", "-", "-o", "x"]]
)
def test_a_terminal_is_no_place_for_a_core(arguments: list[str], core: Path) -> None:
    """Neither to write it to nor to read it from: exit code 2."""
    ours, theirs = pty.openpty()
    command = [*SECURECORE, *(str(core) if word == "CORE" else word for word in arguments)]
    answer = subprocess.run(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, check=False, cwd=core.parent)
    os.close(ours)
    os.close(theirs)

    assert answer.returncode == 2
    assert b"terminal" in answer.stderr
    assert names_in(core.parent) == ["core.4711"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_progress_is_shown_on_a_terminal(command: str, core: Path, tmp_path: Path) -> None:
    """How much of how much; the line is gone at the end."""
    run(["compress", str(core)])
    ours, theirs = pty.openpty()
    program = [*SECURECORE, command, str(core) + (".zst" if command == "decompress" else ""), "-o", str(tmp_path / "out")]
    answer = subprocess.run(program, stderr=theirs, stdout=subprocess.PIPE, check=False)
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)

    assert answer.returncode == 0
    assert f"{command}ing core.4711".encode() in shown
    assert shown.endswith(b"\r\x1b[K")
