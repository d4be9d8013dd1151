"""What the files say that keep the agent and its socket: pure text, as installation.py has it for the handler.

systemd makes the socket and keeps it while the agent is started again; what connects meanwhile waits in its backlog. core_pattern
leads to the socket only while the agent runs: when it is ready, and before it stops, its unit has cli/machine/handover.py change
the pattern. At all other times, at boot above all, the kernel starts the handler for each crash, as sysctl.d has it. A pattern that
leads there from the first moment of a boot on would lose no more, and could hold the boot up: a process that crashes before the
agent can run is held until it does, and the agent may wait for the very unit of that process.
"""

import os
from typing import Final

from securecore import systemd
from securecore.sender import agent_limits
from securecore.sender.installation import AGENT_SOCKET

SERVICE: Final = "/etc/systemd/system/securecore-agent.service"
SOCKET: Final = "/etc/systemd/system/securecore-agent.socket"
SERVICE_LINK: Final = "/etc/systemd/system/multi-user.target.wants/securecore-agent.service"
SOCKET_LINK: Final = "/etc/systemd/system/sockets.target.wants/securecore-agent.socket"

_STARTS: Final = 5
_STARTS_WITHIN_S: Final = 60
"""An agent that cannot start is given up after so many attempts, and its socket with it: who waits in the backlog is let go, and
the handler has the crashes."""

_STOP_S: Final = 90
"""For cores that are being taken when the agent is told to stop, and for the steps behind that, the last of which kills whoever is
left (agent_limits.py); what systemd gives anybody."""

CAPABILITIES: Final = ("CAP_SETUID", "CAP_SETGID", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_SYSLOG", "CAP_KILL")
"""In this order: to become the handler's user; to open settings, key and spool, whoever owns them; to read /proc of a crashed
process (proc(5), PTRACE_MODE_READ), and the kernel's log; and to end a child that has become that user."""


def agent_socket() -> bytes:
    """Return the socket unit: nobody but root, which the kernel connects as, can get to the socket."""
    return _SOCKET.format(socket=AGENT_SOCKET, backlog=agent_limits.BACKLOG).encode()


def agent_service(interpreter: str, spool: str, identity: str) -> bytes:
    """Return the unit of the agent: root with the capabilities that a handler needs, which writes nowhere but where it must.

    That is the spool, the identity, because the agent renews it, and beside its socket, where it has a lock. Raises ConfigError
    when a path cannot stand in a unit.
    """
    systemd.check_paths(interpreter, spool, identity)
    return _SERVICE.format(
        interpreter=interpreter,
        directory=os.path.dirname(AGENT_SOCKET),
        spool=spool,
        identity=identity,
        capabilities=" ".join(CAPABILITIES),
        starts=_STARTS,
        within=_STARTS_WITHIN_S,
        stop_s=_STOP_S,
        sandbox=systemd.SANDBOX,
    ).encode()


_SOCKET: Final = """\
[Unit]
Description=securecore: where the kernel hands over the cores of crashed processes

[Socket]
ListenStream={socket}
SocketMode=0600
DirectoryMode=0700
Backlog={backlog}

[Install]
WantedBy=sockets.target
"""

_SERVICE: Final = """\
[Unit]
Description=securecore: takes cores from the kernel, and sends them
Requires=securecore-agent.socket
After=securecore-agent.socket
# Without the agent these do what it does beside the crashes.
Conflicts=securecore-flush.timer securecore-renew.timer
OnFailure=securecore-flush.timer securecore-renew.timer
# Without the disk that its spool is on the kernel stays with the handler.
RequiresMountsFor={spool} {identity}
StartLimitIntervalSec={within}s
StartLimitBurst={starts}

[Service]
# It is started once it says that crashes may come (sd_notify(3)): what cannot start has the kernel handed over to it at no time.
Type=notify
ExecStart={interpreter} -I -m securecore.cli.main agent
# The kernel connects to the agent while it runs, and starts the handler for each crash at all other times.
ExecStartPost=+{interpreter} -I -m securecore.cli.machine.handover agent
ExecStop=+{interpreter} -I -m securecore.cli.machine.handover pipe
ExecStopPost=+{interpreter} -I -m securecore.cli.machine.handover pipe
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1s
# Since systemd 254 OnFailure= comes between two starts as well, and its timers would have the agent given up after its first end.
# So it does not; an earlier systemd, which has no such line, passes it over.
RestartMode=direct
# The agent ends its children itself, when it is told to stop. One that was killed leaves them their cores: they settle these, and
# end. And when memory is short the children are the first to go (confinement.py): that has not to cost the others their cores.
KillMode=process
OOMPolicy=continue
TimeoutStopSec={stop_s}s
UMask=0077
# The kernel's own mark of a handler (fs/coredump.c), which the agent gives its children, and 0 could not be raised to it.
LimitCORE=1
CapabilityBoundingSet={capabilities}
# No ProtectHostname=: a report has the machine's name as it is at the crash, and that would keep the one of the agent's start.
ProtectSystem=strict
ReadWritePaths={directory} -{spool} -{identity}
DevicePolicy=closed
DeviceAllow=/dev/kmsg r
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
{sandbox}
[Install]
WantedBy=multi-user.target
Also=securecore-agent.socket
"""
