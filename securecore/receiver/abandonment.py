"""Giving a dump up whose sender does not come back, and taking that back when it does.

1. The frames are walked, and what follows the last whole one is cut off; the seek table is appended: durable.
2. The ``incomplete`` audit entry, then the checkpoint over it: durable.
3. The receipt, which proves that entry, into the dump's directory: durable.
4. The directory is moved among the published ones: durable. It has no manifest.

A crash before step 3 leaves a dump that is coming in as far as anybody can see; it is old, so it is given up again, and the entry
that is there already is used when it names these frames and as much that damage has cut off. A crash after it leaves a dump with a
receipt, which the next start moves.

When the sender opens the dump again, the directory is moved back and the receipt removed (store/recovery.py), each durable before
the next, and only then the seek table is cut off. The log keeps what it said; a later entry says more.

A dump whose frames are no longer those of its entry was damaged since. It stays as it is, with the frames behind the damage:
resuming would cut those off, though they were acknowledged. Its sender is refused and keeps what it has, until a person has looked.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256

from securecore.audit.entry import INCOMPLETE, Held, incomplete_entry
from securecore.audit.log import HostLogs
from securecore.errors import BrokenError, PeerError
from securecore.names import DumpId, HostName
from securecore.report import parse_report
from securecore.store.growing_core import GrowingCore
from securecore.store.layout import Store
from securecore.store.recovery import take_back
from securecore.store.writer import IncomingDump

log = logging.getLogger("securecore.receiver")


class Abandonment:
    """Gives dumps up and takes them back; for several threads at once.

    The caller holds the store's lock, and has claimed the dump.
    """

    def __init__(self, store: Store, logs: HostLogs, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._logs = logs
        self._clock = clock

    def check(self, host: HostName) -> None:
        """Check that the host's log takes entries; raises BrokenError and StorageError.

        For before a dump is walked: what cannot be given up must not be read from end to end every hour.
        """
        with self._logs.using(host):
            pass

    def give_up(self, dump: IncomingDump, last_at: datetime) -> None:
        """Do the rest of step 1 and steps 2 to 4 for a dump that was resumed; *last_at* is when its last frame came.

        Not checked: what check does.
        """
        dump.give_up()
        damaged_bytes = dump.remains_bytes
        with self._logs.using(dump.host) as audit:
            standing = audit.standing(dump.dump_id)
            # The same frames with more damage are another thing to say: what came in between, and was acknowledged, is lost.
            said = (standing.event, standing.digest, standing.damaged_bytes) if standing is not None else None
            if standing is not None and said == (INCOMPLETE, dump.root, damaged_bytes):
                receipt = audit.receipt_for(standing.index)
            else:
                receipt = audit.append(self._entry(dump, last_at, damaged_bytes))
        dump.put_receipt(receipt)
        dump.publish()

    def revoke(self, host: HostName, dump_id: DumpId, report: bytes, between: Callable[[], None] = lambda: None) -> None:
        """Take a dump back that was given up, because its sender opens it again with *report*; nothing happens to any other dump.

        Raises PeerError when the dump began with another report, BrokenError when a dump under incoming has a receipt and no
        manifest and was not given up by the log, and when the frames are not those of the log's entry: then nothing is changed.
        (A published dump that was received and has lost its manifest keeps its receipt.) *between* is called before each frame that
        is read again; what it raises ends that, and changes nothing.
        """
        if self._store.find_place(host, dump_id) is None:
            return
        with self._store.open_dump(host, dump_id) as files:
            if files.read_manifest() is not None or files.read_receipt() is None:
                return
            stored_report, is_published = files.read_report(), files.is_published
        with self._logs.using(host) as audit:
            standing = audit.standing(dump_id)
        if standing is None or standing.event != INCOMPLETE:
            if is_published:
                return
            raise BrokenError(f"dump {dump_id} has a receipt and no manifest, and was not given up by the audit log")
        if report != stored_report:
            raise PeerError(f"dump {dump_id} was begun with another report")
        if self._root_of(host, dump_id, between) != standing.digest:
            raise BrokenError(f"dump {dump_id} was given up, and its frames are damaged since: it is not taken back")
        take_back(self._store, host, dump_id)
        log.info("returned host=%s dump=%s", host, dump_id)

    def _root_of(self, host: HostName, dump_id: DumpId, between: Callable[[], None]) -> bytes:
        with self._store.open_dump(host, dump_id) as files:
            core = GrowingCore(files.open_core(), f"dump {dump_id}")
        try:
            core.walk(between)
            return core.frontier.root()
        finally:
            core.close()

    def _entry(self, dump: IncomingDump, last_at: datetime, damaged_bytes: int) -> bytes:
        stored_report = dump.read_report()
        report = parse_report(stored_report)
        held = Held(dump.frames, dump.plain_bytes, dump.root, sha256(stored_report).digest(), dump.container_bytes)
        return incomplete_entry(
            self._clock().astimezone(UTC),
            dump.dump_id,
            dump.host,
            self._store.store_id,
            held,
            last_at=last_at,
            program=report.program,
            signal=report.signal,
            damaged_bytes=damaged_bytes,
            wide_head=self._logs.find_wide_head(),
        )
