"""What the agent has read before a crash: it is what the files say when the crash comes, and what cannot be read keeps nobody."""

import os
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore import tls
from securecore.names import Address
from securecore.sender import provisions
from securecore.sender.provisions import Keeper
from securecore.sender.settings import Settings
from tests.support.certificates import Fleet
from tests.support.kernel import Installed

RECEIVER = Address("127.0.0.1:9")


@pytest.fixture
def installed(fleet: Fleet, tmp_path: Path) -> Installed:
    """Settings, and an identity that a test may change."""
    identity = tmp_path / "identity"
    shutil.copytree(fleet.host, identity)
    return Installed(tmp_path, identity, [RECEIVER], (os.getuid(), os.getgid()) if os.getuid() else (65534, 65534))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The identities whose roots were read, in order."""
    real, seen = tls.anchored_context, list[str]()

    def read(identity: str) -> ssl.SSLContext:
        seen.append(identity)
        return real(identity)

    monkeypatch.setattr(tls, "anchored_context", read)
    return seen


def test_what_has_not_changed_is_read_once(fleet: Fleet, installed: Installed, readings: list[str]) -> None:
    """However many crashes there are."""
    keeper = Keeper(str(installed.settings))
    found = [keeper.look() for _ in range(5)]

    assert readings == [str(installed.identity)]
    assert all(each is found[0] for each in found)
    assert found[0] is not None
    assert found[0].settings.receivers == (RECEIVER,)
    assert found[0].context is not None
    assert found[0].context.get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert((fleet.host / "ca.pem").read_text())]


def test_the_key_is_not_among_it(installed: Installed) -> None:
    """The child that reads the crashed program's file has the memory of one that had nothing to hide yet."""
    (installed.identity / "key.pem").unlink()
    found = Keeper(str(installed.settings)).look()

    assert found is not None
    assert found.context is not None


def replaced(path: Path) -> None:
    """Put the same bytes there as another file, as a renewal does."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def rewritten(path: Path) -> None:
    """Write a byte more into the file."""
    with path.open("ab") as file:
        file.write(b"\n")


@pytest.mark.parametrize("change", [replaced, rewritten], ids=lambda change: change.__name__)
def test_roots_that_have_changed_are_read_again(installed: Installed, readings: list[str], change: Callable[[Path], None]) -> None:
    """The next crash after a rotation believes the new ones."""
    keeper = Keeper(str(installed.settings))
    before = keeper.look()
    change(installed.identity / "ca.pem")
    after = keeper.look()

    assert len(readings) == 2
    assert before is not None
    assert after is not None
    assert after.context is not before.context


def test_settings_that_have_changed_hold_for_the_next_crash(installed: Installed) -> None:
    """As with the pipe's handler, which reads them each time."""
    keeper = Keeper(str(installed.settings))
    keeper.look()
    installed.change(receivers=(Address("127.0.0.1:10"),))
    found = keeper.look()

    assert found is not None
    assert found.settings.receivers == (Address("127.0.0.1:10"),)


def test_settings_that_are_replaced_while_they_are_read_are_read_again(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is older than what is there, and nothing may say that it is not."""
    real = provisions.load_settings

    def load(path: str) -> Settings:
        found = real(path)
        installed.change(receivers=(Address("127.0.0.1:10"),))
        return found

    keeper = Keeper(str(installed.settings))
    with monkeypatch.context() as busy:
        busy.setattr(provisions, "load_settings", load)
        keeper.look()
    found = keeper.look()

    assert found is not None
    assert found.settings.receivers == (Address("127.0.0.1:10"),)


def test_settings_that_others_may_write_hold_no_more(installed: Installed) -> None:
    """Their bytes are the same: what was refused at a start is refused at any time."""
    keeper = Keeper(str(installed.settings))
    keeper.look()
    installed.settings.chmod(0o666)
    loose = keeper.look()
    installed.settings.chmod(0o644)

    assert loose is None
    assert keeper.look() is not None


def test_an_identity_that_is_not_there_yet_is_found_when_it_is(installed: Installed) -> None:
    """Until then the child looks itself, and says what is missing."""
    away = installed.identity.rename(installed.identity.with_name("away"))
    keeper = Keeper(str(installed.settings))
    without = keeper.look()
    away.rename(installed.identity)
    found = keeper.look()

    assert without is not None
    assert found is not None
    assert without.context is None
    assert found.context is not None


def test_settings_that_are_broken_are_nobody_elses_fault(installed: Installed) -> None:
    """The child says why; settings that are whole again count at once."""
    sound = installed.settings.read_bytes()
    keeper = Keeper(str(installed.settings))
    keeper.look()
    installed.settings.write_bytes(sound[:20])
    broken = keeper.look()
    installed.settings.write_bytes(sound)

    assert broken is None
    assert keeper.look() is not None


def test_without_memory_nothing_is_kept(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent goes on, and its child tries."""

    def read(_: str) -> ssl.SSLContext:
        raise MemoryError

    monkeypatch.setattr(tls, "anchored_context", read)

    assert Keeper(str(installed.settings)).look() is None
