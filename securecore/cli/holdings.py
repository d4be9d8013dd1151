"""What a store holds of a host, for comparison with the host's audit log: dumps, their receipts, and what is gone."""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from hashlib import sha256
from itertools import islice
from typing import Final, TypeVar

from securecore import limits
from securecore.audit.checkpoint import origin_of, parse_checkpoint
from securecore.audit.entry import DELETED, INCOMPLETE, RECEIVED, Statement, find_statement
from securecore.audit.log_files import CHECKPOINT, ENTRIES, scan_lines
from securecore.audit.log_verification import Entered, Holdings, read_entered
from securecore.audit.proof import Receipt, parse_proof, verify_receipt
from securecore.audit.statement import LogKey
from securecore.dump import directory
from securecore.dump.reader import scan_frames
from securecore.errors import BrokenError, NotFoundError, SecurecoreError, StorageError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId, HostName
from securecore.store import catalogue_comparison, crls
from securecore.store.layout import Place, Store
from securecore.store.reading import DumpFiles

ABSENT: Final = "it is not there"

_SIZE_END: Final = 1 << 63
"""No log has more entries: checkpoints have 19 digits at most."""

_LOOKS: Final = 3
"""A dump may be moved between our looking for it in one place and in the other, or while it is read, and then back again."""

_Read = TypeVar("_Read")


def known_hosts(store: Store) -> list[HostName]:
    """Return the hosts that have published dumps, or had some, or have an audit log, sorted: one without the other is damage."""
    return sorted({*store.host_names(), *store.audited_hosts()})


def read_holdings(store: Store, host: HostName, log_key: LogKey) -> Holdings:
    """Return the published dumps of a host and what their receipts say of its log; call this before the log is read.

    Of each receipt only its entry's index is kept, and the root under which it proves it. What is wrong with one is in the outcome.
    A dump whose manifest or length is not that of its receipt's entry counts as one that proves nothing: it is looked at again.
    """
    published: dict[DumpId, int | None] = {}
    roots: dict[int, set[bytes]] = {}
    unproved: list[tuple[DumpId, str]] = []
    for dump in published_dumps(store, host):
        try:
            with store.open_dump(host, dump) as files:
                receipt = _read_receipt_if_there(store, files, log_key)
                if receipt is not None:
                    roots.setdefault(receipt.checkpoint.size, set()).add(receipt.checkpoint.root)
                    published[dump] = receipt.leaf_index if _fits(files, receipt) else None
        except NotFoundError:
            continue  # It was deleted, or taken back, since it was listed: the log says so by the time that it is read.
        except SecurecoreError as error:
            published[dump] = None
            unproved.append((dump, error.message))
    return Holdings(
        published,
        roots,
        unproved,
        lambda absent: find_problems(store, host, absent),
        lambda deleted: find_put_back(store, host, deleted),
        lambda digest: crls.find_problem(store, digest),
        (lambda: catalogue_comparison.find_contradictions(store, host)) if catalogue_comparison.has_catalogue(store) else None,
    )


def published_dumps(store: Store, host: HostName) -> list[DumpId]:
    """Return the published dumps of a host; none when something else stands in the place of its directory.

    Then each of them that the log knows is missing.
    """
    try:
        return store.dump_ids(host)
    except StorageError:
        return []


def find_absent(store: Store, host: HostName) -> list[Entered]:
    """Return what the host's log says last of dumps that are not published with the receipt of that entry, sorted by id.

    Receipts are read as they stand; ``audit verify`` and ``verify`` verify them.
    """
    newest = _read_newest(store, host) or {}
    absent = (entered for entered in newest.values() if _find_index(store, host, entered.dump) != entered.at)
    return sorted(absent, key=lambda entered: str(entered.dump))


def find_problems(store: Store, host: HostName, absent: Iterable[Entered]) -> dict[DumpId, str]:
    """Return which of the dumps are not in the store as the log says, and why, sorted by id.

    *absent* is what the log said last of each, at some time. It may have been deleted, or received once more, between our look at
    the log and our look at the store; so the log has the last word on those that are missed.
    """
    missed = {entered.dump: problem for entered in absent if (problem := find_problem(store, host, entered)) is not None}
    newest = _read_newest(store, host, missed) if missed else None
    if newest is not None:
        again = (newest[dump] for dump in missed if dump in newest)
        missed = {entered.dump: problem for entered in again if (problem := find_problem(store, host, entered)) is not None}
    return dict(sorted(missed.items(), key=lambda found: str(found[0])))


def find_restored(store: Store, host: HostName) -> list[DumpId]:
    """Return the published dumps that were deleted, as the host's log says as it stands, sorted: somebody has put them back."""
    published = set(published_dumps(store, host))
    return find_put_back(store, host, {dump: at for dump, at in _read_deletions(store, host).items() if dump in published})


def find_put_back(store: Store, host: HostName, deleted: Mapping[DumpId, int]) -> list[DumpId]:
    """Return which dumps are published although the newest entry on each is the deletion with this index, sorted.

    A deletion moves its dump before its entry is written, and a dump that is received once more has an entry before it is
    published; so one that stands there between two looks at the log that find the same deletion was put there by neither.
    """
    there = {dump: at for dump, at in deleted.items() if store.find_place(host, dump) is Place.HOSTS}
    newest = _read_deletions(store, host, there) if there else {}
    return sorted((dump for dump, at in there.items() if newest.get(dump) == at), key=str)


def _read_newest(store: Store, host: HostName, among: Container[DumpId] | None = None) -> dict[DumpId, Entered] | None:
    """Return what the host's log says last of each dump, or of each *among* these, that was not deleted.

    The log is read as it stands, but a deletion counts only where the checkpoint covers it. None for a host without a log, or with
    one that cannot be opened.
    """
    entries = _open_entries(store, host)
    if entries is None:
        return None
    newest: dict[DumpId, Entered] = {}
    unsigned: dict[DumpId, tuple[int, Entered]] = {}
    signed_before = read_signed_size(store, host)
    for index, statement, line in _statements(entries):
        if among is not None and statement.dump not in among:
            continue
        if statement.event != DELETED:
            newest[statement.dump] = read_entered(statement, index, line)
        elif (before := newest.pop(statement.dump, None)) is not None and index >= signed_before:
            unsigned[statement.dump] = (index, before)
    # A file is removed when its deletion is signed, so what is not signed by now does not explain that a dump is not there.
    signed = read_signed_size(store, host) if unsigned else 0
    return {dump: before for dump, (index, before) in unsigned.items() if index >= signed} | newest


def _read_deletions(store: Store, host: HostName, among: Container[DumpId] | None = None) -> dict[DumpId, int]:
    """Return the dumps of which the host's log says last that they were deleted, each with the index of that entry.

    Of all that it knows, or of those *among* these.
    """
    entries = _open_entries(store, host)
    newest: dict[DumpId, int] = {}
    for index, statement, _ in _statements(entries) if entries is not None else ():
        if among is not None and statement.dump not in among:
            continue
        newest.pop(statement.dump, None)
        if statement.event == DELETED:
            newest[statement.dump] = index
    return newest


def read_signed_size(store: Store, host: HostName) -> int:
    """Return how many entries of a host's log its checkpoint covers; all that there may be where that cannot be read."""
    try:
        audit = store.audit_directory(host, create=False)
        try:
            return parse_checkpoint(directory.read_file(CHECKPOINT, audit, limits.MAX_CHECKPOINT_BYTES) or b"").size
        finally:
            os.close(audit)
    except SecurecoreError:
        return _SIZE_END


def _open_entries(store: Store, host: HostName) -> int | None:
    """Return a descriptor of a host's entries; None for a host without a log, or with one that cannot be opened."""
    try:
        audit = store.audit_directory(host, create=False)
    except (NotFoundError, StorageError):
        return None
    try:
        return directory.open_file(ENTRIES, audit)
    except StorageError:
        return None
    finally:
        os.close(audit)


def _statements(entries: int) -> Iterator[tuple[int, Statement, bytes]]:
    """Yield each entry that says where a dump stands, with its index and its bytes; closes *entries*."""
    try:
        for index, line in enumerate(scan_lines(entries)):
            statement = find_statement(line.data)
            if statement is not None:
                yield index, statement, line.data
    finally:
        os.close(entries)


def find_problem(store: Store, host: HostName, entered: Entered) -> str | None:
    """Return why a dump is not in the store as the log says; None when it is.

    One that was received has the entry's manifest and length, published or under incoming: the entry is written before the dump is
    published, so a crash leaves it there until the receiver starts. One that was given up has the entry's frames
    first, wherever it stands, and may have got more since; but not while it is published with the receipt of that entry.
    """
    problem: str | None = None
    for _ in range(_LOOKS):
        try:
            with store.open_dump(host, entered.dump) as files:
                problem = _find_difference(files, entered)
                if problem is None or stands(store, files):
                    return problem
        except NotFoundError:
            if _is_leaving(store, host, entered):
                return None
            problem = ABSENT
        except StorageError as error:
            return error.message
    return problem


def _is_leaving(store: Store, host: HostName, entered: Entered) -> bool:
    """Return whether a dump's deletion has begun, and nothing of it is removed yet: the log may not say so before.

    Where a crash has interrupted it, the next start of the receiver puts the dump back, or removes it.
    """
    files = store.find_files(Place.DELETING, host, entered.dump)
    if files is None:
        return False
    with files:
        return _find_difference(files, entered) is None


def is_in_place(store: Store, files: DumpFiles) -> bool:
    """Return whether a dump still stands where its files were opened.

    A dump is moved before a file of it is removed or changed, by whoever deletes it or takes it back (docs/store.md, What is
    durable when); but for one that is under incoming already.
    """
    return store.is_at(Place.HOSTS if files.is_published else Place.INCOMING, files.host, files.dump_id, files.fd)


def stands(store: Store, files: DumpFiles) -> bool:
    """Return whether a dump still stands where its files were opened, and nobody has begun to change it there.

    One under incoming that was given up is not moved when it is taken back; it loses its receipt first. One with a manifest is
    never taken back.
    """
    return is_in_place(store, files) and (files.is_published or has_receipt(files) or files.has_manifest())


def read_standing(
    opened: Callable[[], AbstractContextManager[DumpFiles]],
    read: Callable[[DumpFiles], _Read],
    is_final: Callable[[DumpFiles, _Read], bool],
) -> _Read:
    """Return what *read* makes of a dump's files, opened and read again while *is_final* says that somebody was at them meanwhile.

    One that is moved each time is told as it is found. Raises what *opened* does when the dump is not there any more.
    """
    for _ in range(_LOOKS):
        with opened() as files:
            found = read(files)
            if is_final(files, found):
                return found
    return found


def has_receipt(files: DumpFiles) -> bool:
    """Return whether anything stands in the place of a dump's receipt, sound or not."""
    try:
        return files.read_receipt() is not None
    except StorageError:
        return True


def _find_difference(files: DumpFiles, entered: Entered) -> str | None:
    """Return in which way a dump's files are not those of the newest entry on it; None when they are."""
    try:
        if entered.event == INCOMPLETE:
            if files.is_published and _index_of(files) == entered.at and (other := _find_length(files, entered.stored_bytes)):
                return other
            return None if _begins_with(files, entered) else f"its frames do not begin with the {entered.frames} of the entry"
        manifest = files.read_manifest()
        if manifest is None:
            return "manifest.jws is missing"
        if sha256(manifest).digest() != entered.digest:
            return "its manifest is not the one that was received"
        return _find_length(files, entered.stored_bytes)
    except (BrokenError, NotFoundError, StorageError) as error:
        return error.message


def _find_length(files: DumpFiles, stored_bytes: object) -> str | None:
    """Return why core.zst is not as long as an entry says; None when it is."""
    found = files.core_bytes()
    if found == stored_bytes:
        return None
    return f"core.zst has {found} bytes, the entry says {stored_bytes}" if found else "core.zst is missing or empty"


def _begins_with(files: DumpFiles, entered: Entered) -> bool:
    """Return whether the first frames of a core, as many as the entry says, have the entry's root."""
    tree = Frontier()
    core = files.open_core()
    try:
        for scanned in islice(scan_frames(core), max(entered.frames, 0)):
            tree.append(leaf_hash(scanned.data))
    finally:
        os.close(core)
    return (tree.size, tree.root()) == (entered.frames, entered.digest)


def _find_index(store: Store, host: HostName, dump: DumpId) -> int | None:
    """Return the index of the entry that a published dump's receipt is about, unverified."""
    try:
        with store.open_dump(host, dump) as files:
            return _index_of(files) if files.is_published else None
    except (NotFoundError, StorageError):
        return None


def _index_of(files: DumpFiles) -> int | None:
    """Return the index of the entry that a dump's receipt is about, unverified; None when it says none."""
    try:
        return parse_proof(files.read_receipt() or b"").leaf_index
    except (BrokenError, StorageError):
        return None


def _read_receipt_if_there(store: Store, files: DumpFiles, log_key: LogKey) -> Receipt | None:
    """Return what _read_receipt does; None when the dump is not published, or is moved away while it is looked at."""
    if not files.is_published:
        return None
    try:
        return _read_receipt(files, log_key)
    except SecurecoreError:
        if stands(store, files):
            raise
        return None


def _read_receipt(files: DumpFiles, log_key: LogKey) -> Receipt:
    """Return a published dump's receipt, verified, and of this dump: that it was received, or without a manifest given up."""
    text, has_manifest = files.read_receipt(), _manifest_of(files) is not None
    if text is None:
        raise BrokenError("receipt is missing")
    receipt = verify_receipt(text, origin_of(log_key.name, files.host), log_key.public_key, log_key.earlier)
    event, of = receipt.fields["event"], receipt.fields.get("dump")
    if event not in (RECEIVED, INCOMPLETE) or of != str(files.dump_id):
        raise BrokenError(f"receipt proves another entry: {event!a:.40} of {of!a:.40}")
    if event == INCOMPLETE and has_manifest:
        raise BrokenError("receipt proves that the dump was given up, and it has a manifest")
    return receipt


def _manifest_of(files: DumpFiles) -> bytes | None:
    """Return a dump's manifest; empty when something stands in its place that cannot be read."""
    try:
        return files.read_manifest()
    except StorageError:
        return b""


def _fits(files: DumpFiles, receipt: Receipt) -> bool:
    """Return whether manifest and length of a dump are those of the entry that its receipt proves."""
    manifest = _manifest_of(files)
    if receipt.fields["event"] == RECEIVED:
        digest = sha256(manifest).hexdigest() if manifest is not None else None
        if digest is None or digest != receipt.fields.get("manifest_sha256"):
            return False
    return files.core_bytes() == receipt.fields.get("stored_bytes")
