"""Moving a dump's directory: published, taken back, set aside to be deleted, put back."""

import os

from securecore.dump import directory
from securecore.errors import StorageError
from securecore.names import DumpId, HostName
from securecore.store.layout import Place, Store


def move_dump(store: Store, host: HostName, dump_id: DumpId, source: Place, target: Place) -> None:
    """Move a dump from *source* to *target*, durably in both and never replacing anything; raises StorageError.

    The new name is made durable before the old one is known to be gone, so that no power cut leaves the dump in neither.
    """
    with store.changing(host, dump_id, source, target):
        _move(store, host, dump_id, source, target)


def _move(store: Store, host: HostName, dump_id: DumpId, source: Place, target: Place) -> None:
    what = f"cannot move dump {dump_id} to {target.value}"
    source_fd = store.host_directory(source, host)
    try:
        target_fd = store.host_directory(target, host)
        try:
            rename_dump(dump_id, source_fd, target_fd, what)
            directory.sync(target_fd)
        finally:
            os.close(target_fd)
        directory.sync(source_fd)
    finally:
        os.close(source_fd)


def rename_dump(dump_id: DumpId, source_fd: int, target_fd: int, what: str) -> None:
    """Move a dump from one host's directory to another, replacing nothing and not durably yet; raises StorageError for *what*."""
    if directory.exists(str(dump_id), target_fd, what):
        raise StorageError(f"{what}: one of that name is there")
    try:
        # A directory never replaces a file, a link or a directory that holds something: rename(2).
        os.rename(str(dump_id), str(dump_id), src_dir_fd=source_fd, dst_dir_fd=target_fd)
    except OSError as error:
        raise directory.disk_refused(error, what) from error
