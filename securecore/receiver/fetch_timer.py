"""What the files say that have a receiver's CAs and CRLs fetched every hour: pure text, as in installation.py."""

from typing import Final

from securecore import systemd

SERVICE: Final = "/etc/systemd/system/securecore-fetch.service"
TIMER: Final = "/etc/systemd/system/securecore-fetch.timer"
TIMER_LINK: Final = "/etc/systemd/system/timers.target.wants/securecore-fetch.timer"


def fetch_service(interpreter: str, identity: str, user: str, group: str | None = None) -> bytes:
    """Return the unit that fetches into *identity*, as its owner, from where that was fetched before.

    The receiver notices by itself (identity_watch.py). Raises ConfigError when a path cannot stand in a unit.
    """
    systemd.check_paths(interpreter, identity)
    return _SERVICE.format(
        command=f"{interpreter} -I -m securecore.cli.main pki fetch --identity {identity}",
        user=systemd.run_as(user, group),
        identity=identity,
        sandbox=systemd.NOT_FOR_THE_AGENT + systemd.SANDBOX + systemd.SERVICE_USER,
    ).encode()


def fetch_timer() -> bytes:
    """Return the timer of that unit; the delay keeps receivers from coming to their enroller in the same minute."""
    return _TIMER.encode()


_SERVICE: Final = """\
[Unit]
Description=securecore: fetch the receiver's CAs and revocation lists
Wants=network-online.target
After=network-online.target
RequiresMountsFor={identity}

[Service]
Type=oneshot
ExecStart={command}
{user}TimeoutStartSec=15min
UMask=0077
LimitCORE=0
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={identity}
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
{sandbox}"""

_TIMER: Final = """\
[Unit]
Description=securecore: fetch CAs and revocation lists, every hour

[Timer]
OnCalendar=hourly
RandomizedDelaySec=30min
Persistent=yes

[Install]
WantedBy=timers.target
"""
