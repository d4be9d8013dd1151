"""Acts that must be audited, where no receiver runs on the store: under the store's lock, with the receiver's log key."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from securecore.audit.checkpoint import LogSigner
from securecore.audit.log import HostLogs
from securecore.audit.statement import verify_statement
from securecore.certs.identity_directory import load_identity, load_log_key
from securecore.errors import ConfigError
from securecore.names import DumpId, HostName
from securecore.receiver.control import take_core, user_name
from securecore.receiver.deletion import Order, delete, roll_forward_deletions
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
    log key is not the one of its statement.
    """
    lock = store.lock()
    try:
        key, token = load_log_key(identity)
        log_key = verify_statement(token, load_identity(identity).anchors)
        signer = LogSigner(log_key.name, key)
        if signer.public_key != log_key.public_key:
            raise ConfigError(f"identity {identity}: log-key.pem is not the key of log-key.jws")
        logs = HostLogs(signer, lambda owner: store.audit_directory(owner, create=True))
        try:
            # What such a command was killed in the middle of is finished by the next one.
            roll_forward_deletions(store, logs)
            yield logs
        finally:
            logs.close()
    finally:
        lock.close()
