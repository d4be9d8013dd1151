"""What is listed of a dump, read from its own files; unverified."""

import base64
import binascii
import json
import os
from datetime import UTC, datetime
from typing import Final, NamedTuple

from securecore.dump.manifest import COMPLETE, Manifest, parse_manifest
from securecore.errors import SecurecoreError
from securecore.report import CrashReport, parse_report
from securecore.store.reading import DumpFiles

STATE_COMPLETE: Final = "complete"
STATE_INCOMPLETE: Final = "incomplete"
_INTEGER_MAX: Final = (1 << 63) - 1
"""SQLite's largest integer; a report's may have 64 bits."""


class DumpRow(NamedTuple):
    """A dump as it is listed; text, because it is for showing: parse ``host`` and ``id`` again before anything is opened."""

    id: str
    host: str
    state: str
    """``complete`` or ``incomplete``: still coming in, cut, or labelled so by its manifest."""
    outcome: str | None
    """The manifest's; None while there is none."""
    received_at: str
    """RFC 3339 in UTC with milliseconds: the audit entry's time; of a dump that is coming in, its directory's modification time."""
    size_bytes: int | None
    """Plaintext; None while it is not known."""
    stored_bytes: int
    frames: int | None
    signal: int | None
    program: str | None
    pid: int | None
    build_id: str | None
    executable: str | None
    crashed_at: int | None
    """Unix seconds by the host's clock."""
    lost_frames: int = 0
    """The manifest's: so many at the beginning are placeholders."""
    sensitive: bool = False
    """Whether the process had changed its privileges, as the host says: its core may hold what its user may not see."""


def row_of(files: DumpFiles) -> DumpRow:
    """Return the row of a dump, published or coming in.

    A file that is missing or malformed leaves its fields unknown and the dump ``incomplete``: listing must go on beside a damaged
    dump. Raises StorageError when the core itself cannot be looked at.
    """
    report = _find_report(files)
    manifest = _find_manifest(files)
    is_complete = files.is_published and manifest is not None and manifest.outcome == COMPLETE
    return DumpRow(
        id=str(files.dump_id),
        host=str(files.host),
        state=STATE_COMPLETE if is_complete else STATE_INCOMPLETE,
        outcome=manifest.outcome if manifest else None,
        received_at=_find_received_at(files) or _modified_at(files),
        size_bytes=manifest.size if manifest else None,
        stored_bytes=files.core_bytes(),
        frames=manifest.frames if manifest else None,
        signal=_small(report.signal),
        program=report.program,
        pid=_small(report.pid),
        build_id=report.build_id,
        executable=report.executable,
        crashed_at=_small(report.crashed_at),
        lost_frames=manifest.lost_frames if manifest else 0,
        sensitive=report.is_sensitive,
    )


def format_time(moment: datetime) -> str:
    """Return an aware moment as RFC 3339 in UTC with milliseconds: always 24 characters, so that text order is time order."""
    # Not strftime: its %Y does not fill years before 1000 up with zeroes (glibc).
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _find_report(files: DumpFiles) -> CrashReport:
    try:
        return parse_report(files.read_report() or b"{}")
    except SecurecoreError:
        return CrashReport()


def _find_manifest(files: DumpFiles) -> Manifest | None:
    """Return what the manifest says; its signature is the business of `verify`."""
    try:
        parts = (files.read_manifest() or b"").split(b".")
        if len(parts) != 3:
            return None
        return parse_manifest(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except (SecurecoreError, binascii.Error):
        return None


def _find_received_at(files: DumpFiles) -> str | None:
    """Return the time in the audit entry that the receipt carries in its ``extra`` line."""
    try:
        for line in (files.read_receipt() or b"").split(b"\n")[:2]:
            if line.startswith(b"extra "):
                moment = datetime.fromisoformat(json.loads(base64.b64decode(line[6:]))["time"])
                return format_time(moment) if moment.tzinfo is not None else None
    except (SecurecoreError, ValueError, OverflowError, TypeError, KeyError, RecursionError):
        return None
    return None


def _modified_at(files: DumpFiles) -> str:
    return format_time(datetime.fromtimestamp(os.fstat(files.fd).st_mtime, UTC))


def _small(number: int | None) -> int | None:
    return number if number is not None and number <= _INTEGER_MAX else None
