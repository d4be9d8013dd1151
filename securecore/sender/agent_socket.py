"""The socket that the agent listens at: handed over by systemd, or made here.

Whoever reaches it can have the agent begin with a crash that is none, and could take the place of the agent's own socket; so it is
0600 in a directory of root's that nobody else may enter or put aside, and no part of the way is a link: the kernel follows none
either (LOOKUP_NO_SYMLINKS of fs/coredump.c, Linux 6.17). A lock beside it keeps two agents apart, and tells whether a socket that
lies there is anybody's.
"""

import fcntl
import os
import stat
from collections.abc import Callable, MutableMapping
from errno import ENOENT
from socket import AF_UNIX, SO_ACCEPTCONN, SO_TYPE, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, socket
from typing import Final, NamedTuple

from securecore.errors import BusyError, ConfigError, StorageError
from securecore.sender import agent_limits
from securecore.sender.system_log import log

_PATH_MAX: Final = 107
"""Bytes: sun_path of unix(7) has 108, one of them for the end."""
_FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""
_FLAGS_FIELD, _PATH_FIELD = 3, 7
"""Of a line of proc_net(5)'s list of sockets."""
_ACCEPTS: Final = 0x10000
"""__SO_ACCEPTCON of uapi/linux/net.h: listen(2) was called."""
_LOCK: Final = "agent.lock"
_DIRECTORY_MODE: Final = 0o700
_SOCKET_MODE: Final = 0o600


class Listener(NamedTuple):
    """A socket that listens, without waiting for anybody in accept."""

    socket: socket
    path: str
    lock: int
    """A descriptor; who holds it is the agent of this socket."""
    is_own: bool
    """Whether it ends with us: one of systemd's goes on listening."""

    def close(self) -> None:
        """Stop listening, and take the socket away that is ours."""
        if self.is_own:
            try:
                os.unlink(self.path)
            except OSError:
                pass  # Somebody has tidied up before us.
        self.socket.close()
        os.close(self.lock)


def open_listener(path: str, environment: MutableMapping[str, str], pid: int) -> Listener:
    """Return the socket of systemd's where it hands one over to the process *pid*, else one that is made at *path*.

    Raises ConfigError where the place is one that the kernel does not go to, or that others than root can go to, or what was handed
    over is something else; BusyError where another agent listens there; StorageError where the disk refuses.
    """
    check_path(path)
    _check_way(os.path.dirname(path))
    handed = _find_handed(environment, pid)
    directory = _open_directory(os.path.dirname(path))
    try:
        lock = _take_lock(directory, path)
        try:
            if handed is not None:
                return Listener(_check_handed(handed, directory, path), path, lock, is_own=False)
            return Listener(_make(directory, path), path, lock, is_own=True)
        except BaseException:
            os.close(lock)
            raise
    finally:
        os.close(directory)


def find_readiness(environment: MutableMapping[str, str]) -> Callable[[], None]:
    """Return what tells systemd by sd_notify(3) that crashes may come, where it waits for that; its variable is taken away."""
    place = environment.pop("NOTIFY_SOCKET", "")

    def tell() -> None:
        try:
            with socket(AF_UNIX, SOCK_DGRAM) as systemd:
                # A name that begins with @ is one of Linux's own, without a file (unix(7)).
                systemd.connect(f"\0{place[1:]}" if place.startswith("@") else place)
                systemd.send(b"READY=1")
        except OSError as error:
            log("untidy", error=f"{place}: systemd is not told that the agent is ready: {error.strerror}")

    return tell if place else lambda: None


def check_path(path: str) -> None:
    """Raise ConfigError unless the kernel takes ``@@`` and *path* as core_pattern and finds the socket."""
    if not path.startswith("/") or os.path.normpath(path) != path or not path.isascii() or not path.isprintable() or " " in path:
        raise ConfigError(f"{path!a}: the kernel takes a whole path of plain characters, without spaces and `..`")
    if len(path) > _PATH_MAX:
        raise ConfigError(f"{path!a}: a socket's path has {_PATH_MAX} characters at most")
    if os.path.realpath(os.path.dirname(path)) != os.path.dirname(path):
        raise ConfigError(f"{path}: a directory on the way is a link, which the kernel follows none of", hint="name its own path")


def _find_handed(environment: MutableMapping[str, str], pid: int) -> socket | None:
    """Return what systemd hands over by sd_listen_fds(3), None where it is not for us; its variables are taken away."""
    told_pid, told_count = environment.pop("LISTEN_PID", None), environment.pop("LISTEN_FDS", None)
    environment.pop("LISTEN_FDNAMES", None)
    if told_pid != str(pid) or told_count is None:
        return None
    if told_count != "1":
        raise ConfigError(f"one socket is expected from LISTEN_FDS, not {told_count[:10]!a}")
    try:
        os.set_inheritable(_FIRST_FD, False)
        return socket(fileno=_FIRST_FD)
    except OSError as error:
        raise ConfigError(f"descriptor {_FIRST_FD} from LISTEN_FDS is no socket: {error.strerror}") from error


def _check_handed(handed: socket, directory: int, path: str) -> socket:
    kind = handed.family, handed.getsockopt(SOL_SOCKET, SO_TYPE), handed.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)
    if kind != (AF_UNIX, SOCK_STREAM, 1) or handed.getsockname() != path:
        raise ConfigError(f"the socket from LISTEN_FDS does not listen at {path}", hint="ListenStream= and --socket must agree")
    try:
        mode = os.stat(os.path.basename(path), dir_fd=directory, follow_symlinks=False).st_mode
    except OSError as error:
        hint = "systemctl restart securecore-agent.socket securecore-agent.service"
        raise ConfigError(f"{path}: the file of systemd's socket is not there any more", hint=hint) from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path}: mode is {stat.S_IMODE(mode):04o}, others may connect", hint="SocketMode=0600")
    # A socket that listens takes another bound: systemd's own is 4096 (Backlog= of systemd.socket(5)), a storm of held processes.
    handed.listen(agent_limits.BACKLOG)
    handed.setblocking(False)
    return handed


def _check_way(directory: str) -> None:
    """Raise ConfigError where others than root could put the directory of the socket aside, or one above it, for one of theirs."""
    above = directory
    while above != "/":
        above = os.path.dirname(above)
        try:
            found = os.stat(above, follow_symlinks=False)
        except OSError:
            continue  # Then the directory cannot be made either, which is said next.
        # In a sticky directory, as /tmp is, nobody moves what is another's (unlink(2), EPERM).
        is_open = bool(found.st_mode & 0o022) and not found.st_mode & stat.S_ISVTX
        if is_open or found.st_uid not in (0, os.geteuid()):
            words = f"{above}: others than root may put what is in it aside, and take the kernel's cores"
            raise ConfigError(words, hint="a place below /run, where only root writes")


def _open_directory(path: str) -> int:
    try:
        try:
            os.mkdir(path, _DIRECTORY_MODE)
        except FileExistsError:
            pass
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        what = "its parent is not there" if error.errno == ENOENT else error.strerror
        raise ConfigError(f"{path}: {what}", hint="the agent runs as root, and makes the socket's own directory") from error
    found = os.fstat(directory)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(directory)
        raise ConfigError(
            f"{path}: others than its owner may enter, or it is not ours", hint=f"chown root:root {path}; chmod 700 {path}"
        )
    return directory


def _take_lock(directory: int, path: str) -> int:
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        lock = os.open(_LOCK, flags, 0o600, dir_fd=directory)
    except OSError as error:
        raise StorageError(f"{os.path.dirname(path)}/{_LOCK}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise BusyError(f"another agent listens at {path}", hint="one is enough; `systemctl status securecore-agent`") from error
    return lock


def _make(directory: int, path: str) -> socket:
    """Return a socket that listens at *path*, in the place of one that nobody listens at."""
    name = os.path.basename(path)
    try:
        try:
            if not stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise StorageError(f"{path}: something else than a socket stands there", hint="look at it, then remove it")
            if _is_listened_at(path):
                # No agent's, which would hold the lock. With ours in its place the kernel would find nobody once we have ended.
                raise BusyError(f"systemd, or another, listens at {path}", hint="`systemctl start securecore-agent`, or --socket")
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        made = socket(AF_UNIX, SOCK_STREAM)
        try:
            made.bind(path)
            os.chmod(name, _SOCKET_MODE, dir_fd=directory)
            made.listen(agent_limits.BACKLOG)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    return made


def _is_listened_at(path: str) -> bool:
    """Return whether a socket that was made at *path* listens, by proc_net(5): to connect would have systemd start its agent."""
    with open("/proc/net/unix", "rb") as sockets:
        return any(
            words[_PATH_FIELD:] == [path.encode("ascii")] and int(words[_FLAGS_FIELD], 16) & _ACCEPTS
            for words in map(bytes.split, sockets)
        )
