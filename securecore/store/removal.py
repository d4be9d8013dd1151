"""Removing a dump that is still coming in. (Published dumps are removed by retention, which leaves a tombstone.)"""

import os

from securecore.dump import directory
from securecore.names import DumpId, HostName
from securecore.store.layout import Place, Store
from securecore.store.reading import REPORT


def remove_incoming(store: Store, host: HostName, dump_id: DumpId) -> None:
    """Remove the directory of an incoming dump and the files in it."""
    host_fd = store.host_directory(Place.INCOMING, host)
    try:
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
        directory.sync(host_fd)
    finally:
        os.close(host_fd)


def _removal_order(name: str) -> int:
    """The report goes first: a removal that a crash interrupts then leaves a directory that the next start removes."""
    return 0 if name == REPORT else 1
