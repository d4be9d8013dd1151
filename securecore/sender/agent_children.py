"""The agent's children: forks of a process with one thread, each of which does one thing and ends.

A child has what the agent has loaded, and nothing else of it: not its sockets, not its signals' handlers. Whatever happens in it is
a line in the log and an exit code, and the agent goes on.
"""

import os
import signal
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, NoReturn

from securecore.errors import SecurecoreError
from securecore.sender.system_log import log

OURS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
"""The signals that the agent handles, and that must not meet a child before it has put them in order."""


class Ended(NamedTuple):
    """A child that has ended."""

    pid: int
    code: int
    """Its exit code, or less than 0 the signal that has ended it."""


def start_child(work: Callable[[], int], unwanted: Iterable[int]) -> int:
    """Fork a child that does *work*, ends with the code that it returns, and has closed the descriptors *unwanted*; return its pid.

    SIGTERM waits in it until *work* lets it come. Raises OSError when there can be no process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(work, unwanted)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def reap() -> list[Ended]:
    """Return the children that have ended since this was asked last."""
    ended: list[Ended] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append(Ended(pid, os.waitstatus_to_exitcode(status)))


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal children that were not reaped yet, so that their numbers are theirs."""
    for pid in pids:
        os.kill(pid, number)


def become(command: list[str]) -> NoReturn:
    """Become another program, in a child: with the signals as a program expects them."""
    for number in OURS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(command[0], command)  # noqa: S606  # no shell is what is wanted


def _be_child(work: Callable[[], int], unwanted: Iterable[int]) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # What is meant for the agent, from a terminal or its unit, is not to cost a core.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})
        for fd in unwanted:
            os.close(fd)
        code = work()
    except SecurecoreError as error:
        log("failed", error=error.message, code=error.exit_code)
        code = error.exit_code
    except MemoryError:
        log("failed", error="out of memory (memory in [handler] of sender.toml)", code=1)
    except Exception as error:  # noqa: BLE001  # a top level: whatever happens, one line says so
        log("failed", error=f"bug: {type(error).__name__}: {error}", code=1)
    finally:
        # This copy of the agent must not go on as a second one.
        os._exit(code)
