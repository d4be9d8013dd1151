"""The real programs of a run, each a process of its own: started, fed, killed, and asked how they ended.

They are changed in two constants, so that a core of three pieces has as much to go wrong as one of a gigabyte: the receiver
acknowledges every 256 KiB, and a sender's ring holds 1 MiB. The receiver also tells a file of each acknowledgement that it has
sent.
"""

import contextlib
import fcntl
import os
import random
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from securecore.names import Address
from securecore.sender.settings import Settings
from securecore.sender.spool import create_spool
from tests.support.kernel import OWNER, UNLIMITED, kernel_arguments, write_script
from tests.torture.plan import After, Kill

_ROOT: Final = Path(__file__).parents[2]
_CHUNK: Final = 64 * 1024
PATIENCE_S: Final = 60.0
"""How long a run waits for a program that takes a second."""

_SMALL_RING: Final = "from securecore import limits\nlimits.RING_BYTES = 1 << 20\n"
_SENDER: Final = "import sys\nfrom securecore.cli.main import main\nmain(sys.argv[1:])\n"
_HANDLER: Final = "from securecore.sender.handler import main\nmain({!r})\n"
_RECEIVER: Final = """
import os, sys
from securecore import limits
from securecore.receiver import observer, server

limits.ACK_EVERY_BYTES = 256 * 1024
promises = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

class Teller(observer.Observer):
    def admitted(self, host, version, cipher, certificate):
        self.host = host

    def opened(self, dump, program, predicted_size, held):
        self.dump = dump
        self.acknowledged(held.frames)

    def acknowledged(self, frames):
        os.write(promises, f"{self.host} {self.dump} {frames}\\n".encode())

server.observer_of = lambda peer: Teller()
from securecore.cli.main import main
main(sys.argv[1:])
"""


class Sender:
    """A handler, ``send`` or ``spool flush`` that runs."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self.popen = popen
        self.started = time.monotonic()
        self.was_drained = threading.Event()
        """The last byte was taken, or nobody takes any more."""
        self.output, self.said = b"", b""
        self._fed = self._left = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Bytes of the core that the program has read."""
        with self._lock:
            pipe = self.popen.stdin
            if pipe is not None:
                self._left = int.from_bytes(fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
            return self._fed - self._left

    def feed(self, core: bytes, seconds: float) -> None:
        """Write a core into its standard input, as slowly as that, and close it when all is taken."""
        assert self.popen.stdin is not None
        pauses, count = threading.Event(), max(1, -(-len(core) // _CHUNK))
        try:
            for at in range(0, len(core), _CHUNK):
                os.write(self.popen.stdin.fileno(), core[at : at + _CHUNK])
                self._fed = min(at + _CHUNK, len(core))
                if seconds:
                    pauses.wait(seconds / count)
            while self.taken < len(core) and self.popen.poll() is None:
                pauses.wait(0.001)
        except BrokenPipeError:
            pass  # It was killed.
        with self._lock:
            self.popen.stdin.close()
            self.popen.stdin = None
        self.was_drained.set()

    def finish(self) -> int:
        """Wait for its end and return its exit code, below 0 when a signal has ended it."""
        self.output, self.said = self.popen.communicate(timeout=PATIENCE_S)
        return self.popen.returncode


def kill_when(sender: Sender, kill: Kill, core_bytes: int, duration_s: float) -> None:
    """Kill a program when its time has come; returns at once when it has ended by itself."""
    ended = threading.Event()
    deadline = sender.started + PATIENCE_S
    if kill.after is After.DRAINED:
        sender.was_drained.wait(PATIENCE_S)
        deadline = time.monotonic() + kill.share * duration_s
    elif kill.after is After.START:
        deadline = sender.started + kill.share * duration_s
    wanted = kill.share * core_bytes if kill.after is After.FED else float("inf")
    while time.monotonic() < deadline and sender.taken < wanted and sender.popen.poll() is None:
        ended.wait(min(0.002, max(0.0, deadline - time.monotonic())))
    if sender.popen.poll() is None:
        sender.popen.kill()


class Host:
    """A host's spool, identity and handler."""

    def __init__(self, directory: Path, identity: Path, planted: str = "") -> None:
        """*planted* is code that each of its programs runs first: a bug."""
        directory.mkdir()
        directory.chmod(0o755)
        self.spool = directory / "spool"
        self._directory = directory
        self._identity = identity
        self._preamble = _SMALL_RING + planted

    def install(self, count: int) -> None:
        """Write so many handlers, before anything is started: a file that is open for writing cannot be executed, nor in a fork."""
        for number in range(count):
            settings = self._directory / f"handler-{number}.json"
            script = f"#!{sys.executable} -I\n{self._preamble}{_HANDLER.format(str(settings))}"
            write_script(self._directory / f"handler-{number}", script)

    def crash(self, number: int, receiver: Address) -> Sender:
        """Start one of them as the kernel does, with settings of its own."""
        create_spool(str(self.spool), os.urandom(16), OWNER)
        settings = self._directory / f"handler-{number}.json"
        told = Settings((receiver,), str(self._identity), str(self.spool), *OWNER, admission=UNLIMITED)
        settings.write_bytes(told.encode())
        settings.chmod(0o644)
        return Sender(_start([str(self._directory / f"handler-{number}"), *kernel_arguments()]))

    def send(self, receiver: Address) -> Sender:
        """Start ``send - --spool``."""
        to = ("--to", str(receiver), "--identity", str(self._identity), "--spool", str(self.spool))
        return Sender(_start([sys.executable, "-c", self._preamble + _SENDER, "send", "-", *to, "--json"]))

    def waiting(self) -> bool:
        """Whether a dump waits in the spool."""
        dumps = self.spool / "dumps"
        return dumps.exists() and any(not path.name.startswith(".") for path in dumps.iterdir())

    def flush(self, receiver: Address) -> Sender:
        """Start ``spool flush``."""
        to = ("--to", str(receiver), "--identity", str(self._identity), "--spool", str(self.spool))
        sender = Sender(_start([sys.executable, "-c", self._preamble + _SENDER, "spool", "flush", *to, "--json"]))
        sender.feed(b"", 0)
        return sender


class ReceiverProcess:
    """The receiver: killed and started again on one port and one store."""

    def __init__(self, identity: Path, store: Path, promises: Path) -> None:
        self.store = store
        options = ["--identity", str(identity), "--store", str(store)]
        self._arguments = [sys.executable, "-c", _RECEIVER, str(promises), "receive", *options]
        self._log = promises.parent / "receiver.log"
        self._popen: subprocess.Popen[bytes] | None = None
        self._port = _free_port()
        self.address = Address(f"127.0.0.1:{self._port}")

    def start(self) -> None:
        """Start it, and return when it listens; fails when it does not come up."""
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [*self._arguments, "--listen", f"127.0.0.1:{self._port}"], cwd=_ROOT, stdout=subprocess.PIPE, stderr=log
            )
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline().decode()
        if not line.startswith(f"listening on {self.address} "):
            raise RuntimeError(f"the receiver does not start: {self._log.read_text('utf-8', 'replace')[-2000:]}")

    def end(self, *, is_kill: bool) -> None:
        """Kill it, or ask it to stop, and wait for its end."""
        popen = self._popen
        if popen is None:
            return
        self._popen = None
        popen.kill() if is_kill else popen.terminate()
        popen.communicate(timeout=PATIENCE_S)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have it run while the block runs, and leave none behind."""
        try:
            self.start()
            yield
        finally:
            self.end(is_kill=True)


def _free_port() -> int:
    """Return a port that is free, and that stays so while the receiver is down: the kernel gives none of these to clients."""
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def _start(arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(arguments, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
