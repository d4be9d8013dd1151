"""The log's lines about hosts that have proved who they are: so many of each host in an hour, and the others are counted.

A host may offer a dump that is here already a thousand times in a second, on one connection. Nobody must fill the disk with lines
by that, nor take the place of other hosts' lines: a journal that gets too many drops them whosever they are (journald.conf(5),
RateLimitBurst=). What was received the audit log tells as well, and leaves out nothing.
"""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from securecore import limits
from securecore.names import HostName
from securecore.receiver.observer import log


class HostLines:
    """Writes them; for several threads at once. Not bounded: the hosts, which are no more than have certificates."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._begin()

    def tell(self, host: HostName, level: int, line: str) -> None:
        """Say what befell a host, or count it; what its peer has chosen is quoted in *line* already."""
        with self._lock:
            self._came[host] += 1
            is_told = self._came[host] <= limits.HOST_LINES
        if is_told:
            log.log(level, "%s", line)

    def summarise(self) -> None:
        """Say how many were only counted, and begin anew; the caller knows when an hour is over."""
        with self._lock:
            came, since = self._came, f"{self._since:%H:%M}"
            self._begin()
        for host, number in came.items():
            if number > limits.HOST_LINES:
                log.warning("%d more lines about host=%s since %s", number - limits.HOST_LINES, host, since)

    def _begin(self) -> None:
        self._since = self._clock()
        self._came: Counter[HostName] = Counter()
