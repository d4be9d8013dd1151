"""What the files say that have a receiver's store vacuumed every day: pure text, as installation.py has it for the receiver."""

from typing import Final

from securecore import systemd
from securecore.receiver.installation import CONFIGURATION

SERVICE: Final = "/etc/systemd/system/securecore-vacuum.service"
TIMER: Final = "/etc/systemd/system/securecore-vacuum.timer"
TIMER_LINK: Final = "/etc/systemd/system/timers.target.wants/securecore-vacuum.timer"


def vacuum_service(interpreter: str, store: str, user: str, group: str | None = None) -> bytes:
    """Return the unit that deletes what the table [retention] of CONFIGURATION says, as the store's owner; nothing without one.

    The store is that of the file: what systemd must know beforehand. Raises ConfigError when a path cannot stand in a unit.
    """
    systemd.check_paths(interpreter, store)
    return _SERVICE.format(
        command=f"{interpreter} -I -m securecore.cli.main vacuum --if-any --config {CONFIGURATION}",
        user=systemd.run_as(user, group),
        store=store,
        sandbox=systemd.NOT_FOR_THE_AGENT + systemd.SANDBOX + systemd.SERVICE_USER,
    ).encode()


def vacuum_timer() -> bytes:
    """Return the timer of that unit; the delay keeps the receivers of one disk array from vacuuming in the same minute."""
    return _TIMER.encode()


_SERVICE: Final = """\
[Unit]
Description=securecore: delete the dumps that receiver.toml says are not to be kept
RequiresMountsFor={store}

[Service]
Type=oneshot
ExecStart={command}
{user}TimeoutStartSec=6h
UMask=0077
Nice=10
IOSchedulingClass=idle
# It may load the key of the audit log.
LimitCORE=0
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={store}
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
{sandbox}"""

_TIMER: Final = """\
[Unit]
Description=securecore: vacuum the store, once a day

[Timer]
OnCalendar=daily
RandomizedDelaySec=1h
Persistent=yes

[Install]
WantedBy=timers.target
"""
