"""Machines to set up: roots below a directory, and processes that see some of this machine's places replaced."""

import ctypes
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from securecore.cli import main
from securecore.receiver.server import Receiver
from tests.support.certificates import Fleet
from tests.support.receivers import running_receiver

USER: Final = "990:990" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"
"""Whom set-up gives files to; as nobody but root can give files away, ourselves elsewhere."""

Places = Sequence[tuple[Path, Path]]
"""What a process is to see, and in whose place."""

_CLONE_NEWNS: Final = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
"""Of linux/sched.h and linux/mount.h."""


def make_root(made: Path, fleet: Fleet) -> Path:
    """Make a root as a machine before set-up has it, with a host's and a receiver's identity carried there."""
    for directory in ("etc/securecore", "etc/sysctl.d", "usr/libexec", "proc/sys/kernel"):
        (made / directory).mkdir(parents=True)
    for directory in (made, *(path for path in made.rglob("*") if path.is_dir())):
        directory.chmod(0o755)
    (made / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ncrash:x:{}:{}::/:/bin/false\n".format(*USER.split(":")))
    (made / "proc/sys/kernel/core_pattern").write_text("core\n")
    (made / "proc/sys/kernel/core_pipe_limit").write_text("0\n")
    shutil.copytree(fleet.host, made / "etc/securecore/identity")
    shutil.copytree(fleet.receiver, made / "etc/securecore/receiver")
    return made


def setup(root: Path, role: str, *arguments: str) -> int:
    """Run ``securecore setup ROLE --root ROOT ARGUMENTS`` and return its exit code."""
    return main.run(["setup", role, "--root", str(root), *arguments])


@contextmanager
def acting_as_user() -> Iterator[None]:
    """Be set-up's user while the block runs, where we are root."""
    before = os.geteuid(), os.getegid()
    uid, gid = map(int, USER.split(":"))
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])


@contextmanager
def receiver_running(identity: Path, store: Path) -> Iterator[Receiver]:
    """Run a receiver as set-up's user, who need not be able to walk to its directories: it gets there through descriptors."""
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (identity.parent, store.parent)]
    running = running_receiver(*(Path(f"/proc/self/fd/{fd}", path.name) for fd, path in zip(fds, (identity, store), strict=True)))
    try:
        with acting_as_user():
            receiver = running.__enter__()
        try:
            yield receiver
        finally:
            with acting_as_user():
                running.__exit__(None, None, None)
    finally:
        for fd in fds:
            os.close(fd)


class SystemLog:
    """A system log of our own, for processes that see *directory* as their /dev; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        directory.mkdir()
        devices = [(Path("/dev") / name, directory / name) for name in ("null", "urandom")]
        for _, place in devices:
            place.touch()
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        # Through a descriptor: a socket's address has room for 107 bytes only.
        self._socket.bind(f"/proc/self/fd/{fd}/log")
        os.close(fd)
        self.places: Places = [*devices, (directory, Path("/dev"))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def lines(self) -> list[str]:
        """Return what was written since the last time, a line for each datagram."""
        found: list[str] = []
        while True:
            try:
                found.append(self._socket.recv(1 << 20).decode("utf-8", "backslashreplace"))
            except BlockingIOError:
                return found


def seeing(places: Places) -> Callable[[], None]:
    """Return what a process runs before its program so that it, and nobody else, sees each first path in the second's place."""

    def replace() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        calls: list[tuple[Callable[..., int], tuple[object, ...]]] = [
            (libc.unshare, (_CLONE_NEWNS,)), (libc.mount, (None, b"/", None, _MS_REC | _MS_PRIVATE, None)),
        ]  # fmt: skip
        calls += [(libc.mount, (os.fsencode(new), os.fsencode(old), None, _MS_BIND | _MS_REC, None)) for new, old in places]
        for call, arguments in calls:
            if call(*arguments) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return replace
