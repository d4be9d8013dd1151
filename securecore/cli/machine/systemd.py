"""What systemd says of our units, where it runs."""

import os
import subprocess

from securecore.cli.machine.root import Root


def is_running(root: Root) -> bool:
    """Return whether systemd runs the machine that boots from *root*: as sd_booted(3) tells it, and only of the live one."""
    return root.is_live and os.path.isdir("/run/systemd/system")


def is_active(unit: str) -> bool:
    """Return whether a unit is active now."""
    try:
        return subprocess.run(["systemctl", "--quiet", "is-active", unit], check=False, stdin=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False
