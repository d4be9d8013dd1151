"""The thread that looks after dumps that nobody sends any more: what is old enough is published as incomplete.

A dump whose manifest or receipt is durable needs nothing from its sender: where the disk refused the rest, it is finished here.

A dump that a session has is left alone, and so is one whose sender opens it while it is looked at: the walk over its frames ends
before the next one. What stands in the way of one dump is logged, and the others are dealt with.
"""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from securecore import limits
from securecore.dump import directory
from securecore.errors import BrokenError, BusyError, NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName
from securecore.receiver.abandonment import Abandonment
from securecore.receiver.commit import Committer
from securecore.receiver.observer import quoted
from securecore.receiver.presence import Presence
from securecore.store.layout import Store
from securecore.store.reading import CORE, MANIFEST, RECEIPT, REPORT, DumpFiles
from securecore.store.recovery import discard_unacknowledged
from securecore.store.writer import IncomingDump

_LOOKS: Final = 12
"""A dump waits for a twelfth of the time longer than it has to, where that is less than an hour."""

log = logging.getLogger("securecore.receiver")


class Caretaker:
    """Gives up dumps whose last frame is older than *after*: with ``start`` in a thread of its own, until ``stop``."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        abandonment: Abandonment,
        presence: Presence,
        after: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._committer = committer
        self._abandonment = abandonment
        self._presence = presence
        self._after = after
        self._clock = clock
        self._damaged: set[tuple[HostName, DumpId, datetime]] = set()
        """What needs a person, as of its last frame's time: not to be read from end to end, and told, at every look."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)

    def start(self) -> None:
        """Look at once, and from then on every hour or more often."""
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end, before the next frame that it would look at."""
        self._stopping.set()

    def has_ended(self, timeout_s: float) -> bool:
        """Return whether the thread has ended, after waiting for it so long."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def look(self) -> None:
        """Deal with every dump that is coming in and old enough; what one of them meets is logged."""
        try:
            incoming = self._store.incoming()
        except SecurecoreError as error:
            log.error("caretaker cannot look: %s", quoted(error.message))
            return
        for host, dump_id in incoming:
            if self._stopping.is_set():
                return
            try:
                self._consider(host, dump_id)
            except (BusyError, NotFoundError):
                continue  # Its sender is here, or it was published or removed since it was listed.
            except SecurecoreError as error:
                log.error("cannot give up host=%s dump=%s error=%s", host, dump_id, quoted(error.message))

    def _run(self) -> None:
        interval_s = min(limits.CARETAKER_EVERY_S, self._after.total_seconds() / _LOOKS)
        self.look()
        while not self._stopping.wait(interval_s):
            self.look()

    def _consider(self, host: HostName, dump_id: DumpId) -> None:
        with self._store.open_dump(host, dump_id) as files:
            if not (self._is_old(files) or _is_finished(files)):
                return
        sender_is_back = threading.Event()

        def check() -> None:
            if sender_is_back.is_set() or self._stopping.is_set():
                raise BusyError("somebody else wants this dump, or its receiver's end")

        with self._presence.claim_idle(host, dump_id, sender_is_back.set):
            with self._store.open_dump(host, dump_id) as files:  # A session may have come and gone.
                if files.is_published:
                    return
                is_old, is_finished = self._is_old(files), _is_finished(files)
                names = directory.names_in(files.fd)
                last_at = datetime.fromtimestamp(files.last_frame_at(), UTC)
            if (host, dump_id, last_at) in self._damaged or not (is_old or is_finished):
                return
            if REPORT in names and CORE not in names:
                self._note_damaged(host, dump_id, last_at, f"{CORE} is missing")
            elif is_finished:
                self._finish(host, dump_id, last_at, check)
            elif REPORT not in names:
                discard_unacknowledged(self._store, host, dump_id)
                log.info("removed host=%s dump=%s why='nothing of it was acknowledged'", host, dump_id)
            else:
                self._give_up(host, dump_id, last_at, check)

    def _finish(self, host: HostName, dump_id: DumpId, last_at: datetime, check: Callable[[], None]) -> None:
        try:
            self._committer.finish_interrupted(host, dump_id, check)
        except BrokenError as error:
            self._note_damaged(host, dump_id, last_at, error.message)
            return
        log.info("finished host=%s dump=%s", host, dump_id)

    def _note_damaged(self, host: HostName, dump_id: DumpId, last_at: datetime, words: str) -> None:
        self._damaged.add((host, dump_id, last_at))
        log.error("cannot finish host=%s dump=%s error=%s", host, dump_id, quoted(words))

    def _give_up(self, host: HostName, dump_id: DumpId, last_at: datetime, check: Callable[[], None]) -> None:
        self._abandonment.check(host)
        dump = IncomingDump.resume(self._store, host, dump_id, between=check)
        try:
            check()
            self._abandonment.give_up(dump, last_at)
        finally:
            dump.close()
        log.warning(
            "incomplete host=%s dump=%s frames=%d size=%d last=%s",
            host, dump_id, dump.frames, dump.plain_bytes, last_at.isoformat(timespec="seconds"),
        )  # fmt: skip

    def _is_old(self, files: DumpFiles) -> bool:
        return self._clock().timestamp() - files.last_frame_at() > self._after.total_seconds()


def _is_finished(files: DumpFiles) -> bool:
    """Whether nothing is missing but what the receiver itself does; without its report it holds nothing that counts."""
    names = directory.names_in(files.fd)
    return REPORT in names and (MANIFEST in names or RECEIPT in names)
