"""How much the spool may take of its disk: values of sender.toml. room.py holds handlers to them."""

from securecore import limits
from securecore.declarations import Any, Final, NamedTuple
from securecore.sender.floor import Floor, parse_floor


class SpoolLimits(NamedTuple):
    """What the spool may take. None stands for no bound."""

    max_bytes: int | None = None
    """On the disk, of all cores in it, with what is kept for those that are being written."""
    max_dumps: int | None = None
    floor_share: float = limits.SPOOL_FLOOR_SHARE
    """Of the disk's bytes, and of its inodes where it has a fixed number of them: to be left free."""
    floor_bytes: int = 0
    """At least so many are left free, where the share is less."""

    @property
    def has_quota(self) -> bool:
        """Whether the spool has a bound of its own, whatever is free on its disk."""
        return self.max_bytes is not None or self.max_dumps is not None

    @property
    def is_bound(self) -> bool:
        """Whether anything but the disk itself is a bound."""
        return self != UNBOUND

    @property
    def floor(self) -> Floor:
        """What of its disk is to stay free."""
        return Floor(self.floor_share, self.floor_bytes)


UNBOUND: Final = SpoolLimits(floor_share=0.0)


def parse_limits(fields: dict[str, Any]) -> SpoolLimits:
    """Return what SpoolLimits._asdict gave; raises ValueError, TypeError or AttributeError on anything else."""
    found = SpoolLimits(**fields)
    counts = (count for count in (found.max_bytes, found.max_dumps) if count is not None)
    if not all(type(count) is int and 0 <= count < 1 << 63 for count in counts):
        raise ValueError
    parse_floor(found.floor._asdict())
    return found
