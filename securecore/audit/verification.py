"""Verification of a stored dump, as numbered checks that a person can follow.

Everything is recomputed from the published files alone: the core's frames, the manifest, the receipt. No check is left out
because another failed, unless there is nothing that it could look at; then it says so.

A dump that was given up has no manifest. What its frames must be then stands in the entry that its receipt proves; and whose dump
it is, only the receiver says, who had judged the host's certificate.
"""

from typing import Final, NamedTuple

from securecore.audit.checks import Check, Steps
from securecore.audit.damage import Damage, Progress, Survey
from securecore.audit.dump_reading import DirectoryPapers, DumpReading, Expected
from securecore.audit.entry import Held
from securecore.audit.proof import Receipt
from securecore.audit.revocation import KeptLists
from securecore.audit.statement import LogKey
from securecore.certs.chain import Anchors
from securecore.dump.manifest import Manifest

SIGNED: Final = "the manifest is signed"
SPEAKS: Final = "the manifest speaks of this dump, host and store"
AGREED: Final = "the entry agrees with the manifest"
OURS: Final = "the certificate was the host's, under our root"
UNREVOKED: Final = "the certificate was not revoked, by the lists of that time"
REPORTED: Final = "the report is the one that was sent"
_PROVED: Final = "the receipt proves an entry of the host's audit log"


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
    awaits_receipt: bool = False
    """Whether it is not published yet, so that there is no receipt to be checked."""
    lacks_lists: bool = False
    """Whether its entry refers to no revocation lists, or none are at hand."""

    @property
    def ok(self) -> bool:
        """Whether no check fails; says nothing about whether the manifest calls the dump complete, or whether there is one.

        A check that cannot be made is one too few, but for the signature of a dump that was given up, for the receipt of one that
        awaits it, and for the revocation where the entry refers to no lists.
        """
        may_lack = self.given_up is not None or self.awaits_receipt
        return all(check.ok or (check.ok is None and (may_lack or self._may_lack(check))) for check in self.checks)

    def _may_lack(self, check: Check) -> bool:
        return self.lacks_lists and check.what == UNREVOKED


def verify_dump(
    directory_fd: int,
    expected: Expected,
    anchors: Anchors,
    log_key: LogKey | None,
    lists: KeptLists | None = None,
    *,
    awaits_receipt: bool = False,
    decode: bool = True,
    progress: Progress | None = None,
) -> DumpVerification:
    """Return what holds of the dump whose files are in a directory.

    The host's certificate is judged at the time of the receipt, the receiver's clock; without a good receipt at the end that the
    manifest gives. With *awaits_receipt*, of a dump that is not published yet, no receipt is looked at. Without *decode* frames are
    decompressed only when the root does not agree, to find out which are damaged.
    Of a dump without a manifest whose receipt's entry says that it was given up, the entry stands in the manifest's place. Raises
    nothing that a dump can cause. Not checked: revocation where there are no *lists*, and that the log still contains the entry
    (verify_log with this receipt's checkpoint does).
    """
    reading = DumpReading(DirectoryPapers(directory_fd), anchors, lists, expected, log_key)
    steps = Steps()
    if reading.claims_to_be_given_up():
        _check_given_up(reading, steps, decode=decode, progress=progress)
    else:
        _check_received(reading, steps, awaits_receipt=awaits_receipt, decode=decode, progress=progress)
    damage = reading.survey.damage if reading.survey else []
    return DumpVerification(
        steps.checks,
        reading.manifest,
        reading.receipt,
        reading.survey,
        damage,
        reading.held,
        awaits_receipt,
        lacks_lists=reading.lack_of_lists is not None,
    )


def _check_received(reading: DumpReading, steps: Steps, *, awaits_receipt: bool, decode: bool, progress: Progress | None) -> None:
    steps.run(SIGNED, reading.check_signature)
    steps.run(SPEAKS, reading.check_manifest, possible=reading.signed is not None)
    if awaits_receipt:
        steps.leave_out(_PROVED, "the dump is not published yet")
        steps.leave_out(AGREED, "the dump is not published yet")
    else:
        steps.run(_PROVED, reading.check_receipt)
        witnessed = reading.manifest is not None and reading.receipt is not None
        steps.run(AGREED, reading.check_entry, possible=witnessed)
    steps.run(OURS, reading.check_certificate, possible=reading.manifest is not None)
    _check_revocation(reading, steps, awaits_receipt=awaits_receipt)
    steps.run(REPORTED, reading.check_report, possible=reading.stated is not None)
    check_core(reading, steps, "manifest", "signed", decode=decode, progress=progress)


def _check_given_up(reading: DumpReading, steps: Steps, *, decode: bool, progress: Progress | None) -> None:
    steps.run(_PROVED, reading.check_receipt)
    what = "the entry says of this dump, host and store that it was given up"
    steps.run(what, reading.check_giving_up, possible=reading.receipt is not None)
    steps.run(REPORTED, reading.check_report, possible=reading.stated is not None)
    check_core(reading, steps, "entry", "entry's", decode=decode, progress=progress)
    why = "the host has signed nothing; only the receiver says whose it is"
    steps.leave_out(OURS, why)
    steps.leave_out(UNREVOKED, why)


def _check_revocation(reading: DumpReading, steps: Steps, *, awaits_receipt: bool) -> None:
    if awaits_receipt:
        steps.leave_out(UNREVOKED, "the dump is not published yet")
    elif reading.lack_of_lists is not None:
        steps.leave_out(UNREVOKED, reading.lack_of_lists)
    else:
        steps.run(UNREVOKED, reading.check_revocation, possible=reading.judgement is not None and reading.receipt is not None)


def check_core(reading: DumpReading, steps: Steps, by: str, whose: str, *, decode: bool, progress: Progress | None) -> None:
    """Make the steps that are about a core; what it must be is said *by* the manifest or the entry."""
    steps.run("the core can be read", lambda: reading.read_core(decode=decode, progress=progress))
    steps.run("the seek table agrees with the frames", reading.check_table, possible=reading.survey is not None)
    comparable = reading.stated is not None and reading.survey is not None
    steps.run(f"frames and bytes are as many as the {by} says", reading.check_size, possible=comparable)
    steps.run(f"the frames give the {whose} Merkle root", reading.check_root, possible=comparable)
    what = "every frame decompresses, with the right checksum" if decode else "every frame has the form of one"
    steps.run(what, reading.check_frames, possible=reading.survey is not None)
