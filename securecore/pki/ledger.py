"""The ledger: what this PKI has ever done, one line for each event, never rewritten.

Each line is canonical JSON with ``seq`` (1, 2, ...), ``prev`` (SHA-256 of the line before, without its newline; 64 zeros at the
start), ``time`` and ``event``, and what the event needs. The state (which certificates exist, which are revoked, the last number of
each CRL) is the replay of the lines, so restoring an old copy of some index can't un-revoke anything. Certificates are keyed by
serial number, because a host may rightly have several.

==========  =====================================================================================================================
``create``  organisation, domain, id
``issue``   serial, profile, names, addresses, not_before, not_after, issuer, fingerprint, public_key; on line also token, the
            id of the token that it uses up, or renews, the serial of the certificate that asked for it
``discard`` serial: it was recorded, but its key was destroyed before anybody had it
``revoke``  serial, reason; a second one gives another reason, the date stays
``crl``     issuer, number, this_update, next_update, revoked
``learn``   serial, issuer, revoked_at, reason: a revocation that a CRL names and the ledger did not have (learning.py), also of a
            certificate that it does not have
``token``   id, key (SHA-256 of the token, see tokens.py), name, expires
``recall``  id: that token counts no more
``rotate``  profile, step (start, switch, finish), serial: that of the new CA, and of the old one for finish; folder for start
==========  =====================================================================================================================

An ``issue`` or ``crl`` that was learned too, and not done here, has ``learned`` 1. Serial numbers are lower-case hexadecimal;
*issuer* is the serial number of the CA's certificate (its own for a root); times are RFC 3339 in UTC. The chain shows an edit or a
gap; it does not show that lines are missing at the end.
"""

import hashlib
import json
import os
import threading
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
    public_key: str
    """As chain.key_fingerprint has it; empty in a line from before keys were recorded."""
    token: str | None = None
    renews: int | None = None
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
class Stranger:
    """A revoked certificate that this ledger does not have: of it nothing is known but what a CRL says."""

    serial: int
    issuer: int
    revoked_at: datetime
    reason: str


@dataclass(frozen=True)
class Token:
    """A token that lets one host enrol once, by what the ledger keeps of it: not the token itself."""

    id: str
    key: bytes
    """The key of the HMAC by which its holder is known: whoever reads it can use the token."""
    name: str
    expires: datetime
    used_for: int | None = None
    """The serial number of the certificate that was issued for it."""
    is_recalled: bool = False

    def state(self, now: datetime) -> str:
        """Return used, recalled, expired or open."""
        if self.used_for is not None:
            return "used"
        if self.is_recalled:
            return "recalled"
        return "expired" if now > self.expires else "open"


@dataclass(frozen=True)
class LastCrl:
    """The number and dates of the last CRL of one CA."""

    number: int
    this_update: datetime
    next_update: datetime


@dataclass
class Succession:
    """The CAs of one profile, by serial number; each but *current* is there during a rotation only."""

    current: int
    next: int | None = None
    """Made, and to be known to all receivers before it signs anything but its CRL."""
    previous: int | None = None
    """Signs nothing any more but its CRL."""
    folders: dict[int, str] = field(default_factory=dict)
    """The directory of each CA that a rotation has made; the first one's has the name that it always had."""

    def apply(self, step: str, serial: int, folder: object) -> None:
        """Take one step; raises ValueError when it can't follow the one before."""
        if step == "start" and self.next is None and self.previous is None and isinstance(folder, str):
            self.next = serial
            self.folders[serial] = folder
        elif step == "switch" and self.next == serial:
            self.current, self.next, self.previous = serial, None, self.current
        elif step == "finish" and self.previous == serial:
            self.previous = None
        else:
            raise ValueError(f"a rotation can't {step} here")


@dataclass
class State:
    """The replay of a ledger: certificates by serial number, last CRLs by their CA's, CAs by their profile, tokens by their id."""

    issued: dict[int, Issued] = field(default_factory=dict)
    strangers: dict[int, Stranger] = field(default_factory=dict)
    crls: dict[int, LastCrl] = field(default_factory=dict)
    successions: dict[str, Succession] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)

    def apply(self, event: str, time: datetime, fields: dict[str, object]) -> None:
        """Take one line into account; unknown events are left to later versions. Raises KeyError, TypeError or ValueError."""
        if event == "issue":
            one = _issued(fields)
            stranger = self.strangers.pop(one.serial, None)
            if stranger is not None:
                one = replace(one, revoked_at=stranger.revoked_at, reason=stranger.reason)
            self.issued[one.serial] = one
            if "learned" in fields:
                self._put_in_order(one)
            if one.token is not None:
                self.tokens[one.token] = replace(self.tokens[one.token], used_for=one.serial)
            if one.profile.endswith("-ca"):
                self.successions.setdefault(one.profile, Succession(one.serial))
        elif event == "revoke":
            one = self.issued[_serial(fields["serial"])]
            self.issued[one.serial] = replace(one, revoked_at=one.revoked_at or time, reason=str(fields["reason"]))
        elif event == "learn":
            self._learn(Stranger(
                _serial(fields["serial"]), _serial(fields["issuer"]), parse_time(fields["revoked_at"]), str(fields["reason"])
            ))  # fmt: skip
        elif event == "discard":
            serial = _serial(fields["serial"])
            self.issued[serial] = replace(self.issued[serial], is_discarded=True)
        elif event == "crl":
            number = fields["number"]
            if not isinstance(number, int):
                raise TypeError("a CRL number is a number")
            last = LastCrl(number, parse_time(fields["this_update"]), parse_time(fields["next_update"]))
            self.crls[_serial(fields["issuer"])] = last
        elif event == "token":
            name, key = str(fields["id"]), bytes.fromhex(str(fields["key"]))
            self.tokens[name] = Token(name, key, str(fields["name"]), parse_time(fields["expires"]))
        elif event == "recall":
            name = str(fields["id"])
            self.tokens[name] = replace(self.tokens[name], is_recalled=True)
        elif event == "rotate":
            self.successions[str(fields["profile"])].apply(str(fields["step"]), _serial(fields["serial"]), fields.get("folder"))

    def copy(self) -> "State":
        """Return another one that may be changed; what stands in it is not copied, but for the successions, which change."""
        successions = {name: replace(one, folders=dict(one.folders)) for name, one in self.successions.items()}
        return State(dict(self.issued), dict(self.strangers), dict(self.crls), successions, dict(self.tokens))

    def _learn(self, one: Stranger) -> None:
        if one.serial in self.issued:
            self.issued[one.serial] = replace(self.issued[one.serial], revoked_at=one.revoked_at, reason=one.reason)
        else:
            self.strangers[one.serial] = one

    def _put_in_order(self, one: Issued) -> None:
        """Have the newer certificates of a name behind one that was learned after them: the last of a name counts as its newest."""
        for other in [*self.issued.values()]:
            if other.names[:1] == one.names[:1] and other.not_before > one.not_before:
                self.issued[other.serial] = self.issued.pop(other.serial)

    def succession(self, profile: str) -> Succession:
        """Return the CAs of one profile; raises BrokenError when the ledger has none, which only a lost one has not."""
        if profile not in self.successions:
            raise BrokenError(f"the ledger knows no {profile}", hint="lines of it are missing: restore it from a backup")
        return self.successions[profile]


@dataclass(frozen=True)
class _Replayed:
    """The lines that were read of a ledger: what they amount to, how many there are, and where the next one begins."""

    state: State = field(default_factory=State)
    lines: int = 0
    size: int = 0
    last: bytes = b""

    @property
    def digest(self) -> str:
        """What the next line has as *prev*."""
        return _digest(self.last) if self.lines else _START

    @property
    def last_offset(self) -> int:
        """Where the last line begins."""
        return self.size - len(self.last) - 1 if self.lines else 0


class Ledger:
    """The ledger of one PKI directory, for several threads. Whoever appends holds the PKI's lock; reading needs none.

    The states that it returns are shared: nobody changes them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._replayed = _Replayed()
        self._acknowledged = _Replayed()

    def read(self) -> State:
        """Return the state after checking every line; a last line without its newline was never acknowledged and does not count.

        Raises BrokenError naming the first line that does not fit, NotFoundError without a ledger, StorageError.
        """
        with self._guard:
            self._replayed = self._go_on(_Replayed())
            return self._replayed.state

    def follow(self) -> State:
        """Return the state as read() does, and raise like it, after reading only the lines that are new since the last time.

        All are read again when the file is shorter, or the last line that was read is another one: somebody has put an old copy
        back. BrokenError is raised where a line is gone that append() or acknowledge() had, and where none is left: to go on there
        would bring back all that was revoked. Not checked: that the lines before it are still what they were; read() does that.
        """
        return self._catch_up().state

    def acknowledge(self) -> State:
        """Return the state as follow() does; each line of it has to stay from now on, as those that append() writes.

        The caller holds the PKI's lock: a line whose writer has it still may be taken back.
        """
        known = self._catch_up()
        self._acknowledged = replace(known, state=State())
        return known.state

    def digests(self) -> list[str]:
        """Return the SHA-256 of each line, as the line after it has it; raises StorageError. Not checked: that they fit."""
        descriptor = open_own(self.path, os.O_RDONLY)
        if descriptor is None:
            return []
        with disk_errors(self.path), os.fdopen(descriptor, "rb") as file:
            return [_digest(line) for line in _whole_lines(file.read())]

    def append(self, time: datetime, event: str, fields: Fields) -> None:
        """Append one event, durable before return; raises like follow()."""
        known = self._catch_up()
        head = {"seq": known.lines + 1, "prev": known.digest, "time": format_time(time), "event": event}
        line = json.dumps({**head, **fields}, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
        descriptor = open_own(self.path, os.O_RDWR | os.O_CREAT)
        if descriptor is None:
            raise NotFoundError(f"{self.path}: no directory for a ledger")
        with disk_errors(self.path), os.fdopen(descriptor, "r+b", buffering=0) as file:
            _append_line(file, known.size, line)
        self._acknowledged = _Replayed(lines=known.lines + 1, size=known.size + len(line) + 1, last=line)

    def _catch_up(self) -> _Replayed:
        with self._guard:
            self._replayed = self._go_on(self._replayed)
            return self._replayed

    def _go_on(self, known: _Replayed) -> _Replayed:
        """Return what is known with the lines behind it, or the whole file anew where it is not the one that is known."""
        lines = self._read_from(known)
        if lines is None:
            lines = self._read_from(_Replayed()) or []
            if not lines:
                hint = "put it back from a backup: written aside, then renamed"
                raise BrokenError(f"{self.path}: it had {known.lines} lines, and now has none", hint=hint)
            known = _Replayed()
        if known.lines < self._acknowledged.lines and self._read_from(self._acknowledged) is None:
            words = f"{self.path}: it had {self._acknowledged.lines} lines, and is an older copy now, or another one"
            raise BrokenError(words, hint="pki/runbooks/after-a-restore.md")
        return self._replay(known, lines) if lines else known

    def _read_from(self, known: _Replayed) -> list[bytes] | None:
        """Return the whole lines behind those that are known; None where the last of these is not there any more."""
        descriptor = open_own(self.path, os.O_RDONLY)
        if descriptor is None:
            return None if known.lines else []
        with disk_errors(self.path), os.fdopen(descriptor, "rb") as file:
            file.seek(known.last_offset)
            is_there = not known.lines or file.read(len(known.last) + 1) == known.last + b"\n"
            return _whole_lines(file.read()) if is_there else None

    def _replay(self, known: _Replayed, lines: list[bytes]) -> _Replayed:
        state, previous = known.state.copy(), known.digest
        for number, line in enumerate(lines, start=known.lines + 1):
            try:
                fields = json.loads(line)
                if fields["seq"] != number or fields["prev"] != previous:
                    raise ValueError("it does not follow the line before it")
                state.apply(fields["event"], parse_time(fields["time"]), fields)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                hint = "somebody edited it, or the disk lost a part; restore it from a backup and compare"
                raise BrokenError(f"{self.path}: line {number} is not what was written: {one_line(error)}", hint=hint) from error
            previous = _digest(line)
        return _Replayed(state, known.lines + len(lines), known.size + sum(len(line) + 1 for line in lines), lines[-1])


def _whole_lines(data: bytes) -> list[bytes]:
    return data.split(b"\n")[:-1]


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
        public_key=str(fields.get("public_key", "")),
        token=None if fields.get("token") is None else str(fields["token"]),
        renews=None if fields.get("renews") is None else _serial(fields["renews"]),
    )


def _serial(text: object) -> int:
    return int(str(text), 16)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("a list of names is expected")
    return tuple(str(item) for item in value)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
