"""Deleting many of one host's published dumps: the steps of removal.py, each for all of them with as many fsyncs as for one.

Between the two steps stands the audit log, as it does there: what was set aside and has its entry is purged, the rest put back.
"""

import os
from collections.abc import Iterable

from securecore.dump import directory
from securecore.errors import NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName
from securecore.store.layout import Place, Store
from securecore.store.relocation import rename_dump
from securecore.store.removal import check_files, kept_from_writers, remove_directory


def set_aside_all(store: Store, host: HostName, dump_ids: Iterable[DumpId]) -> dict[DumpId, SecurecoreError]:
    """Move published dumps out of every reader's sight, durably; return those that stay, each with why.

    NotFoundError for what is not published, or no more: one that was given up and is coming in again is not touched. BusyError for
    what a session is about to write, StorageError where somebody has put a directory among its files. Raises StorageError when
    nobody knows what is durable; store.deleting() has what was moved.
    """
    staying: dict[DumpId, SecurecoreError] = {}
    source_fd = store.host_directory(Place.HOSTS, host)
    try:
        target_fd = store.host_directory(Place.DELETING, host)
        try:
            for dump_id in dump_ids:
                try:
                    with store.changing(host, dump_id, Place.HOSTS, Place.DELETING):
                        _set_aside(dump_id, source_fd, target_fd)
                except SecurecoreError as error:
                    staying[dump_id] = error
            directory.sync(target_fd)  # The new names before the old ones, as move_dump has it.
        finally:
            os.close(target_fd)
        directory.sync(source_fd)
    finally:
        os.close(source_fd)
    return staying


def purge_all(store: Store, host: HostName, dump_ids: Iterable[DumpId]) -> dict[DumpId, SecurecoreError]:
    """Remove the files of dumps that were set aside, durably; return those whose files are not all gone, each with why."""
    left: dict[DumpId, SecurecoreError] = {}
    host_fd = store.host_directory(Place.DELETING, host)
    try:
        for dump_id in dump_ids:
            try:
                remove_directory(dump_id, host_fd)
            except SecurecoreError as error:
                left[dump_id] = error
        directory.sync(host_fd)
    finally:
        os.close(host_fd)
    return left


def _set_aside(dump_id: DumpId, source_fd: int, target_fd: int) -> None:
    fd = directory.open_directory(str(dump_id), source_fd)
    if fd is None:
        raise NotFoundError(f"dump {dump_id} is not published any more")
    try:
        with kept_from_writers(dump_id, fd):
            check_files(dump_id, fd)
            rename_dump(dump_id, source_fd, target_fd, f"cannot move dump {dump_id} to {Place.DELETING.value}")
    finally:
        os.close(fd)
