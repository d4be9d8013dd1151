"""`securecore pki` as a person runs it, in this process."""

from pathlib import Path

import pytest

from securecore.cli.main import run


class Result:
    """What a run printed and returned."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


class Runner:
    """Runs `securecore pki` in this process, through the real entry point."""

    def __init__(self, capsys: pytest.CaptureFixture[str], path: Path) -> None:
        self.capsys = capsys
        self.path = path

    def __call__(self, *arguments: str) -> Result:
        self.capsys.readouterr()
        code = run(["pki", *arguments])
        out, err = self.capsys.readouterr()
        return Result(code, out, err)


def fails(result: Result, code: int, *words: str) -> None:
    """Check that a run failed as it should: one line, perhaps a hint, no traceback, the exit code."""
    lines = result.err.splitlines()
    assert (code, "", True) == (result.code, result.out, 1 <= len(lines) <= 2), result.err
    assert lines[0].startswith("securecore: ")
    assert len(lines) == 1 or lines[1].startswith("  hint: ")
    for word in words:
        assert word in result.err
