"""What can be found out of a dump's papers and its core, wherever they stand: in a store's directory, or in a bundle.

Each check returns what it found, or raises why it does not hold; which of them are made, and in which order, says who verifies.
"""

import os
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, NamedTuple, Protocol, TypeVar

from securecore import limits
from securecore.audit.checkpoint import origin_of
from securecore.audit.damage import Progress, Survey, survey_core
from securecore.audit.entry import INCOMPLETE, Held, check_received, find_time, parse_entry, parse_incomplete
from securecore.audit.proof import Receipt, parse_proof, verify_receipt
from securecore.audit.revocation import KeptLists
from securecore.audit.statement import LogKey
from securecore.certs import judge, jws
from securecore.certs.chain import Anchors
from securecore.dump import directory
from securecore.dump.manifest import MANIFEST_TYP, Manifest, parse_manifest
from securecore.errors import BrokenError, Bug, SecurecoreError
from securecore.names import DumpId, HostName, StoreId
from securecore.units import count

CORE: Final = "core.zst"
REPORT: Final = "report.json"
MANIFEST: Final = "manifest.jws"
RECEIPT: Final = "receipt"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_Known = TypeVar("_Known")


class Expected(NamedTuple):
    """Which dump the papers ought to be of."""

    host: HostName
    dump_id: DumpId
    store_id: StoreId


class Papers(Protocol):
    """Where a dump's files stand."""

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Return a file; None when it is not there. Raises StorageError when it is longer, or cannot be read."""

    def open_core(self) -> int | None:
        """Return a new descriptor of core.zst, which the caller closes; None when it is not there."""


class DirectoryPapers:
    """The files in a dump's directory of a store."""

    def __init__(self, directory_fd: int) -> None:
        self._fd = directory_fd

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """As Papers says."""
        return directory.read_file(name, self._fd, max_bytes)

    def open_core(self) -> int | None:
        """As Papers says."""
        return directory.open_file(CORE, self._fd)


class Stated(NamedTuple):
    """What frames and report must be."""

    frames: int
    size: int
    root: bytes
    report_sha256: bytes


class DumpReading:
    """A dump's papers, and what was found in them so far; a check that needs what was not found must not be run."""

    def __init__(
        self,
        papers: Papers,
        anchors: Anchors,
        lists: KeptLists | None,
        expected: Expected | None = None,
        log_key: LogKey | None = None,
    ) -> None:
        self._papers = papers
        self._anchors = anchors
        self._lists = lists
        self._log_key = log_key
        self._manifest_jws = b""
        self.expected = expected
        self.signed: jws.Jws | None = None
        self.manifest: Manifest | None = None
        self.receipt: Receipt | None = None
        self.judgement: judge.Judgement | None = None
        self.survey: Survey | None = None
        self.held: Held | None = None
        """What was held of it, by the entry; it stands in the manifest's place where there is none."""

    @property
    def stated(self) -> "Stated | None":
        """What frames and report must be, by the manifest, else by the entry where that stands for it."""
        if self.manifest is not None:
            return Stated(self.manifest.frames, self.manifest.size, self.manifest.root, self.manifest.report_sha256)
        return Stated(*self.held[:4]) if self.held is not None else None

    @property
    def lack_of_lists(self) -> str | None:
        """Why revocation cannot be checked by the nature of entry or store; None where it can, or there is no entry."""
        if self.receipt is None or self.held is not None:
            return None
        if "crl_sha256" not in self.receipt.fields:
            return "the entry was written by an earlier version, which kept no revocation lists"
        if self.receipt.fields["crl_sha256"] is None:
            return "the entry refers to no revocation lists; none is known by which the certificate was judged"
        return "no revocation lists are at hand" if self._lists is None else None

    def claims_to_be_given_up(self) -> bool:
        """Return whether there is no manifest, and a receipt whose entry, unverified, is one of giving up."""
        try:
            if self._papers.read(MANIFEST, limits.MAX_MANIFEST_BYTES) is not None:
                return False
            proof = parse_proof(self._read(RECEIPT, limits.MAX_RECEIPT_BYTES))
            return parse_entry(proof.extra or b"")["event"] == INCOMPLETE
        except SecurecoreError:
            return False

    def check_giving_up(self) -> str:
        """Check that the entry says of this dump that it was given up; what was held of it is known then."""
        expected, fields = _known(self.expected), _known(self.receipt).fields
        self.held = parse_incomplete(fields, expected.dump_id, expected.host, expected.store_id)
        return f"given up {fields['time']}, last frame {fields.get('last_at')}"

    def check_signature(self) -> str:
        """Check that the manifest is signed, by whoever it was."""
        self._manifest_jws = self._read(MANIFEST, limits.MAX_MANIFEST_BYTES)
        self.signed = jws.verify(self._manifest_jws, MANIFEST_TYP, limits.MAX_MANIFEST_BYTES)
        return "with the key of the certificate in it"

    def check_manifest(self) -> str:
        """Check that the manifest is of the dump that is expected."""
        manifest = parse_manifest(_known(self.signed).payload)
        found = Expected(manifest.host, manifest.dump, manifest.store)
        for name, theirs, ours in zip(Expected._fields, found, _known(self.expected), strict=True):
            if theirs != ours:
                raise BrokenError(f"the manifest's {name.removesuffix('_id')} is {theirs}, not {ours}")
        self.manifest = manifest
        lost = f", {count(manifest.lost_frames, 'frame')} at the beginning lost" if manifest.lost_frames else ""
        return f"outcome {manifest.outcome}{lost}"

    def check_receipt(self) -> str:
        """Check that the receipt proves an entry of the log of the host that is expected."""
        if self._log_key is None:
            raise BrokenError("the log key's statement is missing or does not hold")
        receipt = self._read(RECEIPT, limits.MAX_RECEIPT_BYTES)
        key, origin = self._log_key, origin_of(self._log_key.name, _known(self.expected).host)
        self.receipt = verify_receipt(receipt, origin, key.public_key, key.earlier)
        return f"entry {self.receipt.leaf_index}, under the checkpoint of {self.receipt.checkpoint.size}"

    def check_entry(self) -> str:
        """Check that the entry agrees with the manifest."""
        fields = _known(self.receipt).fields
        check_received(fields, _known(self.manifest), self._manifest_jws)
        return f"received {fields['time']}"

    def check_certificate(self) -> str:
        """Check that the manifest's certificate was the host's, when the dump was received."""
        chain = _known(self.signed).chain_der
        found = judge.judge(chain[0], chain[1:], self._anchors, judge.Purpose.HOST, self._moment())
        if found.name != _known(self.expected).host:
            raise BrokenError(f"the manifest is signed by {found.name}, not by {_known(self.expected).host}")
        if self.receipt is not None and self.receipt.fields.get("certificate") != found.fingerprint:
            raise BrokenError(f"the manifest is signed with certificate {found.fingerprint}, the entry names another")
        self.judgement = found
        return f"certificate {found.fingerprint}"

    def check_revocation(self) -> str:
        """Check that the lists to which the entry refers do not speak against the certificate."""
        lists, receipt, judgement = _known(self._lists), _known(self.receipt), _known(self.judgement)
        return lists.check(receipt.fields["crl_sha256"], judgement, self._moment())

    def check_report(self) -> str:
        """Check that the report has the digest that is stated."""
        digest = sha256(self._read(REPORT, limits.MAX_REPORT_BYTES)).digest()
        if digest != _known(self.stated).report_sha256:
            where = "manifest" if self.manifest is not None else "entry"
            raise BrokenError(f"the report's digest is not the one in the {where}")
        return f"SHA-256 {digest.hex()}"

    def read_core(self, *, decode: bool, progress: Progress | None) -> str:
        """Read all of the core; without *decode* its frames are decompressed only when the root is not the one that is stated."""
        fd = self._papers.open_core()
        if fd is None:
            raise BrokenError(f"{CORE} is missing")
        expected = (self.stated.frames, self.stated.size) if self.stated else None
        try:
            self.survey = survey_core(fd, expected, decode=decode, progress=progress)
            if not decode and self.stated is not None and self.survey.root != self.stated.root:
                self.survey = survey_core(fd, expected, decode=True, progress=progress)
        finally:
            os.close(fd)
        more = ", and more that nobody signed" if self.survey.has_more else ""
        return f"{count(self.survey.frames, 'frame')} of {self.survey.stored_bytes} bytes{more}"

    def check_table(self) -> str:
        """Check that the seek table is that of the frames."""
        survey = _known(self.survey)
        if survey.table_problem is not None:
            raise BrokenError(f"the seek table does not hold: {survey.table_problem}")
        return count(survey.frames, "entry")

    def check_size(self) -> str:
        """Check that frames and bytes are as many as is stated."""
        survey, stated = _known(self.survey), _known(self.stated)
        if survey.has_more:
            raise BrokenError(f"found more than the {count(stated.frames, 'frame')} of {stated.size} bytes that were signed")
        if (survey.frames, survey.plain_bytes) != (stated.frames, stated.size):
            raise BrokenError(
                f"found {count(survey.frames, 'frame')} of {survey.plain_bytes} bytes, signed were {stated.frames} of {stated.size}"
            )
        return f"{count(survey.frames, 'frame')}, {survey.plain_bytes} bytes"

    def check_root(self) -> str:
        """Check that the frames give the root that is stated."""
        if _known(self.survey).root != _known(self.stated).root:
            raise BrokenError("stored bytes do not match the signed Merkle root")
        return _known(self.survey).root.hex()

    def check_frames(self) -> str:
        """Check that every frame can be read back."""
        survey = _known(self.survey)
        if survey.damage:
            first = survey.damage[0]
            frames = f"frame {first.first_frame}" + (f" to {first.last_frame}" if first.last_frame > first.first_frame else "")
            more = f", and {len(survey.damage) - 1} more" if len(survey.damage) > 1 else ""
            raise BrokenError(f"{frames} (plaintext {first.plain_start} to {first.plain_end}): {first.reason}{more}")
        return count(survey.frames, "frame")

    def _read(self, name: str, max_bytes: int) -> bytes:
        data = self._papers.read(name, max_bytes)
        if data is None:
            raise BrokenError(f"{name} is missing")
        return data

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
