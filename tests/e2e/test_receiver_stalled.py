"""The receiver stops for ever in the middle of a large core: the process is let go, and later only what is missing is sent."""

import filecmp
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import zstandard

from securecore import limits
from tests.support.certificates import Fleet
from tests.support.kernel import Host, build_crasher, crashing_into, needs_kernel, start_crash, wait_until
from tests.support.processes import SECURECORE, receiving
from tests.support.sizes import size_of

pytestmark = [needs_kernel, pytest.mark.root, pytest.mark.slow]

CRASHER = Path(__file__).parents[2] / "scripts" / "crashers" / "large-heap.c"


def incoming_bytes(store: Path) -> int:
    """Return how much of a core the store holds that is still coming in."""
    return sum(size_of(path) for path in store.glob("incoming/*/*/core.zst"))


def spooled_whole(host: Host) -> Path | None:
    """Return the spool's entry once the handler has finished it."""
    return next(iter(host.spool.glob("dumps/*/end.json")), None)


def number(words: str, text: str) -> int:
    """Return the number that *words* find in *text*."""
    found = re.search(words, text)
    assert found is not None, text
    return int(found[1])


def test_a_receiver_stalled_for_ever_in_a_1_gib_core_holds_nobody_and_gets_the_rest_later(
    fleet: Fleet, tmp_path: Path
) -> None:
    """The process is reaped while the receiver stands still; flush then sends what the receiver does not hold, and nothing else.

    The receiver never goes on: it is stopped, and killed once the process is gone.
    """
    program, store = build_crasher(CRASHER, tmp_path), tmp_path / "store"
    with receiving(fleet.receiver, store) as stalled:
        host = Host(tmp_path / "host", fleet.hosts["web-1"], stalled.addresses)
        tee, copy, _ = host.tee()
        with crashing_into(tee):
            crash = start_crash([str(program), "1024"], tmp_path)
            wait_until(lambda: incoming_bytes(store) > 32 * limits.MIB or None)
            os.kill(stalled.popen.pid, signal.SIGSTOP)
            assert crash.wait(timeout=120) == -signal.SIGABRT
            entry = wait_until(lambda: spooled_whole(host))
        stalled.popen.kill()

    first = json.loads((entry.parent / "entry.json").read_text())["first_frame"]
    assert first > 0, "nothing had been acknowledged"
    with receiving(fleet.receiver, store, "-v") as receiver:
        words = ["--spool", str(host.spool), "--to", str(receiver.addresses[0]), "--identity", str(host.identity)]
        flushed = subprocess.run([*SECURECORE, "spool", "flush", *words], capture_output=True, text=True, check=True)
        receiver.popen.terminate()
        said = receiver.rest()
    (core,) = store.glob("hosts/*/*/core.zst")
    with core.open("rb") as stored, (tmp_path / "core").open("wb") as plain:
        zstandard.ZstdDecompressor().copy_stream(stored, plain)

    sent = number(r"\((\d+) frames? sent now\)", flushed.stdout)
    held, frames = number(r"goes on at frame (\d+)", said), number(r" in (\d+) frames, .* END", said)
    assert host.spooled() == []
    assert filecmp.cmp(copy, tmp_path / "core", shallow=False)
    assert held >= first
    assert sent == frames - held
    print(f"{frames} frames: {first} acknowledged, {held} held when it went on, {sent} sent then")
