"""The control socket: how commands on the receiver's machine have their acts audited by the one process that may append.

STORE/control.sock, 0600. A request is one JSON object and a newline; the answer is the same, with a descriptor beside it where the
request asks for a core. Who asks is what the kernel says (SO_PEERCRED), and only root and the store's owner may.

    {"verb": "extract", "host": HOST, "dump": ID}
        ->  {"ok": true} and core.zst, open for reading, once the entry is durable
    {"verb": "delete", "host": HOST, "dump": ID, "reason": TEXT or null}
        ->  {"ok": true} once the entry is durable and the files are gone
    any
        ->  {"error": MESSAGE, "code": EXIT_CODE}
"""

import array
import json
import logging
import os
import pwd
import socket
import struct
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from securecore import limits
from securecore.audit.entry import extracted_entry
from securecore.audit.log import HostLogs
from securecore.errors import BrokenError, BusyError, ConfigError, NotFoundError, PeerError, SecurecoreError, StorageError
from securecore.names import DumpId, HostName, NameRefused
from securecore.receiver.deletion import Order, delete
from securecore.receiver.presence import Presence
from securecore.store.layout import Store

SOCKET: Final = "control.sock"
_REQUEST_BYTES: Final = 4096
_DEADLINE_S: Final = 10.0
_ANSWER_S: Final = 60.0
"""How long a command waits: a disk may take seconds to let go of a file of 100 GB, and requests are answered one by one."""
_KINDS: Final = {kind.exit_code: kind for kind in (NotFoundError, StorageError, BrokenError, BusyError)}
_CREDENTIALS: Final = struct.Struct("3i")

logger = logging.getLogger("securecore.receiver")


class ControlServer:
    """Answers requests one at a time in a thread of its own; they are rare and short."""

    def __init__(self, store: Store, logs: HostLogs, presence: Presence, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._logs = logs
        self._presence = presence
        self._clock = clock
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen; a socket that a dead receiver left is replaced (the caller holds the store's lock, so it is dead)."""
        try:
            os.unlink(SOCKET, dir_fd=self._store.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"cannot replace {SOCKET}: {error.strerror}") from error
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(_socket_path(self._store))
            listener.listen(8)
        except OSError as error:
            listener.close()
            raise StorageError(f"cannot listen on {SOCKET}: {error.strerror}") from error
        finally:
            os.umask(mask)
        self._listener = listener
        self._thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Take no more requests, and return whether the one that is under way, if one is, was answered within that time."""
        if self._listener is None or self._thread is None:
            return True
        # A shutdown wakes the thread that waits in accept; closing alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = None
        self._thread.join(timeout_s)
        try:
            os.unlink(SOCKET, dir_fd=self._store.fd)
        except OSError:
            pass  # The next receiver replaces it.
        return not self._thread.is_alive()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(_DEADLINE_S)
                try:
                    self._answer(connection)
                except OSError as error:
                    logger.warning("control request was not answered: %s", error.strerror or error)

    def _answer(self, connection: socket.socket) -> None:
        core = None
        try:
            uid = _peer_uid(connection)
            if uid not in (0, os.geteuid()):
                raise ConfigError("only root and the store's owner may ask the receiver")
            core = self._act(_read_request(connection), uid)
            answer: dict[str, Any] = {"ok": True}
        except SecurecoreError as error:
            answer = {"error": error.message, "code": error.exit_code}
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [core]))] if core is not None else []
        try:
            connection.sendmsg([json.dumps(answer).encode("ascii") + b"\n"], ancillary)
        finally:
            if core is not None:
                os.close(core)

    def _act(self, request: dict[str, Any], uid: int) -> int | None:
        """Do what is asked for; return the descriptor that belongs to the answer, if one does."""
        verb = request.get("verb")
        if verb not in ("extract", "delete"):
            raise PeerError("the request's verb is unknown")
        try:
            host, dump = HostName(str(request.get("host"))), DumpId.parse(str(request.get("dump")))
        except NameRefused as error:
            raise PeerError(error.message) from error
        core = None
        if verb == "extract":
            core = take_core(self._store, self._logs, host, dump, uid, self._clock())
        else:
            order = Order(uid, user_name(uid), _reason(request))
            # Whoever opens it meanwhile waits, and hears what became of it.
            with self._presence.claim_idle(host, dump, lambda: None):
                delete(self._store, self._logs, host, dump, order, self._clock())
        logger.info("%s host=%s dump=%s uid=%d", "extracted" if verb == "extract" else "deleted", host, dump, uid)
        return core


def take_core(store: Store, logs: HostLogs, host: HostName, dump: DumpId, uid: int, now: datetime) -> int:
    """Return a descriptor on a dump's core.zst once the audit entry that says who took it is durable.

    The caller holds the store's lock. Raises NotFoundError when there is no such dump.
    """
    with store.open_dump(host, dump) as files:
        core = files.open_core()
    try:
        with logs.using(host) as log:
            log.append(extracted_entry(now, dump, host, uid=uid, user=user_name(uid)))
    except SecurecoreError:
        os.close(core)
        raise
    return core


def ask_for_core(store: Store, host: HostName, dump: DumpId) -> int | None:
    """Return a descriptor on a dump's core.zst from the receiver that runs on *store*; None when none runs there.

    Raises StorageError when it does not answer; else what the receiver says, as the error that it met.
    """
    answer = _ask(store, {"verb": "extract", "host": str(host), "dump": str(dump)})
    if answer is None:
        return None
    if not answer:
        raise ConfigError(f"the receiver on {store.path} refused: no descriptor")
    return answer[0]


def ask_for_deletion(store: Store, host: HostName, dump: DumpId, reason: str | None) -> bool:
    """Have the receiver that runs on *store* delete a dump; return False when none runs there. Raises as ask_for_core does."""
    answer = _ask(store, {"verb": "delete", "host": str(host), "dump": str(dump), "reason": reason})
    for fd in answer or ():
        os.close(fd)
    return answer is not None


def _ask(store: Store, request: dict[str, Any]) -> list[int] | None:
    """Return the descriptors of the receiver's answer, one at most; None when no receiver runs on *store*."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_ANSWER_S)
    try:
        connection.connect(_socket_path(store))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise StorageError(f"the receiver on {store.path} does not answer: {error.strerror or error}") from error
    try:
        try:
            connection.sendall(json.dumps(request).encode("ascii") + b"\n")
        except BrokenPipeError:
            pass  # Who we are is enough for it to refuse; its answer is there to be read all the same.
        data, fds, _flags, _address = socket.recv_fds(connection, _REQUEST_BYTES, 1)
        answer: Any = json.loads(data)
        if not isinstance(answer, dict):
            raise ValueError("the answer is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"the receiver on {store.path} does not answer: {error}") from error
    finally:
        connection.close()
    if not answer.get("ok"):
        code = answer.get("code")
        kind = _KINDS.get(code, ConfigError) if isinstance(code, int) else ConfigError
        raise kind(f"the receiver on {store.path} refused: {answer.get('error', 'no reason')}")
    return fds


def _socket_path(store: Store) -> str:
    # Through the descriptor: a socket's address has room for 107 bytes only, and a store's path may be longer.
    return f"/proc/self/fd/{store.fd}/{SOCKET}"


def _peer_uid(connection: socket.socket) -> int:
    _pid, uid, _gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def _read_request(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n") and len(data) < _REQUEST_BYTES:
        part = connection.recv(_REQUEST_BYTES - len(data))
        if not part:
            break
        data += part
    try:
        request = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PeerError("the request is not JSON") from error
    if not isinstance(request, dict):
        raise PeerError("the request is not a JSON object")
    return request


def _reason(request: dict[str, Any]) -> str | None:
    reason = request.get("reason")
    if reason is not None and (not isinstance(reason, str) or len(reason) > limits.MAX_WORDS):
        raise PeerError(f"the request's reason is no text of at most {limits.MAX_WORDS} characters")
    return reason


def user_name(uid: int) -> str | None:
    """Return a user's name; None where the number has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
