"""A crashed process is drained before the receiver has said a word."""

import fcntl
import os
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from securecore import limits
from tests.support.certificates import Fleet
from tests.support.kernel import Installed, kernel_arguments, wait_until
from tests.support.launchers import as_by_the_kernel
from tests.support.proxies import NEVER, CuttingProxy, serving
from tests.support.receivers import running_receiver
from tests.support.stores import published

CORE = os.urandom(6 * limits.MIB) + b"the end"
"""More than the pipe and a piece together, and less than the frames that may wait in the handler's memory."""


def unread_bytes(pipe: int) -> int:
    """Return how many bytes wait in a pipe."""
    (found,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
    return int(found)


@pytest.mark.slow
def test_a_core_is_drained_while_its_receiver_is_still_dialled(fleet: Fleet, tmp_path: Path) -> None:
    """All of it is read before anybody has taken the connection; then the receiver gets every byte."""
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        unanswered = CuttingProxy(receiver.addresses[0], NEVER)
        installed = Installed(tmp_path, fleet.host, [unanswered.address])
        reading, writing = os.pipe()
        handler = subprocess.Popen(
            [*as_by_the_kernel(), str(installed.handler), *kernel_arguments()], stdin=reading, env={}, cwd="/"
        )
        try:
            with open(writing, "wb") as crashing:
                crashing.write(CORE)
            wait_until(lambda: True if unread_bytes(reading) == 0 else None)
            os.close(reading)
            assert published(tmp_path / "store") == []
            with serving(unanswered):
                assert handler.wait(60) == 0
        finally:
            handler.kill()
            handler.wait()

    assert published(tmp_path / "store") == [CORE]
    assert len(installed.receipts()) == 1
    assert installed.spooled() == []
