"""The collecting daemon: listens, gives each connection a thread, reloads on SIGHUP, ends in good order on SIGTERM.

The main thread accepts and minds signals; it never touches TLS, so a peer that stalls its handshake stalls only its own thread.
"""

import logging
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from securecore import limits, tls
from securecore.audit.log import HostLogs
from securecore.errors import Bug, NotFoundError, SecurecoreError
from securecore.names import StoreId
from securecore.networks import site_of
from securecore.receiver.abandonment import Abandonment
from securecore.receiver.caretaker import Caretaker
from securecore.receiver.commit import Committer
from securecore.receiver.control import ControlServer
from securecore.receiver.doors import Doorkeeper, StrangerLog, Visitor
from securecore.receiver.handshake import handshake_words
from securecore.receiver.identity_watch import IdentityWatch
from securecore.receiver.known_lists import check_at_start, keep_after_reload
from securecore.receiver.listeners import bound_address, drain, listen, written
from securecore.receiver.log_keeper import LogKeeper
from securecore.receiver.log_keys import put_log_keys
from securecore.receiver.material import Material, load_material
from securecore.receiver.observer import advice_of, log, observer_of, quoted
from securecore.receiver.service import Service
from securecore.receiver.session import Session
from securecore.receiver.settings import ReceiverSettings
from securecore.store.layout import Store, StoreLock, create_store, open_store
from securecore.wire.messages import Refusal

_WARN_EVERY_S: Final = 3600.0
"""How often what is amiss with the material is repeated in the log."""
_FIXED: Final = ("listen", "store", "incomplete_after")
"""The settings that a running receiver keeps."""


def utc_now() -> datetime:
    """Return the time, aware, in UTC."""
    return datetime.now(UTC)


class Receiver:
    """A receiver that holds its store's lock; made ready by ``open_receiver``, run by ``serve``, ended by ``stop``."""

    def __init__(
        self,
        settings: ReceiverSettings,
        store: Store,
        lock: StoreLock,
        material: Material,
        listeners: Sequence[socket.socket],
        reread: Callable[[], ReceiverSettings] | None = None,
    ) -> None:
        self._settings = settings
        self._reread = reread or (lambda: settings)
        self._store = store
        self._lock = lock
        self._logs = HostLogs(material.signer, lambda host: store.audit_directory(host, create=True))
        self._keeper = LogKeeper(store, material.signer, utc_now, partial(self._lose, "log keeper"))
        self._keeper.follow(self._logs)
        committer = Committer(store, self._logs, utc_now, lambda leaf: self._service.material.find_crl(leaf, utc_now()))
        abandonment = Abandonment(store, self._logs, utc_now)
        self._service = Service(store, material, self._logs, committer, abandonment, utc_now)
        self._service.policy = settings.policy
        after, presence = settings.incomplete_after, self._service.presence
        self._caretaker = Caretaker(store, committer, abandonment, presence, after, utc_now, partial(self._lose, "caretaker"))
        lose_control, wake = partial(self._lose, "control socket"), self._caretaker.wake
        self._control = ControlServer(store, self._logs, presence, utc_now, lose_control, wake)
        self._listeners = listeners
        self._doorkeeper = Doorkeeper(lambda: self._service.policy.doors)
        self._strangers = StrangerLog(utc_now)
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._is_stopping = self._is_hurried = False
        self._is_reloading = self._is_rereading = self._is_signalled = False
        self._lost: str | None = None
        """The thread that has ended by itself."""
        self.addresses = [bound_address(listener) for listener in listeners]
        """Where it listens, with the ports that the kernel chose."""

    @property
    def material(self) -> Material:
        """The material in use now."""
        return self._service.material

    @property
    def store_path(self) -> Path:
        """The directory of the store, as it was named."""
        return self._settings.store

    @property
    def store_id(self) -> StoreId:
        """The id of the store."""
        return self._store.store_id

    @property
    def session_count(self) -> int:
        """Connections that are being served, those in their handshake included."""
        return self._doorkeeper.count

    def prepare(self) -> None:
        """Finish what a crash has interrupted, and publish the log key's statement; raises SecurecoreError, for older lists too."""
        material = self._service.material
        check_at_start(self._store, self._service.committer, material)
        put_log_keys(self._store, material.log_keys, material.anchors_pem)
        self._keeper.begin()
        for dump, error in self._service.committer.roll_forward():
            level = logging.ERROR if error else logging.INFO
            log.log(level, "recovered dump=%s error=%s", dump, quoted(error.message) if error else "-")
        self._control.start()

    def serve(self) -> None:
        """Accept until ``stop``, then let what is in flight finish within its bound, and close everything.

        Raises Bug when it was no ``stop`` that ended it but the end of the caretaker's thread, or of the control socket's.
        """
        self._warn()
        self._caretaker.start()
        self._keeper.start()
        self._service.admission.start_counting()
        poll = select.poll()
        for listener in (*self._listeners, self._wakeup):
            poll.register(listener, select.POLLIN)
        by_fd = {listener.fileno(): listener for listener in self._listeners}
        warned = time.monotonic()
        while not self._is_stopping:
            for fd, _ in poll.poll(_WARN_EVERY_S * 1000):
                if fd in by_fd:
                    self._accept(by_fd[fd])
                else:
                    drain(self._wakeup)
            if self._is_reloading:
                self._is_reloading = False
                self._reload()
            if time.monotonic() - warned > _WARN_EVERY_S:
                self._warn()
                self._summarise()
                warned = time.monotonic()
        self._close()
        if self._lost is not None:
            hint = "the log has a traceback: report it; the next start goes on where this one ended"
            raise Bug(f"the receiver's {self._lost} has ended by an error that nobody has thought of", hint=hint)

    def stop(self) -> None:
        """End ``serve``, the second time without waiting for dumps in flight; for signal handlers and other threads."""
        self._is_hurried = self._is_stopping
        self._is_stopping = True
        self._wake()

    def reload(self) -> None:
        """Make ``serve`` load configuration and identity directory again; for signal handlers and other threads."""
        self._is_rereading = True
        self.refresh()

    def refresh(self) -> None:
        """Make ``serve`` load the identity directory again, and not the file, which somebody may be editing."""
        self._is_reloading = True
        self._wake()

    def handle_signals(self) -> None:
        """Stop on SIGTERM and SIGINT, at once the second time, reload on SIGHUP; for the main thread, where ``serve`` runs then."""

        def handler(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGHUP:
                self.reload()
            else:
                self.stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, handler)
        # The handler runs between two steps of the main thread. One that comes just before it waits, or on another thread, does not
        # end that wait by itself.
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._is_signalled = True

    def _lose(self, thread: str) -> None:
        """End ``serve``: without this thread dumps would wait for ever, or deletions, and nobody would know."""
        self._lost = thread
        log.error("%s has ended by itself: the receiver stops", thread)
        self.stop()

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # The buffer is full of reasons to wake up, or the receiver is closed.

    def _reload(self) -> None:
        # Each by itself: a mistake in the configuration must not keep a revocation from counting.
        if self._is_rereading:
            self._is_rereading = False
            self._reload_configuration()
        in_force = self._service.material.identity.path
        if not self._reload_material(self._settings.identity) and self._settings.identity != in_force:
            # Nor must a path that leads nowhere: the lists of the identity in force are still looked after.
            self._reload_material(in_force)
        self._warn()

    def _reload_material(self, path: Path) -> bool:
        """Put what an identity directory holds now in force; return whether it is."""
        before = self._service.material
        try:
            material = load_material(path, utc_now(), before)
            put_log_keys(self._store, material.log_keys, material.anchors_pem)
        except SecurecoreError as error:
            log.error(
                "reload failed, the last good material stays: %s identity=%s in_force=%s",
                advice_of(error), path, before.identity.path,
            )  # fmt: skip
            return False
        self._service.material = material  # First of all: what a new log key signs is sent with that key's statement.
        if material.signer.public_key != before.signer.public_key:
            self._keeper.use(material.signer)
            log.info("log key rotated before=%s after=%s", *(one.signer.public_key.hex() for one in (before, material)))
        log.info("reloaded identity=%s", path)
        keep_after_reload(self._service.committer, self._service.material)
        return True

    def _reload_configuration(self) -> None:
        try:
            found = self._reread()
        except SecurecoreError as error:
            log.error("reload failed, the last good configuration stays: %s", quoted(error.message))
            return
        if found == self._settings:
            return
        for name in _FIXED:
            if getattr(found, name) != getattr(self._settings, name):
                log.warning("%s has changed: that needs a restart", name)
        self._settings = self._settings._replace(identity=found.identity, policy=found.policy)
        self._service.policy = found.policy
        log.info("reloaded configuration")

    def _warn(self) -> None:
        for line in self._service.material.warnings(utc_now()):
            log.warning("%s", line)

    def _summarise(self) -> None:
        """Say how much was left out of the log."""
        self._strangers.summarise()
        self._service.lines.summarise()

    def _accept(self, listener: socket.socket) -> None:
        try:
            plain, address = listener.accept()
        except OSError as error:
            # Out of descriptors or memory: the connection stays in the backlog, and the loop must not spin on it.
            self._strangers.faulted(f"accept failed: {error.strerror}")
            self._doorkeeper.make_room()
            time.sleep(0.1)
            return
        visitor = self._doorkeeper.enter(address)
        if visitor is None:
            self._strangers.failed(site_of(address), f"failed peer={written(address)} error='too many connections'")
            plain.close()
            return
        try:
            threading.Thread(target=self._run_session, args=(plain, visitor), daemon=True).start()
        except RuntimeError as error:  # no memory or no process left for another thread
            self._strangers.faulted(f"failed peer={visitor.peer} error={quoted(str(error))}")
            plain.close()
            self._doorkeeper.leave(visitor)

    def _run_session(self, plain: socket.socket, visitor: Visitor) -> None:
        observer = observer_of(visitor.peer)
        observer.accepted()
        try:
            # TLS takes the descriptor away from *plain*, so that others need one of their own.
            self._doorkeeper.hold(visitor, plain.dup())
            secured = tls.secure(self._service.material.context, plain, deadline_s=limits.HANDSHAKE_DEADLINE_S)
            identify, failed = partial(self._doorkeeper.identify, visitor), partial(self._strangers.failed, visitor.site)
            session = Session(secured, visitor.peer, self._service, observer, identify, failed)
            visitor.session = session
            session.run()
        except (OSError, SecurecoreError) as error:
            words = error.message if isinstance(error, SecurecoreError) else handshake_words(error)
            if isinstance(error, (ssl.SSLEOFError, ConnectionError)):
                # What a handshake that was ended from here ends with; one that failed by itself has its own reason.
                words = _STOPPED if self._is_stopping else _SENT_AWAY if visitor.is_sent_away else words
            self._strangers.failed(visitor.site, f"failed host=- peer={visitor.peer} error={quoted(words)}")
            plain.close()
        finally:
            observer.closed()
            self._doorkeeper.leave(visitor)

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        count = self.session_count
        log.info("stopping, %d connections%s", count, "; a second signal does not wait for them" if count else "")
        # First of all: whoever waits for a count would go on doing so.
        self._service.admission.stop_counting(0.0)
        self._caretaker.stop()
        self._keeper.stop()
        left = self._end_sessions()
        is_tended = self._caretaker.has_ended(limits.PROGRESS_DEADLINE_S) and self._keeper.has_ended(limits.PROGRESS_DEADLINE_S)
        # A deletion may go on for as long as the disk takes for a large file.
        is_answered = self._control.close(limits.PROGRESS_DEADLINE_S)
        is_counted = self._service.admission.stop_counting(limits.PROGRESS_DEADLINE_S)
        if left or not (is_tended and is_answered and is_counted):
            # Whom the disk does not let go, a session, a deletion or the caretaker, may still write, and append to a log. So the
            # store stays locked, and everything open, until the end of the process has ended that thread too.
            log.error("stopped, %d connections still wait for the disk and end with the process", left)
            return
        self._summarise()
        self._keeper.close()
        self._logs.close()
        self._lock.close()
        self._store.close()
        if self._is_signalled:
            signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._waker.close()
        log.info("stopped")

    def _end_sessions(self) -> int:
        """Interrupt who has no dump under way at once, the others when the bound is over; return how many are left all the same.

        What they had made durable stays.
        """
        deadline = time.monotonic() + limits.SHUTDOWN_DEADLINE_S
        while True:
            visitors = self._doorkeeper.visitors()
            self._doorkeeper.hang_up_strangers()
            is_over = self._is_hurried or time.monotonic() > deadline
            for session in (visitor.session for visitor in visitors):
                if session is not None and (session.is_idle or is_over):
                    session.interrupt(Refusal.SHUTTING_DOWN, "the receiver is being stopped")
            if not visitors or time.monotonic() > deadline + limits.PROGRESS_DEADLINE_S:
                return len(visitors)
            self._doorkeeper.wait_for_change(0.2)


def open_receiver(settings: ReceiverSettings, reread: Callable[[], ReceiverSettings] | None = None) -> Receiver:
    """Return a receiver ready to serve: store opened (made, when its directory is absent or empty) and locked, identity tested.

    *reread* returns the settings as they are at a reload, or raises SecurecoreError; without it they stay as they are.
    """
    material = load_material(settings.identity, utc_now())
    with ExitStack() as undo:
        # Listening comes first: an address that cannot be had must not leave a new store behind. Who connects meanwhile waits.
        listeners = [undo.enter_context(listener) for address in settings.listen for listener in listen(address)]
        try:
            store = open_store(str(settings.store))
        except NotFoundError:
            store = create_store(str(settings.store))
        undo.callback(store.close)
        lock = store.lock()
        undo.callback(lock.close)
        receiver = Receiver(settings, store, lock, material, listeners, reread)
        for end in (receiver._wakeup, receiver._waker):
            undo.enter_context(end)
        receiver.prepare()
        undo.pop_all()
    return receiver


def run(read: Callable[[], ReceiverSettings], announce: Callable[[Receiver], None]) -> None:
    """Run a receiver until SIGTERM or SIGINT; *read* returns its settings, at the start and at each reload.

    *announce* is told when it listens.
    """
    # A reload that comes while we start asks for nothing: what we are about to load is the newest there is.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = read()
    watch, receiver = IdentityWatch(settings.identity), open_receiver(settings, read)
    receiver.handle_signals()
    announce(receiver)
    with watch.telling(receiver.refresh, lambda: receiver.material.identity.path):
        receiver.serve()


_STOPPED: Final = "the receiver is being stopped"
_SENT_AWAY: Final = "made room for others: too many connections were in their handshake"
