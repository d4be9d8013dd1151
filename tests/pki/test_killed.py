"""Each command that changes a PKI, ended at each of its calls: the same command again succeeds, or says what is to be done.

At every one in this process, killed or without power; and the real program, which ends itself with SIGKILL, at some.
"""

import contextlib
import io
import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore.certs.identity_directory import load_identity
from securecore.cli.main import run
from securecore.pki.directory import open_pki
from securecore.pki.install import install
from securecore.pki.revocation import files_for_receivers
from tests.support.certificates import DOMAIN
from tests.support.kill_points import Point, sampled
from tests.support.power import Loss, ended_at_each_call

POINTS: Final = 2
"""How many steps are tried with the real program; all of them in the long run."""

STRANGER: Final = "there is no certificate that was not issued"


class Place(NamedTuple):
    """A directory with a PKI, a request and a host's identity in it."""

    path: Path

    @property
    def pki(self) -> Path:
        """The PKI."""
        return self.path / "pki"

    def words(self, *words: str) -> list[str]:
        """Return a command of `securecore pki` here; a name that begins with @ is a file's."""
        named = [str(self.path / word[1:]) if word.startswith("@") else word for word in words]
        return ["pki", *named, *([] if words[0] in ("request", "install") else ["--dir", str(self.pki)])]

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Run a command; return its exit code and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(self.words(*words))
        return code, out.getvalue(), err.getvalue()


class Case(NamedTuple):
    """A command, what comes before it, and what is true once it has been done again."""

    before: list[list[str]]
    words: list[str]
    holds: Callable[[Place], object]
    hint: str = "nothing is ever overwritten"
    """What a second run may say instead of doing it, where the first one came to its end."""


INIT: Final = ["init", "--org", "Test", "--domain", DOMAIN, "--no-passphrase"]
SWITCHED: Final = [["rotate-ca", "hosts", "start"], ["rotate-ca", "hosts", "switch"]]
NEXT: Final = "the next step is"


def _web_is_listed(place: Place) -> None:
    rows = json.loads(place("list", "--json")[1])
    assert [row["state"] for row in rows if row["names"] == [f"web-1.{DOMAIN}"]] == ["revoked"]


def _goes_on(step: str) -> Callable[[Place], None]:
    """The rotation takes its next step."""

    def take(place: Place) -> None:
        code, _, err = place("rotate-ca", "hosts", step)
        assert code == 0, err

    return take


CASES: Final = {
    "init": Case([], INIT, lambda place: open_pki(place.pki)),
    "issue": Case([INIT], ["issue", "host", "web-2", "--out", "@w2"], lambda place: load_identity(place.path / "w2")),
    "issue receiver": Case([INIT], ["issue", "receiver", "r", "--out", "@r"], lambda place: load_identity(place.path / "r")),
    "sign": Case(
        [INIT, ["request", "--identity", "@s"]],
        ["sign", "host", "web-3", "@s/request.pem", "--out", "@reply"],
        lambda place: install(place.path / "s", (place.path / "reply").read_bytes(), datetime.now(UTC)),
    ),
    "renew": Case(
        [INIT, ["issue", "host", "web-1", "--out", "@web"]],
        ["renew", "web-1", "--out", "@reply"],
        lambda place: install(place.path / "web", (place.path / "reply").read_bytes(), datetime.now(UTC)),
    ),
    "crl": Case([INIT], ["crl", "--now"], lambda place: None),
    "revoke": Case([INIT, ["issue", "host", "web-1", "--out", "@web"]], ["revoke", "web-1"], _web_is_listed),
    "rotate-ca start": Case([INIT], ["rotate-ca", "hosts", "start"], _goes_on("switch"), NEXT),
    "rotate-ca switch": Case([INIT, SWITCHED[0]], SWITCHED[1], _goes_on("finish"), NEXT),
    "rotate-ca finish": Case([INIT, *SWITCHED], ["rotate-ca", "hosts", "finish"], _goes_on("start"), "the first step is"),
}


@pytest.fixture(scope="module", params=CASES)
def ready(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Place]:
    """A case, and a place that is ready for its command."""
    case = CASES[request.param]
    place = Place(tmp_path_factory.mktemp("ready") / "place")
    place.path.mkdir()
    for words in case.before:
        assert place(*words)[0] == 0
    return case, place


def check_again(case: Case, place: Place) -> str | None:
    """Do a command that was ended again; return what is wrong then, None where nothing is."""
    code, _, err = place(*case.words)
    if (code != 0 and not (code == 8 and case.hint in err)) or "Traceback" in err:
        return err
    case.holds(place)
    checks = json.loads(place("log", "verify", "--json")[1])
    if [one["what"] for one in checks if not one["ok"]] not in ([], [STRANGER]):
        return str(checks)
    wrong = [path.name for path, together in files_for_receivers(open_pki(place.pki)).items() if path.read_bytes() != together]
    left = [path.name for path in place.path.iterdir() if path.name.startswith(".") and code == 0]
    return f"wrong: {wrong}, left: {left}" if wrong or left else None


@pytest.mark.slow
@pytest.mark.parametrize("loss", Loss)
def test_a_command_that_was_ended_at_any_call_is_done_by_the_same_command(loss: Loss, ready: tuple[Case, Place]) -> None:
    """Or it was done, and the words say so; then the ledger holds, and so do the files that receivers are given."""
    case, place = ready
    ends = 0
    for left, fatal in ended_at_each_call(place.path, lambda path: Place(path)(*case.words), loss):
        assert (fatal, check_again(case, Place(left))) == (fatal, None)
        ends += 1
    assert ends > 8


@pytest.mark.slow
def test_a_program_that_was_killed_is_done_by_the_same_command(ready: tuple[Case, Place], tmp_path: Path) -> None:
    """As above, with nothing of the process left."""
    case, place = ready
    whole = Place(Path(shutil.copytree(place.path, tmp_path / "whole")))
    point = Point(tmp_path, None)
    subprocess.run(point.command(*whole.words(*case.words)), check=True, capture_output=True)
    steps = len(point.steps)
    assert steps > 10
    # Neither before its first step nor behind its last: these are seen above.
    for step in sampled(range(steps // 4, steps - 1), POINTS):
        place = Place(Path(shutil.copytree(ready[1].path, tmp_path / f"{step}")))
        point = Point(tmp_path, step)
        ended = subprocess.run(point.command(*place.words(*case.words)), check=False, capture_output=True).returncode
        assert ended == -signal.SIGKILL
        assert (point.steps[-2:], check_again(case, place)) == (point.steps[-2:], None)
