"""Giving up what the kernel started us with, for good, before the first network byte."""

import ctypes
import os

from securecore.declarations import Final, Iterable
from securecore.errors import ConfigError

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


def forbid_own_core() -> None:
    """Make this process non-dumpable (R19): a crash of the crash handler must not start another one."""
    _prctl(_PR_SET_DUMPABLE, 0)


def drop(uid: int, gid: int) -> None:
    """Become *uid* and *gid* with no other group, no capability and no way back; raises ConfigError when that did not happen.

    Order: groups, gid, uid (R18); leaving uid 0 clears the capability sets (capabilities(7)). Every thread changes, because the C
    library sees to it. Not done when we are not root to begin with: then there is nothing to give up.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if os.geteuid() != 0:
        return
    _check_not_root(uid, gid)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or os.getgroups():
        raise ConfigError("privileges could not be dropped")
    try:
        os.setuid(0)
    except OSError:
        # setresuid has made the process dumpable as fs.suid_dumpable says; say again what we want.
        forbid_own_core()
        return
    raise ConfigError("privileges came back after they were dropped")


class Acting:
    """Act as *uid* and *gid* with no other group and no effective capability while a block runs, and be root again behind it.

    For what is decided before it is known whether root is needed once more. No byte of the network may be met in it: who takes over
    the process could become root again too. Raises ConfigError as drop does. Nothing changes when we are not root to begin with.
    """

    __slots__ = ("_gid", "_uid", "_was_root")

    def __init__(self, uid: int, gid: int) -> None:
        self._uid, self._gid, self._was_root = uid, gid, False

    def __enter__(self) -> None:
        if os.geteuid() != 0:
            return
        _check_not_root(self._uid, self._gid)
        os.setgroups([])
        os.setegid(self._gid)
        os.seteuid(self._uid)
        self._was_root = True
        # A change of the effective user has made the process dumpable as fs.suid_dumpable says; say again what we want.
        forbid_own_core()

    def __exit__(self, *_: object) -> None:
        if self._was_root:
            os.seteuid(0)
            os.setegid(0)
            forbid_own_core()


def _check_not_root(uid: int, gid: int) -> None:
    if uid == 0 or gid == 0:
        raise ConfigError("the user to become is root, or in root's group", hint="give spool and settings a user of their own")


def can_others_import(paths: Iterable[str]) -> bool:
    """Return whether any user may read the directories *paths*: what is not loaded yet can then be loaded after a drop.

    By the bits for others alone, of each directory on the way; absent entries do not count.
    """
    for path in paths:
        needed = 0o005
        while True:
            try:
                mode = os.stat(path).st_mode
            except OSError:
                break
            if mode & needed != needed:
                return False
            if path == os.path.dirname(path):
                break
            path, needed = os.path.dirname(path), 0o001
    return True


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise ConfigError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
