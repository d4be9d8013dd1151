"""What stands at a real terminal: colours where they are wanted, words in whatever encoding, progress in what is counted."""

import os
import pty
import subprocess

import pytest

from tests.support.processes import PATIENCE_S, ROOT, SECURECORE
from tests.support.samples import Sample

COLOUR = b"\x1b[3"


def on_terminal(*arguments: object, **environment: str) -> tuple[int, bytes]:
    """Run a command on a terminal of its own, and return its exit code and all that it printed there."""
    ours, theirs = pty.openpty()
    settings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [*SECURECORE, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, env=settings | environment
    )
    os.close(theirs)
    printed = b""
    try:
        while data := os.read(ours, 1 << 16):
            printed += data
    except OSError:
        pass  # EIO: the last descriptor of the other end was closed.
    finally:
        os.close(ours)
    return running.wait(PATIENCE_S), printed


def verification(sample: Sample) -> list[object]:
    """Return the arguments of a command that has green words to say, and takes some steps."""
    return ["audit", "verify", "--store", sample.store, "--root", sample.fleet.host / "ca.pem"]


def test_a_terminal_has_colours_until_somebody_wants_none(sample: Sample) -> None:
    """As no-color.org has it: NO_COLOR counts when it is not empty. A pipe has none in any case."""
    assert COLOUR in on_terminal(*verification(sample))[1]
    assert COLOUR in on_terminal(*verification(sample), NO_COLOR="")[1]

    code, printed = on_terminal(*verification(sample), NO_COLOR="1")

    assert (code, COLOUR in printed) == (0, False)
    assert b"ok" in printed


def test_progress_counts_what_is_counted(sample: Sample) -> None:
    """Entries of a log are no bytes; and the line is erased where there are no colours, too."""
    for environment in ({}, {"NO_COLOR": "1"}):
        printed = on_terminal(*verification(sample), **environment)[1]
        assert b"\r\x1b[Kverifying the receiver-wide log  1 entry\r\x1b[K" in printed


def test_an_encoding_that_has_no_word_for_it_ends_no_command(sample: Sample) -> None:
    """What Latin-1 cannot say becomes a question mark, as what no terminal can show does."""
    told = subprocess.run(
        [*SECURECORE, "show", str(sample.dumps[0]), "--store", str(sample.store)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert (told.returncode, told.stderr) == (0, b"")
    assert "evidence    manifest ok · receipt ok".encode("latin-1") in told.stdout
    assert b"Merkle root " in told.stdout


@pytest.mark.parametrize("command", [["list"], ["audit", "verify"], ["audit", "report"], ["audit", "report", "--csv"]])
def test_a_reader_that_has_gone_is_no_success_and_no_fault(command: list[str], sample: Sample) -> None:
    """`securecore audit verify | head -1` ends as programs do by SIGPIPE, without a word: not as one that found all in order."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        told = subprocess.run(
            [*SECURECORE, *command, "--store", str(sample.store)], stdout=writing, stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    finally:
        os.close(writing)

    assert (told.returncode, told.stderr) == (141, b"")
