"""What set-up can do to a machine, as values: each step can tell whether it is done, what it replaces, and how to take it back.

A step's *record* is what ``--undo`` needs: JSON, made before the step is done. ``undo_record`` takes it back; a file that somebody
has changed since is not lost but kept beside, under its name with ``.edited``.
"""

import base64
import binascii
import difflib
import os
import stat
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

from securecore.cli.machine.kernel_setting import undo_setting
from securecore.cli.machine.root import Found, Owner, Root
from securecore.dump import directory as files
from securecore.errors import ConfigError, StorageError
from securecore.sender import storms
from securecore.sender.cores import LOCK
from securecore.sender.cores_directory import STATE, open_cores_directory
from securecore.sender.schedule import SCHEDULE
from securecore.sender.spool import create_spool, open_spool
from securecore.units import count

ROOT_USER: Final[Owner] = (0, 0)
SPOOL_FILES: Final = ("FORMAT", storms.NAME)
"""What a spool must hold, beside its dumps."""
_STORM_FILES: Final = (storms.NAME, files.aside_name(storms.NAME), storms.DAMAGED)

Record = dict[str, Any]


class Step(Protocol):
    """One thing to be brought about. ``path`` is where; ``done_word`` what a person reads afterwards."""

    @property
    def path(self) -> str:
        """Return the place that the step is about."""

    @property
    def done_word(self) -> str:
        """Return what was done, in one word."""

    def is_done(self, root: Root) -> bool:
        """Return whether nothing is left to do; raises StorageError when something is in the way."""

    def difference(self, root: Root) -> list[str]:
        """Return, in lines, what the step changes."""

    def record(self, root: Root) -> Record:
        """Return what undoing the step will need; only before it is done."""

    def do(self, root: Root) -> None:
        """Bring it about; the directory that it happens in exists."""


@dataclass(frozen=True)
class WriteFile:
    """A file with this content, mode and owner."""

    path: str
    content: bytes
    mode: int = 0o644
    owner: Owner = ROOT_USER
    done_word: str = "written"

    def is_done(self, root: Root) -> bool:
        found = root.find(self.path)
        return found is not None and (found.content, found.mode) == (self.content, self.mode) and _is_owner(found.owner, self.owner)

    def difference(self, root: Root) -> list[str]:
        found = root.find(self.path)
        old = found.content if found is not None else b""
        before, after = root.outside(self.path) if found is not None else "/dev/null", root.outside(self.path)
        lines = list(difflib.unified_diff(_lines(old), _lines(self.content), before, after, lineterm=""))
        if found is not None and found.mode != self.mode:
            lines.insert(0, f"mode {found.mode:04o} -> {self.mode:04o}")
        return lines

    def record(self, root: Root) -> Record:
        found = root.find(self.path)
        before = None
        if found is not None:
            before = {"content": base64.b64encode(found.content).decode(), "mode": found.mode, "owner": list(found.owner)}
        return {"kind": "file", "path": self.path, "before": before, "written": sha256(self.content).hexdigest()}

    def do(self, root: Root) -> None:
        root.write(self.path, Found(self.content, self.mode, self.owner))


@dataclass(frozen=True)
class MakeDirectory:
    """A directory. One that is there already keeps its mode and owner unless *is_ours* says that they matter."""

    path: str
    mode: int = 0o755
    owner: Owner = ROOT_USER
    is_ours: bool = False
    done_word: str = "made"

    def is_done(self, root: Root) -> bool:
        status = root.status(self.path)
        if status is None:
            return False
        if not stat.S_ISDIR(status.st_mode):
            raise StorageError(f"{root.outside(self.path)}: in the way: not a directory")
        owner = status.st_uid, status.st_gid
        return not self.is_ours or (stat.S_IMODE(status.st_mode) == self.mode and _is_owner(owner, self.owner))

    def difference(self, root: Root) -> list[str]:
        return [f"directory, mode {self.mode:04o}, owner {self.owner[0]}:{self.owner[1]}"]

    def record(self, root: Root) -> Record:
        status = root.status(self.path)
        before = None if status is None else [stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid]
        return {"kind": "directory", "path": self.path, "before": before}

    def do(self, root: Root) -> None:
        root.make_directory(self.path, self.mode, self.owner)


@dataclass(frozen=True)
class MakeLink:
    """A symbolic link, as systemctl(1) makes it to enable a unit."""

    path: str
    target: str
    done_word: str = "linked"

    def is_done(self, root: Root) -> bool:
        found = root.link_target(self.path)
        if found not in (None, self.target):
            raise StorageError(f"{root.outside(self.path)}: in the way: leads to {found!a}")
        return found is not None

    def difference(self, root: Root) -> list[str]:
        return [f"symbolic link to {self.target}"]

    def record(self, root: Root) -> Record:
        return {"kind": "link", "path": self.path, "written": self.target}

    def do(self, root: Root) -> None:
        root.make_link(self.path, self.target)


def _holds(root: Root, directory: str, *names: str) -> bool:
    """Return whether these stand in *directory*; so, too, where we may not look: then nothing is done there either."""
    return not root.can_look_into(directory) or all(root.status(f"{directory}/{name}") is not None for name in names)


@dataclass(frozen=True)
class MakeSpool:
    """A spool for the handler's user, empty when it is new; what is in it outlives --undo."""

    path: str
    owner: Owner
    done_word: str = "made"

    def is_done(self, root: Root) -> bool:
        directory = MakeDirectory(self.path, 0o700, self.owner, is_ours=True)
        return directory.is_done(root) and _holds(root, self.path, *SPOOL_FILES)

    def difference(self, root: Root) -> list[str]:
        return [f"spool, mode 0700, owner {self.owner[0]}:{self.owner[1]}"]

    def record(self, root: Root) -> Record:
        return {"kind": "spool", "path": self.path, "before": root.status(self.path) is not None}

    def do(self, root: Root) -> None:
        # The walk has refused links in the path; the spool's own module makes what belongs into it. One in use stays whose it is.
        if not MakeDirectory(self.path, 0o700, self.owner, is_ours=True).is_done(root):
            root.make_directory(self.path, 0o700, ROOT_USER)
        create_spool(root.outside(self.path), os.urandom(16), self.owner)
        # All that the state of the storm limits will need: whoever fills the disk before the first crash would be without any.
        with closing(open_spool(root.outside(self.path))) as spool:
            storms.prepare(spool.fd, self.owner)


@dataclass(frozen=True)
class MakeCores(MakeDirectory):
    """A directory for the cores of local mode; what is in it outlives --undo."""

    def is_done(self, root: Root) -> bool:
        return super().is_done(root) and _holds(root, self.path, f"{STATE}/{storms.NAME}")

    def record(self, root: Root) -> Record:
        return super().record(root) | {"kind": "cores"}

    def do(self, root: Root) -> None:
        super().do(root)
        # As in a spool.
        root.make_directory(f"{self.path}/{STATE}", 0o700, self.owner)
        cores, _ = open_cores_directory(root.outside(self.path))
        try:
            state = files.enter_directory(STATE, cores)
            try:
                storms.prepare(state, self.owner)
            finally:
                os.close(state)
        finally:
            os.close(cores)


@dataclass(frozen=True)
class GiveFiles:
    """The directory *path* and the files in it belong to *owner*."""

    path: str
    names: tuple[str, ...]
    owner: Owner
    done_word: str = "given"

    def is_done(self, root: Root) -> bool:
        return all(owner == self.owner for owner in self._owners(root).values())

    def difference(self, root: Root) -> list[str]:
        return [
            f"owner {uid}:{gid} -> {self.owner[0]}:{self.owner[1]}  {name}"
            for name, (uid, gid) in self._owners(root).items()
            if (uid, gid) != self.owner
        ]

    def record(self, root: Root) -> Record:
        return {"kind": "owner", "path": self.path, "before": {name: list(owner) for name, owner in self._owners(root).items()}}

    def do(self, root: Root) -> None:
        root.give(self.path, dict.fromkeys((".", *self.names), self.owner))

    def _owners(self, root: Root) -> dict[str, Owner]:
        paths = {".": self.path} | {name: f"{self.path}/{name}" for name in self.names}
        found = {name: root.status(path) for name, path in paths.items()}
        return {name: (status.st_uid, status.st_gid) for name, status in found.items() if status is not None}


@dataclass(frozen=True)
class RemoveFile:
    """No file: one of another way to set this machine up, or what somebody else has put in its place."""

    path: str
    done_word: str = "removed"

    def is_done(self, root: Root) -> bool:
        return root.find(self.path) is None

    def difference(self, root: Root) -> list[str]:
        found = root.find(self.path)
        return [f"-{line}" for line in _lines(found.content)] if found is not None else []

    def record(self, root: Root) -> Record:
        # What a set-up has written stays on record: until this is done, that may still be there.
        record = WriteFile(self.path, b"").record(root)
        return {name: value for name, value in record.items() if name != "written"}

    def do(self, root: Root) -> None:
        root.remove(self.path)


@dataclass(frozen=True)
class RemoveLink:
    """No symbolic link: a unit that is not enabled."""

    path: str
    done_word: str = "removed"

    def is_done(self, root: Root) -> bool:
        return root.link_target(self.path) is None

    def difference(self, root: Root) -> list[str]:
        return [f"- symbolic link to {root.link_target(self.path)}"]

    def record(self, root: Root) -> Record:
        return {"kind": "link", "path": self.path, "before": root.link_target(self.path)}

    def do(self, root: Root) -> None:
        root.remove(self.path)


def undo_record(record: Mapping[str, Any], root: Root) -> tuple[str, str] | None:
    """Take one step back and return what was done and to what, None when there was nothing to do.

    Raises ConfigError when the record is none that we have written.
    """
    try:
        return _UNDO[record["kind"]](record, root)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, binascii.Error) as error:
        raise ConfigError("the record of what set-up changed is damaged", hint="take the changes back by hand") from error


def _undo_file(record: Mapping[str, Any], root: Root) -> tuple[str, str] | None:
    path, found = record["path"], root.find(record["path"])
    directory, _, name = path.rpartition("/")
    root.remove(f"{directory}/{files.aside_name(name)}")  # a set-up that was killed may have left it
    before = None
    if record["before"] is not None:
        uid, gid = record["before"]["owner"]
        before = Found(base64.b64decode(record["before"]["content"], validate=True), int(record["before"]["mode"]), (uid, gid))
    if found == before:
        return None
    words = root.outside(path)
    if found is not None and sha256(found.content).hexdigest() != record.get("written"):
        edited = f"{name}.edited"
        words += f"  (it had been changed since; that is now {edited})"
        root.write(f"{path}.edited", found)
    if before is None:
        root.remove(path)
        return "removed", words
    root.write(path, before)
    return "restored", words


def _undo_directory(record: Mapping[str, Any], root: Root) -> tuple[str, str] | None:
    path, before = record["path"], record["before"]
    status = root.status(path)
    if status is None:
        return None
    if before is not None:
        mode, uid, gid = before
        if before == [stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid]:
            return None
        root.make_directory(path, mode, (uid, gid))
        return "restored", root.outside(path)
    return ("removed" if root.remove_directory(path) else "kept"), root.outside(path)


def _undo_cores(record: Mapping[str, Any], root: Root) -> tuple[str, str] | None:
    path = record["path"]
    if set(root.names(path)) <= {LOCK, STATE}:
        root.remove(f"{path}/{LOCK}")
        for name in _STORM_FILES:
            root.remove(f"{path}/{STATE}/{name}")
        root.remove_directory(f"{path}/{STATE}")
    return _undo_directory(record, root)


def _undo_spool(record: Mapping[str, Any], root: Root) -> tuple[str, str] | None:
    path = record["path"]
    if root.status(path) is None or record["before"]:
        return None
    if waiting := root.names(f"{path}/dumps"):
        return "kept", f"{root.outside(path)}  ({count(len(waiting), 'dump')} {'waits' if len(waiting) == 1 else 'wait'} in it)"
    if root.status(f"{path}/receipts.jsonl") is not None:
        return "kept", f"{root.outside(path)}  (its receipts prove what was delivered)"
    root.remove_directory(f"{path}/dumps")
    for name in (SCHEDULE, files.aside_name(SCHEDULE), *_STORM_FILES, "FORMAT"):
        root.remove(f"{path}/{name}")
    return ("removed" if root.remove_directory(path) else "kept"), root.outside(path)


def _undo_link(record: Mapping[str, Any], root: Root) -> tuple[str, str] | None:
    path, before, found = record["path"], record.get("before"), root.link_target(record["path"])
    if found == before:
        return None
    if found not in (None, record.get("written")):
        return "kept", f"{root.outside(path)}  (it leads elsewhere now)"
    if found is not None:
        root.remove(path)
    if before is None:
        return "removed", root.outside(path)
    root.make_link(path, before)
    return "restored", root.outside(path)


def _undo_owner(record: Mapping[str, Any], root: Root) -> tuple[str, str] | None:
    if root.status(record["path"]) is None:
        return None
    root.give(record["path"], {str(name): (int(uid), int(gid)) for name, (uid, gid) in record["before"].items()})
    return "given back", root.outside(record["path"])


_UNDO: Final = {
    "file": _undo_file, "directory": _undo_directory, "spool": _undo_spool, "cores": _undo_cores, "link": _undo_link,
    "owner": _undo_owner, "sysctl": undo_setting,
}  # fmt: skip


def _is_owner(found: Owner, wanted: Owner) -> bool:
    """Return whether the owner is right; without root (in an image that is being built) what is meant for root is ours."""
    return found == wanted or (wanted == ROOT_USER and os.geteuid() != 0)


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8", "backslashreplace").splitlines()
