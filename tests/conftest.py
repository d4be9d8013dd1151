"""Fixtures that several parts' tests share; everything else is made where it is used."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from securecore.receiver.server import Receiver
from securecore.sender.spool import Spool, create_spool, open_spool
from tests.support.certificates import Fleet, Hierarchy, make_fleet, make_hierarchy
from tests.support.dumps import Keys, make_log_signer, make_signer
from tests.support.power import scratch
from tests.support.receivers import running_receiver
from tests.support.stages import Stage

# An example that takes long on a busy machine is no failure: nothing is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Share files out to several processes, where scripts/test asks for that."""
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.support.sharing import FileSharing

    return FileSharing(config, log)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A PKI with a receiver and two hosts, made by the real code; tests must not change its files."""
    return make_fleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def own_fleet(tmp_path: Path) -> Fleet:
    """A fleet that the test may revoke in, break and delete."""
    return make_fleet(tmp_path / "fleet")


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory in memory, where there is such a place, for tests that make a thousand stores and sync every write of each.

    That a sync was asked for counts there, not how long a disk takes for it.
    """
    path = scratch()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def hierarchy() -> Hierarchy:
    """A root and its issuing CAs in memory, for minting certificates that the real code would refuse to mint."""
    return make_hierarchy()


@pytest.fixture(scope="session")
def keys(hierarchy: Hierarchy) -> Keys:
    """The keys of a receiver's log and of a host, for stores that no receiver runs on."""
    return Keys(make_log_signer(), make_signer(hierarchy))


@pytest.fixture
def receiver(fleet: Fleet, tmp_path: Path) -> Iterator[Receiver]:
    """A running receiver with an empty store, tmp_path/store."""
    with running_receiver(fleet.receiver, tmp_path / "store") as running:
        yield running


@pytest.fixture
def stage(fleet: Fleet, receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Stage]:
    """A running receiver with an empty store, for hostile senders."""
    made = Stage(fleet, receiver, tmp_path / "store", caplog)
    yield made
    made.close()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool, tmp_path/spool."""
    create_spool(str(tmp_path / "spool"), bytes(16))
    opened = open_spool(str(tmp_path / "spool"))
    yield opened
    opened.close()
