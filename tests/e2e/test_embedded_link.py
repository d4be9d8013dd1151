"""A device on a poor mobile network crashes: slow, far, packets lost, and every connection cut again and again.

The link is that of an embedded device: 256 kbit/s, 500 ms there and back, one packet in twenty lost, cut in silence every minute.
It is made of two network namespaces, and TCP on it is the kernel's own (tests/support/link.py). That takes about ten minutes, so
it runs with SECURECORE_LONG in the environment only; tests/receiver/test_bad_link.py has a faster link for every change.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore import limits
from tests.support.certificates import Fleet, make_fleet
from tests.support.elf import PT_NOTE, Segment, write_core
from tests.support.kernel import Installed, kernel_arguments
from tests.support.link import EMBEDDED, FAR, Link, linked
from tests.support.local_files import noise
from tests.support.processes import SECURECORE, Process, receiving
from tests.support.stores import stored_cores

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for networks of its own"),
    pytest.mark.skipif("SECURECORE_LONG" not in os.environ, reason="takes ten minutes: set SECURECORE_LONG"),
]

CUT_EVERY_S = 60.0
SIZE = 50 * limits.MIB
DEADLINE_S = 6 * 3600.0


@pytest.fixture(scope="module")
def far_fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet whose receiver stands at the far end of the link."""
    return make_fleet(tmp_path_factory.mktemp("fleet"), hosts=("cam-9",), addresses=(FAR,))


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    """The link, which forgets all connections again and again."""
    with linked(tmp_path, EMBEDDED, cut_every_s=CUT_EVERY_S) as link:
        yield link


@pytest.fixture
def collector(far_fleet: Fleet, link: Link, tmp_path: Path) -> Iterator[Process]:
    """A receiver at the far end."""
    with receiving(far_fleet.receiver, tmp_path / "store", listen=[f"{FAR}:0"], within=link.far.within) as process:
        yield process


@pytest.fixture
def device(far_fleet: Fleet, collector: Process, tmp_path: Path) -> Installed:
    """The device at the near end, with a handler."""
    return Installed(tmp_path, far_fleet.host, collector.addresses)


def core_of_50_mib() -> bytes:
    """Return a core of which a fifth cannot be compressed, and one piece not at all: it does not fit between two cuts."""
    content = bytearray(SIZE)
    for at in range(0, SIZE, limits.PIECE_BYTES):
        content[at : at + 200_000] = noise(200_000, seed=at)
    content[10 * limits.MIB : 11 * limits.MIB] = noise(limits.MIB)
    return write_core([Segment(b"note" * 8, PT_NOTE), Segment(bytes(content))])


def flush(device: Installed, link: Link) -> list[dict[str, object]]:
    """Flush the device's spool over the link, as its timer does, and return what became of it."""
    words = ["spool", "flush", "--settings", str(device.settings), "--json"]
    done = subprocess.run([*link.near.within, *SECURECORE, *words], capture_output=True, text=True, check=False)
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_a_core_of_50_mib_arrives_whole(device: Installed, link: Link, tmp_path: Path) -> None:
    """The process is let go within the hold budget, and flush after flush brings the core over, whole and once."""
    core = core_of_50_mib()
    with subprocess.Popen(
        [*link.near.within, str(device.handler), *kernel_arguments()], stdin=subprocess.PIPE, env={"PATH": os.environ["PATH"]}
    ) as handler:
        assert handler.stdin is not None
        met = time.monotonic()
        handler.stdin.write(core)
        handler.stdin.close()
        held_s = time.monotonic() - met
    deadline, flushes, sent_frames = time.monotonic() + DEADLINE_S, 0, 0
    while device.spooled():
        assert time.monotonic() < deadline, f"not delivered after {flushes} flushes and {link.cuts} cuts"
        sent_frames += sum(int(str(one["sent_frames"])) for one in flush(device, link))
        flushes += 1
    (stored,) = stored_cores(tmp_path / "store").values()
    assert stored == core
    assert len(device.receipts()) == 1
    seconds = time.monotonic() - met
    print(f"held {held_s:.1f} s; {seconds:.0f} s, {link.cuts} cuts, {flushes} flushes")
    print(f"{link.carried} bytes carried, {sent_frames} frames sent by the flushes")
    assert link.cuts >= 2, "the link was never cut while the core travelled"
    # What a process waits for the network is bounded, whatever the network does: the budget, and what draining 50 MiB takes.
    assert held_s < limits.HOLD_BUDGET_S + 20
