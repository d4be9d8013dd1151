"""Removing dumps: one that is coming in, and one that its operator deletes, whose tombstone is its host's audit log.

A deletion must not be half done for anybody who looks: the dump is first moved out of every reader's sight, under ``deleting``;
then the log says so, which is the caller's part; then its files go. A crash between these steps leaves a dump under ``deleting``,
and the log says whether it is to be purged or put back.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from securecore.dump import directory
from securecore.errors import BusyError, NotFoundError, StorageError
from securecore.names import DumpId, HostName
from securecore.store.layout import Place, Store
from securecore.store.reading import CORE, RECEIPT, REPORT
from securecore.store.relocation import move_dump


def remove_incoming(store: Store, host: HostName, dump_id: DumpId) -> None:
    """Remove the directory of an incoming dump and the files in it."""
    with store.changing(host, dump_id, Place.INCOMING, None):
        _remove(store, Place.INCOMING, host, dump_id)


def set_aside(store: Store, host: HostName, dump_id: DumpId) -> None:
    """Move a dump, published or coming in, out of every reader's sight, durably.

    Raises NotFoundError when there is none, BusyError while a session writes it, StorageError when the disk refuses, and where
    somebody has put a directory among its files.
    """
    place = store.find_place(host, dump_id)
    if place is None:
        raise NotFoundError(f"no dump {dump_id} of {host} in {store.path}")
    with store.open_dump(host, dump_id) as files, kept_from_writers(dump_id, files.fd):
        check_files(dump_id, files.fd)
        move_dump(store, host, dump_id, place, Place.DELETING)


def check_files(dump_id: DumpId, dump_fd: int) -> None:
    """Check that nothing among a dump's files will stop their removal; raises StorageError.

    We make no directory there, and remove none that is not ours. That is said while the dump can be seen: once the log says that it
    is deleted, what could not be removed takes room out of everybody's sight.
    """
    try:
        with os.scandir(dump_fd) as entries:
            stranger = next((entry.name for entry in entries if entry.is_dir(follow_symlinks=False)), None)
    except OSError as error:
        raise directory.disk_refused(error, f"cannot look at dump {dump_id}") from error
    if stranger is not None:
        hint = "it is not securecore's: look what it is, and take it out of the dump's directory"
        raise StorageError(f"dump {dump_id} cannot be removed: {stranger[:100]!a} in it is a directory", hint=hint)


@contextmanager
def kept_from_writers(dump_id: DumpId, dump_fd: int) -> Iterator[None]:
    """Keep sessions from a dump, open through its directory, while the block runs; raises BusyError while one writes it.

    Raises StorageError where the file system cannot say (no locks left, a device that fails).
    """
    core = directory.open_file(CORE, dump_fd)
    try:
        if core is not None:
            # Whoever writes a dump holds this lock; while it is ours, nobody can begin to.
            try:
                fcntl.flock(core, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                hint = "wait until its sender has finished, or has gone"
                raise BusyError(f"dump {dump_id} is being written", hint=hint) from error
            except OSError as error:
                raise directory.disk_refused(error, f"cannot lock dump {dump_id}") from error
        yield
    finally:
        if core is not None:
            os.close(core)


def put_back(store: Store, host: HostName, dump_id: DumpId) -> None:
    """Undo set_aside, durably: a dump with a receipt goes to the published ones, any other to those that are coming in."""
    names = _names(store, host, dump_id)
    move_dump(store, host, dump_id, Place.DELETING, Place.HOSTS if RECEIPT in names else Place.INCOMING)


def purge(store: Store, host: HostName, dump_id: DumpId) -> None:
    """Remove the files of a dump that was set aside, and its directory, durably."""
    _remove(store, Place.DELETING, host, dump_id)


def _names(store: Store, host: HostName, dump_id: DumpId) -> list[str]:
    host_fd = store.host_directory(Place.DELETING, host)
    try:
        fd = directory.open_directory(str(dump_id), host_fd)
    finally:
        os.close(host_fd)
    if fd is None:
        raise NotFoundError(f"no dump {dump_id} of {host} was set aside")
    try:
        return directory.names_in(fd)
    finally:
        os.close(fd)


def _remove(store: Store, place: Place, host: HostName, dump_id: DumpId) -> None:
    host_fd = store.host_directory(place, host)
    try:
        remove_directory(dump_id, host_fd)
        directory.sync(host_fd)
    finally:
        os.close(host_fd)


def remove_directory(dump_id: DumpId, host_fd: int) -> None:
    """Remove a dump's files and its directory from a host's, where they are there, not durably yet; raises StorageError."""
    fd = directory.open_directory(str(dump_id), host_fd)
    if fd is None:
        return
    try:
        for name in sorted(directory.names_in(fd), key=_removal_order):
            directory.remove_file(name, fd)
    finally:
        os.close(fd)
    try:
        os.rmdir(str(dump_id), dir_fd=host_fd)
    except OSError as error:
        raise directory.disk_refused(error, f"cannot remove dump {dump_id}") from error


def _removal_order(name: str) -> int:
    """The report goes first: a removal that a crash interrupts then leaves a directory that the next start removes."""
    return 0 if name == REPORT else 1
