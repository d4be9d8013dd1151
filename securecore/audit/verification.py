"""Verification of an audit log and of a stored dump, as numbered checks that a person can follow.

Everything is recomputed from the published files alone: the core's frames, the manifest, the receipt, the log. No check is left out
because another failed, unless there is nothing that it could look at; then it says so.
"""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, NamedTuple, TypeVar

from securecore import limits
from securecore.audit.checkpoint import Checkpoint, origin_of, verify_checkpoint
from securecore.audit.damage import Damage, Progress, Survey, survey_core
from securecore.audit.entry import check_received, find_received, parse_entry
from securecore.audit.log import CHECKPOINT, ENTRIES, scan_lines
from securecore.audit.proof import Receipt, verify_receipt
from securecore.audit.statement import LogKey
from securecore.certs import judge, jws
from securecore.certs.chain import Anchors
from securecore.dump import directory
from securecore.dump.manifest import MANIFEST_TYP, Manifest, parse_manifest
from securecore.errors import BrokenError, Bug, SecurecoreError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId, HostName, StoreId

_CORE: Final = "core.zst"
_REPORT: Final = "report.json"
_MANIFEST: Final = "manifest.jws"
_RECEIPT: Final = "receipt"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_Known = TypeVar("_Known")


class Check(NamedTuple):
    """One step of a verification."""

    number: int
    what: str
    """What must hold, as a statement."""
    ok: bool | None
    """None: could not be checked, because what it needs is missing or did not hold."""
    detail: str
    """What was found; the reason when it does not hold."""


class LogVerification(NamedTuple):
    """The outcome of verify_log."""

    origin: str
    checks: list[Check]
    size: int
    """Entries that the checkpoint covers."""
    unsigned: int
    """Whole entries behind them: an append was under way or was interrupted."""

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)


class DumpVerification(NamedTuple):
    """The outcome of verify_dump."""

    checks: list[Check]
    manifest: Manifest | None
    receipt: Receipt | None
    survey: Survey | None
    damage: list[Damage]
    """What cannot be read back, in order. Empty although the root does not agree: every frame is sound, but not the one signed."""

    @property
    def ok(self) -> bool:
        """Whether every check holds; says nothing about whether the manifest calls the dump complete."""
        return all(check.ok for check in self.checks)


class Expected(NamedTuple):
    """Which dump the files ought to be, from where they stand."""

    host: HostName
    dump_id: DumpId
    store_id: StoreId


def verify_log(
    directory_fd: int, origin: str, public_key: bytes, *, earlier: Sequence[Checkpoint] = (), progress: Progress | None = None
) -> LogVerification:
    """Return what holds of the log in a directory; linear, streaming (only the ids of dumps are kept), without any lock.

    *earlier* are verified checkpoints of the same log that somebody kept, as in receipts: the log must still contain them. Behind
    the checkpoint's entries, a last line that is not whole is an append under way, not damage. Raises nothing that a log can cause.
    """
    reading = _LogReading(directory_fd, origin, public_key, earlier, progress)
    steps = _Steps()
    steps.run("the checkpoint is signed with the log's key", reading.check_signature)
    steps.run("every entry is whole and canonical", reading.check_entries)
    steps.run("the entries give the checkpoint's root", reading.check_root, possible=reading.checkpoint is not None)
    steps.run("no dump was received twice", reading.check_unique)
    steps.run("the log contains every earlier checkpoint", reading.check_earlier)
    size = reading.checkpoint.size if reading.checkpoint else 0
    return LogVerification(origin, steps.checks, size, max(reading.frontier.size - size, 0))


def verify_dump(
    directory_fd: int,
    expected: Expected,
    anchors: Anchors,
    log_key: LogKey | None,
    *,
    decode: bool = True,
    progress: Progress | None = None,
) -> DumpVerification:
    """Return what holds of the dump whose files are in a directory.

    The host's certificate is judged at the time of the receipt, the receiver's clock; without a good receipt at the end that the
    manifest gives. Without *decode* frames are decompressed only when the root does not agree, to find out which are damaged.
    Raises nothing that a dump can cause. Not checked: revocation, and that the log still contains the entry (verify_log with this
    receipt's checkpoint does).
    """
    reading = _DumpReading(directory_fd, expected, anchors, log_key)
    steps = _Steps()
    steps.run("the manifest is signed", reading.check_signature)
    steps.run("the manifest speaks of this dump, host and store", reading.check_manifest, possible=reading.signed is not None)
    steps.run("the receipt proves an entry of the host's audit log", reading.check_receipt)
    witnessed = reading.manifest is not None and reading.receipt is not None
    steps.run("the entry agrees with the manifest", reading.check_entry, possible=witnessed)
    steps.run("the certificate was the host's, under our root", reading.check_certificate, possible=reading.manifest is not None)
    steps.run("the report is the one that was sent", reading.check_report, possible=reading.manifest is not None)
    steps.run("the core can be read", lambda: reading.read_core(decode=decode, progress=progress))
    steps.run("the seek table agrees with the frames", reading.check_table, possible=reading.survey is not None)
    comparable = reading.manifest is not None and reading.survey is not None
    steps.run("frames and bytes are as many as the manifest says", reading.check_size, possible=comparable)
    steps.run("the frames give the signed Merkle root", reading.check_root, possible=comparable)
    what = "every frame decompresses, with the right checksum" if decode else "every frame has the form of one"
    steps.run(what, reading.check_frames, possible=reading.survey is not None)
    damage = reading.survey.damage if reading.survey else []
    return DumpVerification(steps.checks, reading.manifest, reading.receipt, reading.survey, damage)


class _Steps:
    """The checks so far; each is numbered, and none ends the verification."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def run(self, what: str, step: Callable[[], str], *, possible: bool = True) -> None:
        """Run one step, which returns what it found or raises why it does not hold."""
        ok: bool | None = None
        detail = "not checked: what it needs is missing or does not hold"
        if possible:
            try:
                detail, ok = step(), True
            except SecurecoreError as error:
                detail, ok = error.message, False
        self.checks.append(Check(len(self.checks) + 1, what, ok, detail))


class _LogReading:
    def __init__(
        self, directory_fd: int, origin: str, public_key: bytes, earlier: Sequence[Checkpoint], progress: Progress | None
    ) -> None:
        self._fd = directory_fd
        self._origin = origin
        self._public_key = public_key
        self._earlier = {kept.size: [other.root for other in earlier if other.size == kept.size] for kept in earlier}
        self._progress = progress
        self._contradictions: list[int] = [size for size, roots in self._earlier.items() if len(set(roots)) > 1]
        self._agrees = False
        self._twice: DumpId | None = None
        self._received: set[bytes] = set()
        self.checkpoint: Checkpoint | None = None
        self.frontier = Frontier()

    def check_signature(self) -> str:
        note = _read(self._fd, CHECKPOINT, limits.MAX_CHECKPOINT_BYTES)
        self.checkpoint = verify_checkpoint(note, self._origin, self._public_key)
        return f"{self.checkpoint.size} entries, root {self.checkpoint.root.hex()}"

    def check_entries(self) -> str:
        fd = directory.open_file(ENTRIES, self._fd)
        if fd is None:
            raise BrokenError(f"{ENTRIES} is missing")
        signed = self.checkpoint.size if self.checkpoint else 0
        problem: str | None = None
        under_way = ""
        self._compare()
        try:
            for line in scan_lines(fd):
                if not line.is_whole:
                    if self.frontier.size >= signed:
                        under_way = ", and one that is not whole yet"
                    else:
                        problem = problem or f"entry {self.frontier.size} is cut off or too long"
                    break
                problem = problem or _find_problem(line.data, self.frontier.size)
                self._take(line.data)
                if self._progress is not None:
                    self._progress(self.frontier.size, signed)
        finally:
            os.close(fd)
        if problem is not None:
            raise BrokenError(problem)
        return f"{self.frontier.size} entries{under_way}"

    def check_root(self) -> str:
        size = self.checkpoint.size if self.checkpoint else 0
        if self.frontier.size < size:
            raise BrokenError(f"the log has {self.frontier.size} entries, its checkpoint says {size}")
        if not self._agrees:
            raise BrokenError(f"the first {size} entries are not those that were signed")
        return f"{size} entries hash to it"

    def check_unique(self) -> str:
        if self._twice is not None:
            raise BrokenError(f"dump {self._twice} was received twice")
        return f"{len(self._received)} dumps"

    def check_earlier(self) -> str:
        if beyond := [size for size in self._earlier if size > self.frontier.size]:
            raise BrokenError(f"the log has {self.frontier.size} entries, a kept checkpoint says {max(beyond)}")
        if self._contradictions:
            raise BrokenError(f"the first {min(self._contradictions)} entries are not those of a kept checkpoint")
        return f"{len(self._earlier)} compared"

    def _take(self, entry: bytes) -> None:
        dump_id = find_received(entry)
        if dump_id is not None:
            if bytes(dump_id) in self._received:
                self._twice = dump_id
            self._received.add(bytes(dump_id))
        self.frontier.append(leaf_hash(entry))
        self._compare()

    def _compare(self) -> None:
        """Hold the root at this size against those that are known for it."""
        size = self.frontier.size
        if self.checkpoint is not None and size == self.checkpoint.size:
            self._agrees = self.frontier.root() == self.checkpoint.root
        if size in self._earlier and self.frontier.root() not in self._earlier[size]:
            self._contradictions.append(size)


class _DumpReading:
    def __init__(self, directory_fd: int, expected: Expected, anchors: Anchors, log_key: LogKey | None) -> None:
        self._fd = directory_fd
        self._expected = expected
        self._anchors = anchors
        self._log_key = log_key
        self._manifest_jws = b""
        self.signed: jws.Jws | None = None
        self.manifest: Manifest | None = None
        self.receipt: Receipt | None = None
        self.survey: Survey | None = None

    def check_signature(self) -> str:
        self._manifest_jws = _read(self._fd, _MANIFEST, limits.MAX_MANIFEST_BYTES)
        self.signed = jws.verify(self._manifest_jws, MANIFEST_TYP, limits.MAX_MANIFEST_BYTES)
        return "with the key of the certificate in it"

    def check_manifest(self) -> str:
        manifest = parse_manifest(_known(self.signed).payload)
        found = Expected(manifest.host, manifest.dump, manifest.store)
        for name, theirs, ours in zip(Expected._fields, found, self._expected, strict=True):
            if theirs != ours:
                raise BrokenError(f"the manifest's {name.removesuffix('_id')} is {theirs}, the dump stands under {ours}")
        self.manifest = manifest
        return f"outcome {manifest.outcome}"

    def check_receipt(self) -> str:
        if self._log_key is None:
            raise BrokenError("the log key's statement is missing or does not hold")
        receipt = _read(self._fd, _RECEIPT, limits.MAX_RECEIPT_BYTES)
        self.receipt = verify_receipt(receipt, origin_of(self._log_key.name, self._expected.host), self._log_key.public_key)
        return f"entry {self.receipt.leaf_index}, under the checkpoint of {self.receipt.checkpoint.size}"

    def check_entry(self) -> str:
        fields = _known(self.receipt).fields
        check_received(fields, _known(self.manifest), self._manifest_jws)
        return f"received {fields['time']}"

    def check_certificate(self) -> str:
        chain = _known(self.signed).chain_der
        found = judge.judge(chain[0], chain[1:], self._anchors, judge.Purpose.HOST, self._moment())
        if found.name != self._expected.host:
            raise BrokenError(f"the manifest is signed by {found.name}, the dump stands under {self._expected.host}")
        if self.receipt is not None and self.receipt.fields.get("certificate") != found.fingerprint:
            raise BrokenError(f"the manifest is signed with certificate {found.fingerprint}, the entry names another")
        return f"certificate {found.fingerprint}"

    def check_report(self) -> str:
        digest = sha256(_read(self._fd, _REPORT, limits.MAX_REPORT_BYTES)).digest()
        if digest != _known(self.manifest).report_sha256:
            raise BrokenError("the report's digest is not the one in the manifest")
        return f"SHA-256 {digest.hex()}"

    def read_core(self, *, decode: bool, progress: Progress | None) -> str:
        fd = directory.open_file(_CORE, self._fd)
        if fd is None:
            raise BrokenError(f"{_CORE} is missing")
        expected = (self.manifest.frames, self.manifest.size) if self.manifest else None
        try:
            self.survey = survey_core(fd, expected, decode=decode, progress=progress)
            if not decode and self.manifest is not None and self.survey.root != self.manifest.root:
                self.survey = survey_core(fd, expected, decode=True, progress=progress)
        finally:
            os.close(fd)
        return f"{self.survey.frames} frames of {self.survey.stored_bytes} bytes"

    def check_table(self) -> str:
        survey = _known(self.survey)
        if survey.table_problem is not None:
            raise BrokenError(f"the seek table does not hold: {survey.table_problem}")
        return f"{survey.frames} entries"

    def check_size(self) -> str:
        survey, manifest = _known(self.survey), _known(self.manifest)
        if (survey.frames, survey.plain_bytes) != (manifest.frames, manifest.size):
            raise BrokenError(
                f"found {survey.frames} frames of {survey.plain_bytes} bytes, signed were {manifest.frames} of {manifest.size}"
            )
        return f"{survey.frames} frames, {survey.plain_bytes} bytes"

    def check_root(self) -> str:
        if _known(self.survey).root != _known(self.manifest).root:
            raise BrokenError("stored bytes do not match the signed Merkle root")
        return _known(self.survey).root.hex()

    def check_frames(self) -> str:
        survey = _known(self.survey)
        if survey.damage:
            first = survey.damage[0]
            frames = f"frame {first.first_frame}" + (f" to {first.last_frame}" if first.last_frame > first.first_frame else "")
            more = f", and {len(survey.damage) - 1} more" if len(survey.damage) > 1 else ""
            raise BrokenError(f"{frames} (plaintext {first.plain_start} to {first.plain_end}): {first.reason}{more}")
        return f"{survey.frames} frames"

    def _moment(self) -> datetime:
        """When the host's certificate must have been valid."""
        if self.receipt is not None:
            try:
                received = datetime.fromisoformat(str(self.receipt.fields["time"]))
            except ValueError as error:
                raise BrokenError("the entry's time is malformed") from error
            if received.tzinfo is not None:
                return received
        try:
            return _EPOCH + timedelta(milliseconds=_known(self.manifest).ended_at)
        except OverflowError as error:
            raise BrokenError("the manifest's time is out of range") from error


def _find_problem(entry: bytes, index: int) -> str | None:
    """Return why *entry* is none; None when it is one."""
    try:
        parse_entry(entry)
    except BrokenError as error:
        return f"entry {index}: {error.message}"
    return None


def _known(value: _Known | None) -> _Known:
    """Return what an earlier step has found."""
    if value is None:
        raise Bug("a check ran before what it needs was found")
    return value


def _read(directory_fd: int, name: str, max_bytes: int) -> bytes:
    data = directory.read_file(name, directory_fd, max_bytes)
    if data is None:
        raise BrokenError(f"{name} is missing")
    return data
