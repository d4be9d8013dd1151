"""A handler that comes to the bound on its memory ends in words, lets its process go, and labels what it has of the dump."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.bindings import _rust

from securecore import limits
from securecore.certs import jws
from securecore.dump.manifest import COMPLETE, CUT, parse_manifest
from securecore.errors import StorageError, UnreachableError
from securecore.names import Address
from securecore.sender.confinement import Confinement
from securecore.sender.flush import flush
from securecore.sender.settings import WHOLE
from securecore.sender.spool import open_spool
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.kernel import Installed, kernel_arguments, write_script
from tests.support.launchers import as_by_the_kernel
from tests.support.receivers import papers_of, running_receiver
from tests.support.scripted import Peer, scripted_receiver

pytestmark = pytest.mark.slow

CORE: Final = write_core([Segment(os.urandom(40 * limits.PIECE_BYTES))])
PROGRAM_TEXT: Final = write_core([Segment((Path(_rust.__file__).read_bytes() * 100)[: 100 * limits.PIECE_BYTES])])
RESIDENT_BYTES: Final = 64 * limits.MIB
NOWHERE: Final = Address("127.0.0.1:9")


def run(installed: Installed) -> int:
    """Give the core to a handler, as far as it wants it, and return its exit code; fails when it holds anybody for a minute."""
    handler = subprocess.Popen(
        [*as_by_the_kernel(), str(installed.handler), *kernel_arguments()],
        stdin=subprocess.PIPE, env={}, cwd="/",
    )  # fmt: skip
    try:
        # Writes to a pipe that the handler has closed are passed over.
        handler.communicate(CORE, timeout=60)
    finally:
        handler.kill()
        handler.wait()
    return handler.returncode


@pytest.mark.parametrize("memory_mib", [16, 24, 32, 40, 44, 48, 52, 56, 64])
@pytest.mark.parametrize("has_receiver", [True, False], ids=["receiver", "no-receiver"])
def test_wherever_memory_ends_the_handler_ends_in_words(
    has_receiver: bool, memory_mib: int, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From too little for a thread to almost enough: no hang, and one dump at most, labelled by how much it is.

    There is one signal: at 41 to 49 MiB of the 128 that sender.toml takes at least, the library that signs may end the process
    where it gets no memory (Rust's alloc error), and all frames wait with the receiver.
    """
    # Less than sender.toml takes, for the test as for its handler.
    monkeypatch.setattr(limits, "MIN_HANDLER_MEMORY_BYTES", 0)
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        installed = Installed(tmp_path, fleet.host, receiver.addresses if has_receiver else [NOWHERE])
        script = installed.handler.read_text()
        lower = "from securecore import limits\nlimits.MIN_HANDLER_MEMORY_BYTES = 0\nmain("
        write_script(installed.handler, script.replace("main(", lower))
        installed.change(confinement=Confinement(memory_bytes=memory_mib * limits.MIB))
        code = run(installed)
        flushed = list(flush(open_spool(str(installed.spool)), receiver.addresses, papers_of(fleet.host)))

    manifests = [
        parse_manifest(jws.parse(path.read_bytes(), limits.MAX_MANIFEST_BYTES).payload)
        for path in (tmp_path / "store/hosts").glob("*/*/manifest.jws")
    ]
    assert code in {0, 1, StorageError.exit_code, UnreachableError.exit_code, -signal.SIGABRT}
    assert [one.failure for one in flushed] in ([], [None])
    assert installed.spooled() == []
    assert len(manifests) == 1 or (len(manifests) == 0 and code in {1, StorageError.exit_code, -signal.SIGABRT})
    assert all(manifest.outcome == (COMPLETE if manifest.size == len(CORE) else CUT) for manifest in manifests)


@pytest.mark.parametrize("spool_mode", ["tail", WHOLE])
def test_the_least_that_may_be_set_is_enough(spool_mode: str, fleet: Fleet, tmp_path: Path) -> None:
    """A core that does not compress, with a copy in the spool or without, is delivered whole."""
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        installed = Installed(tmp_path, fleet.host, receiver.addresses)
        installed.change(spool_mode=spool_mode, confinement=Confinement(memory_bytes=limits.MIN_HANDLER_MEMORY_BYTES))
        code = run(installed)

    (manifest,) = (tmp_path / "store/hosts").glob("*/*/manifest.jws")
    assert code == 0
    assert parse_manifest(jws.parse(manifest.read_bytes(), limits.MAX_MANIFEST_BYTES).payload).outcome == COMPLETE


def peak_memory(installed: Installed, core: bytes) -> int:
    """Return the most that a handler has had in memory, in bytes, once it has read *core*."""
    with subprocess.Popen(
        [*as_by_the_kernel(), str(installed.handler), *kernel_arguments()], stdin=subprocess.PIPE, env={}, cwd="/"
    ) as handler:
        assert handler.stdin is not None
        handler.stdin.write(core)
        handler.stdin.flush()
        status = Path(f"/proc/{handler.pid}/status").read_text()
        handler.stdin.close()
    return int(status.partition("VmHWM:")[2].split()[0]) * limits.KIB


def test_a_receiver_that_stalls_costs_no_more_memory_than_any_other(fleet: Fleet, tmp_path: Path) -> None:
    """A full ring and full queues of frames as large as they may be to get a place there: all of it is within 64 MiB."""

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        peer.wait_unread()

    with scripted_receiver(fleet.receiver, script) as scripted:
        installed = Installed(tmp_path, fleet.host, [scripted.address])
        peak = peak_memory(installed, PROGRAM_TEXT)

    assert installed.spooled() != []
    assert peak <= RESIDENT_BYTES
