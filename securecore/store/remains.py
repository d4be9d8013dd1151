"""What stands behind a damaged frame of a dump that is coming in: kept beside the core before it is cut off there.

Nobody but this store may have it any more: a sender lets go of frames that were acknowledged, and a damaged one hides those behind
it from every walk. So the damaged frame and all that follows goes into a file of its own, for a person; the core goes on without.
"""

import os
from collections.abc import Callable

from securecore import limits, units
from securecore.dump import directory
from securecore.dump.reader import read_exactly
from securecore.errors import StorageError
from securecore.names import DumpId
from securecore.store.layout import Store
from securecore.store.reading import REMAINS, REMAINS_NAME
from securecore.store.usage import room_of


class NoRoomForRemains(StorageError):
    """What is damaged of a dump does not fit beside its core; ``needed_bytes`` would."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message, hint="vacuum or a larger disk makes room")
        self.needed_bytes = needed_bytes


def check_room_for_remains(store: Store, dump_id: DumpId, needed_bytes: int, written_bytes: int = 0) -> None:
    """Check that so much more leaves the store's file system above its floor; raises NoRoomForRemains, and StorageError.

    *written_bytes* of it are written already, and would be free again.
    """
    room = room_of(store)
    least, free_bytes = store.least_free(room.total_bytes), room.free_bytes + written_bytes
    if free_bytes - needed_bytes < least:
        free = f"{units.size(free_bytes)} left, and {units.size(least)} of it are to stay free"
        words = f"dump {dump_id} is damaged, and to keep what stands behind the damage takes {units.size(needed_bytes)}"
        raise NoRoomForRemains(f"{words}: the store's file system has {free}", needed_bytes)


def keep_remains(
    core: int,
    offset: int,
    dump_fd: int,
    between: Callable[[], None],
    check_room: Callable[[int, int], None] = lambda needed_bytes, written_bytes: None,
) -> None:
    """Copy what the core has from *offset* on into a new file in the dump's directory, durably; nothing of the core is changed.

    The files are numbered from 1 on. Where the last one is the same, a crash came before the core was cut, and it is not written
    again. *check_room* is called with the length of the copy and how much of it is written, before anything is and before each
    piece. *between* is called before each piece, too: what they raise, or the disk, leaves no file.
    """
    length = _size(core) - offset
    last = max((int(found[1]) for name in directory.names_in(dump_fd) if (found := REMAINS_NAME.fullmatch(name))), default=0)
    if last and _is_same(f"{REMAINS}-{last}", dump_fd, core, offset, length):
        return
    name = f"{REMAINS}-{last + 1}"
    aside = directory.aside_name(name)
    check_room(length, 0)
    copy = directory.create_file(aside, dump_fd)
    try:
        for at in range(offset, offset + length, limits.PIECE_BYTES):
            between()
            check_room(length, at - offset)  # Others write to the same disk meanwhile.
            directory.write_all(copy, read_exactly(core, at, min(limits.PIECE_BYTES, offset + length - at)))
        directory.sync(copy)
    except BaseException:
        directory.remove_file(aside, dump_fd)
        raise
    finally:
        os.close(copy)
    directory.link_into_place(aside, name, dump_fd)
    directory.sync(dump_fd)


def _is_same(name: str, dump_fd: int, core: int, offset: int, length: int) -> bool:
    fd = directory.open_file(name, dump_fd)
    if fd is None:
        return False
    try:
        if _size(fd) != length:
            return False
        parts = ((at, min(limits.PIECE_BYTES, length - at)) for at in range(0, length, limits.PIECE_BYTES))
        return all(read_exactly(fd, at, size) == read_exactly(core, offset + at, size) for at, size in parts)
    finally:
        os.close(fd)


def _size(fd: int) -> int:
    try:
        return os.fstat(fd).st_size
    except OSError as error:
        raise StorageError(f"cannot read the dump: {error.strerror}") from error
