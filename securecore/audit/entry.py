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
from securecore.names import DumpId, HostName, NameRefused, StoreId

RECEIVED: Final = "received"
INCOMPLETE: Final = "incomplete"
DELETED: Final = "deleted"
EXTRACTED: Final = "extracted"
REFUSED: Final = "refused"
CERTIFICATE: Final = "certificate"
RESUMED: Final = "resumed"
VERIFIED: Final = "verified"


def _field(name: str, form: str) -> re.Pattern[bytes]:
    """Return what finds a field in a canonical entry.

    Quotes within text are escaped, those in a key too, so the name with its quotes, behind a brace or a comma, is a field and
    nothing else. That is looked at behind the name: an expression that begins with literal text is searched for much faster.
    """
    return re.compile(f'"{name}":(?<=[{{,]"{name}":){form}[,}}]'.encode("ascii"))


_STANDS: Final = _field("event", '"(received|incomplete|deleted)"')
_DIGESTS: Final = {
    RECEIVED: _field("manifest_sha256", '"([0-9a-f]{64})"'),
    INCOMPLETE: _field("root", '"([0-9a-f]{64})"'),
    DELETED: None,
}
"""The events that say where a dump stands, and the field of each that tells two of them apart."""
_OF_DUMP: Final = _field("dump", '"([0-9a-f-]{36})"')
_DAMAGED: Final = _field("damaged_bytes", "([0-9]{1,19})")
_FRAMES: Final = _field("frames", "([0-9]{1,19})")
_STORED: Final = _field("stored_bytes", "([0-9]{1,19})")
_WIDE: Final = re.compile(b'"wide_root":"([0-9a-f]{64})","wide_size":(0|[1-9][0-9]{0,18})[,}]')
"""Keys are sorted, and these two are neighbours."""
_HEX: Final = re.compile("[0-9a-f]{64}")

_DAMAGED_MAX: Final = (1 << 63) - 1
"""No file is longer (off_t)."""

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
    damaged_bytes: int = 0
    """Of what is incomplete: cut off behind damaged frames; 0 where the entry does not say."""

    def follows(self, event: str, digest: bytes, damaged_bytes: int = 0) -> bool:
        """Return whether this may be said of a dump of which *event*, *digest* and *damaged_bytes* were said last.

        A dump may be received again when its files were lost or deleted, and given up again with other frames, or when more of it
        was lost by damage: then its frames may be those that it had at first. Not twice with the same: that would be one event
        written down two times. It may be deleted at any time, a part that came after a deletion too.
        """
        return self.event == DELETED or (self.event, self.digest, self.damaged_bytes) != (event, digest, damaged_bytes)


class WideHead(NamedTuple):
    """A checkpoint of the receiver-wide log, which an entry of a host's log says that there was."""

    size: int
    root: bytes


class Held(NamedTuple):
    """What is held of a dump, as an entry says: of one that is given up, for want of a manifest."""

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
    crl_sha256: str | None = None,
    program: str | None = None,
    signal: int | None = None,
    wide_head: WideHead | None = None,
) -> bytes:
    """Return the entry that says that a dump is durable.

    *certificate* is the fingerprint of the host's certificate, *crl_sha256* the digest of the revocation lists by which it was
    judged, None where none is known; *stored_bytes* the length of core.zst with its seek table; *program* and *signal* are the
    report's, kept so that the log still says what was there when the dump has been deleted. *wide_head* is what is durable of the
    receiver-wide log.
    """
    return encode(
        {
            **_common(RECEIVED, moment, manifest.dump, manifest.host),
            **_agreed(manifest, manifest_jws),
            "stored_bytes": stored_bytes,
            "certificate": certificate,
            "crl_sha256": crl_sha256,
            **_crash(program, signal),
            **_wide(wide_head),
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
    damaged_bytes: int = 0,
    wide_head: WideHead | None = None,
) -> bytes:
    """Return the entry that says that a dump's sender did not come back, and what is durable of the dump.

    *last_at* is when its last frame came, by the receiver's clock; *program*, *signal* and *wide_head* as in received_entry.
    *damaged_bytes* were cut off behind a damaged frame and are kept beside the core.
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
            **({"damaged_bytes": damaged_bytes} if damaged_bytes else {}),
            **_wide(wide_head),
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


def certificate_entry(
    moment: datetime,
    dump_id: DumpId,
    host: HostName,
    *,
    certificate: str,
    serial: int,
    not_after: datetime,
    key_sha256: str,
    key: str,
) -> bytes:
    """Return the entry that says that a host's certificate was seen for the first time, with this dump.

    *certificate* is its fingerprint, *key_sha256* the digest of its SubjectPublicKeyInfo; *key* is ``first``, ``kept`` or
    ``rotated``, held against the certificate of the entry before that says so.
    """
    said: dict[str, Value] = {
        "certificate": certificate,
        "serial": f"{serial:x}",
        "not_after": timestamp(not_after),
        "key_sha256": key_sha256,
        "key": key,
    }
    return encode({**_common(CERTIFICATE, moment, dump_id, host), **said})


def resumed_entry(moment: datetime, dump_id: DumpId, host: HostName, *, frames: int, others: int) -> bytes:
    """Return the entry that says that a session goes on with a dump of which *frames* are held.

    *others* is how many times more the host has gone on with a dump since the entry before that says so.
    """
    return encode({**_common(RESUMED, moment, dump_id, host), "frames": frames, "others": others})


def verified_entry(moment: datetime, dump_id: DumpId, host: HostName, *, uid: int, user: str | None, problem: str | None) -> bytes:
    """Return the entry that says what somebody who verified a dump found: *problem*, or that all holds where it is None."""
    said: dict[str, Value] = {
        "result": "broken" if problem is not None else "ok",
        "problem": None if problem is None else problem[: limits.MAX_WORDS],
    }
    return encode({**_common(VERIFIED, moment, dump_id, host), **_person(uid, user), **said})


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


def is_entry(data: bytes) -> bool:
    """Return whether parse_entry takes *data*."""
    try:
        parse_entry(data)
    except BrokenError:
        return False
    return True


def find_wide_head(entry: bytes) -> WideHead | None:
    """Return what *entry* says of the receiver-wide log; None when it says nothing. Not checked: that it is an entry."""
    found = _WIDE.search(entry)
    return WideHead(int(found[2]), bytes.fromhex(found[1].decode("ascii"))) if found is not None else None


def find_statement(entry: bytes) -> Statement | None:
    """Return what *entry* says of where a dump stands; None for other events and for what is no entry."""
    return scan_statement(entry) if _STANDS.search(entry) is not None and is_entry(entry) else None


def scan_statement(entry: bytes) -> Statement | None:
    """Return the same, without parsing it once more, of an entry that parse_entry has taken."""
    found, of_dump = _STANDS.search(entry), _OF_DUMP.search(entry)
    if found is None or of_dump is None:
        return None
    try:
        dump_id = DumpId.parse(of_dump[1].decode("ascii"))
    except NameRefused:
        return None
    event = found[1].decode("ascii")
    field = _DIGESTS[event]
    digest = field.search(entry) if field is not None else None
    damaged = _DAMAGED.search(entry) if event == INCOMPLETE else None
    damaged_bytes = int(damaged[1]) if damaged is not None else 0
    return Statement(
        dump_id,
        event,
        bytes.fromhex(digest[1].decode("ascii")) if digest is not None else b"",
        damaged_bytes if damaged_bytes <= _DAMAGED_MAX else 0,
    )


def scan_extent(entry: bytes) -> tuple[int, int]:
    """Return frames and stored_bytes of an entry that parse_entry has taken; -1, which fits no dump, for what it does not say."""
    frames, stored = _FRAMES.search(entry), _STORED.search(entry)
    return int(frames[1]) if frames is not None else -1, int(stored[1]) if stored is not None else -1


def parse_incomplete(fields: Mapping[str, Value], dump_id: DumpId, host: HostName, store: StoreId) -> Held:
    """Return what an incomplete entry says is held; raises BrokenError unless it is one, of this dump, host and store.

    Not checked: that it is so.
    """
    expected = {"event": INCOMPLETE, "dump": str(dump_id), "host": str(host), "store": str(store)}
    for name, value in expected.items():
        if fields.get(name) != value:
            raise BrokenError(f"audit entry says {name} is {fields.get(name)!a:.100}, not {value!a}")
    return find_held(fields)


def find_held(fields: Mapping[str, Value]) -> Held:
    """Return what a received or incomplete entry says that there is of its dump; raises BrokenError when it does not say it.

    Not checked: that it is so.
    """
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


def _wide(head: WideHead | None) -> dict[str, Value]:
    return {} if head is None else {"wide_size": head.size, "wide_root": head.root.hex()}


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
