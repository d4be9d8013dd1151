"""The analyser: the process that parses one hostile core or program, and can do nothing else.

``python -I -m securecore.elf.analyser FD KIND`` (analysis.py starts it) answers with one line of JSON on standard output: a
summary, a program's ids, or ``{"error": words}``. Before it reads the first byte it takes from itself the files that it could open
(RLIMIT_NOFILE 0: sockets too) or write (RLIMIT_FSIZE), the processes, memory and time that it could use up, and, as root, its user.
What it needs is imported by then: the installation may lie where only root can read.
"""

import ctypes
import json
import os
import resource
import stat
import sys
from typing import Final

from securecore import limits
from securecore.dump.reader import DumpReader, open_container, open_frames
from securecore.elf.analysis import PROGRAM, CoreKind
from securecore.elf.core import summarise
from securecore.elfid import ReadAt, identify
from securecore.errors import BrokenError, ConfigError, SecurecoreError

_RLIMITS: Final = {
    resource.RLIMIT_AS: limits.GIB,
    resource.RLIMIT_CPU: 20,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 0,
    resource.RLIMIT_NPROC: 0,
}
"""Bytes of address space, the interpreter's 50 MiB included, ten times what the worst core needs; seconds of CPU, of which that
one takes three."""
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


def main(arguments: list[str]) -> None:
    """Confine this process, analyse what is there, print the answer."""
    try:
        confine()
        fd, kind = int(arguments[0]), arguments[1]
        if kind == PROGRAM:
            answer = json.dumps(identify(*open_core(fd, CoreKind.FILE))._asdict()).encode("ascii")
        else:
            answer = summarise(*open_core(fd, CoreKind(kind))).encode()
    except SecurecoreError as error:
        answer = json.dumps({"error": error.message}).encode("ascii")
    os.write(1, answer + b"\n")


def confine() -> None:
    """Give up every right and resource that analysing does not need, for good.

    Order: no_new_privs; groups, gid, uid (R18); the limits, which the owner of the uid must not be able to raise; dumpable last,
    because a change of user resets it (prctl(2), PR_SET_DUMPABLE). Raises ConfigError when any of it fails.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
        if os.geteuid() == 0:
            os.setgroups([])
            nobody = (limits.NOBODY_ID,) * 3
            os.setresgid(*nobody)
            os.setresuid(*nobody)
        for limit, value in _RLIMITS.items():
            resource.setrlimit(limit, (value, value))
        _prctl(libc, _PR_SET_DUMPABLE, 0)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the analyser cannot be confined: {error}") from error
    if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()):
        raise ConfigError("the analyser cannot be confined: it is root still")


def open_core(fd: int, kind: CoreKind) -> tuple[ReadAt, int]:
    """Return random access to the file or stored core behind *fd*, and its size; raises BrokenError when it is no regular file."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise BrokenError("not a regular file")
    if kind is CoreKind.STORED:
        reader = _open_stored(fd)
        return reader.read_at, reader.size
    return lambda offset, length: os.pread(fd, length, offset), status.st_size


def _open_stored(fd: int) -> DumpReader:
    try:
        return open_container(fd)
    except BrokenError:
        # Still coming in, or cut: there is no seek table that holds.
        return open_frames(fd)[0]


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


if __name__ == "__main__":
    main(sys.argv[1:])
