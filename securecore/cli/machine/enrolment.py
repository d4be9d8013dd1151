"""Whether an identity directory knows of an enroller: there a host renews its certificate, and a receiver fetches its lists."""

from securecore.cli.machine.root import Root
from securecore.pki.enrolling import ENROLLER


def is_enrolled(identity: str, root: Root) -> bool:
    """Return whether an identity directory names an enroller; no where we may not look."""
    return root.can_look_into(identity) and root.status(f"{identity}/{ENROLLER}") is not None
