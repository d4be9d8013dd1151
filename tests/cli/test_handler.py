"""`securecore handler`: a person tries by hand what the kernel starts, and sees what it says."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.kernel import OWNER, kernel_arguments

pytestmark = pytest.mark.slow

HANDLER: Final = [sys.executable, "-m", "securecore.cli.main", "handler"]


@pytest.fixture
def cores(tmp_path: Path) -> Path:
    """A directory for cores."""
    (tmp_path / "cores").mkdir(mode=0o700)
    os.chown(tmp_path / "cores", *OWNER)
    return tmp_path / "cores"


def test_it_keeps_a_core(cores: Path) -> None:
    """The same arguments, the same files, the same exit code."""
    answer = subprocess.run(
        [*HANDLER, "--local", str(cores), "--format", "gz", *kernel_arguments()], input=b"core", capture_output=True, check=False
    )

    assert (answer.returncode, answer.stdout, answer.stderr) == (0, b"", b"")
    assert [path.suffix for path in sorted(cores.glob("[!.]*"))] == [".gz", ".json"]


def test_a_person_sees_what_the_log_gets(cores: Path) -> None:
    """On a terminal the lines of the system's log are shown: without set-up, also that the usual admission holds."""
    ours, theirs = pty.openpty()
    answer = subprocess.run(
        [*HANDLER, "--local", str(cores), *kernel_arguments()], input=b"core", stdout=subprocess.DEVNULL, stderr=theirs, check=False
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)

    assert answer.returncode == 0
    untidy, told = [], []
    for line in shown.splitlines():
        (untidy if line.startswith("untidy ") else told).append(line)
    assert [line.split(" ")[0] for line in told] == ["started", "kept"]
    assert all("the usual admission and floor hold" in line for line in untidy)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--local", "cores"], "the directory must be an absolute path"),
        (["1", "2"], "arguments are not those of our core_pattern"),
        (["--local", "/nonexistent/cores", *kernel_arguments()], "/nonexistent/cores: no such file or directory"),
    ],
)
def test_what_is_wrong_is_said_to_a_person(words: list[str], message: str) -> None:
    """The handler of the kernel has only its log; here it is one line, and exit code 3."""
    answer = subprocess.run([*HANDLER, *words], input="core", capture_output=True, check=False, text=True)

    assert answer.returncode == 3
    assert answer.stderr.startswith("securecore: ")
    assert message in answer.stderr


def test_a_terminal_is_no_core() -> None:
    """Without a core on standard input it says so instead of waiting for one."""
    ours, theirs = pty.openpty()
    answer = subprocess.run([*HANDLER, *kernel_arguments()], stdin=theirs, capture_output=True, check=False, text=True)
    os.close(ours)
    os.close(theirs)

    assert answer.returncode == 2
    assert "standard input is a terminal" in answer.stderr
