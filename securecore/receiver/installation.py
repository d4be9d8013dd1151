"""What a receiver's files say: pure text, made from a few facts. ``securecore setup receiver`` writes it (cli/setup.py)."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from securecore import limits, systemd
from securecore.names import Address

CONFIGURATION: Final = "/etc/securecore/receiver.toml"
SERVICE: Final = "/etc/systemd/system/securecore-receiver.service"
SYSUSERS: Final = "/usr/lib/sysusers.d/securecore-receiver.conf"

DEFAULT_STORE: Final = "/var/lib/securecore/store"
DEFAULT_IDENTITY: Final = "/etc/securecore/receiver"
INCOMPLETE_AFTER: Final = timedelta(seconds=limits.INCOMPLETE_AFTER_S)
"""What a receiver does without being told."""

_PRIVILEGED_PORTS: Final = 1024

_FILES_PER_CONNECTION: Final = 16
"""Descriptors for one connection: its socket, the dump's directory and core, the log's directory and entries, and as much again."""

_STOP_S: Final = int(limits.SHUTDOWN_DEADLINE_S + 4 * limits.PROGRESS_DEADLINE_S)
"""After the receiver's own bound for what is in flight, a few interrupted sessions end the disk write that they are in."""


def receiver_service(
    interpreter: str, listen: Sequence[Address], store: str, connections: int, user: str, group: str | None = None
) -> bytes:
    """Return the unit of a receiver that goes by CONFIGURATION: no privilege, no capability, and only the store to write to.

    Addresses, store and number of connections are those of that file: what systemd must know beforehand. Raises ConfigError when a
    path cannot stand in a unit. MemoryDenyWriteExecute holds for Python and the cryptography library as they are
    (tests/receiver/test_installation.py runs a receiver under it).
    """
    systemd.check_paths(interpreter, store)
    capability = "CAP_NET_BIND_SERVICE" if any(0 < address.port < _PRIVILEGED_PORTS for address in listen) else ""
    return _SERVICE.format(
        command=f"{interpreter} -I -m securecore.cli.main receive --config {CONFIGURATION}",
        user=systemd.run_as(user, group),
        store=store,
        capability=capability,
        files=connections * _FILES_PER_CONNECTION,
        stop_s=_STOP_S,
        sandbox=systemd.NOT_FOR_THE_AGENT + systemd.SANDBOX + systemd.SERVICE_USER,
    ).encode()


_SERVICE: Final = """\
[Unit]
Description=securecore receiver: takes core dumps from hosts into a store
Wants=network-online.target
After=network-online.target
# A disk that comes late (nofail, or a network's) is waited for: in its empty mount point the receiver would make a new store.
# What has kept a start from beginning is no failure to Restart=: once the disk is there, the receiver has to be started.
RequiresMountsFor={store}

[Service]
Type=exec
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
{user}Restart=on-failure
RestartSec=5s
TimeoutStopSec={stop_s}s
UMask=0077
LimitNOFILE={files}
# Its memory holds the TLS key.
LimitCORE=0
CapabilityBoundingSet={capability}
AmbientCapabilities={capability}
ProtectSystem=strict
ReadWritePaths={store}
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RemoveIPC=yes
{sandbox}
[Install]
WantedBy=multi-user.target
"""
