"""What a store holds of a host, for comparison with the host's audit log: dumps, their receipts, and what is gone."""

import os
from hashlib import sha256

from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import RECEIVED, find_statement
from securecore.audit.log import ENTRIES, scan_lines
from securecore.audit.log_verification import Holdings, Received, read_received
from securecore.audit.proof import Receipt, verify_receipt
from securecore.audit.statement import LogKey
from securecore.dump import directory
from securecore.errors import BrokenError, NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName
from securecore.store.layout import Store


def known_hosts(store: Store) -> list[HostName]:
    """Return the hosts that have published dumps, or had some, or have an audit log, sorted: one without the other is damage."""
    return sorted({*store.host_names(), *store.audited_hosts()})


def read_holdings(store: Store, host: HostName, log_key: LogKey) -> Holdings:
    """Return the published dumps of a host and what their receipts say of its log; call this before the log is read.

    Of each receipt only the root under which it proves its entry is kept. What is wrong with one is in the outcome.
    """
    published = frozenset(store.dump_ids(host))
    roots: dict[int, set[bytes]] = {}
    unproved: list[tuple[DumpId, str]] = []
    for dump in published:
        try:
            checkpoint = _read_receipt(store, host, dump, log_key).checkpoint
            roots.setdefault(checkpoint.size, set()).add(checkpoint.root)
        except SecurecoreError as error:
            unproved.append((dump, error.message))
    return Holdings(published, roots, unproved, lambda received: is_held(store, host, received))


def find_absent(store: Store, host: HostName) -> list[Received]:
    """Return what the host's log says of dumps that were received and are not among the published ones, sorted by id.

    The log is read as it stands; ``audit verify`` verifies it. A host without a log has none.
    """
    published = frozenset(store.dump_ids(host))
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
    absent: dict[DumpId, Received] = {}
    try:
        for line in scan_lines(entries):
            statement = find_statement(line.data)
            if statement is None or statement.dump in published:
                continue
            if statement.event == RECEIVED:
                absent[statement.dump] = read_received(statement.dump, line.data)
            else:
                absent.pop(statement.dump, None)
    finally:
        os.close(entries)
    return sorted(absent.values(), key=lambda received: str(received.dump))


def is_held(store: Store, host: HostName, received: Received) -> bool:
    """Return whether a dump that the log knows is in the store: published, or under incoming with its manifest and length.

    The entry is written before the dump is published, so a crash leaves such a dump under incoming until the receiver starts.
    """
    for _ in range(2):  # It may be published between our looking for it there and our looking for it here, but never goes back.
        try:
            with store.open_dump(host, received.dump) as files:
                if files.is_published:
                    return True
                manifest = files.read_manifest() or b""
                return files.core_bytes() == received.stored_bytes and sha256(manifest).hexdigest() == received.manifest_sha256
        except NotFoundError:
            continue
    return False


def _read_receipt(store: Store, host: HostName, dump: DumpId, log_key: LogKey) -> Receipt:
    """Return a published dump's receipt, verified, and of this dump."""
    with store.open_dump(host, dump) as files:
        text = files.read_receipt()
    if text is None:
        raise BrokenError("receipt is missing")
    receipt = verify_receipt(text, origin_of(log_key.name, host), log_key.public_key)
    event, of = receipt.fields["event"], receipt.fields.get("dump")
    if (event, of) != (RECEIVED, str(dump)):
        raise BrokenError(f"receipt proves another entry: {event!a:.40} of {of!a:.40}")
    return receipt
