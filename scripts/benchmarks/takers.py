"""Who takes a crash: our handler, and what a user would put into core_pattern instead."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.figures import BenchError
from benchmarks.machine import Machine, processor_s, resident_mib, seconds_until
from securecore import limits
from securecore.errors import BusyError, PeerError, UnreachableError
from securecore.names import Address
from securecore.sender.kernel_arguments import SPECIFIERS

OURS: Final = "securecore"
EVEN: Final = "securecore, nice 0"
"""Ours with the priority of its rivals and of its receiver: as installed it yields to both."""
DISCARDING: Final = "discarding handler"
ZSTD: Final = "zstd -1 -T2 | openssl s_client"
GZIP: Final = "gzip -1 | openssl s_client"
SOCAT: Final = "socat, raw TCP"

_SPOOLED: Final = (UnreachableError.exit_code, PeerError.exit_code, BusyError.exit_code)
"""How our handler leaves when the dump is in its spool."""
_SETTLING_S: Final = 600
"""For the slowest there is: a gigabyte by gzip on a machine with much else to do takes a minute."""


class Weight(NamedTuple):
    """What a handler took: its processor time, its largest resident size, its time by the clock."""

    cpu_s: float
    mib: float
    elapsed_s: float


class Settled(NamedTuple):
    """What became of a crash once it was on the disk, or thrown away."""

    weight: Weight
    stored: int
    """Bytes that the other end has written."""
    receiver_cpu_s: float | None
    """What the other end took for it; None where there is none that is asked."""
    receiver_mib: float | None
    """Its largest resident size so far; None where it is not known."""
    was_spooled: bool = False
    """The wire was slower than the core: the rest went to the spool, and from there to the receiver when nobody was held any more.
    What that took is no part of the weight."""


def doubt_of(settled: Sequence[Settled]) -> str:
    """Return why a figure of these crashes cannot be judged; nothing where all of each core went to its receiver at once."""
    spooled = sum(each.was_spooled for each in settled)
    return f"in {spooled} of {len(settled)} the receiver was too slow: the rest went to the spool first" if spooled else ""


class Taker:
    """A program for core_pattern, and an end that it sends to."""

    def __init__(self, name: str, machine: Machine, program: Path) -> None:
        self.name = name
        self._weigher = machine.weigher
        self.watch(program)

    def watch(self, program: Path) -> None:
        """Have the kernel start *program*."""
        self.program = program
        self.took = program.with_name(f"{program.name}.took")
        self.pattern = f"|{self._weigher} {program} {SPECIFIERS}"

    def arm(self) -> None:
        """Make ready for one crash."""
        self.took.unlink(missing_ok=True)

    def settle(self) -> Settled:
        """Wait until all of it is on the disk, remove it, and say what it took; raises BenchError when it is not all there."""
        return Settled(self._weight(), 0, None, None)

    def close(self) -> None:
        """Let go of what the taker holds."""

    def _weight(self, allowed: Sequence[int] = (0,)) -> Weight:
        """Return what the program took once it has ended with one of the exit codes in *allowed*."""
        seconds_until(self.took.exists, _SETTLING_S, f"{self.name} to end")
        status, user, system, kib, elapsed = (int(word) for word in self.took.read_text().split())
        code = os.waitstatus_to_exitcode(status)
        if code not in allowed:
            raise BenchError(f"{self.name} left with {code}")
        return Weight((user + system) / 1e6, kib / 1024, elapsed / 1e6)


class PipeHandler(Taker):
    """Our handler, as `setup sender` leaves it, and a receiver of its own."""

    def __init__(self, machine: Machine, receiver: Address | None = None, nice: int = limits.HANDLER_NICE) -> None:
        """With a *receiver*, an address where the caller listens, the dump is expected in the spool."""
        self._store = None if receiver else machine.fresh("store")
        self._receiver = None if self._store is None else machine.start_receiver(self._store)
        address = receiver or (self._receiver.address if self._receiver else None)
        if address is None:
            raise BenchError("a handler without a receiver")
        script, self._spool = machine.handler(address, nice)
        self._before = 0.0
        super().__init__(OURS, machine, script)

    def arm(self) -> None:
        """Note what the receiver has taken so far."""
        super().arm()
        if self._receiver is not None:
            self._before = processor_s(self._receiver.pid)

    def settle(self) -> Settled:
        """Wait for the receipt, or for the spool's entry."""
        return self._settled(self._weight((0, BusyError.exit_code) if self._receiver is not None else (0, *_SPOOLED)))

    def _settled(self, weight: Weight) -> Settled:
        """Return what became of a crash that was handled at the price of *weight*."""
        was_spooled = self._store is not None and any((self._spool / "dumps").iterdir())
        if was_spooled:
            self._flush()
        place, names = (self._spool / "dumps", "*") if self._store is None else (self._store / "hosts", "*/*")
        dumps = list(place.glob(names))
        if len(dumps) != 1:
            raise BenchError(f"{self.name}: {len(dumps)} dumps in {place}")
        if self._store is not None and not (dumps[0] / "receipt").exists():
            raise BenchError(f"{self.name}: the dump has no receipt")
        cpu_s = mib = None
        if self._receiver is not None:
            cpu_s, mib = processor_s(self._receiver.pid) - self._before, resident_mib(self._receiver.pid)
        stored = sum(path.stat().st_size for path in dumps[0].iterdir() if path.name.startswith("core"))
        shutil.rmtree(dumps[0])
        return Settled(weight, stored, cpu_s, mib, was_spooled)

    def _flush(self) -> None:
        """Deliver what is in the spool, as the timer would."""
        settings = self._spool.with_name("handler.json")
        words = [sys.executable, "-I", "-m", "securecore.cli.main", "spool", "flush", "--settings", str(settings)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{self.name}: what is in the spool cannot be delivered: {done.stderr.strip()[-200:]}")

    def close(self) -> None:
        """End the receiver."""
        if self._receiver is not None:
            self._receiver.end()


class Discarding(Taker):
    """Reads and throws away: what the kernel alone costs."""

    def __init__(self, machine: Machine) -> None:
        program = machine.fresh("discard")
        write_program(
            program,
            f"#!{sys.executable} -I\nimport fcntl, os\nfcntl.fcntl(0, fcntl.F_SETPIPE_SZ, 1 << 20)\n"
            "buffer = bytearray(1 << 20)\nwhile os.readv(0, [buffer]):\n    pass\n",
        )
        super().__init__(DISCARDING, machine, program)


class Keeping(Taker):
    """Writes the core to a file, for those who need one at hand."""

    def __init__(self, machine: Machine) -> None:
        program = machine.fresh("keep")
        self.core = program.with_name(f"{program.name}.core")
        write_program(program, f"#!/bin/sh\nexec dd of={self.core} bs=1M iflag=fullblock status=none 2>/dev/null\n")
        super().__init__("a handler that keeps", machine, program)


class Pipeline(Taker):
    """A shell's pipeline into a connection, and at its other end a program that writes and fsyncs."""

    def __init__(self, name: str, machine: Machine, sending: str, receiving: str) -> None:
        """*sending* and *receiving* are shell commands, for standard input and to standard output; {port} is where they meet."""
        self._port = _free_port()
        self._out = machine.fresh("out")
        program, self._server_program = machine.fresh("pipeline"), machine.fresh("server")
        words = {"port": self._port, "host": machine.directory / "host", "receiver": machine.directory / "receiver"}
        write_program(program, f"#!/bin/sh\nexec >/dev/null 2>&1\n{sending.format(**words)}\n")
        writing = f"dd of={self._out} bs=1M iflag=fullblock conv=fsync status=none"
        write_program(self._server_program, f"#!/bin/sh\nexec 2>/dev/null\n{receiving.format(**words)} | {writing}\n")
        self._server: subprocess.Popen[bytes] | None = None
        super().__init__(name, machine, program)

    def arm(self) -> None:
        """Start the other end, for one connection."""
        super().arm()
        self.close()
        # s_server ends with its standard input, so it gets one that stays open.
        self._server = subprocess.Popen([str(self._server_program)], start_new_session=True, stdin=subprocess.PIPE)
        seconds_until(lambda: _is_listening(self._port), 30, f"{self.name} to listen")

    def settle(self) -> Settled:
        """Wait until the other end has fsynced."""
        weight = self._weight()
        if self._server is None:
            raise BenchError(f"{self.name} was not armed")
        cpu_s = self._server_cpu_s(self._server)
        self.close()
        stored = self._out.stat().st_size if self._out.exists() else 0
        if stored == 0:
            raise BenchError(f"{self.name}: nothing came")
        self._out.unlink()
        return Settled(weight, stored, cpu_s, None)

    def close(self) -> None:
        """End the other end."""
        if self._server is None:
            return
        if self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGTERM)
        self._server.communicate()
        self._server = None

    def _server_cpu_s(self, server: "subprocess.Popen[bytes]") -> float:
        """Wait for the other end and return what it took, with all that it has waited for."""
        ends: list[float] = []

        def has_ended() -> bool:
            pid, status, usage = os.wait4(server.pid, os.WNOHANG)
            if pid:
                # Popen must not wait for it once more.
                server.returncode = os.waitstatus_to_exitcode(status)
                ends.append(usage.ru_utime + usage.ru_stime)
            return bool(pid)

        seconds_until(has_ended, _SETTLING_S, f"the other end of {self.name}")
        return ends[0]


_CLIENT: Final = (
    "openssl s_client -quiet -connect 127.0.0.1:{port} -CAfile {host}/ca.pem -cert {host}/cert.pem -key {host}/key.pem"
    " -cert_chain {host}/cert.pem -verify_return_error -nocommands -no_ign_eof"
)
_SERVER: Final = (
    "openssl s_server -quiet -naccept 1 -accept 127.0.0.1:{port} -CAfile {receiver}/ca.pem -cert {receiver}/cert.pem"
    " -key {receiver}/key.pem -cert_chain {receiver}/cert.pem -Verify 3 -tls1_3"
)

RIVALS: Final[dict[str, tuple[tuple[str, ...], str, str]]] = {
    ZSTD: (("zstd", "openssl"), f"zstd -1 -T2 -q -c | {_CLIENT}", _SERVER),
    GZIP: (("gzip", "openssl"), f"gzip -1 -c | {_CLIENT}", _SERVER),
    SOCAT: (
        ("socat",),
        "exec socat -u -b 1048576 STDIN TCP:127.0.0.1:{port}",
        "socat -u -b 1048576 TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr STDOUT",
    ),
}
"""The programs that each needs, what sends and what receives: mutual TLS 1.3 with the same certificates, and one without any."""


def find_missing(name: str) -> str | None:
    """Return the first program that a rival needs and that is not here."""
    return next((program for program in RIVALS[name][0] if shutil.which(program) is None), None)


def rival(name: str, machine: Machine) -> Taker:
    """Return one of the RIVALS."""
    _, sending, receiving = RIVALS[name]
    return Pipeline(name, machine, sending, receiving)


def write_program(program: Path, text: str) -> None:
    """Write a script that can be executed."""
    program.write_text(text)
    program.chmod(0o755)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _is_listening(port: int) -> bool:
    """Return whether somebody listens on a port of this machine; a connection would be the one that is waited for."""
    lines = Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines if ":" in line.split()[1])
