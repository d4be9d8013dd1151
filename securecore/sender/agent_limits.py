"""Bounds of the agent, each with its reason; those that it shares with the pipe's handler are in limits.py."""

from typing import Final

from securecore import limits

PLACES: Final = limits.CORE_PIPE_LIMIT
"""Crashes at once: as many handlers as the kernel starts by a pipe, for each may take as much of the machine."""

BACKLOG: Final = 16
"""Crashes that wait for a place, their processes held; the kernel skips what comes beyond (EAGAIN). As many again as there are
places: a service with a crash in each of 32 workers loses none. A pipe's kernel lets none wait. listen(2) counts one more."""

REQUEST_S: Final = 10.0
"""For the kernel's request, and for its mark: it sends either from memory, at once. Longer than a machine that swaps needs."""

THREADS_MAX: Final = 4096
"""Threads among which the one that crashed is looked for. Each costs a read of 20 us (measured) while its process is held."""

STOP_S: Final = 30.0
"""From SIGTERM until the children are told to end too, which takes them TERMINATION_GRACE_S: well below the 90 s after which
systemd kills (DefaultTimeoutStopSec), with the two steps behind it."""

STOP_GRACE_S: Final = 2 * limits.TERMINATION_GRACE_S + 4.0
"""From there until they are killed: a child's own two graces, and time to end."""

FLUSH_EVERY_S: Final = 120.0
FLUSH_JITTER_S: Final = 30.0
"""As the timer of the flush unit: OnUnitInactiveSec and RandomizedDelaySec."""
FLUSH_FIRST_S: Final = 120.0
"""As its OnBootSec."""
FLUSH_MOST_S: Final = 6 * 3600.0
"""As TimeoutStartSec of its service."""

RENEWAL_EVERY_S: Final = 24 * 3600.0
RENEWAL_JITTER_S: Final = 3600.0
"""A certificate is renewed in the last third of its life, 30 days of 90: a day more or less is nothing. The hour keeps a fleet that
was started at once from asking its enroller at once."""
RENEWAL_FIRST_S: Final = 60.0
"""After a start, and the jitter: an agent that is started anew every day looks all the same."""
RENEWAL_MOST_S: Final = 600.0
"""An enroller that neither answers nor refuses is asked again the next day."""
