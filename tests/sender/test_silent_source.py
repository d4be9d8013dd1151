"""A crashed process that does not go on with its core: as where a page of it lies on a file system whose server is its own.

What was read by then is kept, as cut, and the handler is through long before its own deadline.
"""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.dump.manifest import CUT
from securecore.dump.packing import make_packing
from securecore.errors import BusyError, StorageError, UnreachableError
from securecore.names import Address
from securecore.sender.alone import keep_alone
from securecore.sender.confinement import Confinement
from securecore.sender.packer import Packer
from securecore.sender.parcel import Parcel
from securecore.sender.pump import fill
from securecore.sender.spool import create_spool, open_spool
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.kernel import Installed, kernel_arguments, write_script
from tests.support.launchers import as_by_the_kernel
from tests.support.local_files import noise
from tests.support.local_handlers import LocalHost
from tests.support.receivers import new_dump_id

NOWHERE: Final = Address("127.0.0.1:9")
BEGUN: Final = write_core([Segment(noise(5 * limits.MIB))])[: 5 * limits.MIB // 2]
SOON_S: Final = 0.3
STOOD_STILL: Final = "not a megabyte of the core has come in 0.3 s"


@contextmanager
def fed(data: bytes) -> Iterator[int]:
    """Yield the end of a pipe that such a process has written *data* to, and holds open while the block runs."""
    reading, writing = os.pipe()
    writer = threading.Thread(target=os.write, args=(writing, data))
    writer.start()
    try:
        yield reading
    finally:
        writer.join()
        os.close(writing)


def stay(handler: "subprocess.Popen[bytes]") -> int:
    """Feed a handler the beginning of a core, leave its pipe open, and return its exit code."""
    assert handler.stdin is not None
    try:
        handler.stdin.write(BEGUN)
        handler.stdin.flush()
        return handler.wait(60)
    finally:
        handler.kill()
        handler.communicate()


def test_bytes_one_by_one_do_not_renew_the_time_of_a_piece() -> None:
    """Who gives a byte now and then holds a handler as well as who gives none."""
    reading, writing = os.pipe()
    is_over = threading.Event()

    def trickle() -> None:
        while not is_over.wait(SOON_S / 10):
            os.write(writing, b".")

    giver = threading.Thread(target=trickle)
    giver.start()
    filled, problem = fill(reading, bytearray(limits.PIECE_BYTES), 0, SOON_S)
    is_over.set()
    giver.join()
    os.close(reading)
    os.close(writing)

    assert filled <= 10
    assert (problem or "").startswith(STOOD_STILL)


def test_what_is_there_is_read_before_anything_is_called_late() -> None:
    """The time of a piece may be over while nobody could look, as on a machine that was suspended."""
    reading, writing = os.pipe()
    os.write(writing, b"all of it")
    os.close(writing)

    assert fill(reading, bytearray(limits.PIECE_BYTES), 0, 0.0) == (9, None)
    os.close(reading)


def test_who_works_alone_does_not_wait_for_longer(tmp_path: Path) -> None:
    """Without a thread the spool gets what has come, and so does a local file."""
    create_spool(str(tmp_path / "spool"), bytes(16))
    parcel, taken = Parcel(new_dump_id(), b"{}", 1), bytearray()
    with closing(open_spool(str(tmp_path / "spool"))) as spool, fed(b"some") as source:
        outcome = keep_alone(source, parcel, spool, b"", lambda: None, StorageError("no thread"), SOON_S)
    packer = Packer(make_packing("zst", None), taken.extend)
    with fed(b"some") as source:
        end = packer._pack_alone(source, b"", lambda: None, SOON_S)

    assert (outcome.size, end.size) == (4, 4)
    assert (outcome.source_failure or "").startswith(STOOD_STILL)
    assert (end.failure or "").startswith(STOOD_STILL)


@pytest.mark.slow
def test_a_handler_gives_it_up_long_before_its_own_deadline(fleet: Fleet, tmp_path: Path) -> None:
    """The dump is in the spool with an end, as cut."""
    installed = Installed(tmp_path, fleet.host, [NOWHERE])
    installed.change(confinement=Confinement(deadline_s=600, source_deadline_s=0.5))
    began = time.monotonic()
    code = stay(
        subprocess.Popen([*as_by_the_kernel(), str(installed.handler), *kernel_arguments()], stdin=subprocess.PIPE, cwd="/")
    )
    (end,) = (installed.spool / "dumps").glob("*/end.json")

    assert code in (UnreachableError.exit_code, BusyError.exit_code)
    assert time.monotonic() - began < 60
    assert f'"outcome":"{CUT}"' in end.read_text().replace(" ", "")
    assert f'"size":{len(BEGUN)}' in end.read_text().replace(" ", "")


@pytest.mark.slow
def test_a_local_handler_gives_it_up_too(tmp_path: Path) -> None:
    """Its file says that it is not whole."""
    host = LocalHost(tmp_path)
    script = host.handler.read_text()
    write_script(
        host.handler, script.replace("main(", "from securecore import limits\nlimits.SOURCE_DEADLINE_S = 0.5\nmain(")
    )
    code = stay(host.start())
    (name,) = host.cores_kept()

    assert code == 0
    assert name.endswith(".truncated.zst")
    assert host.plain(name) == BEGUN
