"""A dump on its way into the store: frames appended and made durable, then manifest, receipt and the rename that publishes it.

What is where when, so that a crash at any instant leaves a state that the next start knows:

1. ``begin``: the directory, an empty ``core.zst`` and the report under its aside name. Nothing has been acknowledged.
2. ``sync``: the report gets its name. A directory without ``report.json`` therefore holds nothing that anybody was promised.
3. ``finish``: the seek table, then ``manifest.jws``. A directory with a manifest has a whole core and is rolled forward.
   Or ``give_up``: the seek table alone, because the sender did not come back. Without a receipt this is a torn end, cut off again.
4. ``put_receipt``, ``publish``: the receipt, then the rename to the published dumps.
"""

import fcntl
import os
from collections.abc import Callable
from functools import partial

from securecore import limits
from securecore.dump import directory
from securecore.dump.container import seek_table_bytes
from securecore.errors import BrokenError, Bug, BusyError, NotFoundError, PeerError, StorageError
from securecore.merkle import Frontier
from securecore.names import DumpId, HostName
from securecore.store.growing_core import GrowingCore
from securecore.store.layout import Place, Store
from securecore.store.reading import CORE, MANIFEST, RECEIPT, REPORT, remains_bytes
from securecore.store.relocation import move_dump
from securecore.store.remains import check_room_for_remains, keep_remains
from securecore.store.removal import remove_incoming


class AlreadyStored(StorageError):
    """The dump is published; ``receipt`` holds the stored receipt, to be given to whoever offers the dump again."""

    def __init__(self, dump_id: DumpId, receipt: bytes) -> None:
        super().__init__(f"dump {dump_id} is already stored")
        self.receipt = receipt


class IncomingDump:
    """One dump that is coming in. For one thread at a time; holds a lock that keeps every other writer away from the dump.

    After an error that a disk caused, everything but close is refused: what reached the disk is found out by resume.
    """

    def __init__(self, store: Store, host: HostName, dump_id: DumpId, fd: int, core: int) -> None:
        self.host = host
        self.dump_id = dump_id
        self.has_manifest = False
        """The sender has finished and the manifest is durable: the commit is to be done again from the audit entry on."""
        self.has_receipt = False
        """The receipt is durable too: only publish is missing."""
        self.is_given_up = False
        """The sender did not come back; the core is whole with its seek table, and there will be no manifest."""
        self.damaged_bytes = 0
        """Found behind the last whole frame by resume, and no beginning of one: cut off and kept beside the core (remains.py)."""
        self.remains_bytes = 0
        """All that is kept beside the core in this way."""
        self.durable_frames = 0
        """So many of the frames are on the disk for certain."""
        self._store = store
        self._fd = fd
        self._core = GrowingCore(core, f"dump {dump_id}")
        self._is_named = False
        self._usable = True
        try:
            fcntl.flock(core, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise BusyError(f"dump {dump_id} is being written by another session") from error
        except OSError as error:
            self.close()
            raise directory.disk_refused(error, f"cannot lock dump {dump_id}") from error

    @classmethod
    def begin(cls, store: Store, host: HostName, dump_id: DumpId, report: bytes) -> "IncomingDump":
        """Return a new, empty dump with *report* as the sender sent it; nothing is durable before the first sync.

        Raises AlreadyStored when it is published, StorageError when it is already coming in (then resume it) or the disk refuses.
        """
        _check_not_stored(store, host, dump_id)
        host_fd = store.host_directory(Place.INCOMING, host)
        try:
            try:
                with store.changing(host, dump_id, None, Place.INCOMING):
                    os.mkdir(str(dump_id), 0o700, dir_fd=host_fd)
            except OSError as error:
                raise directory.disk_refused(error, f"cannot begin dump {dump_id}") from error
            fd = directory.open_directory(str(dump_id), host_fd)
        finally:
            os.close(host_fd)
        if fd is None:
            raise StorageError(f"cannot begin dump {dump_id}: its directory vanished")
        try:
            report_fd = directory.create_file(directory.aside_name(REPORT), fd)
            try:
                directory.write_all(report_fd, report)
            finally:
                os.close(report_fd)
            core = directory.create_file(CORE, fd)
        except StorageError:
            os.close(fd)
            remove_incoming(store, host, dump_id)
            raise
        return cls(store, host, dump_id, fd, core)

    @classmethod
    def resume(
        cls,
        store: Store,
        host: HostName,
        dump_id: DumpId,
        report: bytes | None = None,
        *,
        between: Callable[[], None] = lambda: None,
    ) -> "IncomingDump":
        """Return the dump as far as it is whole; everything that it then says it holds is durable.

        The frames are walked and hashed again. What follows the last whole one is kept as far as it may be the beginning of a
        frame (``torn``), else cut off; what no crash leaves there may hide frames, and is kept beside the core before
        (``damaged_bytes``). Where the manifest or a receipt is there, the core must be whole with its seek table (BrokenError if
        not). *between* is called before each frame; what it raises ends the walk. Raises AlreadyStored when it is published;
        NoRoomForRemains when what is to be kept would take the file system below ``Store.least_free``;
        NotFoundError when it is not coming in, or holds nothing that was ever acknowledged (then begin it); PeerError when
        *report*, if given, differs from the one that it began with; BusyError while another session writes it.
        """
        _check_not_stored(store, host, dump_id)
        fd = store.open_dump(host, dump_id).fd
        try:
            stored_report = directory.read_file(REPORT, fd, limits.MAX_REPORT_BYTES)
            core = directory.open_file(CORE, fd, append=True) if stored_report is not None else None
            if core is None:
                raise NotFoundError(f"dump {dump_id} holds nothing that was acknowledged")
            if report is not None and report != stored_report:
                os.close(core)
                raise PeerError(f"dump {dump_id} was begun with another report")
        except BaseException:
            os.close(fd)
            raise
        dump = cls(store, host, dump_id, fd, core)
        try:
            # Before the lock was ours, somebody may have moved the dump away to delete it.
            if not store.is_at(Place.INCOMING, host, dump_id, fd):
                raise BusyError(f"dump {dump_id} was moved away meanwhile")
            dump._recover(between)
        except BaseException:
            dump.close()
            raise
        return dump

    @property
    def has_report(self) -> bool:
        """Whether the report has its name: only then may anything of the dump have been acknowledged, and is it ever resumed."""
        return self._is_named

    @property
    def frames(self) -> int:
        """Frames appended."""
        return len(self._core.lengths)

    @property
    def root(self) -> bytes:
        """Merkle root over the frames appended."""
        return self._core.frontier.root()

    @property
    def frontier(self) -> Frontier:
        """A copy of the tree's frontier."""
        return self._core.frontier.copy()

    @property
    def stored_bytes(self) -> int:
        """Bytes of all frames appended, without the seek table."""
        return self._core.stored_bytes

    @property
    def container_bytes(self) -> int:
        """Bytes of core.zst when it is finished: the frames and their seek table."""
        return self._core.stored_bytes + seek_table_bytes(self.frames)

    @property
    def plain_bytes(self) -> int:
        """Plaintext bytes that the frames appended stand for."""
        return self._core.lengths.plain_bytes

    @property
    def taken_bytes(self) -> int:
        """What the dump takes: all frames appended, and what is kept beside them."""
        return self._core.stored_bytes + self.remains_bytes

    def torn(self) -> bytes:
        """Return the bytes behind the last frame that may be the beginning of the next one; they were never vouched for.

        The next frame, or the end of the dump, drops them.
        """
        return self._core.torn()

    def keep_torn(self, beginning: bytes) -> None:
        """Put the beginning of the next frame behind the frames, in the place of what stands there; a sync makes it durable.

        For a frame whose end does not come; what cannot be the beginning of one is not kept.
        """
        self._check_open_for_frames()
        self._core.keep_torn(beginning)

    def append(self, frame: bytes | memoryview, plain_length: int) -> None:
        """Add one frame that check_frame has passed, with the plaintext length that it returned; not yet durable.

        Raises PeerError when a frame cannot follow (a short piece came before, too many, out of bounds), StorageError when the disk
        refuses. Not checked: the frame's content.
        """
        self._check_open_for_frames()
        self._core.append(frame, plain_length)

    def append_zero_pieces(self, count: int) -> None:
        """Add the zero frame of a whole piece *count* times, in one write; raises as append does."""
        self._check_open_for_frames()
        self._core.append_zero_pieces(count)

    def sync(self) -> None:
        """Make everything appended so far durable, the report first; only then may it be acknowledged."""
        self._check_open_for_frames()
        self._core.sync()
        self._name_report()
        self.durable_frames = self.frames

    def give_up(self) -> None:
        """Append the seek table, durably: the frames are all that there is. The core keeps the time of its last frame."""
        self._check_open_for_frames()
        status = os.fstat(self._core.fd)
        try:
            self._core.append_seek_table()
        finally:  # On a full disk too: what is tried again must not have become young by it.
            self._core.set_time(status)
        self.is_given_up = True

    def finish(self, manifest: bytes) -> None:
        """Append the seek table and keep *manifest*, both durable. Not checked: the manifest; the caller has judged it."""
        self._check_open_for_frames()
        self._core.append_seek_table()
        self._name_report()
        self._put(MANIFEST, manifest)
        self.has_manifest = True

    def read_manifest(self) -> bytes:
        """Return the manifest that finish has kept."""
        return self._read(MANIFEST, limits.MAX_MANIFEST_BYTES)

    def read_report(self) -> bytes:
        """Return the report as the sender sent it; only once it is durable."""
        return self._read(REPORT, limits.MAX_REPORT_BYTES)

    def read_receipt(self) -> bytes:
        """Return the receipt that put_receipt has kept."""
        return self._read(RECEIPT, limits.MAX_RECEIPT_BYTES)

    def put_receipt(self, receipt: bytes) -> None:
        """Keep the receipt, durably."""
        self._check_usable()
        if not (self.has_manifest or self.is_given_up) or self.has_receipt:
            raise Bug("a receipt follows a manifest or giving up, once")
        self._put(RECEIPT, receipt)
        self.has_receipt = True

    def publish(self) -> None:
        """Move the dump to the published ones, durably and never replacing anything, and close it."""
        self._check_usable()
        if not self.has_receipt:
            raise Bug("a dump is published with its receipt")
        self._usable = False
        move_dump(self._store, self.host, self.dump_id, Place.INCOMING, Place.HOSTS)
        self.close()

    def discard(self) -> None:
        """Remove the dump and close it. Raises StorageError when something that is not ours stands in its directory."""
        self._usable = False
        remove_incoming(self._store, self.host, self.dump_id)
        self.close()

    def close(self) -> None:
        """Let go of the dump; what was synced stays, and resume finds it."""
        self._usable = False
        self._core.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _recover(self, between: Callable[[], None]) -> None:
        self._is_named = True
        for name in directory.names_in(self._fd):
            if directory.is_aside(name):
                directory.remove_file(name, self._fd)
        self.has_manifest = directory.read_file(MANIFEST, self._fd, limits.MAX_MANIFEST_BYTES) is not None
        self.has_receipt = directory.read_file(RECEIPT, self._fd, limits.MAX_RECEIPT_BYTES) is not None
        self.is_given_up = self.has_receipt and not self.has_manifest
        tail = self._core.walk(between)
        if not (self.has_manifest or self.is_given_up):
            tail = self._core.without_unwritten_frame(tail)
            if not self._core.explains(tail):
                check_room = partial(check_room_for_remains, self._store, self.dump_id)
                keep_remains(self._core.fd, self._core.stored_bytes, self._fd, between, check_room)
                self.damaged_bytes = tail
            self._core.keep_or_cut(tail)
        elif not self._core.ends_with_seek_table(tail):
            witness = "manifest" if self.has_manifest else "receipt"
            raise BrokenError(f"dump {self.dump_id}: {CORE} is damaged though its {witness} was durable")
        self.remains_bytes = remains_bytes(self._fd)
        # Bytes that a killed process has written, and names that it has given, may still be on their way to the disk, and the
        # caller is about to vouch for them.
        self._core.sync()
        directory.sync(self._fd)
        self._sync_host()
        self.durable_frames = self.frames

    def _check_usable(self) -> None:
        if not (self._usable and self._core.is_usable):
            raise Bug("a dump was used after it was closed, published or refused by the disk")

    def _check_open_for_frames(self) -> None:
        self._check_usable()
        if self.has_manifest or self.is_given_up:
            raise Bug("a dump with a manifest, or one that was given up, takes no more frames")

    def _name_report(self) -> None:
        """Give the report its name, and make the dump's directory and its entry in the host's durable; once."""
        if self._is_named:
            return
        self._usable = False
        aside = directory.aside_name(REPORT)
        report = directory.open_file(aside, self._fd)
        if report is None:
            raise StorageError(f"cannot keep the report of dump {self.dump_id}: it vanished")
        try:
            directory.sync(report)
        finally:
            os.close(report)
        directory.link_into_place(aside, REPORT, self._fd)
        directory.sync(self._fd)
        self._sync_host()
        self._is_named = self._usable = True

    def _sync_host(self) -> None:
        """Make the dump's entry in the host's directory durable."""
        host_fd = self._store.host_directory(Place.INCOMING, self.host)
        try:
            directory.sync(host_fd)
        finally:
            os.close(host_fd)

    def _put(self, name: str, data: bytes) -> None:
        self._usable = False
        directory.write_new_file(name, self._fd, data)
        self._usable = True

    def _read(self, name: str, max_bytes: int) -> bytes:
        self._check_usable()
        data = directory.read_file(name, self._fd, max_bytes)
        if data is None:
            raise BrokenError(f"dump {self.dump_id}: {name} is missing")
        return data


def _check_not_stored(store: Store, host: HostName, dump_id: DumpId) -> None:
    if store.find_place(host, dump_id) is not Place.HOSTS:
        return
    with store.open_dump(host, dump_id) as files:
        receipt = files.read_receipt()
    if receipt is None:
        raise BrokenError(f"dump {dump_id} of {host} is published without its receipt")
    raise AlreadyStored(dump_id, receipt)
