"""Stores that a real receiver has filled, and the commands that look at them, run in the test's own process."""

import json
import os
import random
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from securecore import limits
from securecore.cli.main import run
from securecore.dump.reader import open_container
from securecore.names import DumpId, HostName
from securecore.store.layout import open_store
from tests.support.certificates import DOMAIN, Fleet
from tests.support.crash_cores import Crash
from tests.support.dumps import begin
from tests.support.entries import ARRIVALS
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes

WEB: Final = f"web-1.{DOMAIN}"
DB: Final = f"db-2.{DOMAIN}"
CORE: Final = random.Random(1).randbytes(3 * limits.PIECE_BYTES) + bytes(8 * limits.PIECE_BYTES) + b"the end"
"""Three pieces of noise, eight of zeroes, and a short one."""
CUT_CORE: Final = Crash().write()[:-100]
"""The beginning of an ELF core: its header promises more."""


class Ran(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON that it printed."""
        return json.loads(self.out)


class Commands:
    """Runs commands on one store, and knows what stands where in it."""

    def __init__(self, store: Path, fleet: Fleet, capture: pytest.CaptureFixture[str]) -> None:
        self.store = store
        self.fleet = fleet
        self._capture = capture

    def __call__(self, *arguments: object) -> Ran:
        """Run a command on the store."""
        code = run([*map(str, arguments), "--store", str(self.store)])
        output = self._capture.readouterr()
        return Ran(code, output.out, output.err)

    def verify(self, *arguments: object) -> Ran:
        """Run ``verify`` with the fleet's root."""
        return self("verify", *arguments, "--root", self.fleet.host / "ca.pem")

    def audit(self, *arguments: object) -> Ran:
        """Run ``audit verify`` with the fleet's root."""
        return self("audit", "verify", *arguments, "--root", self.fleet.host / "ca.pem")

    def logs(self, *arguments: object) -> list[dict[str, Any]]:
        """Return what ``audit verify`` says of hosts' logs, sorted by host."""
        return [found for found in self.audit("--json", *arguments).document if found["host"] is not None]

    def wide_log(self, *arguments: object) -> dict[str, Any]:
        """Return what ``audit verify`` says of the receiver-wide log."""
        (found,) = [found for found in self.audit("--json", *arguments).document if found["host"] is None]
        return dict(found)

    def extract(self, dump: object, output: object, *arguments: object) -> Ran:
        """Run ``extract`` with the fleet's receiver's identity."""
        return self("extract", dump, "-o", output, "--identity", self.fleet.receiver, *arguments)

    def dump(self, dump: DumpId, host: str = WEB, place: str = "hosts") -> Path:
        """Return the directory of a dump."""
        return self.store / place / host / str(dump)

    def log(self, host: str = WEB) -> Path:
        """Return the directory of a host's audit log."""
        return self.store / "audit" / host

    def entries(self, host: str = WEB) -> list[dict[str, Any]]:
        """Return the entries of a host's log as they stand, but for those of arrivals."""
        return [entry for entry in self.all_entries(host) if entry["event"] not in ARRIVALS]

    def all_entries(self, host: str = WEB) -> list[dict[str, Any]]:
        """Return all of them."""
        return [json.loads(line) for line in (self.log(host) / "entries.jsonl").read_text("ascii").splitlines()]


def fill_store(fleet: Fleet, store: Path, cores: Sequence[tuple[str, bytes]]) -> list[DumpId]:
    """Have a receiver store *cores*, each sent by a host of the fleet, in order; return the dumps."""
    dumps = []
    with running_receiver(fleet.receiver, store) as receiver:
        for host, core in cores:
            dump = new_dump_id()
            outcome = send_bytes(core, papers_of(fleet.hosts[host]), receiver.addresses, dump=dump)
            assert outcome.receipt is not None
            dumps.append(dump)
    return dumps


def give_up(fleet: Fleet, store_path: Path, core: bytes, host: str = WEB) -> DumpId:
    """Have a dump of *core* come in and its sender not come back, and a receiver give it up; return the dump."""
    dump = new_dump_id()
    with open_store(str(store_path)) as store:
        begin(store, dump, core, host=HostName(host)).close()
    make_old(store_path, dump, host)
    with running_receiver(fleet.receiver, store_path):
        deadline = time.monotonic() + 30
        while not (store_path / "hosts" / host / str(dump)).exists():
            assert time.monotonic() < deadline, "the dump was not given up"
            time.sleep(0.01)
    return dump


def make_old(store_path: Path, dump: DumpId, host: str = WEB, by: timedelta = timedelta(days=8)) -> None:
    """Make the last frame of an incoming dump older."""
    then = time.time() - by.total_seconds()
    os.utime(store_path / "incoming" / host / str(dump) / "core.zst", (then, then))


def stored_cores(store_path: Path) -> dict[str, bytes]:
    """Return every published core's plaintext, by dump id, read by a reader of its own."""
    cores = {}
    with open_store(str(store_path)) as store:
        for host in store.host_names():
            for dump in store.dump_ids(host):
                with store.open_dump(host, dump) as files:
                    fd = files.open_core()
                    cores[str(dump)] = b"".join(open_container(fd).pieces())
    return cores


def published(store_path: Path) -> list[bytes]:
    """Return every published core's plaintext, for tests that know of no ids."""
    return list(stored_cores(store_path).values())


def files_of(store: Path) -> dict[str, bytes]:
    """Return the files of the dumps in a store, by their paths."""
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.glob("*/*/*/*"))}


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def put_back(path: Path, data: bytes) -> None:
    """Put another file in the place of one, with its times, as a backup does it."""
    before, other = path.stat(), path.with_name("restored")
    other.write_bytes(data)
    other.chmod(before.st_mode)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
