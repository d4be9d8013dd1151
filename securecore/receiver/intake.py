"""How a dump that a sender offers is opened: taken back if it was given up, else resumed or begun; its damage and arrival said.

What the disk has damaged of it is kept beside the core, and may need as much room again (store/remains.py). Where that would take
the store's file system below its floor, the dump is refused. Its sender comes again and again, and each try reads the dump from end
to end: so how much room it lacks is remembered, and it is not looked at again before there is as much, as long as its files are the
same. (The caretaker may have mended it, or given it up, since; somebody may have put its core back.) A restart forgets it.
"""

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

from securecore import limits
from securecore.errors import NotFoundError, SecurecoreError, StorageError
from securecore.names import DumpId, HostName
from securecore.receiver.abandonment import Abandonment
from securecore.receiver.arrivals import Arrivals
from securecore.receiver.observer import note_damage
from securecore.receiver.refusals import NotAdmitted
from securecore.store.layout import Place, Store
from securecore.store.reading import Mark
from securecore.store.recovery import open_incoming
from securecore.store.remains import NoRoomForRemains, check_room_for_remains
from securecore.store.writer import IncomingDump
from securecore.wire.messages import Refusal


class _Lack(NamedTuple):
    """What a dump was refused for."""

    needed_bytes: int
    mark: Mark | None
    """Of the dump as it was then."""


class Intake:
    """Opens dumps for sessions; for several threads at once. The caller has claimed the dump."""

    def __init__(self, store: Store, abandonment: Abandonment, arrivals: Arrivals) -> None:
        self._store = store
        self._abandonment = abandonment
        self._arrivals = arrivals
        self._lock = Lock()
        self._lacking: dict[tuple[HostName, DumpId], _Lack] = {}
        """The room that each of them needs."""

    def open(
        self, host: HostName, dump_id: DumpId, report: bytes, certificate: bytes, between: Callable[[], None]
    ) -> IncomingDump:
        """Return a dump with all that is held of it; *between* is called before each frame that is read again.

        *certificate* is the one (DER) that the session was opened with. Raises NotAdmitted where there is no room for what is
        damaged of it; otherwise as Abandonment.revoke, open_incoming and Arrivals.note do.
        """
        key = (host, dump_id)
        with self._lock:
            lack = self._lacking.get(key)
        try:
            if lack is not None and lack.mark is not None and lack.mark == self._find_mark(host, dump_id):
                check_room_for_remains(self._store, dump_id, lack.needed_bytes)
            self._abandonment.revoke(host, dump_id, report, between)
            dump = open_incoming(self._store, host, dump_id, report, between)
        except NoRoomForRemains as error:
            self._note(key, _Lack(error.needed_bytes, self._find_mark(host, dump_id)))
            told = "the receiver's disk has damaged this dump, and has no room to keep that; vacuum or a larger disk makes room"
            raise NotAdmitted(Refusal.STORAGE, error.message, told=told, retry_after_s=limits.FLOOR_RETRY_AFTER_S) from error
        with self._lock:
            self._lacking.pop(key, None)
        note_damage(dump)
        try:
            if not dump.has_manifest:
                self._arrivals.note(dump, certificate)
        except SecurecoreError:
            let_go(dump)
            raise
        return dump

    def _find_mark(self, host: HostName, dump_id: DumpId) -> Mark | None:
        """Return the dump's mark; None where it is not coming in, or cannot be looked at: then it is tried in full."""
        try:
            if self._store.find_place(host, dump_id) is not Place.INCOMING:
                return None
            with self._store.open_dump(host, dump_id) as files:
                return None if files.is_published else files.mark()
        except (StorageError, NotFoundError):
            return None

    def _note(self, key: tuple[HostName, DumpId], lack: _Lack) -> None:
        with self._lock:
            if len(self._lacking) >= limits.MAX_LACKING:
                self._lacking.clear()
            self._lacking[key] = lack


def let_go(dump: IncomingDump) -> None:
    """Close a dump. Of what nobody was promised nothing is left: its sender has all of it, and nothing would be resumed."""
    if not dump.has_report:
        with suppress(StorageError):
            dump.discard()
    dump.close()
