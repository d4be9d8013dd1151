"""Storm limits on disk: SPOOL/storms.json, which all handlers of a host share; docs/store.md has the fields.

A handler holds flock(2) on the spool's directory while it reads the state and puts a new one in its place: less than a
millisecond. The state is advice: missing, torn or strange means that nothing has been taken yet, and it is never worth an fsync.
Where it cannot be locked or written the caller takes the crash: a lost core is worse than one too many.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from securecore import limits
from securecore.dump import directory as files
from securecore.errors import StorageError
from securecore.report import CrashReport
from securecore.sender.admission import Admission
from securecore.sender.buckets import State, Untaken, Verdict
from securecore.sender.kernel_log import Skips

NAME: Final = "storms.json"
_MAX_BYTES: Final = 64 * limits.KIB
"""The most programs and users that there can be take below 40 KiB."""
_PAUSE_S: Final = 0.002

Clock = Callable[[], float]
"""Returns Unix seconds. It is asked under the lock: handlers that asked before, and then waited, would fill a bucket twice with the
same seconds."""


def admit(spool: int, admission: Admission, report: CrashReport, clock: Clock = time.time) -> Verdict:
    """Judge a crash by the storm limits of the spool behind a descriptor.

    Raises StorageError when another process keeps the state for longer than STORM_LOCK_S, or the disk refuses it; then the crash is
    not counted, and nothing that it would have counted is lost.
    """
    with _changing(spool) as state:
        return state.admit(find_program(report), _user(report), (admission.program, admission.user), _milliseconds(clock()))


def count_declined(spool: int, clock: Clock = time.time) -> None:
    """Count a crash that a rule or its size declined; raises as admit does."""
    with _changing(spool) as state:
        state.count(0, 1, 0, _milliseconds(clock()) // 1000)


def give_back(spool: int, report: CrashReport, untaken: Untaken) -> None:
    """Count again what a dump had counted that went nowhere; raises as admit does."""
    with _changing(spool) as state:
        state.give_back(find_program(report), _user(report), untaken)


def count_skips(spool: int, boot: str | None, skips: Skips, clock: Clock = time.time) -> None:
    """Count what the kernel's log says of skipped crashes, those that were not counted before; raises as admit does.

    A log of another boot counts from its beginning, and one that is met for the first time from its end: what happened before
    belongs to nobody's dumps.
    """
    with _changing(spool) as state:
        last = skips.newest if state.boot is None else state.record if state.boot == boot else -1
        state.count(0, 0, sum(crashes for number, crashes in skips.found if number > last), _milliseconds(clock()) // 1000)
        state.boot, state.record = boot, max(last, skips.newest)


def find_program(report: CrashReport) -> str | None:
    """Return what stands for the file that was run, and who ran it; None where the file is not known.

    By the file alone, one user could use up the limit of a program that others run too.
    """
    if report.executable_device is None or report.executable_inode is None:
        return None
    return f"{report.executable_device}:{report.executable_inode}:{report.uid}"


def _user(report: CrashReport) -> str:
    return str(report.uid)


def _milliseconds(now: float) -> int:
    # A clock before 1970 has no number here, and the second 0 stands for none.
    return max(1000, int(now * 1000))


@contextmanager
def _changing(spool: int) -> Iterator[State]:
    """Yield the state, locked, and keep it as the block leaves it."""
    _lock(spool)
    try:
        state = _read(spool)
        yield state
        _write(spool, state)
    except OSError as error:
        raise files.disk_refused(error, f"cannot keep {NAME}") from error
    finally:
        fcntl.flock(spool, fcntl.LOCK_UN)


def _lock(spool: int) -> None:
    ends_at = time.monotonic() + limits.STORM_LOCK_S
    while True:
        try:
            fcntl.flock(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= ends_at:
                raise StorageError(f"{NAME} is locked by another process") from error
            time.sleep(_PAUSE_S)
        except OSError as error:
            raise files.disk_refused(error, f"cannot lock {NAME}") from error


def _read(spool: int) -> State:
    try:
        data = files.read_file(NAME, spool, _MAX_BYTES)
        return State.parse(data) if data is not None else State()
    except (StorageError, ValueError):
        return State()


def _write(spool: int, state: State) -> None:
    """Put the state in the place of the one before; at every instant it is one of the two."""
    aside = files.aside_name(NAME)
    files.remove_file(aside, spool)
    fd = files.create_file(aside, spool)
    try:
        files.write_all(fd, state.encode())
    finally:
        os.close(fd)
    os.rename(aside, NAME, src_dir_fd=spool, dst_dir_fd=spool)
