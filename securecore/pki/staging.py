"""Directories and files that appear whole or not at all.

A directory is built under a temporary name beside its final one, made durable, and renamed. A run that was killed leaves only the
temporary directory; the next run for the same place removes it, unless the lock on it shows that another run is still at work.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from securecore.errors import PkiError, StorageError

PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
_DIRECTORY_MODE: Final = 0o700
_PARENT_MODE: Final = 0o755


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk can do to us into StorageError, naming the path that the operating system names, else *path*."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or path}: {error.strerror or error}") from error


class StagedDirectory:
    """A directory in the making; see stage()."""

    def __init__(self, final: Path, temporary: Path) -> None:
        self.final = final
        self.path = temporary
        self.is_published = False

    def write(self, name: str, data: bytes, mode: int) -> None:
        """Write one new file, durable, its mode whatever the umask; *name* may lie in a subdirectory made with make_directory."""
        write_new(self.path / name, data, mode)

    def make_directory(self, name: str) -> None:
        """Make a subdirectory, for the owner only."""
        with disk_errors(self.path / name):
            os.mkdir(self.path / name, _DIRECTORY_MODE)

    def give_to_owner_of(self, model: Path) -> None:
        """Give the directory and all in it the owner of another one; raises StorageError."""
        with disk_errors(self.path):
            for path in (self.path, *self.path.rglob("*")):
                give_to_owner_of(path, model)

    def publish(self) -> None:
        """Give the directory its final name, durably; raises PkiError when something has taken the name, StorageError otherwise."""
        with disk_errors(self.path):
            for folder, _folders, _files in os.walk(self.path):
                sync_directory(Path(folder))
        check_free(self.final)
        with disk_errors(self.final):
            # rename(2) replaces nothing but an empty directory, which there is nothing to lose in.
            os.rename(self.path, self.final)
        self.is_published = True
        with disk_errors(self.final):
            sync_directory(self.final.parent)


@contextmanager
def stage(final: Path) -> Iterator[StagedDirectory]:
    """Yield a new, empty directory beside *final*, which publish() renames; without publish() it is removed again.

    Raises PkiError when *final* exists or another run is making it, StorageError when the disk refuses.
    """
    check_free(final)
    temporary = final.parent / f".{final.name}.securecore-partial"
    with disk_errors(temporary):
        make_parents(final)
        lock = _make_locked(temporary)
    staged = StagedDirectory(final, temporary)
    try:
        yield staged
    finally:
        if not staged.is_published:
            with disk_errors(temporary):
                _remove_tree(temporary)
        os.close(lock)


class StagedFile:
    """A file in the making; see stage_file()."""

    def __init__(self, final: Path, temporary: Path) -> None:
        self._final, self.path = final, temporary
        self.is_published = False

    def publish(self) -> None:
        """Give the file its final name, durably; raises PkiError when something has taken the name, StorageError otherwise."""
        check_free(self._final)
        with disk_errors(self._final):
            os.rename(self.path, self._final)
            self.is_published = True
            sync_directory(self._final.parent)


@contextmanager
def stage_file(final: Path, data: bytes, mode: int) -> Iterator[StagedFile]:
    """Yield a new file beside *final*, durable, which publish() renames; without publish() it is removed again.

    The caller holds a lock that keeps others from making the same file. Raises PkiError when *final* exists, StorageError.
    """
    check_free(final)
    temporary = final.with_name(f".{final.name}.securecore-partial")
    with disk_errors(temporary):
        make_parents(final)
        temporary.unlink(missing_ok=True)
    try:
        write_new(temporary, data, mode)
        yield StagedFile(final, temporary)
    finally:
        with disk_errors(temporary):
            temporary.unlink(missing_ok=True)


def make_parents(path: Path) -> None:
    """Make the directories above *path* that are not there, durably, for their owner alone to write into; raises OSError.

    Whatever the umask: who may write there could put another key in the place of ours.
    """
    for parent in reversed(path.parents):
        with suppress(FileExistsError):
            os.mkdir(parent, _PARENT_MODE)
            sync_directory(parent.parent)


def check_free(path: Path) -> None:
    """Raise PkiError when anything at all, a dangling link included, stands at *path*."""
    if os.path.lexists(path):
        raise PkiError(f"{path} exists already, and nothing is ever overwritten", hint="name another place, or move it away first")


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet, durable before return; raises StorageError."""
    with disk_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)


def open_own(path: Path, flags: int) -> int | None:
    """Return a descriptor of the regular file *path*, None when it is not there; with O_CREAT it is made, for its owner only.

    No link is followed and no FIFO waited for. Raises StorageError when something else stands there and, for writing, when the file
    has a second name, under which the bytes would appear too.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, PRIVATE_MODE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: can't be opened: {error.strerror}") from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and not (flags & os.O_RDWR and status.st_nlink > 1):
        return descriptor
    os.close(descriptor)
    raise StorageError(f"{path}: not a regular file with one name", hint="look at it, then put a file of its own in its place")


class Replacement:
    """A file's new content, durable, that takes its place when it is told to; see prepared()."""

    def __init__(self, path: Path, temporary: Path) -> None:
        self._path, self._temporary = path, temporary

    def take_place(self) -> None:
        """Rename it, durably; raises StorageError."""
        with disk_errors(self._path):
            os.rename(self._temporary, self._path)
            sync_directory(self._path.parent)


@contextmanager
def prepared(path: Path, data: bytes, mode: int) -> Iterator[Replacement]:
    """Yield a file's new content with the mode and owner of what is there; *mode* is for a new file.

    A reader that is not root was given its right to read on purpose, so that right must survive. Raises StorageError.
    """
    temporary = path.with_name(f".{path.name}.new")
    with disk_errors(path):
        temporary.unlink(missing_ok=True)
    try:
        write_new(temporary, data, mode)
        with disk_errors(path):
            try:
                old = os.stat(path)
            except FileNotFoundError:
                pass
            else:
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.chown(temporary, old.st_uid, old.st_gid)
                os.chmod(temporary, stat.S_IMODE(old.st_mode))
        yield Replacement(path, temporary)
    finally:
        with disk_errors(path):
            temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Replace a file's content in one step, with the mode and owner of what was there, as prepared() has it."""
    with prepared(path, data, mode) as replacement:
        replacement.take_place()


def give_to_owner_of(path: Path, model: Path) -> None:
    """Give a new file or directory the owner of another one, whoever runs us: who owns that is to read this. Raises OSError."""
    owner = os.stat(model)
    if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_locked(path: Path) -> int:
    """Make a temporary directory in place of one that a killed run left, and return a descriptor that holds its lock.

    Raises PkiError when another run is making it, too, or something else is in the way; OSError when the disk refuses.
    """
    try:
        try:
            os.mkdir(path, _DIRECTORY_MODE)
        except FileExistsError:
            _remove_leftover(path)
            os.mkdir(path, _DIRECTORY_MODE)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileExistsError, FileNotFoundError) as error:
        # Made, or removed as a leftover, between two of our steps.
        raise _another_run(path) from error
    try:
        _lock_now(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock_now(descriptor: int, path: Path) -> None:
    """Lock a temporary directory; raises PkiError when another run has it, or has put another in its place since it was opened."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            raise _another_run(path)
    except (BlockingIOError, FileNotFoundError) as error:
        raise _another_run(path) from error


def _another_run(path: Path) -> PkiError:
    return PkiError(f"another run is making {path} at this moment", hint="wait for it, or name another place")


def _remove_leftover(path: Path) -> None:
    """Remove what a killed run left; raises PkiError when it isn't ours or its maker is alive, OSError when the disk refuses."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError as error:
        raise PkiError(f"{path} is in the way and is not a directory", hint="look at it, then remove it") from error
    try:
        _lock_now(descriptor, path)
        _remove_tree(path)
    finally:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    """Remove a directory of ours: plain files and directories, links never followed."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            os.rmdir(os.path.join(folder, name))
    os.rmdir(path)
