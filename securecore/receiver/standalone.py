"""Acts that must be audited, where no receiver runs on the store: under the store's lock, with the receiver's log key."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from securecore.audit.keyring import load_keyring
from securecore.audit.log import HostLogs
from securecore.certs.identity_directory import CA, load_identity
from securecore.certs.private_file import read_public
from securecore.limits import MAX_STATEMENT_BYTES
from securecore.names import DumpId, HostName
from securecore.receiver.control import take_core, user_name
from securecore.receiver.deletion import Order, delete, roll_forward_deletions
from securecore.receiver.log_keeper import LogKeeper
from securecore.receiver.log_keys import put_log_keys
from securecore.store.layout import Store


def take_core_alone(store: Store, host: HostName, dump: DumpId, identity: Path, now: datetime) -> int:
    """Do what take_core does; raises too what stands in the way of appending."""
    with appending_alone(store, identity) as logs:
        return take_core(store, logs, host, dump, os.getuid(), now)


def delete_alone(store: Store, host: HostName, dump: DumpId, reason: str | None, identity: Path, now: datetime) -> None:
    """Do what delete does, in the name of this process's user; raises too what stands in the way of appending."""
    uid = os.getuid()
    with appending_alone(store, identity) as logs:
        delete(store, logs, host, dump, Order(uid, user_name(uid), reason), now)


@contextmanager
def appending_alone(store: Store, identity: Path) -> Iterator[HostLogs]:
    """Give the store's audit logs, to be signed with the log key of a receiver's identity directory, while the block runs.

    Raises StorageError when a receiver holds the store's lock, NotFoundError when there is no such identity, ConfigError when its
    log key is not the one of its statement, or not one of this store.
    """
    lock = store.lock()
    try:
        signer, keys = load_keyring(identity, load_identity(identity).anchors)
        put_log_keys(store, keys, read_public(identity / CA, MAX_STATEMENT_BYTES))
        logs = HostLogs(signer, lambda owner: store.audit_directory(owner, create=True))
        keeper = LogKeeper(store, signer, lambda: datetime.now(UTC))
        keeper.follow(logs)
        try:
            keeper.begin()
            # What such a command was killed in the middle of is finished by the next one.
            roll_forward_deletions(store, logs)
            yield logs
        finally:
            keeper.close()
            logs.close()
    finally:
        lock.close()
