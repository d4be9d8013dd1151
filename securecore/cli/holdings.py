"""What a store holds of a host, for comparison with the host's audit log: dumps, their receipts, and what is gone."""

import os
from hashlib import sha256
from itertools import islice

from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import DELETED, INCOMPLETE, RECEIVED, find_statement
from securecore.audit.log import ENTRIES, scan_lines
from securecore.audit.log_verification import Entered, Holdings, read_entered
from securecore.audit.proof import Receipt, parse_proof, verify_receipt
from securecore.audit.statement import LogKey
from securecore.dump import directory
from securecore.dump.reader import scan_frames
from securecore.errors import BrokenError, NotFoundError, SecurecoreError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId, HostName
from securecore.store.layout import Store
from securecore.store.reading import DumpFiles


def known_hosts(store: Store) -> list[HostName]:
    """Return the hosts that have published dumps, or had some, or have an audit log, sorted: one without the other is damage."""
    return sorted({*store.host_names(), *store.audited_hosts()})


def read_holdings(store: Store, host: HostName, log_key: LogKey) -> Holdings:
    """Return the published dumps of a host and what their receipts say of its log; call this before the log is read.

    Of each receipt only its entry's index is kept, and the root under which it proves it. What is wrong with one is in the outcome.
    """
    published: dict[DumpId, int | None] = {}
    roots: dict[int, set[bytes]] = {}
    unproved: list[tuple[DumpId, str]] = []
    for dump in store.dump_ids(host):
        published[dump] = None
        try:
            receipt = _read_receipt(store, host, dump, log_key)
            roots.setdefault(receipt.checkpoint.size, set()).add(receipt.checkpoint.root)
            published[dump] = receipt.leaf_index
        except SecurecoreError as error:
            unproved.append((dump, error.message))
    return Holdings(published, roots, unproved, lambda entered: is_held(store, host, entered))


def find_absent(store: Store, host: HostName) -> list[Entered]:
    """Return what the host's log says last of dumps that are not published with the receipt of that entry, sorted by id.

    Log and receipts are read as they stand; ``audit verify`` and ``verify`` verify them. A host without a log has none.
    """
    try:
        audit = store.audit_directory(host, create=False)
    except NotFoundError:
        return []
    try:
        entries = directory.open_file(ENTRIES, audit)
    finally:
        os.close(audit)
    if entries is None:
        return []
    newest: dict[DumpId, Entered] = {}
    try:
        for index, line in enumerate(scan_lines(entries)):
            statement = find_statement(line.data)
            if statement is not None and statement.event == DELETED:
                newest.pop(statement.dump, None)
            elif statement is not None:
                newest[statement.dump] = read_entered(statement, index, line.data)
    finally:
        os.close(entries)
    absent = (entered for entered in newest.values() if _find_index(store, host, entered.dump) != entered.at)
    return sorted(absent, key=lambda entered: str(entered.dump))


def is_held(store: Store, host: HostName, entered: Entered) -> bool:
    """Return whether a dump is in the store as the log says.

    One that was received has the entry's manifest and length, published or under incoming: the entry is written before the dump is
    published, so a crash leaves it there until the receiver starts. One that was given up has the entry's frames
    first, wherever it stands, and may have got more since.
    """
    for _ in range(2):  # It may be moved between our looking for it in the one place and in the other.
        try:
            with store.open_dump(host, entered.dump) as files:
                if entered.event == INCOMPLETE:
                    return _begins_with(files, entered)
                manifest = files.read_manifest()
                is_the_one = manifest is not None and sha256(manifest).digest() == entered.digest
                return is_the_one and files.core_bytes() == entered.stored_bytes
        except NotFoundError:
            continue
    return False


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
            return parse_proof(files.read_receipt() or b"").leaf_index if files.is_published else None
    except SecurecoreError:
        return None


def _read_receipt(store: Store, host: HostName, dump: DumpId, log_key: LogKey) -> Receipt:
    """Return a published dump's receipt, verified, and of this dump: that it was received, or without a manifest given up."""
    with store.open_dump(host, dump) as files:
        text, has_manifest = files.read_receipt(), files.read_manifest() is not None
    if text is None:
        raise BrokenError("receipt is missing")
    receipt = verify_receipt(text, origin_of(log_key.name, host), log_key.public_key)
    event, of = receipt.fields["event"], receipt.fields.get("dump")
    if event not in (RECEIVED, INCOMPLETE) or of != str(dump):
        raise BrokenError(f"receipt proves another entry: {event!a:.40} of {of!a:.40}")
    if event == INCOMPLETE and has_manifest:
        raise BrokenError("receipt proves that the dump was given up, and it has a manifest")
    return receipt
