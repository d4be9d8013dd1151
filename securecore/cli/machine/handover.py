"""How the kernel hands cores over: by a pipe to the handler that it starts, or by connecting to the agent's socket.

``python -I -m securecore.cli.machine.handover agent`` has the kernel connect to the agent, and ``... pipe`` has it start the
handler again. The agent's unit runs the one when the agent is ready, the other before it stops and when it has ended
(agent_units.py). A pattern that is not one of these two is somebody else's, and stays.
"""

import re
import sys
from pathlib import Path
from typing import Final

from securecore import limits
from securecore.cli.machine.kernel_setting import CORE_PATTERN, read_setting, set_sysctl
from securecore.cli.machine.root import Root
from securecore.errors import ConfigError, SecurecoreError
from securecore.sender import installation
from securecore.sender.configuration import AGENT, PIPE

AUTO: Final = "auto"

OURS: Final = (f"|{installation.HANDLER.rpartition('/')[0]}/", installation.agent_pattern())
"""How a core_pattern begins that only securecore can have written."""

_CORE_MODES: Final = "/proc/sys/kernel/core_modes"
_RELEASE: Final = "/proc/sys/kernel/osrelease"
_FIRST: Final = (6, 17)
"""The version whose kernel asks the socket's server what to do: a pattern that begins with ``@@``."""
_SYSTEMD: Final = "/run/systemd/system"
"""There while systemd runs the machine (sd_booted(3))."""
_SOCKETS: Final = "/proc/1/net/unix"
"""Of init's network namespace: the kernel looks the socket up there, whoever crashes. /proc/net itself is a link."""
_SOCKETS_BYTES: Final = 64 * limits.MIB
"""A line of it has 54 bytes and the socket's path: of half a million sockets."""
_ACCEPTS: Final = 0x10000
"""__SO_ACCEPTCON of uapi/linux/net.h: listen(2) was called."""
_STREAM: Final = 1
_PATH_FIELD: Final = 7


def find_obstacle(root: Root) -> str | None:
    """Return why the kernel that runs *root* cannot hand cores to an agent there; None when it can."""
    modes, release = read_setting(_CORE_MODES, root), read_setting(_RELEASE, root)
    if modes is None and not root.is_live:
        return f"nobody knows which kernel will run {root.path}"
    if modes is None or "socket" not in modes.split():
        return "this kernel has no coredump socket (/proc/sys/kernel/core_modes; Linux 6.17 has one)"
    version = re.match(r"(\d+)\.(\d+)", release or "")
    if version is not None and (int(version[1]), int(version[2])) < _FIRST:
        return f"the coredump socket of Linux {release} does not ask yet whether it is to dump; that of Linux 6.17 does"
    if root.status(_SYSTEMD) is None:
        return "no systemd runs here, which would keep the agent and its socket"
    return None


def choose(wish: str | None, said: str | None, root: Root) -> tuple[str, str | None]:
    """Return one of KERNEL_WAYS, and what speaks against the agent, if anything does.

    *wish* is what the command line says, *said* what sender.toml does; without both, and with AUTO, it is the agent where it can
    run. Raises ConfigError where it must be the agent, and that cannot run on this machine as it is; of an image nobody knows.
    """
    wanted = wish or said or AUTO
    if wanted == PIPE:
        return PIPE, None
    obstacle = find_obstacle(root)
    if wanted == AUTO:
        return (AGENT if obstacle is None else PIPE), obstacle
    if obstacle is not None and root.is_live:
        raise ConfigError(f"the kernel cannot hand cores to the agent: {obstacle}", hint=f"give --kernel {PIPE}")
    return AGENT, obstacle


def is_awake(root: Root) -> bool:
    """Return whether *root* is of a machine that runs, as far as its /proc says."""
    return root.status(_SOCKETS) is not None


def is_listening(root: Root, socket: str = installation.AGENT_SOCKET) -> bool:
    """Return whether somebody listens on *socket*, without connecting to it; raises StorageError when the kernel does not say."""
    found = root.find(_SOCKETS, _SOCKETS_BYTES)
    lines = found.content.decode("utf-8", "replace").splitlines()[1:] if found is not None else []
    return any(_listens_on(line.split(" "), socket) for line in lines)


def _listens_on(fields: list[str], socket: str) -> bool:
    """Of a line of /proc/net/unix (proc_net(5)): number, references, protocol, flags, type, state, inode, path."""
    words = [field for field in fields if field]
    try:
        flags, kind = int(words[3], 16), int(words[4], 16)
    except (IndexError, ValueError):
        return False
    return words[_PATH_FIELD:] == [socket] and bool(flags & _ACCEPTS) and kind == _STREAM


def hand_to_agent(root: Root, socket: str = installation.AGENT_SOCKET) -> bool:
    """Have the kernel connect to *socket*; return False, with nothing changed, when core_pattern is not ours.

    Raises ConfigError when nobody listens there, or the kernel refuses the pattern: then the handler goes on having the crashes.
    """
    if not _is_ours(root, socket):
        return False
    if not is_listening(root, socket):
        raise ConfigError(f"{root.outside(socket)}: nobody listens there, so the kernel goes on starting the handler")
    set_sysctl(root, CORE_PATTERN, installation.agent_pattern(socket))
    return True


def hand_to_handler(root: Root, socket: str = installation.AGENT_SOCKET) -> bool:
    """Have the kernel start the handler for each crash; return False, with nothing changed, when core_pattern is not ours."""
    if not _is_ours(root, socket):
        return False
    set_sysctl(root, CORE_PATTERN, installation.core_pattern(installation.HANDLER))
    return True


def find_fallback(root: Root) -> str | None:
    """Return, in words, that the kernel starts the handler where it could go by the agent; None where that is not so."""
    if read_setting(CORE_PATTERN, root) != installation.core_pattern(installation.HANDLER):
        return None
    return "the kernel starts the handler for each crash, because the agent does not run"


def _is_ours(root: Root, socket: str) -> bool:
    """Whether the kernel goes by a pattern of the network's way; local mode, which has options there, has no agent."""
    found = read_setting(CORE_PATTERN, root)
    return found in (installation.core_pattern(installation.HANDLER), installation.agent_pattern(socket))


def main(arguments: list[str]) -> None:
    """Do what the unit asks for; what stands in the way is a line on standard error, for the journal.

    It is no failure of the agent's: with the handler no core is lost, and whoever starts the agent has it go on.
    """
    try:
        with Root(Path("/")) as root:
            is_done = hand_to_agent(root) if arguments == [AGENT] else hand_to_handler(root)
            if not is_done:
                words = f"core_pattern is {read_setting(CORE_PATTERN, root)!a}, which is not ours: it stays"
                sys.stderr.write(f"{words}; `securecore doctor` says more\n")
    except SecurecoreError as error:
        sys.stderr.write(f"securecore: {error.message}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
