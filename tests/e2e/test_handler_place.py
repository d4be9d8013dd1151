"""A handler that the real kernel has started keeps to its place in the machine, and does not outlive its deadline."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from securecore import limits
from securecore.sender.confinement import Confinement
from securecore.sender.patience import Patience
from securecore.sender.spool import open_spool
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.kernel import NOBODY, Host, build_crasher, crashing_into, needs_kernel, start_crash, wait_until
from tests.support.local_handlers import handlers_of
from tests.support.scripted import Peer, scripted_receiver

pytestmark = [needs_kernel, pytest.mark.root, pytest.mark.slow]

CRASHERS = Path(__file__).parents[2] / "scripts" / "crashers"


def test_a_handler_of_the_kernel_s_is_bounded_and_ends(fleet: Fleet, tmp_path: Path) -> None:
    """Its receiver never gives a receipt: the process is let go before, and after the deadline the dump is in the spool, whole."""

    def script(peer: Peer) -> None:
        peer.reach(State.ENDING)
        peer.stay()

    program = build_crasher(CRASHERS / "null-deref.c", tmp_path)
    with scripted_receiver(fleet.receiver, script) as receiver:
        host = Host(tmp_path / "host", fleet.host, [receiver.address])
        host.change(deadlines=Patience(600, 600, 600), confinement=Confinement(deadline_s=5))
        with crashing_into(host.handler):
            assert start_crash([str(program)], tmp_path).wait() == -signal.SIGSEGV
        (pid,) = handlers_of(str(host.handler))
        # It has become its own user only after it has taken its place.
        wait_until(lambda: f"Uid:\t{NOBODY}" in Path(f"/proc/{pid}/status").read_text() or None)
        bounds = Path(f"/proc/{pid}/limits").read_text().splitlines()
        place = (
            os.getpriority(os.PRIO_PROCESS, pid),
            subprocess.run(["ionice", "-p", str(pid)], capture_output=True, check=True, text=True).stdout.strip(),
            int(Path(f"/proc/{pid}/oom_score_adj").read_text()),
            {line[:25].strip(): line[25:].split()[:2] for line in bounds if line.startswith(("Max data", "Max core"))},
        )
        wait_until(lambda: None if handlers_of(str(host.handler)) else True)

    entry = open_spool(str(host.spool)).entry(open_spool(str(host.spool)).dump_ids()[0])
    assert entry is not None
    end = entry.end()
    entry.close()
    most = str(limits.HANDLER_MEMORY_BYTES)
    assert place == (5, "best-effort: prio 7", 500, {"Max data size": [most, most], "Max core file size": ["1", "1"]})
    assert end is not None
    assert end.outcome == "complete"
