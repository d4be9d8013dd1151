"""Crashes that the storm limits of a spool are asked about, without a kernel or a clock."""

import os
from pathlib import Path

from securecore.report import CrashReport
from securecore.sender import storms
from securecore.sender.admission import Admission, StormLimit
from securecore.sender.buckets import State, Untaken
from securecore.sender.spool import Spool

ADMISSION = Admission(program=StormLimit(3, 60), user=StormLimit(9, 60))
CRASH = CrashReport(uid=33, executable_device=8, executable_inode=1)
NOW = 1_795_000_000.0


def admit(spool: Spool, crash: CrashReport = CRASH, now: float = NOW) -> str | None:
    """Return which limit suppresses a crash."""
    return storms.admit(spool.fd, ADMISSION, crash, lambda: now).limit


def untaken(spool: Spool, now: float = NOW) -> Untaken:
    """Return what a dump of a program that has not been met counts."""
    fresh = CRASH._replace(uid=1, executable_inode=int.from_bytes(os.urandom(6)))
    return storms.admit(spool.fd, ADMISSION, fresh, lambda: now).untaken


def state_of(tmp_path: Path) -> Path:
    """Return where the state of the fixture's spool is."""
    return tmp_path / "spool" / "storms.json"


def counted(disk: Path) -> State:
    """Return the state on that disk."""
    return State.parse((disk / "spool" / "storms.json").read_bytes())
