"""Whatever a person gives to a command: one line that says what and why, a documented exit code, never a traceback."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore.cli.main import COMMANDS, run
from tests.support.certificates import Fleet

DOCUMENTED = {
    int(match)
    for match in re.findall(r"^\| *(\d+) *\|", (Path(__file__).parents[2] / "docs/exit-codes.md").read_text(), re.MULTILINE)
}


class Place:
    """A directory with a fleet's identities and things that are not what commands expect."""

    def __init__(self, path: Path, fleet: Fleet) -> None:
        self.path = path
        self.host = str(fleet.host)
        self.receiver = str(fleet.receiver)
        self.ca = str(fleet.host / "ca.pem")
        self.empty = self._directory("empty")
        self.missing = str(path / "missing")
        self.garbage = self._file("garbage", os.urandom(300))
        self.text = self._file("text", b"hello\n")
        self.loose = self._loose_copy(fleet)
        self.not_a_store = self._directory("not-a-store")
        (path / "not-a-store/FORMAT").write_text("something else 7\n")
        self.core = self._file("core", b"x" * 100)

    def _directory(self, name: str) -> str:
        (self.path / name).mkdir(mode=0o700)
        return str(self.path / name)

    def _file(self, name: str, data: bytes) -> str:
        (self.path / name).write_bytes(data)
        return str(self.path / name)

    def _loose_copy(self, fleet: Fleet) -> str:
        """An identity whose key others may read."""
        loose = Path(self._directory("loose"))
        for name in ("ca.pem", "cert.pem", "key.pem"):
            (loose / name).write_bytes((fleet.host / name).read_bytes())
        (loose / "key.pem").chmod(0o644)
        return str(loose)


@pytest.fixture
def place(tmp_path: Path, fleet: Fleet) -> Place:
    """The place of one test."""
    return Place(tmp_path, fleet)


Arguments = Callable[[Place], list[str]]
NOWHERE = "127.0.0.1:9"
ID = "01a20149-cd72-76bc-bade-c6c20d061939"

BAD: dict[str, tuple[int, Arguments]] = {
    "unknown command": (2, lambda p: ["frobnicate"]),
    "unknown option": (2, lambda p: ["list", "--frobnicate"]),
    "list: no store there": (4, lambda p: ["list", "--store", p.missing]),
    "list: an empty directory": (4, lambda p: ["list", "--store", p.empty]),
    "list: not a store": (6, lambda p: ["list", "--store", p.not_a_store]),
    "list: a file": (4, lambda p: ["list", "--store", p.garbage]),
    "list: no time": (2, lambda p: ["list", "--store", p.empty, "--since", "yesterday-ish"]),
    "show: no id": (2, lambda p: ["show"]),
    "show: no store": (4, lambda p: ["show", ID, "--store", p.missing]),
    "delete: no such dump": (4, lambda p: ["delete", ID, "--store", p.empty]),
    "vacuum: nothing says what is to go": (2, lambda p: ["vacuum", "--store", p.empty]),
    "vacuum: no size": (2, lambda p: ["vacuum", "--keep-bytes", "many", "--store", p.empty]),
    "vacuum: no age": (2, lambda p: ["vacuum", "--older-than", "30", "--store", p.empty]),
    "vacuum: a negative number": (2, lambda p: ["vacuum", "--keep-dumps", "-1", "--store", p.empty]),
    "vacuum: the store's bound for one host": (2, lambda p: ["vacuum", "--host", "a", "--keep-dumps", "1", "--store", p.empty]),
    "vacuum: no store": (4, lambda p: ["vacuum", "--keep-dumps", "1", "--store", p.missing]),
    "delete: an empty reason": (2, lambda p: ["delete", ID, "--store", p.empty, "--reason", ""]),
    "extract: no output": (2, lambda p: ["extract", ID, "--store", p.empty]),
    "extract: output exists": (5, lambda p: ["extract", ID, "--store", p.empty, "-o", p.text]),
    "verify: nothing named": (2, lambda p: ["verify", "--store", p.empty]),
    "verify: both named": (2, lambda p: ["verify", ID, "--all", "--store", p.empty]),
    "verify: no store": (4, lambda p: ["verify", "--all", "--store", p.missing]),
    "audit log: no store": (4, lambda p: ["audit", "log", "--store", p.missing]),
    "audit report: no store": (4, lambda p: ["audit", "report", "--store", p.missing, "--csv"]),
    "audit report: no store, into a file": (4, lambda p: ["audit", "report", "--store", p.missing, "-o", f"{p.empty}/report.html"]),
    "audit report: not a store": (6, lambda p: ["audit", "report", "--store", p.not_a_store, "--csv"]),
    "audit report: no time": (2, lambda p: ["audit", "report", "--store", p.missing, "--csv", "--since", "soon"]),
    "audit verify: no store": (4, lambda p: ["audit", "verify", "--store", p.missing]),
    "send: no such file": (4, lambda p: ["send", p.missing, "--to", NOWHERE, "--identity", p.host]),
    "send: a directory": (3, lambda p: ["send", p.empty, "--to", NOWHERE, "--identity", p.host]),
    "send: no port": (2, lambda p: ["send", p.core, "--to", "collector", "--identity", p.host]),
    "send: port too high": (2, lambda p: ["send", p.core, "--to", "collector:70000", "--identity", p.host]),
    "send: nobody listens": (10, lambda p: ["send", p.core, "--to", NOWHERE, "--identity", p.host]),
    "send: name does not resolve": (10, lambda p: ["send", p.core, "--to", "no.such.name.invalid:1", "--identity", p.host]),
    "send: identity missing": (3, lambda p: ["send", p.core, "--to", NOWHERE, "--identity", p.missing]),
    "send: identity empty": (3, lambda p: ["send", p.core, "--to", NOWHERE, "--identity", p.empty]),
    "send: key of loose mode": (3, lambda p: ["send", p.core, "--to", NOWHERE, "--identity", p.loose]),
    "compress: no such file": (4, lambda p: ["compress", p.missing]),
    "compress: a directory": (3, lambda p: ["compress", p.empty]),
    "compress: no such format": (2, lambda p: ["compress", p.core, "--format", "rar"]),
    "compress: no such level": (2, lambda p: ["compress", p.core, "--format", "gz", "--level", "10"]),
    "compress: level 0": (2, lambda p: ["compress", p.core, "--level", "0"]),
    "compress: output exists": (5, lambda p: ["compress", p.core, "-o", p.text]),
    "compress: output in no directory": (5, lambda p: ["compress", p.core, "-o", p.missing + "/out"]),
    "decompress: no such file": (4, lambda p: ["decompress", p.missing + ".gz"]),
    "decompress: no ending": (2, lambda p: ["decompress", p.core]),
    "decompress: garbage": (6, lambda p: ["decompress", p.garbage, "-o", p.missing]),
    "decompress: output exists": (5, lambda p: ["decompress", p.garbage, "-o", p.text]),
    "receive: no identity": (4, lambda p: ["receive", "--listen", "127.0.0.1:0", "--store", p.empty, "--identity", p.missing]),
    "receive: a host's identity": (4, lambda p: ["receive", "--listen", "127.0.0.1:0", "--store", p.empty, "--identity", p.host]),
    "receive: store not empty": (
        5,
        lambda p: ["receive", "--listen", "127.0.0.1:0", "--store", str(p.path), "--identity", p.receiver],
    ),
    "receive: no address": (2, lambda p: ["receive", "--store", p.empty, "--identity", p.receiver]),
    "receive: an address of another machine": (
        3,
        lambda p: ["receive", "--listen", "192.0.2.1:4455", "--store", p.empty, "--identity", p.receiver],
    ),
    "spool list: no settings": (3, lambda p: ["spool", "list", "--settings", p.missing]),
    "spool list: settings are garbage": (3, lambda p: ["spool", "list", "--settings", p.garbage]),
    "spool list: no spool": (3, lambda p: ["spool", "list", "--spool", p.missing]),
    "spool usage: no spool": (3, lambda p: ["spool", "usage", "--spool", p.missing]),
    "spool flush: not a spool": (
        3,
        lambda p: ["spool", "flush", "--spool", p.empty, "--to", NOWHERE, "--identity", p.host],
    ),
    "elf id: no such file": (4, lambda p: ["elf", "id", p.missing]),
    "elf id: a directory": (6, lambda p: ["elf", "id", p.empty]),
    "elf id: no ELF file": (6, lambda p: ["elf", "id", p.garbage]),
    "elf stamp: no such file": (4, lambda p: ["elf", "stamp", p.missing]),
    "elf stamp: no ELF file": (6, lambda p: ["elf", "stamp", p.text]),
    "elf stamp: output exists": (2, lambda p: ["elf", "stamp", "/proc/self/exe", "-o", p.text]),
    "elf match: no such program": (4, lambda p: ["elf", "match", p.core, p.missing]),
    "elf match: no core": (6, lambda p: ["elf", "match", p.core, "/proc/self/exe"]),
    "elf match: no store": (4, lambda p: ["elf", "match", ID, "/proc/self/exe", "--store", p.missing]),
    "doctor: a root that is not there": (3, lambda p: ["doctor", "--root", p.missing]),
    "doctor: nothing is set up": (4, lambda p: ["doctor", "--root", p.empty]),
    "demo: directory exists": (3, lambda p: ["demo", "--keep", p.empty]),
    "pki init: domain is no domain": (
        8,
        lambda p: ["pki", "init", "--dir", p.missing, "--org", "A", "--domain", "-x-", "--no-passphrase"],
    ),
    "pki issue: no PKI": (4, lambda p: ["pki", "issue", "host", "web", "--dir", p.missing, "--out", p.missing + "2"]),
    "pki inspect: garbage": (8, lambda p: ["pki", "inspect", p.garbage]),
    "pki learn: no PKI": (4, lambda p: ["pki", "learn", p.garbage, "--dir", p.missing]),
    "pki profile: unknown": (4, lambda p: ["pki", "profile", "show", "unicorn"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_one_clear_line_and_its_exit_code(name: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, perhaps a hint below it, nothing on standard output, a documented code, no traceback."""
    code, arguments = BAD[name]

    actual = run(arguments(place))
    out, err = capsys.readouterr()
    # A receiver's own log lines begin with the year; a note is about something that did not keep the command from its work.
    lines = [line for line in err.splitlines() if not line.startswith(("20", "note: "))]

    assert (actual, name) == (code, name)
    assert actual in DOCUMENTED
    assert lines[0].startswith("securecore: ")
    assert len(lines) <= 2
    assert all(line.startswith("  hint: ") for line in lines[1:])
    assert "Traceback" not in err
    assert not lines[0].endswith(".")
    assert out == ""


@pytest.mark.parametrize("name", ["list: no store there", "send: nobody listens", "verify: no store"])
def test_errors_are_json_where_json_was_asked_for(name: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A program reads one document from standard output, errors too."""
    code, arguments = BAD[name]

    actual = run([*arguments(place), "--json"])
    document = json.loads(capsys.readouterr().out)

    assert actual == code
    assert document["error"]["exit_code"] == code
    assert document["error"]["message"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of each command says what it does and shows how it is used."""
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out

    assert "Usage: securecore" in out
    assert f"securecore {command}" in out.split("Options:")[-1] or "Examples:" in out
