"""``setup sender --dry-run`` by somebody who is not root: all that it can see is shown, and what it cannot see is named."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.certificates import Fleet
from tests.support.checkups import needs_root
from tests.support.machines import SENDER, make_root, setup, snapshot

IDENTITY: Final = "etc/securecore/identity"
SPOOL: Final = "var/lib/securecore/spool"
NOBODY: Final = 65534

pytestmark = needs_root


@pytest.fixture
def open_root(fleet: Fleet) -> Iterator[Path]:
    """A root as a machine before set-up has it, to which everybody has a way."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield make_root(Path(place) / "root", fleet)


def as_nobody(root: Path, *options: str) -> int:
    """Run ``setup sender`` as a user who owns nothing."""
    os.seteuid(NOBODY)
    try:
        return setup(root, "sender", *options)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("open_up", "hidden"), [(lambda identity: None, ""), (lambda identity: identity.chmod(0o755), "/key.pem")], ids=["all", "key"]
)
def test_an_identity_that_only_root_may_read_is_no_obstacle(
    open_up: Callable[[Path], None], hidden: str, open_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every change is shown, and a line says what was not looked at; nothing is known to be wrong, so the code is 0."""
    open_up(open_root / IDENTITY)
    before = snapshot(open_root)
    code = as_nobody(open_root, *SENDER, "--dry-run")
    shown = capsys.readouterr()

    assert (code, "permission denied" in shown.err.lower()) == (0, False)
    assert f"  not looked at      {open_root / IDENTITY}{hidden}  (this user may not; root sees it)\n" in shown.out
    assert "certificate valid until" not in shown.out
    assert "would be written" in shown.out
    assert snapshot(open_root) == before


def test_a_spool_that_only_its_owner_may_look_into_is_named_too(open_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a machine that has been set up."""
    assert setup(open_root, "sender", *SENDER) == 0
    capsys.readouterr()
    code = as_nobody(open_root, "--dry-run")
    shown = capsys.readouterr().out

    assert code == 0
    assert [line.split()[3] for line in shown.splitlines() if "not looked at" in line] == [
        str(open_root / IDENTITY), str(open_root / SPOOL),
    ]  # fmt: skip
    assert "nothing to change" in shown


def test_root_is_told_of_nothing_that_was_not_looked_at(open_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It sees everything, and the certificate is checked."""
    assert setup(open_root, "sender", *SENDER, "--dry-run") == 0
    shown = capsys.readouterr().out

    assert "not looked at" not in shown
    assert "certificate valid until" in shown


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--identity", "/etc/securecore/none"], 4, "no identity directory there"),
        (["--spool", "relative"], 3, "absolute path"),
    ],
    ids=["an identity that is not there", "a spool that cannot be"],
)
def test_what_anybody_can_see_to_be_wrong_is_an_error(
    options: list[str], code: int, words: str, open_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the code that it has for root."""
    assert as_nobody(open_root, *SENDER, *options, "--dry-run") == code
    assert words in capsys.readouterr().err


def test_a_spool_of_another_user_is_an_error_though_nobody_sees_what_it_holds(
    open_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it is not empty, set-up will refuse to give it away; the line says what is not known."""
    assert setup(open_root, "sender", *SENDER) == 0
    assert as_nobody(open_root, "--user", "991:991", "--dry-run") == 3
    assert "and we may not see whether it is empty" in capsys.readouterr().err


def test_a_real_set_up_needs_to_see_the_identity(open_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is about to be done is not done on trust."""
    before = snapshot(open_root)

    assert as_nobody(open_root, *SENDER) == 5
    assert "ca.pem: can't be opened: Permission denied" in capsys.readouterr().err
    assert snapshot(open_root) == before
