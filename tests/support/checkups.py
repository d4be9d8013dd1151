"""Machines that ``doctor`` looks at: roots that are set up below a directory, what is broken there, and what it finds."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from securecore.cli import main
from securecore.names import Address
from tests.support.certificates import Fleet
from tests.support.machines import USER, make_root, setup

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be a machine's other users")

NOWHERE: Final = Address("127.0.0.1:9")
"""A receiver that is never there."""

CORES: Final = "/var/lib/securecore/cores"
SETUP: Final = "securecore setup sender"


class Seen(NamedTuple):
    """What doctor said: its exit code, and its findings of one role by their names."""

    code: int
    findings: dict[str, list[dict[str, Any]]]

    def find(self, check: str, level: str) -> dict[str, Any]:
        """Return the first finding of a check that has a level."""
        return next(found for found in self.findings[check] if found["level"] == level)

    def not_ok(self) -> set[str]:
        """Return the checks that found something, but for what a test machine cannot help: its Python's place, its disk's room."""
        names = {name for name, found in self.findings.items() if any(one["level"] != "ok" for one in found)}
        return names - {"interpreter", "spool's room", "store's room", "cores' room"}


class Machine:
    """A root that is set up as a sender and a receiver, and doctor's eyes on it."""

    def __init__(self, path: Path, fleet: Fleet, capture: pytest.CaptureFixture[str]) -> None:
        self.path = make_root(path, fleet)
        self.fleet = fleet
        self._capture = capture

    def file(self, path: str) -> Path:
        """Return where a file of the machine is."""
        return self.path / path.lstrip("/")

    def set_up_sender(self, *receivers: Address, user: str = USER) -> None:
        """Make the machine a sender."""
        to = [word for address in receivers for word in ("--to", str(address))]
        assert setup(self.path, "sender", *to, "--identity", "/etc/securecore/identity", "--user", user) == 0
        self._capture.readouterr()

    def set_up_local(self) -> None:
        """Make the machine keep its cores."""
        assert setup(self.path, "sender", "--local", CORES, "--format", "gz", "--keep", "10", "--user", USER) == 0
        self._capture.readouterr()

    def set_up_receiver(self) -> None:
        """Make the machine a receiver."""
        assert setup(self.path, "receiver", "--listen", "127.0.0.1:4455", "--user", USER) == 0
        self._capture.readouterr()

    def doctor(self, *options: str, role: str = "sender") -> Seen:
        """Run doctor on the machine."""
        code = main.run(["doctor", "--root", str(self.path), "--json", *options])
        document = json.loads(self._capture.readouterr().out)
        findings: dict[str, list[dict[str, Any]]] = {}
        for found in document["checks"]:
            if found["role"] == role:
                findings.setdefault(found["check"], []).append(found)
        assert (code == 3) is (document["level"] == "wrong")
        return Seen(code, findings)

    def words(self, *options: str) -> str:
        """Return what doctor tells a person."""
        main.run(["doctor", "--root", str(self.path), *options])
        return self._capture.readouterr().out


def tree(place: Path) -> dict[str, tuple[object, ...]]:
    """Return all that could be changed below *place*."""
    found = {}
    for path in place.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
    return found


Fault = Callable[[Machine], object]


def replace_in(path: str, old: str, new: str) -> Fault:
    """Return a fault: a text file that says something else."""

    def change(machine: Machine) -> None:
        text = machine.file(path).read_text()
        assert old in text
        machine.file(path).write_text(text.replace(old, new))

    return change


def write(path: str, text: str) -> Fault:
    """Return a fault: a file that is there."""

    def change(machine: Machine) -> None:
        machine.file(path).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        machine.file(path).write_text(text)

    return change
