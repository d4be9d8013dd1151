"""Private keys, in every command that makes one: nobody else can read them at any instant, and nothing says them aloud."""

import ast
import logging
import os
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

from securecore.cli import pki as pki_module
from securecore.cli.main import run
from tests.support.certificates import DOMAIN
from tests.support.processes import ROOT

WORDS: Final = "correct horse battery staple"
MARK: Final = b"PRIVATE KEY-----"

COMMANDS: Final[dict[str, tuple[list[str], int]]] = {
    "init": (["init", "--org", "Test", "--domain", DOMAIN, "--dir", "p", "--passphrase-file", "words"], 3),
    "issue host": (["issue", "host", "web-1", "--dir", "p", "--out", "w", "--passphrase-file", "words"], 1),
    "issue receiver": (["issue", "receiver", "r", "--dir", "p", "--out", "r", "--passphrase-file", "words"], 2),
    "rekey": (["rekey", "r", "--dir", "p", "--out", "r2", "--passphrase-file", "words"], 2),
    "request": (["request", "--identity", "own"], 1),
    "sign": (["sign", "receiver", "own", "own/request.pem", "--dir", "p", "--out", "reply", "--passphrase-file", "words"], 0),
    "install": (["install", "reply", "--identity", "own"], 1),
    "request beside": (["request", "--identity", "own"], 1),
    "sign again": (["sign", "receiver", "own", "own/request.pem", "--dir", "p", "--out", "2", "--passphrase-file", "words"], 0),
    "install beside": (["install", "2", "--identity", "own"], 0),
    "rotate-ca": (["rotate-ca", "hosts", "start", "--dir", "p", "--passphrase-file", "words"], 1),
}
"""In their order, with the number of keys that each makes."""

MAKERS: Final = {"creation.py", "install.py", "issue.py", "request.py", "rotation.py"}
"""The modules that write private keys: each is reached by a command above."""


class Watch:
    """Every file that is made, with every mode that it ever had, and whether a private key was in it."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self._modes: dict[tuple[int, int], set[int]] = {}
        self.keys: set[tuple[int, int]] = set()
        self.loose: list[str] = []
        for name in ("open", "fchmod", "chmod", "fsync", "mkdir"):
            patched.setattr(os, name, getattr(self, name)(getattr(os, name)))

    def open(self, real: object) -> object:
        """Note the mode that a file has when it is there, before a byte is in it."""

        def call(path: object, flags: int, *more: int, **named: int) -> int:
            descriptor: int = real(path, flags, *more, **named)  # type: ignore[operator]
            if flags & os.O_CREAT:
                self._note(descriptor)
            return descriptor

        return call

    def fchmod(self, real: object) -> object:
        """Note the mode that it gets."""

        def call(descriptor: int, mode: int) -> None:
            real(descriptor, mode)  # type: ignore[operator]
            self._note(descriptor)

        return call

    def chmod(self, real: object) -> object:
        """Note the mode that it gets by its name."""

        def call(path: object, mode: int, **named: bool) -> None:
            real(path, mode, **named)  # type: ignore[operator]
            self._note(path)

        return call

    def fsync(self, real: object) -> object:
        """Look at what was written: a temporary file may be gone when the command ends."""

        def call(descriptor: int) -> None:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and MARK in Path(f"/proc/self/fd/{descriptor}").read_bytes():
                self._note(descriptor)
                self.keys.add((status.st_ino, status.st_ctime_ns))
                if any(mode & 0o077 for mode in self._modes[status.st_dev, status.st_ino]):
                    self.loose.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            real(descriptor)  # type: ignore[operator]

        return call

    def mkdir(self, real: object) -> object:
        """Note a directory that others could put something into."""

        def call(path: object, mode: int = 0o777, **named: int) -> None:
            real(path, mode, **named)  # type: ignore[operator]
            if os.stat(path).st_mode & 0o077:  # type: ignore[arg-type]
                self.loose.append(str(path))

        return call

    def _note(self, place: object) -> None:
        status = os.stat(place)  # type: ignore[arg-type]
        self._modes.setdefault((status.st_dev, status.st_ino), set()).add(stat.S_IMODE(status.st_mode))


@pytest.fixture
def open_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to work in, where the umask takes nothing away."""
    monkeypatch.chdir(tmp_path)
    words = tmp_path / "words"
    words.touch(mode=0o600)
    words.write_text(WORDS + "\n")
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def secrets_in(path: Path) -> set[str]:
    """Return the lines of every private key in a directory."""
    files = [one.read_text() for one in path.rglob("*.pem")]
    return {line for text in files if MARK.decode() in text for line in text.splitlines() if "-----" not in line}


@pytest.mark.slow
def test_keys_are_their_owners_alone_and_nowhere_told(
    open_to_all: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask, from the first instant; no line of a key and no passphrase in output, log or environment."""
    monkeypatch.setenv("SECURECORE_TRACEBACK", "1")
    environment = dict(os.environ)
    caplog.set_level(logging.DEBUG)
    for name, (words, count) in COMMANDS.items():
        with pytest.MonkeyPatch.context() as patched:
            watch = Watch(patched)
            assert run(["pki", *words]) == 0, (name, capfd.readouterr().err)
        assert (len(watch.keys), watch.loose) == (count, []), name
    said = "".join(capfd.readouterr()) + caplog.text
    assert len(secrets_in(open_to_all)) > 20
    assert [secret for secret in {*secrets_in(open_to_all), WORDS} if secret in said] == []
    assert dict(os.environ) == environment


@pytest.mark.slow
def test_a_traceback_tells_no_secret(open_to_all: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a message: a wrong passphrase, a place that is taken, a key that is cut off, a mistake of ours with keys in hand."""
    for name in ("init", "issue receiver"):
        assert run(["pki", *COMMANDS[name][0]]) == 0
    wrong = open_to_all / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("a wrong passphrase\n")
    monkeypatch.setenv("SECURECORE_TRACEBACK", "1")
    key = open_to_all / "p" / "receivers" / "key.pem"
    secrets = {*secrets_in(open_to_all), WORDS, "a wrong passphrase"}
    assert run(["pki", "issue", "host", "x", "--dir", "p", "--out", "x", "--passphrase-file", "wrong"]) == 8
    assert run(["pki", "issue", "host", "x", "--dir", "p", "--out", "r", "--passphrase-file", "words"]) == 8
    key.write_bytes(key.read_bytes()[:-60])
    assert run(["pki", "rekey", "r", "--dir", "p", "--out", "y", "--passphrase-file", "words"]) != 0

    def unforeseen(*_: object) -> None:
        raise RuntimeError("nobody has thought of this")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", unforeseen)
        with pytest.raises(RuntimeError) as caught:
            run(["pki", "issue", "host", "x", "--dir", "p", "--out", "x", "--passphrase-file", "words"])
    said = "".join((*capfd.readouterr(), *traceback.format_exception(caught.value)))
    assert "Traceback" in said
    assert [secret for secret in secrets if secret in said] == []


def test_no_option_takes_a_passphrase_itself() -> None:
    """On a command line everybody could read it; so there are a file, a pipe and a prompt, and no environment variable."""

    def options(command: click.Command) -> Iterator[click.Parameter]:
        yield from command.params
        for one in getattr(command, "commands", {}).values():
            yield from options(one)

    found = [one for one in options(pki_module.command) if "pass" in (one.name or "")]
    assert len(found) > 8
    for one in found:
        assert isinstance(one, click.Option)
        assert one.is_flag or isinstance(one.type, click.Path), one.name
        assert one.envvar is None


def test_every_module_that_writes_keys_is_watched() -> None:
    """A command that comes to make keys has to come into the list above."""
    found = set()
    for path in (ROOT / "securecore").rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if "private_pem" in {call.id for call in calls if isinstance(call, ast.Name)}:
            found.add(path.name)
    assert found == MAKERS
