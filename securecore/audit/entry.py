"""Entries of an audit log: one canonical JSON object a line, whose bytes without the newline are the leaf of the log's tree.

Sorted keys, no spaces, ASCII with everything else escaped: an entry cannot hold a newline, so nothing that a peer says can forge
one (R14). Peer-supplied words are cut. The fields are listed in ``docs/store.md``.

Three events say where a dump stands: received, incomplete (its sender did not come back), deleted. The newest of them counts.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, NamedTuple

from securecore import limits
from securecore.dump.manifest import COMPLETE, Manifest
from securecore.errors import BrokenError, Bug
from securecore.names import DumpId, HostName, StoreId

RECEIVED: Final = "received"
INCOMPLETE: Final = "incomplete"
DELETED: Final = "deleted"
EXTRACTED: Final = "extracted"
REFUSED: Final = "refused"

_DIGESTS: Final = {RECEIVED: "manifest_sha256", INCOMPLETE: "root", DELETED: None}
"""The events that say where a dump stands, and the field of each that tells two of them apart."""
_STANDS: Final = re.compile(b'"event":"(?:received|incomplete|deleted)"')
"""Quotes within text are escaped, so these bytes in an entry are a field and nothing else."""
_HEX: Final = re.compile("[0-9a-f]{64}")

_VERSION: Final = 1
_WORD_MAX: Final = 255
"""Characters of a program's or a user's name: NAME_MAX."""

Value = str | int | None
"""What a field of an entry holds; entries are flat."""


class Statement(NamedTuple):
    """What an entry says of where a dump stands."""

    dump: DumpId
    event: str
    digest: bytes
    """SHA-256 of the manifest of what was received, Merkle root of what is incomplete; empty for a deletion, and where the entry
    does not say."""

    def follows(self, event: str, digest: bytes) -> bool:
        """Return whether this may be said of a dump of which *event* and *digest* were said last.

        A dump may be received again when its files were lost or deleted, and given up again with other frames. Not twice with the
        same: that would be one event written down two times. It may be deleted at any time, a part that came after a deletion too.
        """
        return self.event == DELETED or (self.event, self.digest) != (event, digest)


class Held(NamedTuple):
    """What is held of a dump that is given up."""

    frames: int
    size: int
    """Plaintext bytes."""
    root: bytes
    report_sha256: bytes
    stored_bytes: int
    """Length of core.zst with its seek table."""


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
    return encode(
        {
            **_common(RECEIVED, moment, manifest.dump, manifest.host),
            **_agreed(manifest, manifest_jws),
            "stored_bytes": stored_bytes,
            "certificate": certificate,
            **_crash(program, signal),
        }
    )


def incomplete_entry(
    moment: datetime,
    dump_id: DumpId,
    host: HostName,
    store: StoreId,
    held: Held,
    *,
    last_at: datetime,
    program: str | None = None,
    signal: int | None = None,
) -> bytes:
    """Return the entry that says that a dump's sender did not come back, and what is durable of the dump.

    *last_at* is when its last frame came, by the receiver's clock; *program* and *signal* as in received_entry.
    """
    return encode(
        {
            **_common(INCOMPLETE, moment, dump_id, host),
            "store": str(store),
            "frames": held.frames,
            "size": held.size,
            "root": held.root.hex(),
            "report_sha256": held.report_sha256.hex(),
            "stored_bytes": held.stored_bytes,
            "last_at": timestamp(last_at),
            **_crash(program, signal),
        }
    )


def deleted_entry(moment: datetime, dump_id: DumpId, host: HostName, *, uid: int, user: str | None, reason: str | None) -> bytes:
    """Return the entry that says that a dump was deleted and why: its tombstone; *uid* and *user* as in extracted_entry."""
    words = None if reason is None else reason[: limits.MAX_WORDS]
    return encode({**_common(DELETED, moment, dump_id, host), **_person(uid, user), "reason": words})


def extracted_entry(moment: datetime, dump_id: DumpId, host: HostName, *, uid: int, user: str | None) -> bytes:
    """Return the entry that says that somebody took a core out; *uid* is the kernel's word (SO_PEERCRED), *user* only its name."""
    return encode({**_common(EXTRACTED, moment, dump_id, host), **_person(uid, user)})


def refused_entry(moment: datetime, dump_id: DumpId | None, host: HostName, *, code: int, reason: str, others: int) -> bytes:
    """Return the entry that says that a host was refused, with the code of docs/wire.md.

    *others* is how many times more it was, with the same code, since the entry before that says so.
    """
    said: dict[str, Value] = {"code": code, "reason": reason[: limits.MAX_WORDS], "others": others}
    return encode({**_common(REFUSED, moment, dump_id, host), **said})


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


def find_statement(entry: bytes) -> Statement | None:
    """Return what *entry* says of where a dump stands; None for other events and for what is no entry."""
    if _STANDS.search(entry) is None:
        return None
    try:
        fields = parse_entry(entry)
        dump_id = DumpId.parse(str(fields.get("dump")))
    except (BrokenError, ValueError):
        return None
    event = str(fields["event"])
    field = _DIGESTS[event]
    digest = str(fields.get(field)) if field is not None else ""
    return Statement(dump_id, event, bytes.fromhex(digest) if _HEX.fullmatch(digest) else b"")


def parse_incomplete(fields: Mapping[str, Value], dump_id: DumpId, host: HostName, store: StoreId) -> Held:
    """Return what an incomplete entry says is held; raises BrokenError unless it is one, of this dump, host and store.

    Not checked: that it is so.
    """
    expected = {"event": INCOMPLETE, "dump": str(dump_id), "host": str(host), "store": str(store)}
    for name, value in expected.items():
        if fields.get(name) != value:
            raise BrokenError(f"audit entry says {name} is {fields.get(name)!a:.100}, not {value!a}")
    numbers = [fields.get(name) for name in ("frames", "size", "stored_bytes")]
    digests = [str(fields.get(name)) for name in ("root", "report_sha256")]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers) or not all(map(_HEX.fullmatch, digests)):
        raise BrokenError("audit entry does not say what is held")
    frames, size, stored = (int(str(number)) for number in numbers)
    return Held(frames, size, bytes.fromhex(digests[0]), bytes.fromhex(digests[1]), stored)


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


def _crash(program: str | None, signal: int | None) -> dict[str, Value]:
    fields: dict[str, Value] = {}
    if program is not None:
        fields["program"] = program[:_WORD_MAX]
    if signal is not None:
        fields["signal"] = signal
    return fields


def _person(uid: int, user: str | None) -> dict[str, Value]:
    return {"uid": uid, "user": None if user is None else user[:_WORD_MAX]}


def _common(event: str, moment: datetime, dump_id: DumpId | None, host: HostName) -> dict[str, Value]:
    dump = str(dump_id) if dump_id is not None else None
    return {"version": _VERSION, "event": event, "time": timestamp(moment), "dump": dump, "host": str(host)}


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
