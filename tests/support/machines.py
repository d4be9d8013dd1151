"""Machines to set up: roots below a directory, and processes that see some of this machine's places replaced."""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from securecore.cli import main
from securecore.receiver.server import Receiver
from tests.support.certificates import Fleet
from tests.support.launchers import Places
from tests.support.receivers import running_receiver

USER: Final = "990:990" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"
"""Whom set-up gives files to; as nobody but root can give files away, ourselves elsewhere."""

SENDER = ["--to", "collector.example:4455", "--to", "[fd00::5]:4455", "--identity", "/etc/securecore/identity", "--user", USER]
RECEIVER = ["--listen", "0.0.0.0:4455", "--user", USER]

Snapshot = dict[str, tuple[object, ...]]


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


def awaken(root: Path, release: str = "6.18.44", sockets: str = "") -> None:
    """Have a root be that of a machine that runs: a kernel with coredump sockets, systemd, and init's *sockets* (proc_net(5))."""
    for directory in ("proc/1/net", "run/systemd/system"):
        (root / directory).mkdir(parents=True)
    (root / "proc/sys/kernel/core_modes").write_text("file\npipe\nsocket\n")
    (root / "proc/sys/kernel/osrelease").write_text(f"{release}\n")
    (root / "proc/1/net/unix").write_text(f"Num       RefCount Protocol Flags    Type St Inode Path\n{sockets}")


def snapshot(root: Path) -> Snapshot:
    """Return everything below *root*: kinds, modes, owners, contents and where links lead."""
    found: Snapshot = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, content)
    return found


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
