"""What is listed of a dump, read from its own files; unverified."""

import base64
import binascii
import json
import os
from collections.abc import Mapping
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
    """``complete`` or ``incomplete``: still coming in, given up, labelled so by its manifest, or damaged."""
    outcome: str | None
    """The manifest's; None where there is none of this dump."""
    received_at: str
    """RFC 3339 in UTC with milliseconds: the audit entry's time; of a dump that was given up, when its last frame came; of one that
    is coming in, its directory's modification time."""
    size_bytes: int | None
    """Plaintext; None while it is not known."""
    predicted_bytes: int | None
    """Plaintext that the whole core has by its ELF header: the manifest's word, else read from the first frames."""
    stored_bytes: int
    """Of core.zst, where there is one, and of what was cut off it where it was damaged."""
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
    published: bool = True
    """Whether it stands among the dumps that have a receipt; without a core (``has_core``) it is damaged then."""
    suppressed: int = 0
    """What the report counts of crashes without a dump, as the host says: this and the next seven, by the report's own names."""
    suppressed_of_user: int = 0
    suppressed_of_host: int = 0
    suppressed_of_others: int = 0
    declined: int = 0
    lost: int = 0
    skipped_by_kernel: int = 0
    untaken_since: int | None = None
    """Unix seconds by the host's clock."""
    has_manifest: bool = True
    """Whether anything stands in the manifest's place; without an ``outcome`` it is damaged."""
    core_fits: bool = True
    """Whether core.zst has the length that the receipt's entry says, where there is one."""
    has_core: bool = True
    """Whether core.zst is there with anything in it; what was cut off it may be all that is left."""
    has_sound_report: bool = True
    """Whether a report can be read; of a dump that was published there must be one."""
    has_sound_receipt: bool = True
    """The same of a receipt with an entry of this dump. Without it received_at is the directory's modification time."""


def row_of(files: DumpFiles) -> DumpRow:
    """Return the row of a dump, published or coming in.

    A file that is missing or malformed leaves its fields unknown and the dump ``incomplete``: listing must go on beside a damaged
    dump. Raises StorageError when the core itself cannot be looked at.
    """
    report, has_sound_report = _look_at_report(files)
    # Read once: a dump that is coming in may get its manifest while we look.
    manifest, has_manifest = _look_at_manifest(files)
    entry, has_sound_receipt = _look_at_receipt(files)
    given_up = _given_up(files, manifest, entry)
    stored = files.core_bytes()
    core_fits = entry.get("stored_bytes", stored) == stored
    is_complete = files.is_published and manifest is not None and manifest.outcome == COMPLETE and stored > 0 and core_fits
    return DumpRow(
        id=str(files.dump_id),
        host=str(files.host),
        state=STATE_COMPLETE if is_complete else STATE_INCOMPLETE,
        outcome=manifest.outcome if manifest else None,
        received_at=_received_at(files, given_up, entry),
        size_bytes=manifest.size if manifest else _find_number(given_up.get("size")),
        predicted_bytes=manifest.predicted_size if manifest else _find_predicted(files),
        stored_bytes=files.taken_bytes(),
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
        published=files.is_published,
        suppressed=_small(report.suppressed) or 0,
        suppressed_of_user=_small(report.suppressed_of_user) or 0,
        suppressed_of_host=_small(report.suppressed_of_host) or 0,
        suppressed_of_others=_small(report.suppressed_of_others) or 0,
        declined=_small(report.declined) or 0,
        lost=_small(report.lost) or 0,
        skipped_by_kernel=_small(report.skipped_by_kernel) or 0,
        untaken_since=_small(report.untaken_since),
        has_manifest=has_manifest,
        core_fits=core_fits,
        has_core=stored > 0,
        has_sound_report=has_sound_report,
        has_sound_receipt=has_sound_receipt,
    )


def read_entry(files: DumpFiles) -> dict[str, object]:
    """Return the audit entry that a dump's receipt carries, unverified; empty where it has none of this dump."""
    return _look_at_receipt(files)[0]


def read_received_at(files: DumpFiles, entry: Mapping[str, object]) -> str:
    """Return what the row of a dump with this *entry* says of when it was received.

    Without a look at its core, of which the row may need a piece.
    """
    manifest, _ = _look_at_manifest(files)
    return _received_at(files, _given_up(files, manifest, entry), entry)


def _look_at_manifest(files: DumpFiles) -> tuple[Manifest | None, bool]:
    """Return what a dump's manifest says, None where none of this dump and host can be read; and whether anything is in its place.

    Not checked: its signature, `verify` does that.
    """
    try:
        token = files.read_manifest()
        if token is None:
            return None, False
        parts = token.split(b".")
        if len(parts) != 3:
            return None, True
        manifest = parse_manifest(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except (SecurecoreError, binascii.Error):
        return None, True
    return (manifest if (manifest.dump, manifest.host) == (files.dump_id, files.host) else None), True


def format_time(moment: datetime) -> str:
    """Return an aware moment as RFC 3339 in UTC with milliseconds: always 24 characters, so that text order is time order."""
    # Not strftime: its %Y does not fill years before 1000 up with zeroes (glibc).
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _look_at_report(files: DumpFiles) -> tuple[CrashReport, bool]:
    """Return a dump's report, an empty one where none can be read; and whether that is as it should be."""
    try:
        text = files.read_report()
        return (parse_report(text), True) if text is not None else (CrashReport(), not files.is_published)
    except SecurecoreError:
        return CrashReport(), False


def _look_at_receipt(files: DumpFiles) -> tuple[dict[str, object], bool]:
    """Return the audit entry that the receipt carries in its ``extra`` line, empty when it has none of this dump; and as above."""
    try:
        receipt = files.read_receipt()
        if receipt is None:
            return {}, not files.is_published
        for line in receipt.split(b"\n")[:2]:
            if line.startswith(b"extra "):
                entry = json.loads(base64.b64decode(line[6:]))
                is_ours = isinstance(entry, dict) and entry.get("dump") == str(files.dump_id)
                return (entry, True) if is_ours else ({}, False)
    except (SecurecoreError, ValueError, RecursionError):
        pass
    return {}, False


def _given_up(files: DumpFiles, manifest: Manifest | None, entry: Mapping[str, object]) -> Mapping[str, object]:
    """Return the entry of a dump that was given up; empty for any other dump."""
    return entry if manifest is None and files.is_published and entry.get("event") == _GIVEN_UP else {}


def _received_at(files: DumpFiles, given_up: Mapping[str, object], entry: Mapping[str, object]) -> str:
    return _find_moment(given_up.get("last_at")) or _find_moment(entry.get("time")) or format_time(files.changed_at())


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


def _small(number: int | None) -> int | None:
    return number if number is not None and number <= _INTEGER_MAX else None
