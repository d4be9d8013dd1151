"""R19: a crash of a command that holds the host's key puts the key into nobody's core."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.names import Address
from securecore.sender.spool import open_spool
from tests.support.certificates import Fleet
from tests.support.kernel import Installed
from tests.support.receivers import papers_of, send_bytes

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root can be in any group that it likes")]

OURS = ("-m", "securecore.cli.main")
STRANGER = 61234
"""A group that nobody is in: /proc shows it as the owner of a process that may be dumped, and root as that of one that may not
(proc(5))."""


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener where connections are taken and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


def owner_while_connected(silent: socket.socket, *words: str) -> int:
    """Return the group that owns an interpreter's /proc, started with *words*, while it waits for a receiver's first word."""
    sender = subprocess.Popen(
        [sys.executable, *words], group=STRANGER, extra_groups=[], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        connection, _ = silent.accept()
        with connection:
            return os.stat(f"/proc/{sender.pid}/environ").st_gid
    finally:
        sender.kill()
        sender.wait()


def test_another_program_is_dumped(silent: socket.socket) -> None:
    """The control: who has done nothing against it may be dumped, and is seen as such here."""
    waiting = f"import socket; socket.create_connection(('127.0.0.1', {silent.getsockname()[1]})).recv(1)"

    assert owner_while_connected(silent, "-c", waiting) == STRANGER


def test_send_is_not_dumped(silent: socket.socket, fleet: Fleet, tmp_path: Path) -> None:
    """Sending a core by hand, as root."""
    (tmp_path / "core").write_bytes(b"core")
    there = f"127.0.0.1:{silent.getsockname()[1]}"

    assert owner_while_connected(silent, *OURS, "send", str(tmp_path / "core"), "--to", there, "--identity", str(fleet.host)) == 0


@pytest.mark.parametrize("owner", [(0, STRANGER), (65534, STRANGER)])
def test_flush_is_not_dumped(owner: tuple[int, int], silent: socket.socket, fleet: Fleet, tmp_path: Path) -> None:
    """Delivering a spool, root's own or one whose owner the flush becomes."""
    installed = Installed(tmp_path, fleet.host, [Address(f"127.0.0.1:{silent.getsockname()[1]}")], owner)
    spool = open_spool(str(installed.spool))
    assert send_bytes(b"core", papers_of(fleet.host), [Address("127.0.0.1:9")], spool=spool).spooled
    for path in installed.spool.rglob("*"):
        os.chown(path, *owner)

    arguments = ["--spool", str(installed.spool), "--identity", str(fleet.host), "--to", f"127.0.0.1:{silent.getsockname()[1]}"]
    assert owner_while_connected(silent, *OURS, "spool", "flush", *arguments) == 0
