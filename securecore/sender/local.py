"""The local way of a crash: steps 6 to 9 of handler.py with a directory in the receiver's place, and no network.

 6  open as root the directory that core_pattern names
 7  become its owner, for good
 8  drain the pipe: pieces, what stands for them, and from there to the disk
 9  close the pipe: the crashed process is let go
10  make core and report durable and give them their names; then see to what killed handlers left, and to the number that is kept
"""

from typing import Final

from securecore.dump.manifest import COMPLETE
from securecore.dump.packing import make_packing
from securecore.errors import ConfigError, SecurecoreError, StorageError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import privileges
from securecore.sender.core_facts import FACTS_BYTES, Facts, add_facts
from securecore.sender.core_names import stem_of_crash
from securecore.sender.cores import CoreDirectory, NewCore, open_cores
from securecore.sender.local_mode import LocalMode
from securecore.sender.packer import Packed, Packer
from securecore.sender.system_log import log

_REASON_MAX: Final = 200
"""Characters of a failure's words in a report; FACTS_BYTES has room for them even where each takes twelve bytes."""


def keep(core: int, mode: LocalMode, dump: DumpId, report: CrashReport) -> int:
    """Keep the core in the mode's directory and return the exit code; closes *core* as soon as it is drained."""
    directory = open_cores(mode.directory)
    packing = make_packing(mode.kind, mode.level)
    become_owner(directory, mode.directory)
    encoded = report.encode(FACTS_BYTES)
    new = begin(directory, mode, dump, report, encoded)
    packed = Packer(packing, new.write).pack(core)
    code = conclude(new, packed, dump, mode.kind, encoded)
    tidy(directory, mode, new.stem)
    return code


def become_owner(directory: CoreDirectory, path: str) -> None:
    """Become the directory's owner, for good."""
    check_owner(directory, path)
    privileges.drop(*directory.owner)


def check_owner(directory: CoreDirectory, path: str) -> None:
    """Raise ConfigError when the directory is root's, or of root's group: its owner is what the handler gives root up for."""
    uid, gid = directory.owner
    if uid == 0 or gid == 0:
        whose = "root" if uid == 0 else "root's group"
        raise ConfigError(
            f"{path}: belongs to {whose}, which the handler must not stay",
            hint=f"chown securecore:securecore {path}, or another user",
        )


def begin(directory: CoreDirectory, mode: LocalMode, dump: DumpId, report: CrashReport, encoded: bytes) -> NewCore:
    """Begin the core, where need be after the directory was put in order.

    With --keep a full disk costs the oldest dumps, one after the other: otherwise one without room for one dump more than are kept
    would lose every core from then on.
    """

    def make_room(own: str) -> bool:
        gone = directory.remove_oldest(own)
        for name in gone:
            log("removed", file=name, why="the disk is full")
        return bool(gone)

    stem = stem_of_crash(report.crashed_at or 0, report.program, report.pid or 0)
    # Whoever finds what a killed handler leaves knows of it what stands here.
    left = add_facts(encoded, {"id": str(dump), "format": mode.kind})
    room = make_room if mode.keep is not None else None
    try:
        return directory.begin(stem, mode.kind, left, room)
    except StorageError:
        # What is left of killed handlers, and what is more than is kept, may be what takes the room.
        tidy(directory, mode, "")
        return directory.begin(stem, mode.kind, left, room)


def conclude(new: NewCore, packed: Packed, dump: DumpId, kind: str, report: bytes) -> int:
    """Publish what is whole as whole, what was cut as cut, and nothing that the disk did not take; return the exit code."""
    outcome = packed.end.outcome(is_part_lost=False)
    facts: Facts = {
        "id": str(dump),
        "format": kind,
        "outcome": outcome,
        "size": packed.end.size,
        "predicted_size": packed.end.predicted_size,
        "stored_bytes": packed.stored_bytes,
        "sha256": packed.sha256.hex(),
    }
    failure = packed.failure
    if failure is None:
        try:
            name = new.publish(report, facts, is_whole=outcome == COMPLETE)
        except SecurecoreError as error:
            failure = error
    if failure is None:
        log("kept", dump=str(dump), file=name, size=packed.end.size, stored=packed.stored_bytes, outcome=outcome)
        return 0
    reported = abandon(new, report, facts | {"error": failure.message[:_REASON_MAX], "sha256": None})
    log("failed", dump=str(dump), error=failure.message, code=failure.exit_code, report=f"{new.stem}.json" if reported else None)
    return failure.exit_code


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
            for name in directory.keep_newest(mode.keep, own):
                log("removed", file=name, keep=mode.keep)
    except SecurecoreError as error:
        log("untidy", error=error.message)
