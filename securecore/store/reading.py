"""The files of one dump, opened for reading."""

import os
import re
import stat
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

from securecore import limits
from securecore.dump import directory
from securecore.errors import NotFoundError
from securecore.names import DumpId, HostName

CORE: Final = "core.zst"
REPORT: Final = "report.json"
MANIFEST: Final = "manifest.jws"
RECEIPT: Final = "receipt"
REMAINS: Final = "core.damaged"
"""Of a core that was damaged while it was coming in; a hyphen and a number follow, from 1 on (remains.py)."""
REMAINS_NAME: Final = re.compile(rf"{re.escape(REMAINS)}-([1-9][0-9]*)")

Mark = tuple[tuple[str, int, int, int], ...]
"""Name, inode, length and time of the last change (ns) of each file of a dump."""


def modified_at(status: os.stat_result) -> datetime:
    """Return when a file was last changed, in UTC, as everything here that shows or keeps a file's time takes it.

    Never before 1970 nor after the year 9999: whoever may change a file's time, a backup or a clock that went astray, may give it
    one that no calendar holds.
    """
    return datetime.fromtimestamp(min(max(status.st_mtime, 0), limits.LAST_SECOND), UTC)


def remains_bytes(parent: int, name: str = ".") -> int:
    """Return how many bytes of the dump's directory *name* in *parent* were cut off a damaged core, 0 for almost every dump.

    Where there are any there is the first such file, so that one look tells of all others. Raises StorageError.
    """
    try:
        os.stat(f"{name}/{REMAINS}-1", dir_fd=parent, follow_symlinks=False)
        fd = directory.open_directory(name, parent)
        if fd is None:
            return 0
        try:
            files = [file for file in os.listdir(fd) if REMAINS_NAME.fullmatch(file)]
            return sum(os.stat(file, dir_fd=fd, follow_symlinks=False).st_size for file in files)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise directory.disk_refused(error, f"cannot look at what is left of a damaged {CORE}") from error


class DumpFiles:
    """The files of one dump, open through its directory; a context manager."""

    def __init__(self, fd: int, host: HostName, dump_id: DumpId, *, is_published: bool) -> None:
        self.fd = fd
        self.host = host
        self.dump_id = dump_id
        self.is_published = is_published
        """Whether the dump stands among the ones that have a receipt, not among those that are still coming in."""

    def open_core(self) -> int:
        """Return a new descriptor of core.zst, for reading; the caller closes it. Raises NotFoundError when it is not there."""
        fd = directory.open_file(CORE, self.fd)
        if fd is None:
            raise NotFoundError(f"dump {self.dump_id}: {CORE} is missing")
        return fd

    def core_bytes(self) -> int:
        """Return the length of core.zst, 0 when it is not there, or no regular file.

        No published dump has one of 0 bytes: a seek table is in it, also behind no frame at all.
        """
        try:
            status = os.stat(CORE, dir_fd=self.fd, follow_symlinks=False)
            return status.st_size if stat.S_ISREG(status.st_mode) else 0
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise directory.disk_refused(error, f"cannot look at dump {self.dump_id}") from error

    def taken_bytes(self) -> int:
        """Return what the dump takes: the length of core.zst, and of what was cut off it where it was damaged."""
        return self.core_bytes() + remains_bytes(self.fd)

    def last_frame_at(self) -> datetime:
        """Return when the last frame came, by this machine's clock; of a dump without a core, when it was begun.

        It is a file's modification time as modified_at bounds it, which a backup that was put back may not have kept.
        """
        try:
            return modified_at(os.stat(CORE, dir_fd=self.fd, follow_symlinks=False))
        except FileNotFoundError:
            return self.changed_at()
        except OSError as error:
            raise directory.disk_refused(error, f"cannot look at dump {self.dump_id}") from error

    def changed_at(self) -> datetime:
        """Return when a file was last put into the dump's directory, or taken out, as modified_at bounds it."""
        try:
            return modified_at(os.fstat(self.fd))
        except OSError as error:
            raise directory.disk_refused(error, f"cannot look at dump {self.dump_id}") from error

    def mark(self) -> Mark:
        """Return what is another once a file of the dump was written or replaced, whatever length and time it was then given.

        It tells the time of the last change (ctime), which nobody can set. What a disk changes by itself leaves the mark as it is.
        """
        found = []
        for name in sorted(directory.names_in(self.fd)):
            try:
                status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise directory.disk_refused(error, f"cannot look at dump {self.dump_id}") from error
            found.append((name, status.st_ino, status.st_size, status.st_ctime_ns))
        return tuple(found)

    def read_report(self) -> bytes | None:
        """Return the report as the sender wrote it; None when it is missing."""
        return directory.read_file(REPORT, self.fd, limits.MAX_REPORT_BYTES)

    def read_manifest(self) -> bytes | None:
        """Return the manifest, a JWS, unverified; None when it is missing."""
        return directory.read_file(MANIFEST, self.fd, limits.MAX_MANIFEST_BYTES)

    def has_manifest(self) -> bool:
        """Return whether anything stands in the manifest's place, sound or not."""
        return directory.exists(MANIFEST, self.fd, f"cannot look at dump {self.dump_id}")

    def read_receipt(self) -> bytes | None:
        """Return the receipt, a tlog-proof, unverified; None when it is missing."""
        return directory.read_file(RECEIPT, self.fd, limits.MAX_RECEIPT_BYTES)

    def close(self) -> None:
        """Close the directory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "DumpFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
