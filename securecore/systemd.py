"""What the units that ``setup`` writes have in common: which paths may stand in them, and what no process of theirs may do."""

from typing import Final

from securecore.errors import ConfigError

SANDBOX: Final = """\
NoNewPrivileges=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""
"""For every service, as its last lines (systemd.exec(5)): no part of this program needs any of it.

What a service may have all the same, capabilities, addresses and places to write to, its own unit says before them.
"""

NOT_FOR_THE_AGENT: Final = """\
PrivateDevices=yes
ProtectHostname=yes
ProtectKernelLogs=yes
"""
"""For all but the agent, which reads the kernel's log, and the machine's name at each crash."""

SERVICE_USER: Final = """\
ProtectHome=yes
SystemCallFilter=~@privileged
"""
"""For what never was root, behind SANDBOX: of the two filters the first one says that it is a list of what is allowed."""


def check_paths(*paths: str) -> None:
    """Raise ConfigError for a path that would mean something else in a unit (systemd.syntax(7), systemd.service(5))."""
    for path in paths:
        if not path.isprintable() or set(path) & set(" \"'\\%$"):
            raise ConfigError(f"{path!a}: a path in a systemd unit must not have spaces, quotes, backslashes, % or $")


def run_as(user: str, group: str | None) -> str:
    """Return the lines of a service that runs as *user*, with the user's own group where none is given."""
    return f"User={user}\n" + (f"Group={group}\n" if group is not None else "")
