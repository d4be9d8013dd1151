"""Entries of an audit log: one canonical JSON object a line, whose bytes without the newline are the leaf of the log's tree.

Sorted keys, no spaces, ASCII with everything else escaped: an entry cannot hold a newline, so nothing that a peer says can forge
one (R14). Peer-supplied words are cut. The fields are listed in ``docs/store.md``.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from securecore import limits
from securecore.dump.manifest import COMPLETE, Manifest
from securecore.errors import BrokenError, Bug
from securecore.names import DumpId, HostName

RECEIVED: Final = "received"
EXTRACTED: Final = "extracted"

_VERSION: Final = 1
_WORD_MAX: Final = 255
"""Characters of a program's or a user's name: NAME_MAX."""

Value = str | int | None
"""What a field of an entry holds; entries are flat."""


def timestamp(moment: datetime) -> str:
    """Return an aware moment as RFC 3339 in UTC with milliseconds, always 24 characters, so that text order is time order."""
    if moment.tzinfo is None:
        raise Bug("a time without its zone was given to the audit")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def received_entry(
    moment: datetime,
    manifest: Manifest,
    manifest_jws: bytes,
    *,
    stored_bytes: int,
    certificate: str,
    program: str | None = None,
    signal: int | None = None,
) -> bytes:
    """Return the entry that says that a dump is durable.

    *certificate* is the fingerprint of the host's certificate, *stored_bytes* the length of core.zst with its seek table;
    *program* and *signal* are the report's, kept so that the log still says what was there when the dump has been deleted.
    """
    fields: dict[str, Value] = {
        **_common(RECEIVED, moment, manifest.dump, manifest.host),
        **_agreed(manifest, manifest_jws),
        "stored_bytes": stored_bytes,
        "certificate": certificate,
    }
    if program is not None:
        fields["program"] = program[:_WORD_MAX]
    if signal is not None:
        fields["signal"] = signal
    return encode(fields)


def extracted_entry(moment: datetime, dump_id: DumpId, host: HostName, *, uid: int, user: str | None) -> bytes:
    """Return the entry that says that somebody took a core out; *uid* is the kernel's word (SO_PEERCRED), *user* only its name."""
    return encode({**_common(EXTRACTED, moment, dump_id, host), "uid": uid, "user": None if user is None else user[:_WORD_MAX]})


def encode(fields: Mapping[str, Value]) -> bytes:
    """Return the canonical encoding of an entry; raises Bug when it is longer than MAX_ENTRY_BYTES."""
    entry = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    if len(entry) > limits.MAX_ENTRY_BYTES:
        raise Bug(f"audit entry is {len(entry)} bytes long")
    return entry


def parse_entry(entry: bytes) -> dict[str, Value]:
    """Return the fields of an entry; ``event`` and ``time`` are there and are text, unknown fields and events are let through.

    Raises BrokenError unless *entry* is a flat object of text, integers and null in its canonical encoding. Not checked: that any
    of it is true, and that it is in a log.
    """
    if len(entry) > limits.MAX_ENTRY_BYTES:
        raise BrokenError("audit entry is too long")
    try:
        fields = json.loads(entry)
    except (ValueError, RecursionError) as error:
        raise BrokenError("audit entry is not JSON") from error
    if not isinstance(fields, dict) or not all(value is None or type(value) in (str, int) for value in fields.values()):
        raise BrokenError("audit entry is not a flat object")
    if not isinstance(fields.get("event"), str) or not isinstance(fields.get("time"), str):
        raise BrokenError("audit entry has no event or no time")
    if json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii") != entry:
        raise BrokenError("audit entry is not in its canonical encoding")
    return fields


def find_received(entry: bytes) -> DumpId | None:
    """Return the dump of which *entry* says that it was received; None for other events and for what is no entry."""
    if b'"event":"received"' not in entry:  # Quotes within text are escaped, so these bytes are a field and nothing else.
        return None
    try:
        return DumpId.parse(str(parse_entry(entry).get("dump")))
    except (BrokenError, ValueError):
        return None


def find_time(fields: Mapping[str, Value]) -> datetime | None:
    """Return the moment that an entry gives, in UTC; None when that is none, or in no calendar, for an entry may say anything."""
    try:
        moment = datetime.fromisoformat(str(fields.get("time")))
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def check_received(fields: Mapping[str, Value], manifest: Manifest, manifest_jws: bytes) -> None:
    """Check that a received entry speaks of the dump that *manifest* speaks of; raises BrokenError naming the first difference."""
    expected = {"event": RECEIVED, "dump": str(manifest.dump), "host": str(manifest.host), **_agreed(manifest, manifest_jws)}
    for name, value in expected.items():
        if name not in fields or fields[name] != value:
            raise BrokenError(f"audit entry says {name} is {fields.get(name)!a:.100}, the manifest says {value!a}")


def _common(event: str, moment: datetime, dump_id: DumpId, host: HostName) -> dict[str, Value]:
    return {"version": _VERSION, "event": event, "time": timestamp(moment), "dump": str(dump_id), "host": str(host)}


def _agreed(manifest: Manifest, manifest_jws: bytes) -> dict[str, Value]:
    """The fields in which entry and manifest must agree."""
    lost = {"lost_frames": manifest.lost_frames} if manifest.lost_frames else {}
    return {
        "store": str(manifest.store),
        "outcome": manifest.outcome,
        "state": "complete" if manifest.outcome == COMPLETE else "incomplete",
        "size": manifest.size,
        "frames": manifest.frames,
        "root": manifest.root.hex(),
        "report_sha256": manifest.report_sha256.hex(),
        "manifest_sha256": sha256(manifest_jws).hexdigest(),
        **lost,
    }
