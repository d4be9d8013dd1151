"""What a receiver is told: on the command line, and by receiver.toml (configuration.py reads it)."""

from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from securecore import limits
from securecore.names import Address
from securecore.receiver.policy import Policy


class ReceiverSettings(NamedTuple):
    """What the command line and receiver.toml give."""

    listen: tuple[Address, ...]
    store: Path
    identity: Path
    incomplete_after: timedelta = timedelta(seconds=limits.INCOMPLETE_AFTER_S)
    """How old a dump's last frame is when the receiver gives its sender up."""
    policy: Policy = Policy()
