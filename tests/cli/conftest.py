"""Fixtures of several commands' tests; some files have samples of their own."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.names import DumpId
from tests.support.certificates import DOMAIN, Fleet, make_fleet
from tests.support.checkups import Machine
from tests.support.chronicles import Chronicle
from tests.support.commands import Securecore, captured
from tests.support.kept_receipts import deliver
from tests.support.machines import make_root
from tests.support.pki_commands import Runner
from tests.support.rekeyed import Place
from tests.support.reports import DAY, NOW, Report, tell
from tests.support.samples import Sample
from tests.support.stores import CORE, CUT_CORE, fill_store
from tests.support.third_parties import Evidence
from tests.support.witnessed import Witnessed


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


@pytest.fixture(scope="module")
def witnessed(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DumpId]]:
    """The store of `kept`, with what its hosts have kept. What db-2's log says of the receiver-wide log is older than web-1."""
    place = tmp_path_factory.mktemp("witnessed")
    other = deliver(fleet, place / "store", place / "db-2", [b"other"], "db-2")
    return place, deliver(fleet, place / "store", place / "web-1", [b"first", b"second", b"third"]) + other


@pytest.fixture
def kept(
    witnessed: tuple[Path, list[DumpId]], fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Witnessed]:
    """A store whose hosts have kept their receipts, which the test may spoil; no command leaves a descriptor behind."""
    shutil.copytree(witnessed[0], tmp_path, dirs_exist_ok=True)
    found = Witnessed(tmp_path, fleet, capsys)
    found.dumps = witnessed[1]
    before = os.listdir("/proc/self/fd")
    yield found
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.fixture
def neighbour(kept: Witnessed, tmp_path: Path) -> Path:
    """Receipts of web-1 by another receiver than that of `kept`."""
    made = make_fleet(tmp_path / "backup", receiver="backup")
    deliver(made, tmp_path / "store of backup", tmp_path / "of-backup", [b"elsewhere"])
    return tmp_path / "of-backup/receipts.jsonl"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fleet, Path]:
    """A fleet, and a store that `tell` has filled."""
    place = tmp_path_factory.mktemp("told")
    fleet = make_fleet(place / "fleet", now=NOW - 21 * DAY)
    with Chronicle(fleet, place / "store") as chronicle:
        tell(chronicle)
    return fleet, place / "store"


@pytest.fixture
def report(told: tuple[Fleet, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    """Reports of a copy of the store of `told`."""
    shutil.copytree(told[1], tmp_path / "store")
    return Report(tmp_path / "store", told[0], capsys)


@pytest.fixture
def place(own_fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    """A fleet of its own, whose store is empty."""
    (tmp_path / "place").mkdir()
    return Place(tmp_path / "place", own_fleet, capsys)


@pytest.fixture
def evidence(sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Evidence:
    """A store of two hosts, and somebody who has the root."""
    monkeypatch.delenv("SECURECORE_STORE", raising=False)
    monkeypatch.delenv("SECURECORE_ROOT", raising=False)
    return Evidence(sample, tmp_path, capsys)
