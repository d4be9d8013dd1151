"""Borrowing the machine's core_pattern for a while, and giving it back whatever happens.

The pattern belongs to the whole machine. A lock keeps two borrowers apart; a guardian, a process of its own, notices the borrower's
death by the end of a pipe, kill -9 included, and puts the old values back.
"""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from securecore import limits
from securecore.errors import BusyError, ConfigError

CORE_PATTERN: Final = Path("/proc/sys/kernel/core_pattern")
CORE_PIPE_LIMIT: Final = Path("/proc/sys/kernel/core_pipe_limit")
_LOCK: Final = "/run/securecore-core-pattern.lock"
_DONE: Final = b"d"
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
"""PROC_PID_INIT_INO of include/linux/proc_ns.h."""


def is_borrowable() -> bool:
    """Return whether this process may set core_pattern, and the kernel would find our handler where we see it.

    The kernel starts handlers in the initial namespaces, from init's root: what runs in a container or a chroot cannot name one.
    """
    if os.geteuid() != 0 or not os.access(CORE_PATTERN, os.W_OK):
        return False
    try:
        is_initial = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE
        # The same text means the same mount namespace and the same root; the links in /proc/1 may be closed even to root.
        return is_initial and Path("/proc/1/mountinfo").read_bytes() == Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return False


@contextmanager
def borrowed(pattern: str, *, patience_s: float = 0) -> Iterator[None]:
    """Set core_pattern, and core_pipe_limit to ours, while the block runs.

    Raises ConfigError when the pattern is too long or this process may not set it, BusyError when another process borrows it for
    longer than *patience_s*.
    """
    if len(pattern) > limits.CORE_PATTERN_MAX:
        raise ConfigError(f"core_pattern is {len(pattern)} characters long, the kernel takes {limits.CORE_PATTERN_MAX}")
    lock = _take_lock(time.monotonic() + patience_s)
    try:
        old_pattern, old_limit = CORE_PATTERN.read_text("utf-8").rstrip("\n"), CORE_PIPE_LIMIT.read_text("ascii").strip()
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-m", "securecore.cli.core_pattern", old_pattern, old_limit],
            stdin=subprocess.PIPE, start_new_session=True, pass_fds=(lock,),
        )  # fmt: skip
        try:
            _write(str(limits.CORE_PIPE_LIMIT), pattern)
            yield
        finally:
            _write(old_limit, old_pattern)
            guardian.communicate(_DONE)
    finally:
        os.close(lock)


def guard(old_pattern: str, old_limit: str) -> None:
    """Wait for the borrower's word; put the old values back when its end of the pipe closes without one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(0, 1) != _DONE:
        _write(old_limit, old_pattern)


def _take_lock(deadline: float) -> int:
    lock = _open_lock()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            if time.monotonic() >= deadline:
                os.close(lock)
                raise BusyError("another process borrows core_pattern", hint="wait until it has finished") from error
            time.sleep(0.05)


def _open_lock() -> int:
    try:
        lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        hint = "only root can" if os.geteuid() != 0 else f"look at {_LOCK}"
        raise ConfigError(f"cannot set core_pattern: {(error.strerror or '').lower()}", hint=hint) from error
    status = os.fstat(lock)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(lock)
        raise ConfigError(f"cannot set core_pattern: {_LOCK} is not a file of its own", hint="look at it, then remove it")
    return lock


def _write(limit: str, pattern: str) -> None:
    try:
        CORE_PIPE_LIMIT.write_text(limit, "ascii")
        CORE_PATTERN.write_text(pattern, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot set core_pattern: {error.strerror}", hint="root can, where /proc/sys is writable") from error


if __name__ == "__main__":
    guard(sys.argv[1], sys.argv[2])
