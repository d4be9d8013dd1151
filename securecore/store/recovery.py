"""What to do with a dump that is found under incoming: when its sender opens it again, at start-up, and when nobody comes back."""

import fcntl
import os
from collections.abc import Callable
from typing import NamedTuple

from securecore.dump import directory
from securecore.errors import BrokenError, BusyError, NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName
from securecore.store.layout import Place, Store
from securecore.store.reading import CORE, MANIFEST, RECEIPT, REPORT
from securecore.store.relocation import move_dump
from securecore.store.removal import remove_incoming
from securecore.store.writer import IncomingDump


def open_incoming(
    store: Store, host: HostName, dump_id: DumpId, report: bytes, between: Callable[[], None] = lambda: None
) -> IncomingDump:
    """Return the dump that a sender opens: resumed where something of it is there, else begun.

    Calls *between*, and raises AlreadyStored, PeerError, BusyError and NoRoomForRemains, as resume does. What is there but was
    never acknowledged is thrown away first.
    """
    if store.find_place(host, dump_id) is not None:
        try:
            return IncomingDump.resume(store, host, dump_id, report, between=between)
        except NotFoundError:
            discard_unacknowledged(store, host, dump_id)
    return IncomingDump.begin(store, host, dump_id, report)


class Leftovers(NamedTuple):
    """What a start found under incoming."""

    finished: list[tuple[HostName, DumpId]]
    """Dumps with a manifest: resume each and do the rest of the commit."""
    given_up: list[tuple[HostName, DumpId]]
    """Dumps with a receipt and no manifest: resume each and publish it. (Or their senders came back when the crash came; then they
    come again.)"""
    partial: list[tuple[HostName, DumpId]]
    """Dumps whose sender may come back."""
    removed: list[tuple[HostName, DumpId]]
    """Directories that held nothing that was ever acknowledged; they are gone."""
    stuck: list[tuple[HostName, DumpId, SecurecoreError]]
    """What no crash leaves: published as well, without its core, or with strangers among its files. For a person to look at."""


def sweep_incoming(store: Store) -> Leftovers:
    """Sort what an earlier process left under incoming; for start-up, while the store's lock is held and no session runs.

    One dump that cannot be dealt with does not keep the others from it; raises StorageError when the directories cannot be listed.
    """
    leftovers = Leftovers([], [], [], [], [])
    for host, dump_id in store.incoming():
        try:
            if store.find_place(host, dump_id) is Place.HOSTS:
                raise BrokenError(f"dump {dump_id} of {host} is both published and coming in", hint="move one of the two away")
            with store.open_dump(host, dump_id) as files:
                names = directory.names_in(files.fd)
            if REPORT not in names:
                discard_unacknowledged(store, host, dump_id)
                leftovers.removed.append((host, dump_id))
            elif CORE not in names:
                raise BrokenError(f"dump {dump_id}: {CORE} is missing")
            elif MANIFEST in names:
                leftovers.finished.append((host, dump_id))
            elif RECEIPT in names:
                leftovers.given_up.append((host, dump_id))
            else:
                leftovers.partial.append((host, dump_id))
        except SecurecoreError as error:
            leftovers.stuck.append((host, dump_id, error))
    return leftovers


def take_back(store: Store, host: HostName, dump_id: DumpId) -> None:
    """Make a dump that was given up one that is coming in again, durably: under incoming, without its receipt, open for resume.

    The caller keeps others from the dump, and knows that it was given up. A crash in between leaves a dump with a receipt under
    incoming, which the next start publishes again. The seek table stays: without a receipt it is a torn end.
    """
    if store.find_place(host, dump_id) is Place.HOSTS:
        move_dump(store, host, dump_id, Place.HOSTS, Place.INCOMING)
    with store.open_dump(host, dump_id) as files:
        directory.remove_file(RECEIPT, files.fd)
        # Before the core changes: a receipt that a power cut brought back would vouch for another one.
        directory.sync(files.fd)


def discard_unacknowledged(store: Store, host: HostName, dump_id: DumpId) -> None:
    """Remove a dump that has no report; raises BusyError while a session writes it."""
    with store.open_dump(host, dump_id) as files:
        core = directory.open_file(CORE, files.fd, append=True)
    if core is not None:
        try:
            fcntl.flock(core, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(f"dump {dump_id} is being written by another session") from error
        finally:
            os.close(core)
    remove_incoming(store, host, dump_id)
