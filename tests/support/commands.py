"""Commands that run in the test's own process."""

from collections.abc import Callable

import pytest

from securecore.cli.main import run

Securecore = Callable[..., tuple[int, str, str]]
"""Runs a command; returns its exit code and what it printed to stdout and stderr."""


def captured(capsys: pytest.CaptureFixture[str]) -> Securecore:
    """Return what runs commands while pytest keeps what is printed."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call
