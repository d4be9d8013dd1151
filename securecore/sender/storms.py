"""Storm limits on disk: SPOOL/storms.json, which all handlers of a host share; docs/store.md has the fields.

A handler holds flock(2) on the spool's directory while it reads the state and puts a new one in its place: less than a
millisecond. The state is advice, never worth an fsync; missing means that nothing has been taken yet. Where it cannot be locked,
read or written it stays as it is, and the caller takes the crash: a lost core is worse than one too many. A full disk is no such
place: the state has all the room that it can need from the first write on. Where it is damaged it is
moved aside, and the caller begins anew, and says so.
"""

import errno
import fcntl
import os
import stat
import time

from securecore import limits
from securecore.declarations import Callable, Final, NamedTuple
from securecore.dump import directory as files
from securecore.errors import BrokenError, StorageError
from securecore.report import CrashReport
from securecore.sender import storm_limits
from securecore.sender.admission import Admission
from securecore.sender.buckets import Bounds, State, Untaken, Verdict
from securecore.sender.kernel_log import Skips
from securecore.sender.turn import take_turn

NAME: Final = "storms.json"
DAMAGED: Final = "storms.json.damaged"
"""Where the last one is kept that could be read and says nothing that could be so."""
_MAX_BYTES: Final = 64 * limits.KIB
"""More than any state of ours has."""
_ROOM_BYTES: Final = 40 * limits.KIB
"""The most programs and users that there can be take less."""


class LockedError(StorageError):
    """Another process has kept the state for longer than STORM_LOCK_S."""


Clock = Callable[[], float]
"""Returns Unix seconds. It is asked under the lock: handlers that asked before, and then waited, would fill a bucket twice with the
same seconds."""


def admit(spool: int, admission: Admission, report: CrashReport, clock: Clock = time.time) -> Verdict:
    """Judge a crash by the storm limits of the spool behind a descriptor.

    Raises LockedError when another process keeps the state, StorageError when the disk refuses it; then the crash is
    not counted, and nothing that it would have counted is lost. Raises BrokenError when what was there is damaged and was moved
    aside: whoever asks again finds nothing counted.
    """
    with _Turn(spool) as state:
        return state.admit(find_program(report), _user(report), _bounds(admission), _milliseconds(clock()))


def count_declined(spool: int, clock: Clock = time.time) -> int:
    """Count a crash that is declined, and return how many there are that no dump has told; raises as admit does."""
    with _Turn(spool) as state:
        state.count(0, 1, 0, _milliseconds(clock()) // 1000)
        return state.declined


def lose(spool: int, admission: Admission, report: CrashReport, untaken: Untaken, clock: Clock = time.time) -> None:
    """Count a crash that was taken and of which nothing was kept, and again what its dump would have told; raises as admit does."""
    with _Turn(spool) as state:
        state.lose(find_program(report), _user(report), _bounds(admission), untaken, _milliseconds(clock()) // 1000)


def give_back(spool: int, admission: Admission, report: CrashReport) -> None:
    """Give the place back of a crash of which a report tells, but of whose core nothing was kept; raises as admit does."""
    with _Turn(spool) as state:
        state.give_back(find_program(report), _user(report), _bounds(admission))


def count_skips(spool: int, boot: str | None, skips: Skips, clock: Clock = time.time) -> None:
    """Count what the kernel's log says of skipped crashes, those that were not counted before; raises as admit does.

    A log of another boot counts from its beginning, and one that is met for the first time from its end: what happened before
    belongs to nobody's dumps.
    """
    with _Turn(spool) as state:
        last = skips.newest if state.boot is None else state.record if state.boot == boot else -1
        state.count(0, 0, sum(crashes for number, crashes in skips.found if number > last), _milliseconds(clock()) // 1000)
        state.boot, state.record, state.read_at = boot, max(last, skips.newest), _milliseconds(clock()) // 1000


def find_last_record(spool: int, boot: str | None, clock: Clock = time.time) -> tuple[int, bool]:
    """Return the number of the last record of the kernel's log that was read, -1 for none of this boot's; raises as admit does.

    And whether that was less than KERNEL_LOG_EVERY_S ago.
    """
    with _Turn(spool, is_kept=False) as state:
        if state.boot is None or state.boot != boot:
            return -1, False
        # A clock that was set back must not put the next look off.
        return state.record, 0 <= _milliseconds(clock()) // 1000 - state.read_at < limits.KERNEL_LOG_EVERY_S


class Standing(NamedTuple):
    """What the state says at one moment, for people."""

    waiting: Untaken
    """All that the next dumps will tell."""
    used_up: tuple[str, ...]
    """As State.used_up has them."""
    problem: str | None
    """Why no crash is limited or counted, or what was counted is lost; None where all is well."""


def look(spool: int, admission: Admission, clock: Clock = time.time) -> Standing:
    """Return how the limits stand; changes nothing. What cannot be read, or not be kept by the spool's owner, is a ``problem``."""
    try:
        _lock(spool)
        try:
            problem, state = _inspect(spool)
        finally:
            fcntl.flock(spool, fcntl.LOCK_UN)
    except OSError as error:
        return Standing(Untaken(), (), files.disk_refused(error, f"cannot read {NAME}").message)
    except StorageError as error:
        return Standing(Untaken(), (), error.message)
    return Standing(state.waiting(), tuple(state.used_up(_bounds(admission), _milliseconds(clock()))), problem)


def _inspect(spool: int) -> tuple[str | None, State]:
    """Return what is wrong with the state, and what it says."""
    names, owner = files.names_in(spool), os.fstat(spool).st_uid
    if NAME in names:
        status = os.stat(NAME, dir_fd=spool, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return f"{NAME} is no file: no crash is limited or counted", State()
        if status.st_uid != owner:
            return f"{NAME} belongs to uid {status.st_uid}, not {owner}: no crash is limited or counted", State()
        if not status.st_mode & stat.S_IRUSR:
            return f"{NAME} cannot be read by its owner: no crash is limited or counted", State()
        try:
            state = State.parse(files.read_file(NAME, spool, _MAX_BYTES) or b"")
        except ValueError:
            return f"{NAME} is damaged: the next crash begins anew", State()
    else:
        state = State()
    if os.fstatvfs(spool).f_flag & os.ST_RDONLY:
        return f"{NAME} cannot be written, its disk is read-only: no crash is limited or counted", state
    return (f"{DAMAGED} lies there: what was counted in it is lost" if DAMAGED in names else None), state


def prepare(spool: int, owner: tuple[int, int]) -> None:
    """Put an empty state where there is none, which belongs to *owner* (uid, gid): on a disk that is full later, it is there.

    Raises StorageError when the disk refuses it.
    """
    _lock(spool)
    try:
        if NAME not in files.names_in(spool):
            _replace(spool, State().encode().ljust(_ROOM_BYTES), owner)
    except OSError as error:
        raise files.disk_refused(error, f"cannot keep {NAME}") from error
    finally:
        fcntl.flock(spool, fcntl.LOCK_UN)


def is_prepared(spool: int) -> bool:
    """Return whether the state has its place on the disk already, as ``prepare`` and each crash that is counted leave it."""
    return NAME in files.names_in(spool)


def find_program(report: CrashReport) -> str | None:
    """Return what stands for the file that was run, and who ran it; None where the file is not known.

    By the file alone, one user could use up the limit of a program that others run too.
    """
    if report.executable_device is None or report.executable_inode is None:
        return None
    return f"{report.executable_device}:{report.executable_inode}:{report.uid}"


def _bounds(admission: Admission) -> Bounds:
    return Bounds(admission.program, admission.user, admission.host)


def _user(report: CrashReport) -> str:
    return str(report.uid)


def _milliseconds(now: float) -> int:
    # A clock before 1970 has no number here, and the second 0 stands for none.
    return max(1000, int(now * 1000))


class _Turn:
    """The state, locked while a block runs, and kept as the block leaves it unless *is_kept* is false.

    An OSError of the block is one of the disk that the state is on, as one of the reading or the writing.
    """

    __slots__ = ("_is_kept", "_spool", "_state")

    def __init__(self, spool: int, *, is_kept: bool = True) -> None:
        self._spool, self._is_kept = spool, is_kept
        self._state = State()

    def __enter__(self) -> State:
        _lock(self._spool)
        try:
            self._state = _read(self._spool)
        except BaseException as error:
            fcntl.flock(self._spool, fcntl.LOCK_UN)
            if isinstance(error, OSError):
                raise files.disk_refused(error, f"cannot keep {NAME}") from error
            raise
        return self._state

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if self._is_kept and error is None:
                _write(self._spool, self._state)
        except OSError as problem:
            raise files.disk_refused(problem, f"cannot keep {NAME}") from problem
        finally:
            fcntl.flock(self._spool, fcntl.LOCK_UN)
        if isinstance(error, OSError):
            raise files.disk_refused(error, f"cannot keep {NAME}") from error


def _lock(spool: int) -> None:
    try:
        is_ours = take_turn(spool, storm_limits.STORM_LOCK_S)
    except OSError as error:
        raise files.disk_refused(error, f"cannot lock {NAME}") from error
    if not is_ours:
        raise LockedError(f"{NAME} is locked by another process")


def _read(spool: int) -> State:
    """Return the state; raises StorageError or OSError when it cannot be read, BrokenError when it is damaged, and moved aside."""
    try:
        status = os.stat(NAME, dir_fd=spool, follow_symlinks=False)
    except FileNotFoundError:
        return State()
    if stat.S_ISDIR(status.st_mode):
        raise StorageError(f"cannot keep {NAME}: a directory stands there")
    if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_BYTES:
        try:
            data = files.read_file(NAME, spool, _MAX_BYTES)
            return State.parse(data) if data is not None else State()
        except ValueError:
            pass  # What the disk gives back is none of ours: it is moved aside like anything else.
    os.rename(NAME, DAMAGED, src_dir_fd=spool, dst_dir_fd=spool)
    raise BrokenError(f"{NAME} is damaged, and is {DAMAGED} now: what was counted there is lost")


def _write(spool: int, state: State) -> None:
    """Put the state in the place of the one before; on a disk that is full, over it."""
    # As long as the largest one: JSON passes over the spaces, and what grows needs no block that it has not.
    data = state.encode().ljust(_ROOM_BYTES)
    try:
        _replace(spool, data)
    except StorageError as error:
        if not (isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise
        # Whoever can fill the disk must not be without limits by that.
        if not _overwrite(spool, data):
            raise


def _replace(spool: int, data: bytes, owner: tuple[int, int] | None = None) -> None:
    """Put a new file, *owner*'s if that is given, in the place of the one before; at every instant it is one of the two."""
    aside = files.aside_name(NAME)
    files.remove_file(aside, spool)
    fd = files.create_file(aside, spool)
    try:
        files.write_all(fd, data)
        if owner is not None:
            # By its descriptor: whose spool it is can have another file under that name by now, a second name of one of root's.
            os.fchown(fd, *owner)
    except (StorageError, OSError):
        files.remove_file(aside, spool)
        raise
    finally:
        os.close(fd)
    os.rename(aside, NAME, src_dir_fd=spool, dst_dir_fd=spool)


def _overwrite(spool: int, data: bytes) -> bool:
    """Write over the file that is there, else over the damaged one; return whether one has the room.

    Whoever is killed meanwhile leaves it torn, which the next one takes for damaged.
    """
    for name in (NAME, DAMAGED):
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=spool)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size >= len(data):
                files.write_all_at(fd, data, 0)
                os.ftruncate(fd, len(data))
                os.rename(name, NAME, src_dir_fd=spool, dst_dir_fd=spool)
                return True
        finally:
            os.close(fd)
    return False
