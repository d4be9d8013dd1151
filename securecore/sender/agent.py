"""The agent: a process of root's that waits at the kernel's coredump socket, with all that a crash needs in memory already.

It has one thread, reads no byte of a core and none of the network, and does little more than accept and fork:

1. A crash has connected, and there is a place: the agent forks a child for it. The child does what the pipe's handler does, from
   its step 3 on (handler.py), by the same code; the kernel's arguments it finds out (kernel_facts.py), and what is declined before
   the core is needed the kernel is told not to dump (coredump_socket.py).
2. Where all places are taken, crashes wait in the socket's backlog, their processes held. What does not fit there either the kernel
   skips, and says so in its log, where a later crash finds and counts it (kernel_log.py).
3. A child that ends gives its place back, however it ended.
4. A crash of one of its own children is not handled: the kernel knows no mark of a handler at a socket, as it does at a pipe.
5. Now and then a child flushes the spool, or renews the certificate (chores.py). They take no crash's place.

SIGTERM: what the kernel has handed over already is still taken, if the socket ends with us, then the children have STOP_S to
finish; then they are told to make the best of it, as a handler is at a shutdown (lifetime.py), and at last killed. SIGHUP: the
chores are due now. Settings and roots need no reload, for they are looked at before each fork (provisions.py); the rest of the
identity each child reads.
"""

import errno
import fnmatch  # noqa: F401  # as the modules of ours below
import gc
import os
import resource
import select
import signal
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from socket import socket
from types import FrameType
from typing import Final

from securecore.errors import PeerError
from securecore.names import DumpId
from securecore.sender import (  # noqa: F401  # what a child would otherwise load
    agent_limits,
    backlog,
    coredump_socket,
    crash,
    evidence,
    kernel_facts,
    kernel_log,
    late,
    network,
    privileges,
    schedule,
    settings,
    spool_directory,
    tally,
    transfer,
)
from securecore.sender.agent_children import become, reap, send_signal, start_child
from securecore.sender.agent_socket import Listener
from securecore.sender.chores import Chore, Planned
from securecore.sender.confinement import Confinement, confine
from securecore.sender.provisions import Keeper, Provisions
from securecore.sender.system_log import log

_RETRY_S: Final = 1.0
"""Until it is tried again what the machine has refused: a process, a descriptor."""
_CHORE_NICE: Final = 10
"""As the unit of the flush: behind a handler's 5."""


class Agent:
    """Serves one listening socket until it is told to stop."""

    def __init__(self, listener: Listener, settings_path: str, chores: Sequence[Chore]) -> None:
        self._listener, self._settings_path = listener, settings_path
        self._provisions = Keeper(settings_path)
        self._chores = [Planned(chore, time.monotonic()) for chore in chores]
        self._crashes: set[int] = set()
        """Children that have a crash."""
        self._waiting: list[socket] = []
        """Crashes that were accepted, and have no child yet."""
        self._retry_at = 0.0
        self._is_listening = True
        self._told: set[int] = set()
        """Signals that have come."""
        self._kill_at: float | None = None
        self._stop_at: float | None = None
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self, tell_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT, and return once no child is left; *tell_ready* is called once crashes may come."""
        self._take_signals()
        warm_up()
        self._provisions.look()
        leave_be()
        log("agent-ready", socket=self._listener.path, places=agent_limits.PLACES)
        tell_ready()
        while self._is_listening or self._crashes or self._waiting or any(planned.pid for planned in self._chores):
            self._wait()
            self._hear_signals()
            self._reap()
            self._do_chores()
            self._accept()
            self._serve_waiting()
            self._press_on()
        signal.set_wakeup_fd(-1)
        os.close(self._reading)
        os.close(self._writing)
        log("agent-stopped", socket=self._listener.path)

    def _take_signals(self) -> None:
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._told.add(number)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        now = time.monotonic()
        times = [planned.next_at for planned in self._chores if self._is_listening or planned.pid]
        times += [moment for moment in (self._stop_at, self._kill_at) if moment is not None]
        if self._retry_at > now or (self._waiting and self._has_place):
            times.append(self._retry_at)
        elif self._may_accept:
            poll.register(self._listener.socket, select.POLLIN)
        poll.poll(max(0.0, min(times) - now) * 1000 if times else None)
        try:
            os.read(self._reading, 4096)
        except BlockingIOError:
            pass

    @property
    def _has_place(self) -> bool:
        return len(self._crashes) < agent_limits.PLACES

    @property
    def _may_accept(self) -> bool:
        return self._is_listening and not self._waiting and self._has_place

    def _hear_signals(self) -> None:
        told, self._told = self._told, set()
        if signal.SIGHUP in told:
            for planned in self._chores:
                planned.hurry(time.monotonic())
        if told & {signal.SIGTERM, signal.SIGINT} and self._is_listening:
            self._stop()

    def _stop(self) -> None:
        """Begin to stop: nothing more is accepted but what waits at a socket that ends with us."""
        self._stop_at = time.monotonic() + agent_limits.STOP_S
        send_signal([planned.pid for planned in self._chores if planned.pid], signal.SIGTERM)
        if self._listener.is_own:
            # As many as there can be at this moment: in a storm they would never end.
            found = [self._find_connection() for _ in range(agent_limits.BACKLOG + 1)]
            self._waiting += [connection for connection in found if connection is not None]
        self._is_listening = False
        self._listener.close()

    def _reap(self) -> None:
        now = time.monotonic()
        for ended in reap():
            if ended.pid in self._crashes and ended.code < 0:
                log("failed", error=f"the handler of a crash was ended by signal {-ended.code}", handler=ended.pid, code=1)
            self._crashes.discard(ended.pid)
            for planned in self._chores:
                if planned.pid == ended.pid:
                    self._conclude_chore(planned, ended.code, now)

    def _conclude_chore(self, planned: Planned, code: int, now: float) -> None:
        planned.put_off(now)
        if code not in (0, planned.last_code) and self._is_listening:
            # Its own words are in the journal of the agent's unit. That it goes on so is no news, nor that we end it to stop.
            log("untidy", error=f"{planned.chore.name} has ended with {code}")
        planned.last_code = code

    def _do_chores(self) -> None:
        now = time.monotonic()
        for planned in self._chores:
            if planned.is_overdue(now) and planned.pid is not None:
                log("untidy", error=f"{planned.chore.name} takes more than {planned.chore.most_s:.0f} s, and is ended")
                send_signal([planned.pid], signal.SIGKILL)
                planned.begin(planned.pid, now)
            elif planned.is_due(now) and self._is_listening:
                pid = self._fork(planned.chore.work)
                if pid is None:
                    planned.put_off(now)
                else:
                    planned.begin(pid, now)

    def _accept(self) -> None:
        if self._may_accept and self._retry_at <= time.monotonic():
            connection = self._find_connection()
            if connection is not None:
                self._waiting.append(connection)

    def _find_connection(self) -> socket | None:
        """Return the next crash that waits in the backlog; None when there is none, or none can be had now."""
        try:
            return self._listener.socket.accept()[0]
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                log("untidy", error=f"no crash can be accepted: {error.strerror}")
                self._retry_at = time.monotonic() + _RETRY_S
            return None

    def _serve_waiting(self) -> None:
        while self._waiting and self._has_place and self._retry_at <= time.monotonic():
            connection = self._waiting[0]
            if not self._is_of_ours(connection):
                connection.setblocking(True)
                pid = self._fork(partial(handle, connection, self._settings_path, self._provisions.look()), connection)
                if pid is None:
                    # It is held for as long as it takes; the machine is short of processes, and others end.
                    self._retry_at = time.monotonic() + _RETRY_S
                    return
                self._crashes.add(pid)
            self._waiting.pop(0).close()

    def _is_of_ours(self, connection: socket) -> bool:
        """Return whether a child of ours has crashed, or one of its children: they hold the host's key, and would start another."""
        found = kernel_facts.find_peer_pid(connection)
        ours = {os.getpid(), *self._crashes, *(planned.pid for planned in self._chores)}
        if found is None or not ours & {*found}:
            return False
        log("untidy", error="a process of the agent's own has crashed, which is not dumped", pid=found[0])
        return True

    def _fork(self, work: Callable[[], int], kept: socket | None = None) -> int | None:
        """Return the pid of a child that does *work*, None when there can be none; of what is open here it keeps *kept* alone."""
        unwanted = [self._reading, self._writing]
        if self._is_listening:
            unwanted += [self._listener.socket.fileno(), self._listener.lock]
        unwanted += [connection.fileno() for connection in self._waiting if connection is not kept]
        try:
            return start_child(work, unwanted)
        except OSError as error:
            log("untidy", error=f"no process can be started: {error.strerror}")
            return None

    def _press_on(self) -> None:
        """Once the time to stop is over: have the children make the best of it, and later end them."""
        now = time.monotonic()
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at, self._kill_at = None, now + agent_limits.STOP_GRACE_S
            for connection in self._waiting:
                log("failed", error="the agent stops, and the crash still waited for a place", code=1)
                connection.close()
            self._waiting = []
            send_signal(self._crashes, signal.SIGTERM)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = now + agent_limits.STOP_GRACE_S
            send_signal([*self._crashes, *(planned.pid for planned in self._chores if planned.pid)], signal.SIGKILL)


def warm_up() -> None:
    """Have done what is done once in a process."""
    privileges.forbid_own_core()
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    # The library's own tables, and the patterns of the kernel's log, are made when they are first needed.
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    kernel_log.count_skips([b"4,1,1,-;coredump: none"])


def leave_be() -> None:
    """Leave what is there out of the collector's way: children share its pages."""
    gc.collect()
    gc.freeze()


def handle(connection: socket, settings_path: str, provisions: Provisions | None = None) -> int:
    """Be the child of one crash: steps 3 to 11 of handler.py, with the socket in the pipe's place; return the exit code."""
    privileges.forbid_own_core()
    os.umask(0o077)
    now = time.time()
    try:
        arguments = kernel_facts.meet(connection, now)
    except PeerError as error:
        log("untidy", error=error.message)
        return error.exit_code
    request = coredump_socket.hear(connection, agent_limits.REQUEST_S)
    core = connection.detach()
    dump = DumpId.make(int(now * 1000), os.urandom(10))
    gate = coredump_socket.Gate(core, request, agent_limits.REQUEST_S)
    return crash.send(core, arguments, dump, settings_path, gate, provisions)


def run_command(command: list[str], memory_bytes: int) -> int:
    """Be the child of a chore: become *command*, behind every crash in the machine's queues; see confinement.py."""
    confine(Confinement(nice=_CHORE_NICE, memory_bytes=memory_bytes))
    become(command)
