"""The ledger: what this PKI has ever done, one line for each event, never rewritten.

Each line is canonical JSON with ``seq`` (1, 2, ...), ``prev`` (SHA-256 of the line before, without its newline; 64 zeros at the
start), ``time`` and ``event``, and what the event needs. The state (which certificates exist, which are revoked, the last number of
each CRL) is the replay of the lines, so restoring an old copy of some index can't un-revoke anything. Certificates are keyed by
serial number, because a host may rightly have several.

==========  =====================================================================================================================
``create``  organisation, domain, id
``issue``   serial, profile, names, addresses, not_before, not_after, issuer, fingerprint, public_key
``discard`` serial: it was recorded, but its key was destroyed before anybody had it
``revoke``  serial, reason
``crl``     issuer, number, this_update, next_update, revoked
==========  =====================================================================================================================

Serial numbers are lower-case hexadecimal; *issuer* is the serial number of the CA's certificate (its own for a root); times are RFC
3339 in UTC. The chain shows an edit or a gap; it does not show that lines are missing at the end.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Final

from securecore.certs.chain import one_line
from securecore.errors import BrokenError, NotFoundError
from securecore.pki.staging import disk_errors, open_own

_START: Final = "0" * 64

Fields = dict[str, str | int | list[str]]


@dataclass(frozen=True)
class Issued:
    """A certificate that this PKI made."""

    serial: int
    profile: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    issuer: int
    fingerprint: str
    revoked_at: datetime | None = None
    reason: str | None = None
    is_discarded: bool = False

    def state(self, now: datetime) -> str:
        """Return revoked, discarded, expired or valid."""
        if self.revoked_at is not None:
            return "revoked"
        if self.is_discarded:
            return "discarded"
        return "expired" if now > self.not_after else "valid"


@dataclass(frozen=True)
class LastCrl:
    """The number and dates of the last CRL of one CA."""

    number: int
    this_update: datetime
    next_update: datetime


@dataclass
class State:
    """The replay of a ledger: certificates by serial number, the last CRL by its CA's serial number."""

    issued: dict[int, Issued] = field(default_factory=dict)
    crls: dict[int, LastCrl] = field(default_factory=dict)

    def apply(self, event: str, time: datetime, fields: dict[str, object]) -> None:
        """Take one line into account; unknown events are left to later versions. Raises KeyError, TypeError or ValueError."""
        if event == "issue":
            one = _issued(fields)
            self.issued[one.serial] = one
        elif event == "revoke":
            serial = _serial(fields["serial"])
            self.issued[serial] = replace(self.issued[serial], revoked_at=time, reason=str(fields["reason"]))
        elif event == "discard":
            serial = _serial(fields["serial"])
            self.issued[serial] = replace(self.issued[serial], is_discarded=True)
        elif event == "crl":
            number = fields["number"]
            if not isinstance(number, int):
                raise TypeError("a CRL number is a number")
            last = LastCrl(number, parse_time(fields["this_update"]), parse_time(fields["next_update"]))
            self.crls[_serial(fields["issuer"])] = last


class Ledger:
    """The ledger of one PKI directory. Whoever appends holds the PKI's lock; reading needs none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> State:
        """Return the state after checking every line; a last line without its newline was never acknowledged and does not count.

        Raises BrokenError naming the first line that does not fit, NotFoundError without a ledger, StorageError.
        """
        return self._replay(self._whole_lines())

    def append(self, time: datetime, event: str, fields: Fields) -> None:
        """Append one event, durable before return; raises like read()."""
        lines = self._whole_lines()
        self._replay(lines)
        head = {"seq": len(lines) + 1, "prev": _digest(lines[-1]) if lines else _START, "time": format_time(time), "event": event}
        line = json.dumps({**head, **fields}, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
        descriptor = open_own(self.path, os.O_RDWR | os.O_CREAT)
        if descriptor is None:
            raise NotFoundError(f"{self.path}: no directory for a ledger")
        with disk_errors(self.path), os.fdopen(descriptor, "r+b", buffering=0) as file:
            _append_line(file, sum(len(one) + 1 for one in lines), line)

    def _whole_lines(self) -> list[bytes]:
        descriptor = open_own(self.path, os.O_RDONLY)
        if descriptor is None:
            return []
        with disk_errors(self.path), os.fdopen(descriptor, "rb") as file:
            data = file.read()
        return data.split(b"\n")[:-1]

    def _replay(self, lines: list[bytes]) -> State:
        state = State()
        previous = _START
        for number, line in enumerate(lines, start=1):
            try:
                fields = json.loads(line)
                if fields["seq"] != number or fields["prev"] != previous:
                    raise ValueError("it does not follow the line before it")
                state.apply(fields["event"], parse_time(fields["time"]), fields)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                hint = "somebody edited it, or the disk lost a part; restore it from a backup and compare"
                raise BrokenError(f"{self.path}: line {number} is not what was written: {one_line(error)}", hint=hint) from error
            previous = _digest(line)
        return state


def _append_line(file: FileIO, size: int, line: bytes) -> None:
    """Write one line after *size* bytes, durable; on failure take it back, so that an event counts only if append() returned.

    What lies beyond *size* is the torn line of a run that lost power; it was never acknowledged and is cut.
    """
    file.truncate(size)
    try:
        file.seek(size)
        data = line + b"\n"
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(size)
        raise


def find_serial(state: State, serial: int) -> Issued:
    """Return the certificate with a serial number; raises NotFoundError."""
    if serial not in state.issued:
        raise NotFoundError(f"this PKI never made a certificate with serial number {serial:x}", hint="see `securecore pki list`")
    return state.issued[serial]


def format_time(moment: datetime) -> str:
    """Return an aware moment as RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: object) -> datetime:
    """Return the moment that format_time wrote; raises ValueError."""
    return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _issued(fields: dict[str, object]) -> Issued:
    return Issued(
        serial=_serial(fields["serial"]),
        profile=str(fields["profile"]),
        names=_texts(fields["names"]),
        addresses=_texts(fields["addresses"]),
        not_before=parse_time(fields["not_before"]),
        not_after=parse_time(fields["not_after"]),
        issuer=_serial(fields["issuer"]),
        fingerprint=str(fields["fingerprint"]),
    )


def _serial(text: object) -> int:
    return int(str(text), 16)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("a list of names is expected")
    return tuple(str(item) for item in value)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
