"""The thread that looks after dumps that nobody sends any more: what is old enough is published as incomplete.

A dump whose manifest or receipt is durable needs nothing from its sender: where the disk refused the rest, it is finished here. So
is a deletion that the disk has interrupted, also as soon as another deletion may have made room. What the disk goes on to refuse is
tried less and less often: each try reads the whole dump.

A dump that a session has is left alone, and so is one whose sender opens it while it is looked at: the walk over its frames ends
before the next one. What stands in the way of one dump is logged, and the others are dealt with.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

from securecore import limits
from securecore.dump import directory
from securecore.errors import BrokenError, BusyError, NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName
from securecore.receiver.abandonment import Abandonment
from securecore.receiver.commit import Committer
from securecore.receiver.observer import note_damage, quoted, words_of
from securecore.receiver.presence import Presence
from securecore.receiver.retries import Retries
from securecore.receiver.rounds import Rounds
from securecore.store.layout import Store
from securecore.store.reading import CORE, MANIFEST, RECEIPT, REPORT, DumpFiles, Mark
from securecore.store.recovery import discard_unacknowledged
from securecore.store.writer import IncomingDump

_LOOKS: Final = 12
"""A dump waits for a twelfth of the time longer than it has to, where that is less than an hour."""

log = logging.getLogger("securecore.receiver")


class Caretaker(Rounds):
    """Gives up dumps whose last frame is older than *after*: at once, and from then on every hour or more often.

    ``stop`` ends it before the next frame that it would look at.
    """

    def __init__(
        self,
        store: Store,
        committer: Committer,
        abandonment: Abandonment,
        presence: Presence,
        after: timedelta,
        clock: Callable[[], datetime],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """*on_end* is as Rounds has it."""
        every_s = min(limits.CARETAKER_EVERY_S, after.total_seconds() / _LOOKS)
        super().__init__("caretaker", every_s, on_end, looks_at_once=True)
        self._store = store
        self._committer = committer
        self._abandonment = abandonment
        self._presence = presence
        self._after = after
        self._clock = clock
        self._retries: Retries[tuple[HostName, DumpId]] = Retries()
        self._damaged: dict[tuple[HostName, DumpId], Mark] = {}
        """What needs a person, as it was then: not to be read from end to end, and told, at every look."""

    def look(self) -> None:
        """Deal with every deletion that was interrupted, then with every dump that is coming in and old enough.

        What one of them meets is logged.
        """
        try:
            deleting, incoming = self._store.deleting(), self._store.incoming()
        except (SecurecoreError, OSError) as error:
            log.error("caretaker cannot look: %s", words_of(error))
            return
        self._retries.begin_look({*deleting, *incoming})
        self._try_each("delete", filter(self._retries.is_due, deleting), self._settle)
        self._try_each("give up", filter(self._retries.is_due, incoming), self._consider)

    def answer(self) -> None:
        """Deal with every deletion that was interrupted, due or not: somebody has deleted another dump."""
        try:
            deleting = self._store.deleting()
        except (SecurecoreError, OSError):
            return  # The next look says so.
        self._try_each("delete", deleting, self._settle)

    def _try_each(self, what: str, dumps: Iterable[tuple[HostName, DumpId]], act: Callable[[HostName, DumpId], None]) -> None:
        for host, dump_id in dumps:
            if self._stopping.is_set():
                return
            try:
                act(host, dump_id)
            except (BusyError, NotFoundError):
                continue  # Its sender is here, or it was published or removed since it was listed.
            except (SecurecoreError, OSError) as error:
                log.error("cannot %s host=%s dump=%s error=%s", what, host, dump_id, words_of(error))

    def _settle(self, host: HostName, dump_id: DumpId) -> None:
        # Whoever deletes has the dump claimed, from before it is set aside until all is done.
        with self._presence.claim_idle(host, dump_id, lambda: None), self._retries.trying((host, dump_id)):
            is_deleted = self._committer.settle_deletion(host, dump_id)
        if is_deleted:
            log.info("removed host=%s dump=%s why='it was deleted'", host, dump_id)
        else:
            log.info("restored host=%s dump=%s", host, dump_id)

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
                mark, last_at = files.mark(), files.last_frame_at()
            if self._damaged.get((host, dump_id)) == mark or not (is_old or is_finished):
                return
            if REPORT in names and CORE not in names:
                self._note_damaged(host, dump_id, mark, f"{CORE} is missing")
            elif is_finished:
                self._finish(host, dump_id, mark, check)
            elif REPORT not in names:
                discard_unacknowledged(self._store, host, dump_id)
                log.info("removed host=%s dump=%s why='nothing of it was acknowledged'", host, dump_id)
            else:
                self._give_up(host, dump_id, last_at, check)

    def _finish(self, host: HostName, dump_id: DumpId, mark: Mark, check: Callable[[], None]) -> None:
        # What is wrong with the host's log is none of this dump's fault.
        self._abandonment.check(host)
        try:
            with self._retries.trying((host, dump_id)):
                self._committer.finish_interrupted(host, dump_id, check)
        except BrokenError as error:
            self._note_damaged(host, dump_id, mark, error.message)
            return
        log.info("finished host=%s dump=%s", host, dump_id)

    def _note_damaged(self, host: HostName, dump_id: DumpId, mark: Mark, words: str) -> None:
        self._damaged[host, dump_id] = mark
        log.error("cannot finish host=%s dump=%s error=%s", host, dump_id, quoted(words))

    def _give_up(self, host: HostName, dump_id: DumpId, last_at: datetime, check: Callable[[], None]) -> None:
        self._abandonment.check(host)
        with self._retries.trying((host, dump_id)):
            dump = IncomingDump.resume(self._store, host, dump_id, between=check)
            try:
                note_damage(dump)
                check()
                self._abandonment.give_up(dump, last_at)
            finally:
                dump.close()
        log.warning(
            "incomplete host=%s dump=%s frames=%d size=%d last=%s",
            host, dump_id, dump.frames, dump.plain_bytes, last_at.isoformat(timespec="seconds"),
        )  # fmt: skip

    def _is_old(self, files: DumpFiles) -> bool:
        # A time that lies as far ahead is a clock's that went astray, or a backup's: waiting for it would be waiting for ever.
        return abs(self._clock() - files.last_frame_at()) > self._after


def _is_finished(files: DumpFiles) -> bool:
    """Whether nothing is missing but what the receiver itself does; without its report it holds nothing that counts."""
    names = directory.names_in(files.fd)
    return REPORT in names and (MANIFEST in names or RECEIPT in names)
