"""What can be wrong with the storm limits of a sender: that one is used up, and that their state cannot be kept."""

import os
import stat
from collections.abc import Iterator
from typing import Final

from securecore.cli import standing
from securecore.cli.checkup.findings import Finding, ok, warning
from securecore.cli.machine.root import Root
from securecore.dump import directory as files
from securecore.errors import ConfigError
from securecore.sender import installation, storms
from securecore.sender.admission import Admission
from securecore.sender.configuration import LocalConfiguration
from securecore.sender.cores_directory import STATE, Owner, open_cores_directory
from securecore.sender.settings import load_local_settings

NAME: Final = "storm limits"
_SETUP: Final = "securecore setup sender"


def check_storm_limits(directory: int, admission: Admission, place: str) -> Finding:
    """Return what was not taken and is not told yet, which limits take nothing now, and whether their state can be kept.

    *directory* is the one that has the state, and *place* its path.
    """
    found = storms.look(directory, admission)
    words = standing.words(found)
    if found.problem is not None:
        return warning(NAME, f"{found.problem}; {words}", f"look into {place}, and remove what is damaged")
    if not storms.is_prepared(directory):
        return warning(NAME, f"{place}/{storms.NAME} is missing: {_UNPREPARED}", _SETUP)
    if found.used_up:
        return warning(NAME, words, "securecore list, for what crashes; [admission] in sender.toml")
    return ok(NAME, words)


_UNPREPARED: Final = "with a full disk no crash would be limited or counted"


def check_storm_limits_of_cores(said: LocalConfiguration, root: Root) -> Iterator[Finding]:
    """The same in local mode, in a directory among the cores; what stands in the way of that is told by the check of the cores."""
    place = root.outside(said.mode.directory)
    try:
        cores, owner = open_cores_directory(place)
    except ConfigError:
        return
    try:
        state = files.open_directory(STATE, cores)
    finally:
        os.close(cores)
    place = f"{place}/{STATE}"
    if state is None:
        yield warning(NAME, f"{place} is missing: {_UNPREPARED}", _SETUP)
        return
    try:
        yield _find_closed(state, owner, place) or check_storm_limits(state, _admission_of_handler(root), place)
    finally:
        os.close(state)


def _find_closed(state: int, owner: Owner, place: str) -> Finding | None:
    """Return that the handler, which is the cores' owner by then, cannot use the directory; None where it can."""
    status, (uid, gid) = os.fstat(state), owner
    if status.st_uid != uid:
        words = f"{place} belongs to uid {status.st_uid}, but the handler is {uid}:{gid}: no crash is limited or counted"
        return warning(NAME, words, f"chown -R {uid}:{gid} {place}")
    mode = stat.S_IMODE(status.st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        words = f"{place} cannot be used by its owner (mode {mode:04o}): no crash is limited or counted"
        return warning(NAME, words, f"chmod 0700 {place}")
    return None


def _admission_of_handler(root: Root) -> Admission:
    """Return what a handler of local mode goes by: the usual where its file cannot be read."""
    try:
        return load_local_settings(root.outside(installation.ADMISSION)).admission
    except ConfigError:
        return Admission()
