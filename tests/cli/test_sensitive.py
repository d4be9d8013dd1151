"""R3: the core of a process that had changed its privileges is stored like any other, and called sensitive wherever it is shown."""

import subprocess
from pathlib import Path

import pytest

from securecore.receiver.server import Receiver
from tests.support.certificates import Fleet
from tests.support.kernel import Installed, kernel_arguments
from tests.support.stores import Commands


@pytest.mark.slow
@pytest.mark.parametrize(("dump_mode", "is_sensitive"), [("1", False), ("2", True), ("0", True)])
def test_a_dump_mode_other_than_1_is_said_in_words(
    dump_mode: str, is_sensitive: bool, fleet: Fleet, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the kernel's %d to list and show, for people and for programs."""
    handler, commands = Installed(tmp_path, fleet.host, receiver.addresses), Commands(tmp_path / "store", fleet, capsys)
    subprocess.run([str(handler.handler), *kernel_arguments()[:7], dump_mode], input=b"core", env={}, cwd="/", check=True)
    dump = handler.receipts()[0]["dump"]
    row, shown = commands("list", "--json").document[0], commands("show", dump, "--json").document

    assert (row["sensitive"], shown["sensitive"]) == (is_sensitive, is_sensitive)
    assert shown["report"]["dump_mode"] == int(dump_mode)
    assert ("complete, sensitive" in commands("list").out) is is_sensitive
    assert ("sensitive   the process had changed its privileges" in commands("show", dump).out) is is_sensitive
    assert commands("list").out == commands("list").out, "the catalogue says the same when it is read again"
