"""The local way of a crash: steps 6 to 9 of handler.py with a directory in the receiver's place, and no network.

 6  load the compressor, while root may still read it; the directory that core_pattern names is open since step 5
 7  become its owner, for good
 8  drain the pipe: pieces, what stands for them, and from there to the disk
 9  close the pipe: the crashed process is let go
10  make core and report durable and give them their names; then see to what killed handlers left, and to the number that is kept
"""

import os

from securecore.declarations import Final
from securecore.dump.manifest import COMPLETE
from securecore.dump.packing import make_packing
from securecore.errors import SecurecoreError, StorageError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import privileges
from securecore.sender.core_facts import FACTS_BYTES, Facts, add_facts
from securecore.sender.core_names import stem_of_crash
from securecore.sender.cores import CoreDirectory, NewCore
from securecore.sender.lifetime import Lifetime
from securecore.sender.local_mode import LocalMode
from securecore.sender.packer import Packed, Packer
from securecore.sender.system_log import log
from securecore.sender.tally import Taken

_REASON_MAX: Final = 200
"""Characters of a failure's words in a report; FACTS_BYTES has room for them even where each takes twelve bytes."""


def keep(
    core: int, mode: LocalMode, directory: CoreDirectory, dump: DumpId, report: CrashReport, taken: Taken, lifetime: Lifetime
) -> int:
    """Keep the core in the directory and return the exit code; closes *core* as soon as it is drained."""
    packing = make_packing(mode.kind, mode.level)
    privileges.drop(*directory.owner)
    told = report._replace(**taken.untaken.fields())
    encoded = told.encode(FACTS_BYTES)
    try:
        new = begin(directory, mode, dump, told, encoded)
    except StorageError:
        os.close(core)
        taken.conclude(is_kept=False)
        raise
    try:
        packer = Packer(packing, lambda data: new.write(data, packer.expected_bytes), end=new.end)
        packed = packer.pack(core, taken.head.data, lambda: lifetime.cut, lifetime.piece_s)
        code = conclude(new, packed, dump, mode.kind, encoded, taken)
    except BaseException:
        # An error that nobody foresaw leaves what a killed handler does. The next one names it, and its report tells the counts.
        taken.conclude(is_kept=directory.has(new.stem))
        raise
    # To put the directory in order may take long, and the next one does what is left of it.
    lifetime.release()
    tidy(directory, mode, new.stem)
    return code


def begin(directory: CoreDirectory, mode: LocalMode, dump: DumpId, report: CrashReport, encoded: bytes) -> NewCore:
    """Begin the core, where need be after the directory was put in order.

    With --keep a disk at its floor costs the oldest dumps, one after the other: otherwise one without room for one dump more than
    are kept would lose every core from then on.
    """
    stem = stem_of_crash(report.crashed_at or 0, report.program, report.pid or 0)
    # Whoever finds what a killed handler leaves knows of it what stands here.
    left = add_facts(encoded, {"id": str(dump), "format": mode.kind})
    try:
        return directory.begin(stem, mode.kind, left, mode.keep)
    except StorageError:
        # What is left of killed handlers, and what is more than is kept, may be what takes the room.
        tidy(directory, mode, "")
        return directory.begin(stem, mode.kind, left, mode.keep)


def conclude(new: NewCore, packed: Packed, dump: DumpId, kind: str, report: bytes, taken: Taken) -> int:
    """Publish what is whole as whole, and as cut what was cut, also by the disk; return the exit code."""
    outcome = packed.end.outcome(is_part_lost=packed.failure is not None)
    facts: Facts = {
        "id": str(dump),
        "format": kind,
        "outcome": outcome,
        "size": packed.size,
        "predicted_size": packed.end.predicted_size,
        "stored_bytes": packed.stored_bytes,
        "sha256": packed.sha256.hex(),
    }
    failure, name = packed.failure, None
    if failure is None or packed.size > 0:
        try:
            name = new.publish(report, facts | _reason(failure), is_whole=outcome == COMPLETE)
        except SecurecoreError as error:
            failure = error
    reported = name is not None or abandon(new, report, facts | _reason(failure) | {"sha256": None})
    taken.conclude(is_kept=reported, has_core=name is not None)
    told = {"file": name, "size": packed.size, "stored": packed.stored_bytes, "outcome": outcome} if name is not None else {}
    if failure is None:
        log("kept", dump=str(dump), **told, cut=packed.end.failure)
        return 0
    told |= {"error": failure.message, "code": failure.exit_code}
    log("failed", dump=str(dump), **told, report=f"{new.stem}.json" if reported else None)
    return failure.exit_code


def _reason(failure: SecurecoreError | None) -> Facts:
    return {"error": failure.message[:_REASON_MAX]} if failure is not None else {}


def abandon(new: NewCore, report: bytes, facts: Facts) -> bool:
    """Remove the core and return whether a report says so; a disk without room for that is told in the log alone."""
    try:
        new.abandon(report, facts)
    except SecurecoreError:
        return False
    return True


def tidy(directory: CoreDirectory, mode: LocalMode, own: str) -> None:
    """Name what killed handlers left, and remove what is more than the mode keeps; what cannot be done is left to the next one."""
    try:
        recovered, troubles = directory.recover()
        for name in recovered:
            log("recovered", file=name)
        for trouble in troubles:
            log("untidy", error=trouble.message)
        if mode.keep is not None:
            for name in directory.rotation.keep_newest(mode.keep, own):
                log("removed", file=name, keep=mode.keep)
    except SecurecoreError as error:
        log("untidy", error=error.message)
    except MemoryError:
        log("untidy", error=f"{mode.directory} has more files than there is memory to look at")
