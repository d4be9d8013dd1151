"""``securecore enroll`` and ``securecore renew --new-key``, killed while they work: to run them once more finishes them."""

import shutil
import signal
from pathlib import Path

import pytest

from securecore.certs.identity_directory import load_identity
from securecore.cli.main import run
from securecore.names import Address
from securecore.pki import clients, enroller
from securecore.pki.enrolling import enroll, find_own, renew
from tests.support.enrolment import Place
from tests.support.kill_points import IS_LONG, Point, run_until_killed, sampled

MANY = 10_000
"""More certificates and connections than the test needs."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A PKI whose enroller answers one host as often as it asks."""
    monkeypatch.setattr(enroller, "RENEWALS_PER_DAY", MANY)
    monkeypatch.setattr(clients, "CLIENTS_PER_MINUTE", MANY)
    return Place(tmp_path)


def chosen(steps: list[str]) -> list[int]:
    """Return the steps at which to kill: behind each rename and before some others; all where this is the long run.

    What a rename has made visible is what the next run finds; between two of them it finds the same but for files that nobody
    looks for.
    """
    if IS_LONG:
        return list(range(len(steps)))
    renames = [at for at, step in enumerate(steps) if step.startswith("after rename")]
    return sorted({*renames, *sampled(range(len(steps)), 3)})


class Enrolment:
    """One command, on a host of its own each time: a first enrolment, one in a directory in use, a renewal with a new key."""

    def __init__(self, kind: str, place: Place, address: Address) -> None:
        self.kind, self.place, self.address = kind, place, address
        self.model = place.directory / "model"
        if kind != "first":
            enroll(address, place.root_fingerprint, place.token()[0], self.model, place.now)

    def prepare(self, name: str) -> tuple[Path, Path, Point]:
        """Return an identity directory, in which nothing has been done yet, and what a run of the command there needs."""
        home = self.place.directory / name
        home.mkdir()
        if self.kind != "first":
            shutil.copytree(self.model, home / "web-1")
        return home / "web-1", home, Point(home, None)

    def words(self, identity: Path, home: Path) -> list[object]:
        """Return the command's words; a new token each time that one is asked for."""
        if self.kind == "renewal":
            return ["renew", "--identity", identity, "--now", "--new-key"]
        token = home / "token"
        if not token.exists():
            token.touch(mode=0o600)
            token.write_text(self.place.token_text())
        marks = ["--ca-fingerprint", self.place.root_fingerprint, "--token-file", token]
        return ["enroll", self.address, *marks, "--identity", identity]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["first", "again", "renewal"])
def test_kill_at_any_step_and_the_same_command_again_finishes_it(kind: str, place: Place) -> None:
    """The host has a certificate for its key at the end, with a new key where it had one, and nothing is left over."""
    with place.serving() as address:
        enrolment = Enrolment(kind, place, address)
        identity, home, point = enrolment.prepare("whole")
        assert run_until_killed(point.command(*enrolment.words(identity, home))).returncode == 0
        left, steps = {path.name for path in identity.iterdir()}, point.steps
        assert len(steps) > 20
        for at in chosen(steps):
            identity, home, point = enrolment.prepare(f"step-{at}")
            before = (identity / "key.pem").read_bytes() if kind != "first" else b""
            point.step = at
            words = enrolment.words(identity, home)
            assert run_until_killed(point.command(*words)).returncode == -signal.SIGKILL
            assert run([str(word) for word in words]) == 0, steps[at]
            assert find_own(identity, place.now).serial == load_identity(identity).certificates[0].serial_number
            assert (identity / "key.pem").read_bytes() != before
            assert {path.name for path in identity.iterdir()} == left, steps[at]
            renew(address, identity, place.now)
