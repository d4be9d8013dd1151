"""What a host's audit log says of its dumps before they are received: under which certificate they come, and which go on.

A certificate is introduced once (audit/introductions.py), before anything of its first dump is held. That a dump goes on of which
frames are held is written once an hour, and of so many dumps of a host as limits.py says; what has no entry is counted by the next
one. So a host that comes again and again cannot fill its log. A restart forgets what was counted.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock

from securecore import limits
from securecore.audit.entry import resumed_entry
from securecore.audit.introductions import Introduction
from securecore.audit.log import HostLogs
from securecore.errors import SecurecoreError
from securecore.names import DumpId, HostName
from securecore.store.writer import IncomingDump


class _Resumptions:
    """Those of one host."""

    def __init__(self) -> None:
        self.noted_at: dict[DumpId, float] = {}
        self.others = 0
        """How many had no entry since the last one."""


class Arrivals:
    """Writes into hosts' audit logs what comes. Safe for use by several threads."""

    def __init__(self, logs: HostLogs, clock: Callable[[], datetime], ticks: Callable[[], float] = time.monotonic) -> None:
        """*ticks* gives seconds of which only differences count."""
        self._logs = logs
        self._clock = clock
        self._ticks = ticks
        self._lock = Lock()
        self._hosts: dict[HostName, _Resumptions] = {}

    def note(self, dump: IncomingDump, certificate: bytes) -> None:
        """Make durable what there is to say of a dump that a session has opened under a host's certificate (DER).

        Raises BrokenError and StorageError when the log takes no entry: then nothing is to be taken either.
        """
        host, moment = dump.host, self._clock().astimezone(UTC)
        others = self._claim_entry(host, dump.dump_id) if dump.frames else None
        said = [resumed_entry(moment, dump.dump_id, host, frames=dump.frames, others=others)] if others is not None else []
        try:
            with self._logs.using(host) as audit:
                audit.append_all(said, Introduction(host, dump.dump_id, certificate, moment))
        except SecurecoreError:
            if others is not None:
                self._give_back_entry(host, dump.dump_id, others)
            raise

    def _claim_entry(self, host: HostName, dump_id: DumpId) -> int | None:
        """Return how many resumptions an entry of this one is to count beside its own; None when it is to have none."""
        now = self._ticks()
        with self._lock:
            found = self._hosts.setdefault(host, _Resumptions())
            found.noted_at = {each: at for each, at in found.noted_at.items() if now - at < limits.RESUMED_ENTRY_EVERY_S}
            if dump_id in found.noted_at or len(found.noted_at) >= limits.MAX_RESUMED_ENTRIES:
                found.others += 1
                return None
            found.noted_at[dump_id] = now
            others, found.others = found.others, 0
            return others

    def _give_back_entry(self, host: HostName, dump_id: DumpId, others: int) -> None:
        with self._lock:
            self._hosts[host].noted_at.pop(dump_id, None)
            self._hosts[host].others += others
