"""What a sender leaves free of the disk that it keeps cores on: the floor of a spool, and of local mode."""

from securecore import limits
from securecore.declarations import Any, NamedTuple


class Floor(NamedTuple):
    """What is to stay free for everybody else."""

    share: float = limits.SPOOL_FLOOR_SHARE
    """Of the disk's bytes, and of its inodes where it has a fixed number of them."""
    free_bytes: int = 0
    """At least so many, where the share is less."""

    def least_free_bytes(self, disk_bytes: int) -> int:
        """Return how many bytes are to stay free of a disk of so many."""
        return max(int(disk_bytes * self.share), self.free_bytes)

    def least_free_inodes(self, disk_inodes: int) -> int:
        """Return how many inodes are to stay free of so many.

        None where a file system makes them as they are needed, and says that it has none at all.
        """
        return int(disk_inodes * self.share)


def parse_floor(fields: dict[str, Any]) -> Floor:
    """Return what Floor._asdict gave; raises ValueError or TypeError on anything else."""
    floor = Floor(**fields)
    if type(floor.free_bytes) is not int or not 0 <= floor.free_bytes < 1 << 63:
        raise ValueError
    # NaN fails the comparison.
    if type(floor.share) is not float or not 0 <= floor.share < 1:
        raise ValueError
    return floor
