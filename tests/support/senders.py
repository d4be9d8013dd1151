"""Hosts whose handler and flush are the real programs, in processes of their own; a test feeds the cores, as the kernel would."""

import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from securecore.names import Address
from tests.support.certificates import DOMAIN
from tests.support.checker import Truth
from tests.support.kernel import UNLIMITED, Installed, kernel_arguments
from tests.support.launchers import Limits, limited
from tests.support.processes import SECURECORE
from tests.support.sizes import size_of

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 60.0
"""How long a test waits for a program that takes a second or so."""

_TIME: Final = 5
"""Where the kernel's arguments have the time of the crash."""
_numbers = itertools.count(1_700_000_001)
"""What stands in for that time: each crash of a run has its own, and so its report is known again wherever it is."""

NOWHERE: Final = Address("127.0.0.1:1")
"""Where nobody listens: the port of tcpmux (RFC 1078), which nobody runs."""


class Crash:
    """One handler with a process that is still dumping."""

    def __init__(self, popen: "subprocess.Popen[bytes]", number: int) -> None:
        self.popen = popen
        self.number = number
        self.core = b""
        """All that was fed."""

    def feed(self, data: bytes) -> None:
        """Give the handler more of the core; returns once it has read all but a pipe's worth, or has let the process go."""
        assert self.popen.stdin is not None
        self.core += data
        try:
            self.popen.stdin.write(data)
            self.popen.stdin.flush()
        except BrokenPipeError:
            pass

    def end(self) -> int:
        """End the core and return the handler's exit code."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.close()
        except BrokenPipeError:
            pass
        return self.popen.wait(PATIENCE_S)

    def find(self, *places: Path) -> Path | None:
        """Return the directory of this crash's dump, by its report, in the first of these directories of dumps that has it."""
        for report in (found for place in places for found in place.glob("*/report.json")):
            try:
                if json.loads(report.read_bytes()).get("crashed_at") == self.number:
                    return report.parent
            except FileNotFoundError:
                pass  # Published, or delivered, between our finding it and our reading it.
        return None


class Sender(Installed):
    """A host of a fleet, with settings, spool and handler in a directory of its own."""

    def __init__(self, directory: Path, identity: Path, receivers: Sequence[Address]) -> None:
        directory.mkdir(mode=0o700)
        super().__init__(directory, identity, receivers)
        self.change(admission=UNLIMITED)
        self.host = f"{identity.name}.{DOMAIN}"
        self.environment: Mapping[str, str] = {}
        """What its programs are started with; the kernel gives a handler nothing."""
        self.crashes: list[Crash] = []

    def send_to(self, *receivers: Address) -> None:
        """Let later handlers go to these receivers."""
        self.change(receivers=receivers)

    def crash(self, core: bytes = b"", limits: Limits = ()) -> Crash:
        """Start a handler as the kernel does, and give it the beginning of a core."""
        number, arguments = next(_numbers), kernel_arguments()
        arguments[_TIME] = str(number)
        popen = subprocess.Popen(
            [*limited(limits), str(self.handler), *arguments], stdin=subprocess.PIPE, env=dict(self.environment), cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        crash = Crash(popen, number)
        self.crashes.append(crash)
        crash.feed(core)
        return crash

    def flush(self, *receivers: Address, limits: Limits = ()) -> "subprocess.CompletedProcess[str]":
        """Run ``spool flush`` and return how it ended."""
        to = [word for address in receivers for word in ("--to", str(address))]
        words = ["spool", "flush", "--spool", str(self.spool), "--identity", str(self.identity), *to]
        return subprocess.run(
            [*limited(limits), *SECURECORE, *words], cwd=ROOT, env={**os.environ, **self.environment},
            capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip

    def incoming(self, store: Path) -> Path:
        """Return where this host's dumps come in."""
        return store / "incoming" / self.host

    def published(self, store: Path) -> Path:
        """Return where this host's dumps are once they have a receipt."""
        return store / "hosts" / self.host

    def held_bytes(self, store: Path) -> int:
        """Return how many bytes of cores are coming in from this host."""
        return sum(size_of(path) for path in self.incoming(store).glob("*/core.zst"))

    def truths(self, *stores: Path) -> list[Truth]:
        """Return what was crashed, for the checker; fails where nobody has anything of a dump."""
        places = [self.spool / "dumps", *(place(store) for store in stores for place in (self.published, self.incoming))]
        truths = []
        for crash in self.crashes:
            found = crash.find(*places)
            assert found is not None, f"nobody has crash {crash.number}"
            truths.append(Truth(self.host, found.name, crash.core, sha256(crash.core).hexdigest(), len(crash.core)))
        return truths

    def close(self) -> None:
        """End the handlers that a failed test has left."""
        for crash in self.crashes:
            if crash.popen.poll() is None:
                crash.popen.kill()
            crash.end()


@contextmanager
def sending(directory: Path, identity: Path, *receivers: Address) -> Iterator[Sender]:
    """Have a host while the block runs; its handlers do not outlive it."""
    sender = Sender(directory, identity, receivers)
    try:
        yield sender
    finally:
        sender.close()
