"""One dump's entry in a spool: the frames that no receiver has, what they are a part of, and how their source ended."""

import os

from securecore import limits, plain_json
from securecore.declarations import Any, Final, NamedTuple
from securecore.dump import directory as files
from securecore.dump.container import FrameLengths
from securecore.dump.manifest import OUTCOMES
from securecore.dump.reader import DumpReader, open_frames, scan_frames
from securecore.errors import BrokenError, StorageError
from securecore.merkle import HASH_BYTES, Frontier, leaf_hash
from securecore.names import DumpId, NameRefused, StoreId
from securecore.sender.allocation import release
from securecore.sender.room import Room

_VERSION: Final = 1
_COUNT_MAX: Final = (1 << 63) - 1
"""Of bytes and milliseconds: what a manifest takes."""


class EntryStart(NamedTuple):
    """What an entry is a part of."""

    dump: DumpId
    started_at: int
    """Unix milliseconds."""
    store: StoreId | None
    """The store that holds the frames before *frontier*; None when there are none."""
    frontier: Frontier
    """The tree over the frames before the first one here; its size is that frame's number."""

    def encode(self) -> bytes:
        """Return entry.json."""
        return encode(
            {
                "version": _VERSION,
                "dump": str(self.dump),
                "started_at": self.started_at,
                "store": str(self.store) if self.store else None,
                "first_frame": self.frontier.size,
                "peaks": [peak.hex() for peak in self.frontier.peaks],
            }
        )


class EntryEnd(NamedTuple):
    """How the source ended."""

    size: int
    """Plaintext bytes of the whole dump."""
    predicted_size: int | None
    outcome: str
    ended_at: int
    """Unix milliseconds."""
    frames: int | None = None
    """Of the whole dump; None in an entry of an earlier version, as its root."""
    root: bytes | None = None
    """Merkle root over them: what a disk has changed since is not to be signed."""

    def encode(self) -> bytes:
        """Return end.json."""
        return encode(self._asdict() | {"root": self.root.hex() if self.root is not None else None})


class SpoolEntry:
    """One dump's entry, locked by this process."""

    def __init__(
        self,
        start: EntryStart,
        report: bytes,
        fd: int,
        core: int,
        room: Room | None = None,
        kept_bytes: int = 0,
        *,
        is_new: bool = False,
    ) -> None:
        """*room* is where an entry that grows takes its room, of which *kept_bytes* are kept for it already.

        Of one that *is_new* nothing is durable yet, not even its name.
        """
        self.start = start
        self.report = report
        self.stored_bytes = 0
        self._room, self._kept_bytes = room, kept_bytes
        self._fd = fd
        self._core = core
        self._is_new = is_new
        self._sync_failure: StorageError | None = None

    def keep_room(self, size: int) -> None:
        """Keep room for *size* bytes more; raises StorageError when quota, floor or disk have it not."""
        if self._room is not None:
            self._room.take_more(self._core, self.stored_bytes + size)
            self._kept_bytes = self.stored_bytes + size

    def keep_less(self, size: int) -> None:
        """Keep room for *size* bytes more at the most, where that frees a step: what is less is soon taken again.

        What the disk does not keep after all is taken as the entry grows.
        """
        most = self.stored_bytes + size
        if self._room is not None and self._kept_bytes > most + limits.SPOOL_STEP_BYTES:
            # Whatever fails from here on, nothing counts as kept that is not.
            self._kept_bytes = 0
            self._kept_bytes = self._room.take_less(self._core, most)

    def append(self, frame: bytes) -> None:
        """Keep one more frame; raises StorageError when there is no room for it or the disk refuses it.

        What was written of it is taken back.
        """
        length = self.stored_bytes + len(frame)
        if self._room is not None and self._room.bounds.is_bound and length > self._kept_bytes:
            self._kept_bytes = self._room.grow(self._core, length)
        try:
            files.write_all(self._core, frame)
        except (StorageError, MemoryError):
            try:
                os.ftruncate(self._core, self.stored_bytes)
            except OSError:
                pass  # A reader stops at a torn frame anyway.
            raise
        self.stored_bytes += len(frame)

    def finish(self, end: EntryEnd) -> None:
        """Make entry and frames durable, and then the statement that these are all; raises StorageError when the disk refuses.

        What was kept free for more of them is given back.

        What could not be made durable once never is: a second fsync(2) says nothing of pages that the first one has dropped.
        """
        if self._sync_failure is not None:
            raise self._sync_failure
        self._give_back()
        try:
            files.sync(self._core)
            if self._is_new:
                self._sync_start()
        except StorageError as error:
            self._sync_failure = error
            raise
        files.write_new_file("end.json", self._fd, end.encode())

    def end(self) -> EntryEnd | None:
        """Return how the source ended; None when a handler was killed before it knew."""
        data = files.read_file("end.json", self._fd, limits.MAX_REPORT_BYTES)
        return parse_end(self.start.dump, data) if data is not None else None

    def core_bytes(self) -> int:
        """Return the length of the core."""
        return os.fstat(self._core).st_size

    def reader(self) -> DumpReader:
        """Return a reader over the whole frames; a torn one at the end, of a handler that was killed, is left out."""
        return open_frames(self._core)[0]

    def read(self) -> tuple[DumpReader, list[bytes]]:
        """Return the same, and the frames' leaf hashes; all of the core is read for that."""
        lengths, leaves = FrameLengths(), []
        for scanned in scan_frames(self._core):
            lengths.add(len(scanned.data), scanned.plain)
            leaves.append(leaf_hash(scanned.data))
        return DumpReader(self._core, lengths), leaves

    def close(self) -> None:
        """Give up the lock, and what is kept free for more frames; may be called again."""
        self._give_back()
        for fd in (self._core, self._fd):
            if fd >= 0:
                os.close(fd)
        self._core = self._fd = -1

    def _sync_start(self) -> None:
        """Make durable what was written when the entry was begun: its files, their names, and its own."""
        for name in ("report.json", "entry.json"):
            fd = files.open_file(name, self._fd)
            if fd is None:
                raise StorageError(f"spool entry {self.start.dump.short} has lost its {name}")
            try:
                files.sync(fd)
            finally:
                os.close(fd)
        files.sync(self._fd)
        dumps = files.open_directory("..", self._fd)
        if dumps is None:
            raise StorageError(f"spool entry {self.start.dump.short} is in no directory any more")
        try:
            files.sync(dumps)
        finally:
            os.close(dumps)
        self._is_new = False

    def _give_back(self) -> None:
        if self._kept_bytes > self.stored_bytes:
            self._kept_bytes = 0
            try:
                release(self._core)
            except StorageError:
                pass  # A flush, or whoever needs the room, does it.


def parse_start(dump: DumpId, data: bytes) -> EntryStart:
    """Return what the entry.json of *dump* says; raises BrokenError unless it is one of this version and dump."""
    fields = decode(data)
    try:
        first_frame, started_at = fields["first_frame"], fields["started_at"]
        is_ours = (fields["version"], fields["dump"]) == (_VERSION, str(dump))
        if not is_ours or not _is_count(first_frame, limits.MAX_FRAMES) or not _is_count(started_at):
            raise ValueError
        frontier = Frontier.from_peaks(first_frame, [bytes.fromhex(peak) for peak in fields["peaks"]])
        store = StoreId.parse(fields["store"]) if fields["store"] else None
        return EntryStart(dump, started_at, store, frontier)
    except (KeyError, TypeError, ValueError, NameRefused) as error:
        raise BrokenError(f"spool entry {dump.short}: entry.json is malformed") from error


def parse_end(dump: DumpId, data: bytes) -> EntryEnd:
    """Return what the end.json of *dump* says; raises BrokenError unless it is one."""
    fields = decode(data)
    try:
        text = fields.pop("root", None)
        end = EntryEnd(**fields, root=None if text is None else bytes.fromhex(text))
        numbers = [end.size, end.ended_at, *(number for number in (end.predicted_size, end.frames) if number is not None)]
        if not all(map(_is_count, numbers)) or end.outcome not in OUTCOMES:
            raise ValueError
        if (end.frames is None) != (end.root is None) or len(end.root or bytes(HASH_BYTES)) != HASH_BYTES:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise BrokenError(f"spool entry {dump.short}: end.json is malformed") from error
    return end


def _is_count(value: Any, maximum: int = _COUNT_MAX) -> bool:
    return type(value) is int and 0 <= value <= maximum


def encode(fields: dict[str, Any]) -> bytes:
    """Return the JSON of a spool's file, always the same for the same fields."""
    return plain_json.encode(dict(sorted(fields.items()))).encode("ascii")


def decode(data: bytes) -> dict[str, Any]:
    """Return the fields of a spool's file; raises BrokenError unless it is a JSON object."""
    try:
        fields = plain_json.parse(data)
    except (ValueError, RecursionError) as error:
        raise BrokenError("spool: a file is not JSON") from error
    if not isinstance(fields, dict):
        raise BrokenError("spool: a file is not a JSON object")
    return fields
