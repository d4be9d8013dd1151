"""Fixtures of several commands' tests; some files have samples of their own."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.names import DumpId
from tests.support.certificates import DOMAIN, Fleet
from tests.support.checkups import Machine
from tests.support.commands import Securecore, captured
from tests.support.machines import make_root
from tests.support.pki_commands import Runner
from tests.support.samples import Sample
from tests.support.stores import CORE, CUT_CORE, fill_store


@pytest.fixture
def root(tmp_path: Path, fleet: Fleet) -> Path:
    """A root as a machine before set-up has it, with both identities carried there."""
    return make_root(tmp_path / "root", fleet)


@pytest.fixture
def loose_umask() -> Iterator[None]:
    """The loosest umask there is."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def machine(tmp_path: Path, fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> Machine:
    """A machine of the fleet."""
    return Machine(tmp_path / "root", fleet, capsys)


@pytest.fixture
def securecore(capsys: pytest.CaptureFixture[str]) -> Securecore:
    """Runs a command; returns its exit code and what it printed to stdout and stderr."""
    return captured(capsys)


@pytest.fixture(scope="module")
def template(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DumpId]]:
    """The store of several hosts that each test gets a copy of, and its dumps."""
    store = tmp_path_factory.mktemp("template") / "store"
    return store, fill_store(fleet, store, [("web-1", CORE), ("web-1", CUT_CORE), ("web-1", b"third"), ("db-2", b"other")])


@pytest.fixture
def sample(template: tuple[Path, list[DumpId]], fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sample:
    """A copy of the store that the test may spoil."""
    store, dumps = template
    shutil.copytree(store, tmp_path / "store")
    made = Sample(tmp_path / "store", fleet, capsys)
    made.dumps = dumps
    return made


@pytest.fixture
def pki(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner in a fresh PKI without passphrase, named by the environment, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECURECORE_PKI", str(tmp_path / "fleet-pki"))
    runner = Runner(capsys, tmp_path)
    assert runner("init", "--org", "Test", "--domain", DOMAIN, "--no-passphrase").code == 0
    return runner
