"""The handler's lines in the system's log, as the log's daemon gets them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kernel import needs_kernel
from tests.support.launchers import seeing
from tests.support.machines import SystemLog

pytestmark = [pytest.mark.slow, pytest.mark.root, needs_kernel]

_SAY = """
from securecore.sender.system_log import log
for event in ("started", "spooled", "pattern-drift", "failed"):
    log(event, error={words!r}, code=1, nothing=None)
"""


@pytest.mark.parametrize(
    "words", ["plain", "x\n<3>securecore[1]: delivered", "\x1b[2J\r", '" code=0 "', "\u202e\udcff", "\0", "x" * 100_000]
)
def test_whatever_a_value_holds_it_is_one_line_with_its_level(words: str, tmp_path: Path) -> None:
    """R14: one datagram for each event, printable, the values quoted; nothing of a value stands outside its quotes."""
    with SystemLog(tmp_path / "dev") as log:
        script = [*seeing(log.places), sys.executable, "-c", _SAY.format(words=words)]
        subprocess.run(script, check=True)
        lines = log.lines()

    assert [line.partition("securecore[")[0] for line in lines] == ["<29>", "<28>", "<28>", "<27>"]
    for line in lines:
        assert line.isprintable()
        assert line.endswith(" code=1")
        assert line.replace('\\"', "").count('"') == 2
