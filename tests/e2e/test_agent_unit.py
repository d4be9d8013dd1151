"""The agent as its unit has it run: with systemd's socket, the unit's rights and places, and the kernel handed over to it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from securecore.cli import core_pattern
from securecore.cli.machine import handover
from securecore.cli.machine.kernel_setting import CORE_PATTERN, read_setting
from securecore.cli.machine.root import Root
from securecore.receiver.server import Receiver
from securecore.sender import agent_limits, agent_units, installation
from tests.support.certificates import Fleet
from tests.support.kernel import NOBODY, Host, needs_kernel, start_crash

MODES = Path("/proc/sys/kernel/core_modes")

_CONDITIONS = [
    pytest.mark.skipif(not MODES.exists() or "socket" not in MODES.read_text().split(), reason="no coredump sockets here"),
    pytest.mark.skipif(not all(map(shutil.which, ("setpriv", "unshare", "mount"))), reason="needs setpriv, unshare and mount"),
]
pytestmark = [needs_kernel, pytest.mark.root, pytest.mark.slow, *_CONDITIONS]

# What systemd does last: the socket is descriptor 3, and the variables name the process itself (sd_listen_fds(3)).
_ACTIVATE = """\
import os, resource, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
resource.setrlimit(resource.RLIMIT_CORE, (int(sys.argv[2]),) * 2)
os.execvp(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def started(host: Host, listener: socket.socket, directory: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the agent as the unit says, for an installed handler and a socket of ours; it is gone behind the block."""
    text = agent_units.agent_service(sys.executable, str(host.spool), str(host.identity)).decode()
    unit = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    places = [place.removeprefix("-") for place in unit["ReadWritePaths"].split()]
    writable = [str(directory) if place == os.path.dirname(installation.AGENT_SOCKET) else place for place in places]
    mounts = [*(f"mount --bind {place} {place}" for place in writable), "mount -o remount,bind,ro /", 'exec "$@"']
    capabilities = [f"+{name.removeprefix('CAP_').lower()}" for name in unit["CapabilityBoundingSet"].split()]
    command = [
        "unshare", "--mount", "--", "sh", "-c", " && ".join(mounts), "sh",
        "setpriv", f"--bounding-set={','.join(['-all', *capabilities])}", "--inh-caps=-all", "--no-new-privs",
        sys.executable, "-I", "-c", _ACTIVATE, str(listener.fileno()), unit["LimitCORE"],
        *unit["ExecStart"].split(), "--settings", str(host.settings), "--socket", f"{directory}/coredump.sock",
    ]  # fmt: skip
    with subprocess.Popen(command, pass_fds=(listener.fileno(),), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as popen:
        # From here on it is the agent's alone: without one nobody listens, and no crashed process waits for us.
        listener.close()
        try:
            yield popen
        finally:
            popen.kill()


def test_handed_over(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """Crashes are delivered with all that is known of them; then the handler is back, and the agent ends when it is told to."""
    host, directory = Host(tmp_path / "web-1", fleet.hosts["web-1"], receiver.addresses), tmp_path / "run"
    directory.mkdir(mode=0o700)
    place = f"{directory}/coredump.sock"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(place)
        os.chmod(place, 0o600)
        listener.listen(agent_limits.BACKLOG)
        pipe = installation.core_pattern(installation.HANDLER)
        with started(host, listener, directory) as agent, core_pattern.borrowed(pipe, patience_s=120), Root(Path("/")) as root:
            assert handover.hand_to_agent(root, place)
            # The first may come before the agent is ready: it waits in the backlog.
            for _ in range(2):
                start_crash(["sh", "-c", "kill -SEGV $$"], Path("/"), NOBODY).wait()
            receipts = host.wait_for_receipts(2)
            assert handover.hand_to_handler(root, place)
            assert read_setting(CORE_PATTERN, root) == pipe
            agent.send_signal(signal.SIGTERM)
            said = agent.communicate(timeout=60)[1].decode()

    assert (agent.returncode, said) == (0, "")
    for receipt in receipts:
        (found,) = (tmp_path / "store").glob(f"**/{receipt['dump']}/report.json")
        assert b'"executable":' in found.read_bytes()
