"""Verification of a bundle by somebody who has a root certificate and nothing else, as numbered checks that a person can follow.

Nothing is believed because the bundle says it: each member counts once a chain of signatures leads from it to the root. Which dump
it is about is what the log's entry says that the receipt proves.
"""

import os
from typing import Final, NamedTuple

from securecore.audit.bundle import DELETION, Bundle
from securecore.audit.checks import Check, Steps
from securecore.audit.damage import Damage, Progress, Survey
from securecore.audit.dump_reading import DumpReading, Expected
from securecore.audit.entry import DELETED, INCOMPLETE, RECEIVED, Held, Value, find_held
from securecore.audit.kept_receipt import Kept, ReceiptVerifier, Witness
from securecore.audit.proof import Receipt, parse_proof
from securecore.audit.revocation import KeptLists
from securecore.audit.statement import LogKey, verify_statement
from securecore.audit.verification import AGREED, OURS, REPORTED, SIGNED, SPEAKS, UNREVOKED, check_core
from securecore.certs.chain import Anchors
from securecore.dump.manifest import Manifest
from securecore.errors import BrokenError, Bug
from securecore.names import DumpId, NameRefused, StoreId

_ROOT: Final = "the core's frames give the Merkle root"
_FRAME: Final = b"\x28\xb5\x2f\xfd"
_SEEK_TABLE: Final = b"\x5e\x2a\x4d\x18"
"""What a core.zst begins with (RFC 8878 section 3.1): a frame, or where there is none its seek table."""


class BundleVerification(NamedTuple):
    """The outcome of verify_bundle: the checks, and what they have proved; None for what they have not."""

    checks: list[Check]
    excused: frozenset[int]
    """Numbers of the checks that cannot be made by the nature of what the bundle is about."""
    log_key: LogKey | None
    about: Expected | None
    """Host, dump and store, as the proved entry has them."""
    receipt: Receipt | None
    held: Held | None
    """Frames, length, root and the report's digest, as the proved entry has them."""
    manifest: Manifest | None
    """Signed by the host, if every check holds."""
    deletion: Receipt | None
    survey: Survey | None
    damage: list[Damage]

    @property
    def ok(self) -> bool:
        """Whether no check fails; one that cannot be made is one too few, unless it is excused."""
        return all(check.ok or (check.ok is None and check.number in self.excused) for check in self.checks)


def verify_bundle(
    bundle: Bundle, anchors: Anchors, core: int | None = None, progress: Progress | None = None
) -> BundleVerification:
    """Return what holds of a bundle under a root, and of the file behind the descriptor *core*, where there is one.

    That file ought to be the dump's core.zst, whose bytes are all checked; of plaintext the length is, and that its bytes are those
    of the dump cannot be said: then the outcome is not ok. Raises nothing that a bundle can cause, OSError when *core* is no file
    that can be read. Not checked: that the log has nothing newer about the dump, that the receiver has given nobody else another
    history (contradiction.py does, with another receipt of the log), and whether the receiver's certificate was revoked.
    """
    verifier = _Verifier(bundle, anchors, core)
    verifier.check_log()
    verifier.check_host()
    verifier.check_rest()
    if core is not None:
        verifier.check_core(core, progress)
    return verifier.result()


class _BundlePapers:
    """A bundle's members as the files of the dump that it is about."""

    def __init__(self, bundle: Bundle, core: int | None) -> None:
        self._members = dict(bundle.members())
        self._core = core

    def read(self, name: str, max_bytes: int) -> bytes | None:
        return self._members.get(name)

    def open_core(self) -> int | None:
        return os.dup(self._core) if self._core is not None else None


class _Verifier:
    def __init__(self, bundle: Bundle, anchors: Anchors, core: int | None) -> None:
        self._bundle = bundle
        self._anchors = anchors
        self._steps = Steps()
        self._excused: set[int] = set()
        lists = dict([bundle.lists]) if bundle.lists is not None else {}
        self._reading = DumpReading(_BundlePapers(bundle, core), anchors, KeptLists(lists.get))
        self._log_key: LogKey | None = None
        self._witness: Witness | None = None
        self._held: Held | None = None
        self._deletion: Receipt | None = None

    def check_log(self) -> None:
        """What the receiver has signed: its log key, the entry, where the dump stands."""
        self._steps.run("the log key is a receiver's, under the root", self._check_statement)
        proved = "the receipt proves an entry of a host's audit log"
        self._steps.run(proved, self._check_receipt, possible=self._log_key is not None)
        said = "the entry says that a dump of that host was received or given up"
        self._steps.run(said, self._check_said, possible=self._witness is not None)
        if self._bundle.deletion is not None:
            gone = "the log says that the dump was deleted since"
            self._steps.run(gone, self._check_deletion, possible=self._reading.expected is not None)

    def check_host(self) -> None:
        """What the host has signed, and that it was that host."""
        steps, reading = self._steps, self._reading
        event = reading.receipt.fields["event"] if reading.receipt is not None else None
        if self._bundle.manifest is None and (event == INCOMPLETE or (event == RECEIVED and self._bundle.deletion is not None)):
            gone = "the manifest was deleted with the dump; only the receiver says whose it was"
            unsigned = "the host has signed nothing; only the receiver says whose it is"
            why = unsigned if event == INCOMPLETE else gone
            for what in (SIGNED, SPEAKS, AGREED, OURS):
                self._excuse(what, why)
            self._excuse_revocation(why)
            reading.held = self._held
            return
        steps.run(SIGNED, reading.check_signature)
        steps.run(SPEAKS, reading.check_manifest, possible=reading.signed is not None and reading.expected is not None)
        is_stated = reading.manifest is not None and reading.receipt is not None
        steps.run(AGREED, reading.check_entry, possible=is_stated)
        steps.run(OURS, reading.check_certificate, possible=is_stated)
        if reading.lack_of_lists is not None:
            self._excuse_revocation(reading.lack_of_lists)
        else:
            steps.run(UNREVOKED, reading.check_revocation, possible=reading.judgement is not None)

    def check_rest(self) -> None:
        """What may go with the papers."""
        if self._bundle.report is None:
            self._excuse(REPORTED, "it is not in the bundle")
        else:
            self._steps.run(REPORTED, self._reading.check_report, possible=self._reading.stated is not None)

    def check_core(self, core: int, progress: Progress | None) -> None:
        """The file that is said to be the dump's core."""
        by, whose = ("manifest", "signed") if self._reading.manifest is not None else ("entry", "entry's")
        if os.pread(core, len(_FRAME), 0) in (_FRAME, _SEEK_TABLE):
            check_core(self._reading, self._steps, by, whose, decode=True, progress=progress)
            return
        length = f"the core is as long as the {by} says"
        self._steps.run(length, lambda: self._check_length(core), possible=self._reading.stated is not None)
        self._steps.leave_out(
            _ROOT, "the file does not begin as core.zst does; of plaintext nothing but the length can be compared"
        )

    def result(self) -> BundleVerification:
        reading = self._reading
        return BundleVerification(
            self._steps.checks,
            frozenset(self._excused),
            self._log_key,
            reading.expected,
            reading.receipt,
            self._held,
            reading.manifest,
            self._deletion,
            reading.survey,
            reading.survey.damage if reading.survey is not None else [],
        )

    def _excuse(self, what: str, why: str) -> None:
        self._steps.leave_out(what, why)
        self._excused.add(len(self._steps.checks))

    def _excuse_revocation(self, why: str) -> None:
        """Nothing in a bundle may be there for nothing: what nobody refers to is proved by nobody."""
        if self._bundle.lists is None:
            self._excuse(UNREVOKED, why)
        else:
            self._steps.run(UNREVOKED, self._refuse_lists)

    def _refuse_lists(self) -> str:
        raise BrokenError(f"crls/{self._bundle.lists[0] if self._bundle.lists else ''}.pem is there, and no entry refers to it")

    def _check_statement(self) -> str:
        self._log_key = verify_statement(self._bundle.log_key, self._anchors)
        return f"of {self._log_key.receiver.name}, stated {self._log_key.issued_at.isoformat()}"

    def _check_receipt(self) -> str:
        self._witness = self._verify(self._bundle.receipt, "receipt")
        receipt = self._witness.receipt
        return f"entry {receipt.leaf_index} of {self._witness.host}'s, under the checkpoint of {receipt.checkpoint.size}"

    def _check_said(self) -> str:
        if self._witness is None:
            raise Bug("an entry was looked at before it was proved")
        receipt = self._witness.receipt
        event, dump = receipt.fields["event"], _text(receipt, "dump")
        if event not in (RECEIVED, INCOMPLETE):
            raise BrokenError(f"the entry is a {event!a:.40} one")
        try:
            about = Expected(self._witness.host, DumpId.parse(dump), StoreId.parse(_text(receipt, "store")))
        except NameRefused as error:
            raise BrokenError(f"the entry names no dump or no store: {error.message}") from error
        self._held = find_held(receipt.fields)
        self._reading.expected, self._reading.receipt = about, receipt
        return f"{event} {receipt.fields['time']}: {dump}"

    def _check_deletion(self) -> str:
        if self._witness is None or self._bundle.deletion is None:
            raise Bug("a deletion was looked at that nobody speaks of")
        deletion = self._verify(self._bundle.deletion, DELETION).receipt
        first = self._witness.receipt
        for name, value in (("event", DELETED), ("dump", first.fields.get("dump")), ("host", str(self._witness.host))):
            if deletion.fields.get(name) != value:
                raise BrokenError(f"its entry says {name} is {deletion.fields.get(name)!a:.100}, not {value!a:.100}")
        if deletion.leaf_index <= first.leaf_index:
            raise BrokenError(f"its entry {deletion.leaf_index} is not behind entry {first.leaf_index}")
        if parse_proof(self._bundle.deletion).checkpoint != parse_proof(self._bundle.receipt).checkpoint:
            raise BrokenError("it is proved under another checkpoint than the receipt")
        self._deletion = deletion
        return f"{deletion.fields['time']}, by entry {deletion.leaf_index}"

    def _verify(self, proof: bytes, name: str) -> Witness:
        return ReceiptVerifier(self._anchors, self._log_key).verify(Kept(name, proof, None, {}))

    def _check_length(self, core: int) -> str:
        stated, found = self._reading.stated, os.fstat(core).st_size
        if stated is None:
            raise Bug("a length was compared with none")
        if found != stated.size:
            raise BrokenError(f"found {found} bytes, signed were {stated.size}")
        return f"{found} bytes"


def _text(receipt: Receipt, name: str) -> str:
    value: Value = receipt.fields.get(name)
    return value if isinstance(value, str) else ""
