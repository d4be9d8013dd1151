"""What a receiver says in the receiver-wide log, and when.

- A host that the log does not name: before the first receipt under that host's log is given out. The commit waits for it.
- Every other checkpoint: together with all that have changed, by a thread once a minute, when the receiver stops, and when it
  starts; no commit waits for that.

What passes by itself (no room, no memory, no descriptor left) refuses the first receipt of a host, as it would refuse the dump; it
is tried again with the next one. A log that is damaged would not get better by it, and refusing would make its damage everybody's:
hosts then deliver as if there were none, and the receiver says so when it finds it, and every hour. It is not written to any more.

A host's log that is shorter than was said, or another, is reported and not said again; its host delivers all the same. The receiver
cannot tell a thief from an operator who has put an old copy back, and `audit verify` goes on finding it.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from securecore import limits
from securecore.audit.checkpoint import LogSigner, origin_of, parse_checkpoint, verify_checkpoint
from securecore.audit.entry import WideHead
from securecore.audit.log import HostLogs
from securecore.audit.log_files import CHECKPOINT
from securecore.audit.wide_log import Tree, WideLog, speaks_of_a_dump
from securecore.dump import directory
from securecore.errors import SecurecoreError
from securecore.names import HostName
from securecore.receiver.observer import words_of
from securecore.receiver.rounds import Rounds
from securecore.store.layout import Store

_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})

log = logging.getLogger("securecore.receiver")


class LogKeeper(Rounds):
    """Keeps the receiver-wide log of a store whose lock the caller holds; looks every minute. Safe for use by several threads."""

    def __init__(
        self,
        store: Store,
        signer: LogSigner,
        clock: Callable[[], datetime],
        on_end: Callable[[], None] = lambda: None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """*on_end* is as Rounds has it; of *ticks* only differences count."""
        super().__init__("log keeper", limits.WIDE_LOG_EVERY_S, on_end, looks_at_once=False)
        self._store = store
        self._signer = signer
        self._clock = clock
        self._ticks = ticks
        self._writing = threading.Lock()
        """For who opens the log, or writes to it."""
        self._noting = threading.Lock()
        """For the rest, so that nobody who only notes a checkpoint waits for the disk; taken last."""
        self._wide: WideLog | None = None
        self._damaged_at: float | None = None
        self._said: dict[HostName, Tree] = {}
        self._changed: dict[HostName, Tree] = {}
        self._contradicting: set[HostName] = set()
        self._head: WideHead | None = None
        self._logs: HostLogs | None = None

    def follow(self, logs: HostLogs) -> None:
        """Say what is appended to *logs*, and have their entries say where this log stands."""
        self._logs = logs
        logs.on_checkpoint = self.note
        logs.find_wide_head = self.find_head

    def use(self, signer: LogSigner) -> None:
        """Have *signer* go on with all logs, this one included, which has the present one among the keys before it.

        Each log is handed over soon, by the thread; what is appended meanwhile may be signed by either key.
        """
        with self._writing:
            self._drop()
            self._signer = signer
        if self._logs is not None:
            self._logs.use(signer)
        self.wake()

    def begin(self) -> None:
        """Open the log, made where there is none, and say in it all checkpoints on the disk that it does not say yet.

        For a start, before anything is appended to the hosts' logs, which are handed over to the key in use where that is not the
        one that has signed them. What stands in the way is logged.
        """
        self._hand_over()
        with self._writing:
            try:
                if self._opened() is None:
                    return
                for host in self._store.audited_hosts():
                    if (tree := self._read_tree(host)) is not None:
                        self._is_new(host, tree)
                for host in sorted(self._said.keys() - set(self._store.audited_hosts())):
                    log.error("audit log is gone host=%s entries=%d: the receiver-wide log says that there was one",
                              host, self._said[host].size)  # fmt: skip
                self._say_changed()
            except (SecurecoreError, OSError) as error:
                log.error("receiver-wide log not written error=%s", words_of(error))

    def note(self, host: HostName, size: int, root: bytes) -> None:
        """Take a checkpoint of a host's log that is durable; of a host that is new to the log it is durable there too afterwards.

        Raises StorageError where that cannot be, and that passes.
        """
        if size and self._is_new(host, Tree(size, root)):
            with self._writing:
                if host not in self._said:  # Another thread may have said it meanwhile, with its own.
                    self._say_changed()

    def find_head(self) -> WideHead | None:
        """Return what is durable of the log; None while it is damaged."""
        with self._noting:
            return self._head

    def look(self) -> None:
        """Say all checkpoints that have changed since they were last said; what stands in the way is logged."""
        with self._writing:
            try:
                self._say_changed()
            except (SecurecoreError, OSError) as error:
                log.error("receiver-wide log not written error=%s", words_of(error))

    def answer(self) -> None:
        """Hand all logs over to the key in use, and say their checkpoints."""
        self._hand_over()
        self.look()

    def close(self) -> None:
        """Look once more, and close the log."""
        self.look()
        with self._writing:
            self._drop()

    def _hand_over(self) -> None:
        """Have the key in use sign every host's log where one before it has; what stands in the way is logged."""
        if self._logs is None or not self._signer.earlier:
            return
        for host in self._store.audited_hosts():
            try:
                self._logs.hand_over(host)
            except (SecurecoreError, OSError) as error:
                log.error("audit log not handed over to the log key in use host=%s error=%s", host, words_of(error))

    def _is_new(self, host: HostName, tree: Tree) -> bool:
        """Note a checkpoint that is to be said, and return whether nothing was said of its host yet."""
        with self._noting:
            said = self._said.get(host)
            is_contradiction = said is not None and (tree.size < said.size or (tree.size == said.size and tree.root != said.root))
            if is_contradiction and host not in self._contradicting:
                self._contradicting.add(host)
                log.error("audit log was put back host=%s entries=%d: the receiver-wide log says that it had %d, or others",
                          host, tree.size, said.size if said else 0)  # fmt: skip
            if said is None or tree.size > said.size:
                self._changed[host] = tree
            return said is None

    def _say_changed(self) -> None:
        """Say all that has changed, for who holds the lock; nothing in a log that is damaged."""
        with self._noting:
            changed = dict(self._changed)
        # Also where nothing has changed: a log that was damaged may have been mended since.
        wide = self._opened()
        if wide is None or not changed:
            return
        try:
            wide.say(changed, self._clock())
        except (SecurecoreError, OSError) as error:
            self._drop()
            if _passes(error):
                raise
            self._note_damage(error)
            return
        with self._noting:
            self._said.update(changed)
            self._head = wide.head
            self._changed = {host: tree for host, tree in self._changed.items() if changed.get(host) != tree}

    def _opened(self) -> WideLog | None:
        """Return the log, opened if need be; None when it is damaged."""
        if self._wide is not None:
            return self._wide
        if self._damaged_at is not None and self._ticks() - self._damaged_at < limits.DAMAGED_WIDE_LOG_EVERY_S:
            return None
        try:
            fd = self._store.wide_log_directory(create=True)
            try:
                wide = WideLog.open(fd, self._signer)
            finally:
                os.close(fd)
        except (SecurecoreError, OSError) as error:
            if _passes(error):
                raise
            self._note_damage(error)
            return None
        self._wide, self._damaged_at = wide, None
        with self._noting:
            self._said = dict(wide.said)
            self._head = wide.head
            self._changed = {host: tree for host, tree in self._changed.items() if _is_longer(tree, self._said.get(host))}
        return wide

    def _note_damage(self, error: SecurecoreError | OSError) -> None:
        self._damaged_at = self._ticks()
        with self._noting:
            self._head = None
        log.error("receiver-wide log is damaged, hosts deliver without it: that a new one was removed would not show error=%s",
                  words_of(error))  # fmt: skip

    def _drop(self) -> None:
        if self._wide is not None:
            self._wide.close()
            self._wide = None

    def _read_tree(self, host: HostName) -> Tree | None:
        """Return what the checkpoint of a host's log says; None for a log that has no sound one, or speaks of no dump yet.

        A checkpoint that was said before is not verified again.
        """
        try:
            fd = self._store.audit_directory(host, create=False)
            try:
                note = directory.read_file(CHECKPOINT, fd, limits.MAX_CHECKPOINT_BYTES) or b""
                found = parse_checkpoint(note)
                tree = Tree(found.size, found.root)
                if host not in self._said and not speaks_of_a_dump(fd, tree.size):
                    return None  # Were it said by its certificate alone, its first receipt would not wait.
                if _is_longer(tree, self._said.get(host)):
                    verify_checkpoint(note, origin_of(self._signer.name, host), self._signer.public_key)
                    # A process that was killed may have left it in memory only, and this log must not know more than the disk.
                    directory.sync(fd)
            finally:
                os.close(fd)
        except SecurecoreError:
            return None  # Whoever uses that log finds what is wrong with it, and so does `audit verify`.
        return tree


def _is_longer(tree: Tree, said: Tree | None) -> bool:
    return said is None or tree.size > said.size


def _passes(error: SecurecoreError | OSError) -> bool:
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _PASSING
