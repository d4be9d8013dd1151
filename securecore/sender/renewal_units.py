"""What the files say that have a host's certificate renewed by itself: pure text, as installation.py has it for the handler."""

from typing import Final

from securecore import systemd

SERVICE: Final = "/etc/systemd/system/securecore-renew.service"
TIMER: Final = "/etc/systemd/system/securecore-renew.timer"
TIMER_LINK: Final = "/etc/systemd/system/timers.target.wants/securecore-renew.timer"


def renew_service(interpreter: str, identity: str) -> bytes:
    """Return the unit that renews the certificate in *identity* once that is due, where it was enrolled.

    Root without a capability: the directory and all in it are root's. Raises ConfigError when a path cannot stand in a unit.
    """
    systemd.check_paths(interpreter, identity)
    return _SERVICE.format(interpreter=interpreter, identity=identity, sandbox=systemd.NOT_FOR_THE_AGENT + systemd.SANDBOX).encode()


def renew_timer() -> bytes:
    """Return the timer of that unit; the delay keeps a fleet from coming to its enroller in the same minute."""
    return _TIMER.encode()


_SERVICE: Final = """\
[Unit]
Description=securecore: renew this host's certificate, when that is due
Wants=network-online.target
After=network-online.target
RequiresMountsFor={identity}

[Service]
Type=oneshot
ExecStart={interpreter} -I -m securecore.cli.main renew --identity {identity}
TimeoutStartSec=15min
UMask=0077
# It reads the TLS key.
LimitCORE=0
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={identity}
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
{sandbox}"""

_TIMER: Final = """\
[Unit]
Description=securecore: look every day whether the certificate is to be renewed

[Timer]
OnCalendar=daily
RandomizedDelaySec=12h
Persistent=yes

[Install]
WantedBy=timers.target
"""
