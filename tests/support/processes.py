"""Receivers in processes of their own, and networks of their own for them: what only a real process shows."""

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import pytest

from securecore.names import Address

PATIENCE_S: Final = 20.0
"""How long a test waits for what takes milliseconds, before it calls it missing."""

SECURECORE: Final = (sys.executable, "-m", "securecore.cli.main")
"""How the command is started: what is tested is the checkout, not what is installed."""

ROOT: Final = Path(__file__).parents[2]
"""The checkout."""


class Process:
    """A receiver in a process of its own."""

    def __init__(self, popen: subprocess.Popen[bytes], count: int = 1) -> None:
        self.popen = popen
        self.said = ""
        """What standard error has given so far."""
        self.announced = self.read_until(popen.stdout, rf"listening on \S+ .*(?:\nlistening on \S+ .*){{{count - 1}}}")[0]
        self.addresses = [Address(one) for one in re.findall(r"^listening on (\S+) ", self.announced, re.MULTILINE)]

    def logged(self, words: str) -> re.Match[str]:
        """Wait until the log says something that matches *words*, in what was not yet asked for."""
        return self.read_until(self.popen.stderr, words)

    def read_until(self, stream: IO[bytes] | None, words: str) -> re.Match[str]:
        """Return the match of *words* in what a stream gives from now on; fails when it ends or takes too long."""
        assert stream is not None
        poll, text, deadline = select.poll(), "", time.monotonic() + PATIENCE_S
        poll.register(stream, select.POLLIN)
        while (found := re.search(f"{words}.*\n", text)) is None:
            assert poll.poll(max(0.0, deadline - time.monotonic()) * 1000), f"never said {words!r}: {text}"
            data = os.read(stream.fileno(), 65536)
            assert data, f"ended without {words!r}: {text}"
            text += data.decode()
            self.said += data.decode() if stream is self.popen.stderr else ""
        return found

    def rest(self) -> str:
        """Wait for the process to end and return all that standard error has given, from its first line on."""
        assert self.popen.stderr is not None
        self.said += self.popen.stderr.read().decode()
        self.popen.wait(PATIENCE_S)
        return self.said


@contextmanager
def receiving(
    identity: Path,
    store: Path,
    *options: str,
    listen: Sequence[str] = ("127.0.0.1:0",),
    count: int | None = None,
    within: Sequence[str] = (),
    program: Sequence[str] = SECURECORE,
) -> Iterator[Process]:
    """Run ``securecore receive`` on loopback while the block runs; *count* is how many addresses it will announce."""
    named = [word for address in listen for word in ("--listen", address)]
    arguments = [*program, "receive", *named, "--identity", str(identity), "--store", str(store), *options]
    with subprocess.Popen([*within, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        try:
            yield Process(popen, count or len(listen))
        finally:
            popen.kill()


def send_file(core: Path, to: str, identity: Path, *, within: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Run ``securecore send`` for a file and return how it ended."""
    arguments = [*SECURECORE, "send", str(core), "--to", to, "--identity", str(identity)]
    return subprocess.run([*within, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


class Seclusion:
    """A network with nothing but loopback, and a table of hosts, that processes can be started in."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.within: Final = ("nsenter", f"--target={popen.pid}", "--net", "--mount", f"--wd={ROOT}", "--")
        """What comes before a command, so that it runs there."""


@contextmanager
def secluded(directory: Path, hosts: str, *commands: str, resolver: str = "") -> Iterator[Seclusion]:
    """Hold such a network while the block runs, with /etc/hosts as *hosts*, after *commands* for its set-up.

    Skips the test where this machine does not let us make one.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip", "mount"))):
        pytest.skip("needs root, unshare, nsenter and ip for a network of its own")
    (directory / "hosts").write_text(hosts)
    (directory / "resolv.conf").write_text(resolver)
    steps = [
        "ip link set lo up",
        f"mount --bind {directory}/hosts /etc/hosts",
        f"mount --bind {directory}/resolv.conf /etc/resolv.conf",
        *commands,
        "echo ready",
        "exec cat",
    ]
    # The mounts are seen by nobody else (unshare(1) makes them private), and all of it is gone with its last process.
    with subprocess.Popen(
        ["unshare", "--net", "--mount", "--", "sh", "-c", " && ".join(steps)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as popen:  # fmt: skip
        assert popen.stdin is not None
        assert popen.stdout is not None
        assert popen.stderr is not None
        try:
            if popen.stdout.readline() != b"ready\n":
                pytest.skip(f"no network of its own here: {popen.stderr.read().decode().strip()}")
            yield Seclusion(popen)
        finally:
            popen.stdin.close()
