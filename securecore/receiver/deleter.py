"""Who deletes many dumps: the receiver that runs on the store, else the command itself, with the store's lock."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType

from securecore.audit.log import HostLogs
from securecore.errors import SecurecoreError
from securecore.names import DumpId, HostName
from securecore.receiver import control, standalone
from securecore.receiver.deletion import Order
from securecore.receiver.mass_deletion import delete_all
from securecore.store.layout import Store


class Deleter:
    """Deletes dumps of a store, batch by batch; a context manager.

    A batch is one step for whoever else waits for the receiver, so it has at most limits.DELETION_BATCH dumps. The store's lock,
    once it is taken, is held to the end.
    """

    def __init__(self, store: Store, identity: Path, clock: Callable[[], datetime]) -> None:
        """*identity* is the receiver's, for entries that we sign ourselves."""
        self._store = store
        self._identity = identity
        self._clock = clock
        self._stack = ExitStack()
        self._logs: HostLogs | None = None

    def delete(self, host: HostName, received_at: Mapping[DumpId, str], reason: str) -> dict[DumpId, SecurecoreError]:
        """Do what delete_all does with a batch, of which each was chosen as it says; raises what stands in the way of all."""
        if self._logs is None:
            failed = control.ask_for_deletions(self._store, host, list(received_at), reason, list(received_at.values()))
            if failed is not None:
                return failed
            self._logs = self._stack.enter_context(standalone.appending_alone(self._store, self._identity))
        uid = os.getuid()
        order = Order(uid, control.user_name(uid), reason)
        return delete_all(self._store, self._logs, host, list(received_at), order, self._clock(), received_at)

    def __enter__(self) -> "Deleter":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
