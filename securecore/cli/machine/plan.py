"""Carrying out a list of steps, so that a later run changes nothing more and ``--undo`` puts back what was there.

What undoing needs is on disk, durably, before the first step is done; so a set-up that was interrupted can be finished or undone.
The first record of a place is kept: what was there before *any* set-up is what comes back.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from securecore.cli.machine.root import Found, Root
from securecore.cli.machine.steps import ROOT_USER, MakeDirectory, Record, Step, undo_record
from securecore.errors import ConfigError, NotFoundError, StorageError


class Done(NamedTuple):
    """What was done, and to what: one line of output. *difference* is filled in by ``preview`` only."""

    word: str
    place: str
    difference: Sequence[str] = ()


def state_path(role: str) -> str:
    """Return where the records of a role's set-up are kept."""
    return f"/var/lib/securecore/setup-{role}.json"


def preview(steps: Iterable[Step], role: str, root: Root) -> Iterator[Done]:
    """Yield what ``apply`` would do, with the differences; changes nothing."""
    for step in _with_directories(steps, role, root):
        if step.is_done(root):
            yield Done("unchanged", root.outside(step.path))
        else:
            yield Done(f"would be {step.done_word}", root.outside(step.path), step.difference(root))


def apply(steps: Iterable[Step], role: str, root: Root) -> Iterator[Done]:
    """Bring all steps about, in order, and yield what was done to each.

    Everything is looked at before anything is changed, so that what is in the way is met early. Raises StorageError and
    ConfigError; the steps before the one that failed are done, and recorded.
    """
    complete = _with_directories(steps, role, root)
    todo = [step for step in complete if not step.is_done(root)]
    if todo:
        records = [step.record(root) for step in todo]
        _save(_merge(load_records(role, root) or [], records), role, root)
    for step in complete:
        if step in todo:
            step.do(root)
            yield Done(step.done_word, root.outside(step.path))
        else:
            yield Done("unchanged", root.outside(step.path))


def undo(role: str, root: Root) -> Iterator[Done]:
    """Take back what set-up has changed, and yield what was done: the kernel's settings first, then the last step first.

    In this order the kernel never starts what is half gone, whichever set-up has written what. Raises NotFoundError when there was
    no set-up.
    """
    records = load_records(role, root)
    if records is None:
        raise NotFoundError(
            f"{root.outside(state_path(role))}: no such file: no `setup {role}` to undo",
            hint="`--root DIR` undoes a set-up in another root",
        )
    kernel = [record for record in records if record.get("kind") == "sysctl"]
    directories = [record for record in records if record.get("kind") == "directory"]
    others = [record for record in records if record not in directories and record not in kernel]
    for record in [*reversed(kernel), *reversed(others), None, *reversed(directories)]:
        if record is None:
            root.remove(state_path(role))
            yield Done("removed", root.outside(state_path(role)))
        elif (done := undo_record(record, root)) is not None:
            yield Done(*done)


def _with_directories(steps: Iterable[Step], role: str, root: Root) -> list[Step]:
    """Return the steps with the missing directories above each in front of it, those of the records' file first."""
    complete: list[Step] = [*_parents(state_path(role), root)]
    for step in steps:
        if not step.path.startswith("/proc/"):
            complete += [parent for parent in _parents(step.path, root) if parent not in complete]
        complete.append(step)
    return complete


def _parents(path: str, root: Root) -> list[MakeDirectory]:
    parts = path.split("/")[1:-1]
    above = [MakeDirectory("/" + "/".join(parts[: count + 1])) for count in range(len(parts))]
    return [directory for directory in above if not directory.is_done(root)]


def _merge(old: list[Record], new: Iterable[Record]) -> list[Record]:
    """Return the records of all set-ups: of the first one what was there before, of the last one what was written."""
    merged = {(record.get("kind"), record.get("path")): dict(record) for record in old}
    for record in new:
        key = (record["kind"], record["path"])
        if key in merged and "written" in record:
            merged[key] |= {name: value for name, value in record.items() if name != "before"}
        merged.setdefault(key, record)
    return list(merged.values())


def load_records(role: str, root: Root) -> list[Record] | None:
    """Return what is on record of the set-ups of *role*; None when there were none, ConfigError when it is none of ours."""
    found = root.find(state_path(role))
    if found is None:
        return None
    try:
        fields: dict[str, Any] = json.loads(found.content)
        if fields["version"] != 1 or not all(isinstance(record, dict) for record in fields["records"]):
            raise ValueError
        return list(fields["records"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{root.outside(state_path(role))}: not a record of this version of set-up") from error


def has_written(path: str, role: str, root: Root) -> bool:
    """Return whether a set-up of *role* has written the file *path*; yes, to whoever tries without the right to know."""
    try:
        records = load_records(role, root) or []
    except StorageError:
        if os.geteuid() == 0:
            raise
        return True
    return any(record.get("path") == path for record in records)


def _save(records: list[Record], role: str, root: Root) -> None:
    """Write the records, and the directories above them; when they cannot be written, these are taken back at once."""
    content = json.dumps({"version": 1, "records": records}, indent=1).encode() + b"\n"
    directories = _parents(state_path(role), root)
    try:
        for directory in directories:
            directory.do(root)
        root.write(state_path(role), Found(content, 0o600, ROOT_USER))
    except StorageError:
        for directory in reversed(directories):
            root.remove_directory(directory.path)
        raise
