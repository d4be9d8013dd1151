"""The files of one dump, opened for reading."""

import os
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
        """Return the length of core.zst, 0 when it is not there."""
        try:
            return os.stat(CORE, dir_fd=self.fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise directory.disk_refused(error, f"cannot look at dump {self.dump_id}") from error

    def last_frame_at(self) -> float:
        """Return when the last frame came, in Unix seconds by this machine's clock; of a dump without a core, when it was begun.

        It is a file's modification time, which a backup that was put back may not have kept; never before 1970.
        """
        try:
            return max(os.stat(CORE, dir_fd=self.fd, follow_symlinks=False).st_mtime, 0.0)
        except FileNotFoundError:
            return max(os.fstat(self.fd).st_mtime, 0.0)
        except OSError as error:
            raise directory.disk_refused(error, f"cannot look at dump {self.dump_id}") from error

    def read_report(self) -> bytes | None:
        """Return the report as the sender wrote it; None when it is missing."""
        return directory.read_file(REPORT, self.fd, limits.MAX_REPORT_BYTES)

    def read_manifest(self) -> bytes | None:
        """Return the manifest, a JWS, unverified; None when it is missing."""
        return directory.read_file(MANIFEST, self.fd, limits.MAX_MANIFEST_BYTES)

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
