"""What a receiver takes, from whom, how much, and for how long it keeps it: the values of receiver.toml, with their defaults.

None stands for no bound. admission.py enforces quotas and floor, doors.py minds the connections, store/retention.py keeps the rest.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from securecore import limits
from securecore.store.retention import Retention


class Quota(NamedTuple):
    """What one host may have here."""

    stored_bytes: int | None = None
    """On the disk, dumps that are coming in included."""
    plain_bytes: int | None = None
    """The same, as plaintext: what they would take extracted."""
    dumps: int | None = None
    dumps_per_hour: int | None = None
    """New dumps in any 60 minutes; going on with one that was begun is not a new one."""
    at_once: int | None = limits.HOST_DUMPS_AT_ONCE
    """Dumps that are being received at one time."""


class Floor(NamedTuple):
    """What must stay free on the store's file system."""

    share: float = limits.FLOOR_SHARE
    """Of all bytes, and of all inodes where the file system has a fixed number of them."""
    free_bytes: int = 0
    """At least so many, where the share is less."""

    def least_free(self, total_bytes: int) -> int:
        """Return how many bytes stay free of so many."""
        return max(int(total_bytes * self.share), self.free_bytes)


class Doors(NamedTuple):
    """What a peer that has not shown a certificate may take of us, and how long one that has may stay."""

    connections: int = limits.MAX_CONNECTIONS
    strangers: int = limits.MAX_STRANGERS
    """Connections in their handshake, or refused and not gone yet."""
    strangers_per_address: int = limits.MAX_STRANGERS_PER_ADDRESS
    per_host: int = limits.MAX_CONNECTIONS_PER_HOST
    session_s: float | None = None
    """The longest that a connection may last in all, but for the time in which we walk what we hold of its dumps."""


class Policy(NamedTuple):
    """All of it."""

    allow: tuple[str, ...] = ("*",)
    """Names of hosts, or `*.` and a domain: who may send. `*` is everybody with a certificate."""
    deny: tuple[str, ...] = ()
    """The same: who may not, whatever *allow* says."""
    quota: Quota = Quota()
    """Of every host that has none of its own."""
    host_quotas: Mapping[str, Quota] = MappingProxyType({})
    """By the host's full name."""
    floor: Floor = Floor()
    doors: Doors = Doors()
    retention: Retention = Retention()
