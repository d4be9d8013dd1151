"""What is listed of a dump, read from its own files; unverified."""

import base64
import binascii
import json
import os
from datetime import UTC, datetime
from typing import Final, NamedTuple

from securecore.dump.compression import Decompressor
from securecore.dump.manifest import COMPLETE, Manifest, parse_manifest
from securecore.dump.reader import scan_frames
from securecore.elfsize import CoreSize
from securecore.errors import SecurecoreError
from securecore.report import CrashReport, parse_report
from securecore.store.reading import DumpFiles

STATE_COMPLETE: Final = "complete"
STATE_INCOMPLETE: Final = "incomplete"
_GIVEN_UP: Final = "incomplete"
"""The event of an audit entry (docs/store.md)."""
_INTEGER_MAX: Final = (1 << 63) - 1
"""SQLite's largest integer; a report's may have 64 bits."""


class DumpRow(NamedTuple):
    """A dump as it is listed; text, because it is for showing: parse ``host`` and ``id`` again before anything is opened."""

    id: str
    host: str
    state: str
    """``complete`` or ``incomplete``: still coming in, given up, or labelled so by its manifest."""
    outcome: str | None
    """The manifest's; None while there is none."""
    received_at: str
    """RFC 3339 in UTC with milliseconds: the audit entry's time; of a dump that was given up, when its last frame came; of one that
    is coming in, its directory's modification time."""
    size_bytes: int | None
    """Plaintext; None while it is not known."""
    predicted_bytes: int | None
    """Plaintext that the whole core has by its ELF header: the manifest's word, else read from the first frames."""
    stored_bytes: int
    frames: int | None
    signal: int | None
    program: str | None
    pid: int | None
    build_id: str | None
    executable: str | None
    crashed_at: int | None
    """Unix seconds by the host's clock."""
    given_up_at: str | None
    """When the dump was given up, as received_at; None for any other dump."""
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
    entry = _find_entry(files)
    given_up = entry if manifest is None and files.is_published and entry.get("event") == _GIVEN_UP else {}
    is_complete = files.is_published and manifest is not None and manifest.outcome == COMPLETE
    return DumpRow(
        id=str(files.dump_id),
        host=str(files.host),
        state=STATE_COMPLETE if is_complete else STATE_INCOMPLETE,
        outcome=manifest.outcome if manifest else None,
        received_at=_find_moment(given_up.get("last_at")) or _find_moment(entry.get("time")) or _modified_at(files),
        size_bytes=manifest.size if manifest else _find_number(given_up.get("size")),
        predicted_bytes=manifest.predicted_size if manifest else _find_predicted(files),
        stored_bytes=files.core_bytes(),
        frames=manifest.frames if manifest else _find_number(given_up.get("frames")),
        signal=_small(report.signal),
        program=report.program,
        pid=_small(report.pid),
        build_id=report.build_id,
        executable=report.executable,
        crashed_at=_small(report.crashed_at),
        given_up_at=_find_moment(given_up.get("time")),
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


def _find_entry(files: DumpFiles) -> dict[str, object]:
    """Return the audit entry that the receipt carries in its ``extra`` line; empty when it has none."""
    try:
        for line in (files.read_receipt() or b"").split(b"\n")[:2]:
            if line.startswith(b"extra "):
                entry = json.loads(base64.b64decode(line[6:]))
                return entry if isinstance(entry, dict) else {}
    except (SecurecoreError, ValueError, RecursionError):
        pass
    return {}


def _find_moment(text: object) -> str | None:
    try:
        moment = datetime.fromisoformat(str(text))
        return format_time(moment) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _find_number(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _INTEGER_MAX else None


def _find_predicted(files: DumpFiles) -> int | None:
    """Return the length that a core must have by its ELF header, from its first frames; None when they do not tell."""
    size = CoreSize()
    try:
        core = files.open_core()
        try:
            decompressor = Decompressor()
            for scanned in scan_frames(core):
                size.feed(decompressor.piece(scanned.data))
                if not size.is_undecided:
                    break
        finally:
            os.close(core)
    except SecurecoreError:
        return None
    return _small(size.expected)


def _modified_at(files: DumpFiles) -> str:
    return format_time(datetime.fromtimestamp(os.fstat(files.fd).st_mtime, UTC))


def _small(number: int | None) -> int | None:
    return number if number is not None and number <= _INTEGER_MAX else None
