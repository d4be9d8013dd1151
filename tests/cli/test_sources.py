"""Files and streams that a person names, and those that are not what they should be."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from securecore.cli.main import run
from tests.support.certificates import Fleet
from tests.support.kernel import kernel_arguments

CLOSED_INPUT: Final = ["sh", "-c", 'exec "$@" <&-', "sh"]
CLOSED_OUTPUT: Final = ["sh", "-c", 'exec "$@" >&-', "sh"]
CLOSED_ERROR: Final = ["sh", "-c", 'exec "$@" 2>&-', "sh"]
SECURECORE: Final = [sys.executable, "-m", "securecore.cli.main"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "name", "words"),
    [
        (CLOSED_INPUT, "input", ["compress", "-", "-o", "OUT"]),
        (CLOSED_INPUT, "input", ["decompress", "-", "-o", "OUT"]),
        (CLOSED_INPUT, "input", ["send", "-", "--to", "127.0.0.1:9", "--identity", "IDENTITY"]),
        (CLOSED_INPUT, "input", ["handler", *kernel_arguments()]),
        (CLOSED_OUTPUT, "output", ["compress", "CORE", "-o", "-"]),
        (CLOSED_OUTPUT, "output", ["decompress", "CORE", "-o", "-"]),
        (CLOSED_OUTPUT, "output", ["extract", "9c41d07e", "-o", "-"]),
    ],
)
def test_a_closed_stream_is_no_bug(closed: list[str], name: str, words: list[str], fleet: Fleet, tmp_path: Path) -> None:
    """A service manager or a script may start us without one: exit code 2 and one line."""
    (tmp_path / "core").write_bytes(b"no core")
    places = {"OUT": str(tmp_path / "out"), "CORE": str(tmp_path / "core"), "IDENTITY": str(fleet.host)}
    command = [*closed, *SECURECORE, *(places.get(word, word) for word in words)]
    answer = subprocess.run(command, stderr=subprocess.PIPE, check=False)

    assert (answer.returncode, answer.stderr.splitlines()[0]) == (2, f"securecore: standard {name} is closed".encode())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nobody_needs_standard_error(tmp_path: Path) -> None:
    """Without it there is no progress to show, and all else is as ever."""
    (tmp_path / "core").write_bytes(b"no core")
    answer = subprocess.run([*CLOSED_ERROR, *SECURECORE, "compress", str(tmp_path / "core")], stdout=subprocess.PIPE, check=False)
    assert (answer.returncode, (tmp_path / "core.zst").exists()) == (0, True)


def test_an_input_that_cannot_be_read_is_the_disks_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc/self/mem has no first page: the error of a broken disk (EIO), exit code 5, and no file."""
    for command in ("compress", "decompress"):
        assert run([command, "/proc/self/mem", "-o", str(tmp_path / "out")]) == 5
        assert capsys.readouterr().err == "securecore: /proc/self/mem: input/output error\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["compress", "core"], ["decompress", "core"], ["extract", "9c41d07e"]], ids=" ".join)
def test_an_output_without_a_name_is_none(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`-o "$UNSET"` is a mistake, and not the default."""
    assert run([*words, "-o", ""]) == 2
    assert "an empty text names no file" in capsys.readouterr().err
