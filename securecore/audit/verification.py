"""Verification of a stored dump, as numbered checks that a person can follow.

Everything is recomputed from the published files alone: the core's frames, the manifest, the receipt. No check is left out
because another failed, unless there is nothing that it could look at; then it says so.

A dump that was given up has no manifest. What its frames must be then stands in the entry that its receipt proves; and whose dump
it is, only the receiver says, who had judged the host's certificate.
"""

import os
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, NamedTuple, TypeVar

from securecore import limits
from securecore.audit.checkpoint import origin_of
from securecore.audit.checks import Check, Steps, read_needed
from securecore.audit.damage import Damage, Progress, Survey, survey_core
from securecore.audit.entry import INCOMPLETE, Held, check_received, find_time, parse_entry, parse_incomplete
from securecore.audit.proof import Receipt, parse_proof, verify_receipt
from securecore.audit.statement import LogKey
from securecore.certs import judge, jws
from securecore.certs.chain import Anchors
from securecore.dump import directory
from securecore.dump.manifest import MANIFEST_TYP, Manifest, parse_manifest
from securecore.errors import BrokenError, Bug, SecurecoreError
from securecore.names import DumpId, HostName, StoreId
from securecore.units import count

_CORE: Final = "core.zst"
_REPORT: Final = "report.json"
_MANIFEST: Final = "manifest.jws"
_RECEIPT: Final = "receipt"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_Known = TypeVar("_Known")


class DumpVerification(NamedTuple):
    """The outcome of verify_dump."""

    checks: list[Check]
    manifest: Manifest | None
    receipt: Receipt | None
    survey: Survey | None
    damage: list[Damage]
    """What cannot be read back, in order. Empty although the root does not agree: every frame is sound, but not the one signed."""
    given_up: Held | None
    """What was held of a dump when it was given up, by its entry; None for any other."""

    @property
    def ok(self) -> bool:
        """Whether no check fails; says nothing about whether the manifest calls the dump complete, or whether there is one.

        A check that cannot be made is one too few, but for the signature of a dump that was given up.
        """
        return all(check.ok or (check.ok is None and self.given_up is not None) for check in self.checks)


class Expected(NamedTuple):
    """Which dump the files ought to be, from where they stand."""

    host: HostName
    dump_id: DumpId
    store_id: StoreId


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
    Of a dump without a manifest whose receipt's entry says that it was given up, the entry stands in the manifest's place. Raises
    nothing that a dump can cause. Not checked: revocation, and that the log still contains the entry (verify_log with this
    receipt's checkpoint does).
    """
    reading = _DumpReading(directory_fd, expected, anchors, log_key)
    steps = Steps()
    if reading.claims_to_be_given_up():
        _check_given_up(reading, steps, decode=decode, progress=progress)
    else:
        _check_received(reading, steps, decode=decode, progress=progress)
    damage = reading.survey.damage if reading.survey else []
    return DumpVerification(steps.checks, reading.manifest, reading.receipt, reading.survey, damage, reading.given_up)


def _check_received(reading: "_DumpReading", steps: Steps, *, decode: bool, progress: Progress | None) -> None:
    steps.run("the manifest is signed", reading.check_signature)
    steps.run("the manifest speaks of this dump, host and store", reading.check_manifest, possible=reading.signed is not None)
    steps.run("the receipt proves an entry of the host's audit log", reading.check_receipt)
    witnessed = reading.manifest is not None and reading.receipt is not None
    steps.run("the entry agrees with the manifest", reading.check_entry, possible=witnessed)
    steps.run("the certificate was the host's, under our root", reading.check_certificate, possible=reading.manifest is not None)
    steps.run("the report is the one that was sent", reading.check_report, possible=reading.stated is not None)
    _check_core(reading, steps, "manifest", "signed", decode=decode, progress=progress)


def _check_given_up(reading: "_DumpReading", steps: Steps, *, decode: bool, progress: Progress | None) -> None:
    steps.run("the receipt proves an entry of the host's audit log", reading.check_receipt)
    what = "the entry says of this dump, host and store that it was given up"
    steps.run(what, reading.check_giving_up, possible=reading.receipt is not None)
    steps.run("the report is the one that was sent", reading.check_report, possible=reading.stated is not None)
    _check_core(reading, steps, "entry", "entry's", decode=decode, progress=progress)
    why = "the host has signed nothing; only the receiver says whose it is"
    steps.leave_out("the certificate was the host's, under our root", why)


def _check_core(
    reading: "_DumpReading", steps: Steps, by: str, whose: str, *, decode: bool, progress: Progress | None
) -> None:
    steps.run("the core can be read", lambda: reading.read_core(decode=decode, progress=progress))
    steps.run("the seek table agrees with the frames", reading.check_table, possible=reading.survey is not None)
    comparable = reading.stated is not None and reading.survey is not None
    steps.run(f"frames and bytes are as many as the {by} says", reading.check_size, possible=comparable)
    steps.run(f"the frames give the {whose} Merkle root", reading.check_root, possible=comparable)
    what = "every frame decompresses, with the right checksum" if decode else "every frame has the form of one"
    steps.run(what, reading.check_frames, possible=reading.survey is not None)


class _Stated(NamedTuple):
    frames: int
    size: int
    root: bytes
    report_sha256: bytes


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
        self.given_up: Held | None = None

    @property
    def stated(self) -> "_Stated | None":
        """What frames and report must be, by the manifest, or by the entry of a dump that was given up."""
        if self.manifest is not None:
            return _Stated(self.manifest.frames, self.manifest.size, self.manifest.root, self.manifest.report_sha256)
        return _Stated(*self.given_up[:4]) if self.given_up is not None else None

    def claims_to_be_given_up(self) -> bool:
        """Return whether there is no manifest, and a receipt whose entry, unverified, is one of giving up."""
        try:
            if directory.read_file(_MANIFEST, self._fd, limits.MAX_MANIFEST_BYTES) is not None:
                return False
            proof = parse_proof(read_needed(self._fd, _RECEIPT, limits.MAX_RECEIPT_BYTES))
            return parse_entry(proof.extra or b"")["event"] == INCOMPLETE
        except SecurecoreError:
            return False

    def check_giving_up(self) -> str:
        expected, fields = self._expected, _known(self.receipt).fields
        self.given_up = parse_incomplete(fields, expected.dump_id, expected.host, expected.store_id)
        return f"given up {fields['time']}, last frame {fields.get('last_at')}"

    def check_signature(self) -> str:
        self._manifest_jws = read_needed(self._fd, _MANIFEST, limits.MAX_MANIFEST_BYTES)
        self.signed = jws.verify(self._manifest_jws, MANIFEST_TYP, limits.MAX_MANIFEST_BYTES)
        return "with the key of the certificate in it"

    def check_manifest(self) -> str:
        manifest = parse_manifest(_known(self.signed).payload)
        found = Expected(manifest.host, manifest.dump, manifest.store)
        for name, theirs, ours in zip(Expected._fields, found, self._expected, strict=True):
            if theirs != ours:
                raise BrokenError(f"the manifest's {name.removesuffix('_id')} is {theirs}, the dump stands under {ours}")
        self.manifest = manifest
        lost = f", {count(manifest.lost_frames, 'frame')} at the beginning lost" if manifest.lost_frames else ""
        return f"outcome {manifest.outcome}{lost}"

    def check_receipt(self) -> str:
        if self._log_key is None:
            raise BrokenError("the log key's statement is missing or does not hold")
        receipt = read_needed(self._fd, _RECEIPT, limits.MAX_RECEIPT_BYTES)
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
        digest = sha256(read_needed(self._fd, _REPORT, limits.MAX_REPORT_BYTES)).digest()
        if digest != _known(self.stated).report_sha256:
            where = "manifest" if self.manifest is not None else "entry"
            raise BrokenError(f"the report's digest is not the one in the {where}")
        return f"SHA-256 {digest.hex()}"

    def read_core(self, *, decode: bool, progress: Progress | None) -> str:
        fd = directory.open_file(_CORE, self._fd)
        if fd is None:
            raise BrokenError(f"{_CORE} is missing")
        expected = (self.stated.frames, self.stated.size) if self.stated else None
        try:
            self.survey = survey_core(fd, expected, decode=decode, progress=progress)
            if not decode and self.stated is not None and self.survey.root != self.stated.root:
                self.survey = survey_core(fd, expected, decode=True, progress=progress)
        finally:
            os.close(fd)
        return f"{count(self.survey.frames, 'frame')} of {self.survey.stored_bytes} bytes"

    def check_table(self) -> str:
        survey = _known(self.survey)
        if survey.table_problem is not None:
            raise BrokenError(f"the seek table does not hold: {survey.table_problem}")
        return count(survey.frames, "entry")

    def check_size(self) -> str:
        survey, stated = _known(self.survey), _known(self.stated)
        if (survey.frames, survey.plain_bytes) != (stated.frames, stated.size):
            raise BrokenError(
                f"found {count(survey.frames, 'frame')} of {survey.plain_bytes} bytes,"
                f" signed were {stated.frames} of {stated.size}"
            )
        return f"{count(survey.frames, 'frame')}, {survey.plain_bytes} bytes"

    def check_root(self) -> str:
        if _known(self.survey).root != _known(self.stated).root:
            raise BrokenError("stored bytes do not match the signed Merkle root")
        return _known(self.survey).root.hex()

    def check_frames(self) -> str:
        survey = _known(self.survey)
        if survey.damage:
            first = survey.damage[0]
            frames = f"frame {first.first_frame}" + (f" to {first.last_frame}" if first.last_frame > first.first_frame else "")
            more = f", and {len(survey.damage) - 1} more" if len(survey.damage) > 1 else ""
            raise BrokenError(f"{frames} (plaintext {first.plain_start} to {first.plain_end}): {first.reason}{more}")
        return count(survey.frames, "frame")

    def _moment(self) -> datetime:
        """When the host's certificate must have been valid."""
        if self.receipt is not None:
            received = find_time(self.receipt.fields)
            if received is None:
                raise BrokenError("the entry's time is malformed")
            return received
        try:
            return _EPOCH + timedelta(milliseconds=_known(self.manifest).ended_at)
        except OverflowError as error:
            raise BrokenError("the manifest's time is out of range") from error


def _known(value: _Known | None) -> _Known:
    """Return what an earlier step has found."""
    if value is None:
        raise Bug("a check ran before what it needs was found")
    return value
