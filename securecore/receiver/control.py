"""The control socket: how commands on the receiver's machine have their acts audited by the one process that may append.

STORE/control.sock, 0600. A request is one JSON object and a newline; the answer is the same, with a descriptor beside it where the
request asks for a core. Who asks is what the kernel says (SO_PEERCRED), and only root and the store's owner may.

    {"verb": "extract", "host": HOST, "dump": ID}
        ->  {"ok": true} and core.zst, open for reading, once the entry is durable
    {"verb": "delete", "host": HOST, "dump": ID, "reason": TEXT or null}
        ->  {"ok": true} once the entry is durable and the files are gone
    {"verb": "delete-all", "host": HOST, "dumps": [ID, ...], "reason": TEXT or null,
     "received_at": [TEXT, ...], what a DumpRow said of each when it was chosen}
        ->  {"ok": true, "failed": {ID: [EXIT_CODE, MESSAGE], ...}} once that holds for all of them that did not fail
    {"verb": "verified", "host": HOST, "findings": [[ID, what does not hold or null], ...]}
        ->  {"ok": true, "unknown": [ID, ...]} once the entries are durable, but for dumps that the log does not know
    any
        ->  {"error": MESSAGE, "code": EXIT_CODE}, and "hint": TEXT where there is one
"""

import array
import json
import logging
import os
import pwd
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any, Final, NamedTuple

from securecore import limits
from securecore.audit.entry import extracted_entry
from securecore.audit.log import HostLogs
from securecore.errors import BrokenError, BusyError, ConfigError, NotFoundError, PeerError, SecurecoreError, StorageError
from securecore.names import DumpId, HostName, NameRefused
from securecore.receiver import findings
from securecore.receiver.deletion import Order, delete
from securecore.receiver.findings import Finding
from securecore.receiver.mass_deletion import delete_all
from securecore.receiver.presence import Presence
from securecore.store.layout import Store

SOCKET: Final = "control.sock"
_REQUEST_BYTES: Final = 8192
_ANSWER_BYTES: Final = 64 * 1024
"""Of an answer to delete-all, when none of DELETION_BATCH dumps could be deleted: half a kibibyte of words for each, twice over."""
_DEADLINE_S: Final = 10.0
"""For a request to come, and for its answer to leave: who asks is a command, which writes all of it at once."""
_LEAST_S: Final = 0.001
"""A time-out of 0 would mean another thing."""
_PAUSE_S: Final = 1.0
"""Until a request is taken that could not be: who asks waits for a minute."""
_ANSWER_S: Final = 60.0
"""How long a command waits: a disk may take seconds to let go of a file of 100 GB, and requests are answered one by one."""
_KINDS: Final = {kind.exit_code: kind for kind in (NotFoundError, StorageError, BrokenError, BusyError)}
_CREDENTIALS: Final = struct.Struct("3i")

logger = logging.getLogger("securecore.receiver")


class ControlServer:
    """Answers requests one at a time in a thread of its own; they are rare and short."""

    def __init__(
        self,
        store: Store,
        logs: HostLogs,
        presence: Presence,
        clock: Callable[[], datetime],
        on_end: Callable[[], None] = lambda: None,
        on_deletion: Callable[[], None] = lambda: None,
    ) -> None:
        """*on_end* is told, by the thread, that it ends though nobody has closed it; *on_deletion* that dumps are gone."""
        self._store = store
        self._logs = logs
        self._presence = presence
        self._clock = clock
        self._on_end = on_end
        self._on_deletion = on_deletion
        self._closing = threading.Event()
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
        self._closing.set()
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
        try:
            while not self._closing.is_set():
                self._serve_next(listener)
        finally:
            # What comes here unasked is an error that nobody has thought of, and must not go unseen.
            if not self._closing.is_set():
                self._on_end()

    def _serve_next(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if not self._closing.is_set():
                # Out of descriptors or memory: who asks waits in the backlog, and the loop must not spin on it.
                logger.error("control request cannot be taken: %s", error.strerror or error)
                self._closing.wait(_PAUSE_S)
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
            request = _read_request(connection)
            answer: dict[str, Any] = {"ok": True}
            if request.get("verb") == "delete-all":
                answer["failed"] = self._delete_all(request, uid)
            elif request.get("verb") == "verified":
                answer["unknown"] = self._record(request, uid)
            else:
                core = self._act(request, uid)
        except SecurecoreError as error:
            answer = {"error": error.message, "code": error.exit_code}
            if error.hint is not None:
                answer["hint"] = error.hint
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
        host, (dump,) = _names(request, [request.get("dump")])
        core = None
        if verb == "extract":
            core = take_core(self._store, self._logs, host, dump, uid, self._clock())
        else:
            order = Order(uid, user_name(uid), _reason(request))
            # Whoever opens it meanwhile waits, and hears what became of it.
            with self._presence.claim_idle(host, dump, lambda: None):
                delete(self._store, self._logs, host, dump, order, self._clock())
            self._on_deletion()
        logger.info("%s host=%s dump=%s uid=%d", "extracted" if verb == "extract" else "deleted", host, dump, uid)
        return core

    def _delete_all(self, request: dict[str, Any], uid: int) -> dict[str, list[int | str]]:
        dumps = request.get("dumps")
        if not isinstance(dumps, list) or not 1 <= len(dumps) <= limits.DELETION_BATCH:
            raise PeerError(f"the request's dumps are no list of 1 to {limits.DELETION_BATCH}")
        host, named = _names(request, dumps)
        said = request.get("received_at")
        if said is not None and not (isinstance(said, list) and len(said) == len(named) and all(type(one) is str for one in said)):
            raise PeerError("the request's received_at is no list of texts, one for each dump")
        order = Order(uid, user_name(uid), _reason(request))
        failed: dict[DumpId, SecurecoreError] = {}
        with ExitStack() as claims:
            for dump in named:
                try:
                    claims.enter_context(self._presence.claim_idle(host, dump, lambda: None))
                except BusyError as error:
                    failed[dump] = error
            free = [dump for dump in named if dump not in failed]
            chosen = {dump: text for dump, text in zip(named, said or (), strict=False) if dump in free}
            failed |= delete_all(self._store, self._logs, host, free, order, self._clock(), chosen)
        if len(failed) < len(named):
            self._on_deletion()
        logger.info("deleted host=%s dumps=%d failed=%d uid=%d", host, len(named) - len(failed), len(failed), uid)
        return {str(dump): [error.exit_code, error.message[: limits.MAX_WORDS]] for dump, error in failed.items()}

    def _record(self, request: dict[str, Any], uid: int) -> list[str]:
        host, found = _names(request, [])[0], findings.read(request.get("findings"))
        unknown = findings.record(self._store, self._logs, host, found, uid, user_name(uid), self._clock())
        logger.info("verified host=%s dumps=%d uid=%d", host, len(found) - len(unknown), uid)
        return [str(dump) for dump in unknown]


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
    if not answer.fds:
        raise ConfigError(f"the receiver on {store.path} refused: no descriptor")
    return answer.fds[0]


def ask_for_deletion(store: Store, host: HostName, dump: DumpId, reason: str | None) -> bool:
    """Have the receiver that runs on *store* delete a dump; return False when none runs there. Raises as ask_for_core does."""
    answer = _ask(store, {"verb": "delete", "host": str(host), "dump": str(dump), "reason": reason})
    for fd in answer.fds if answer is not None else ():
        os.close(fd)
    return answer is not None


def ask_for_deletions(
    store: Store, host: HostName, dumps: Sequence[DumpId], reason: str, received_at: Sequence[str] | None = None
) -> dict[DumpId, SecurecoreError] | None:
    """Have the receiver that runs on *store* delete published dumps, at most DELETION_BATCH; return what delete_all returns there.

    *received_at* is of each what delete_all's is. None when no receiver runs. Raises as ask_for_core does.
    """
    request: dict[str, Any] = {"verb": "delete-all", "host": str(host), "dumps": list(map(str, dumps)), "reason": reason}
    answer = _ask(store, request | ({"received_at": list(received_at)} if received_at is not None else {}))
    if answer is None:
        return None
    failed: Any = answer.fields.get("failed")
    try:
        pairs = [(DumpId.parse(text), code, message) for text, (code, message) in failed.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise StorageError(f"the receiver on {store.path} does not answer: it says {failed!a:.100} of what failed") from error
    return {dump: _error(code, str(message)) for dump, code, message in pairs}


def ask_to_record(store: Store, host: HostName, found: Sequence[Finding]) -> list[DumpId] | None:
    """Have the receiver that runs on *store* write down what was found, at most a batch of findings.batches; return what
    findings.record returns there.

    None when no receiver runs. Raises as ask_for_core does.
    """
    answer = _ask(store, {"verb": "verified", "host": str(host), "findings": findings.written(found)})
    if answer is None:
        return None
    unknown: Any = answer.fields.get("unknown")
    try:
        return [DumpId.parse(text) for text in unknown]
    except (AttributeError, TypeError, ValueError) as error:
        raise StorageError(f"the receiver on {store.path} does not answer: it says {unknown!a:.100} of what it knows") from error


class _Answer(NamedTuple):
    fields: dict[str, Any]
    fds: list[int]
    """One at most."""


def _ask(store: Store, request: dict[str, Any]) -> _Answer | None:
    """Return the receiver's answer when it is a good one; None when no receiver runs on *store*."""
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
        data, fds, _flags, _address = socket.recv_fds(connection, _ANSWER_BYTES, 1)
        while not data.endswith(b"\n") and len(data) < _ANSWER_BYTES and (part := connection.recv(_ANSWER_BYTES)):
            data += part
        answer: Any = json.loads(data)
        if not isinstance(answer, dict):
            raise ValueError("the answer is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"the receiver on {store.path} does not answer: {error}") from error
    finally:
        connection.close()
    if not answer.get("ok"):
        words = f"the receiver on {store.path} refused: {answer.get('error', 'no reason')}"
        raise _error(answer.get("code"), words, answer.get("hint"))
    return _Answer(answer, fds)


def _error(code: object, message: str, hint: object = None) -> SecurecoreError:
    kind = _KINDS.get(code, ConfigError) if isinstance(code, int) else ConfigError
    return kind(message, hint=hint if isinstance(hint, str) else None)


def _socket_path(store: Store) -> str:
    # Through the descriptor: a socket's address has room for 107 bytes only, and a store's path may be longer.
    return f"/proc/self/fd/{store.fd}/{SOCKET}"


def _peer_uid(connection: socket.socket) -> int:
    _pid, uid, _gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def _read_request(connection: socket.socket) -> dict[str, Any]:
    data, deadline = b"", time.monotonic() + _DEADLINE_S
    while not data.endswith(b"\n") and len(data) < _REQUEST_BYTES:
        # For all of it: others wait meanwhile, and bytes that drip in must not renew anything.
        connection.settimeout(max(deadline - time.monotonic(), _LEAST_S))
        part = connection.recv(_REQUEST_BYTES - len(data))
        if not part:
            break
        data += part
    connection.settimeout(_DEADLINE_S)
    try:
        request = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PeerError("the request is not JSON") from error
    if not isinstance(request, dict):
        raise PeerError("the request is not a JSON object")
    return request


def _names(request: dict[str, Any], dumps: Sequence[object]) -> tuple[HostName, list[DumpId]]:
    host = request.get("host")
    if not isinstance(host, str) or not all(isinstance(dump, str) for dump in dumps):
        raise PeerError("the request's host and dumps are no texts")
    try:
        return HostName(host), [DumpId.parse(str(dump)) for dump in dumps]
    except NameRefused as error:
        raise PeerError(error.message) from error


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
