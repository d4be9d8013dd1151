"""Hosts and crashing programs that tests of the agent share; others have hosts of their own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.receiver.server import Receiver
from securecore.sender.admission import Admission
from tests.support.agents import CRASHERS, FREE, NOWHERE
from tests.support.certificates import Fleet
from tests.support.kernel import Host, build_crasher


@pytest.fixture
def host(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> Host:
    """The first host of the fleet; it knows no storms."""
    made = Host(tmp_path / "web-1", fleet.hosts["web-1"], receiver.addresses)
    made.change(admission=Admission(program=FREE, user=FREE, host=FREE))
    return made


@pytest.fixture
def lonely(fleet: Fleet, tmp_path: Path) -> Host:
    """A host whose receiver is down."""
    made = Host(tmp_path / "lonely", fleet.hosts["web-1"], [NOWHERE])
    made.change(admission=Admission(program=FREE, user=FREE, host=FREE))
    return made


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """Where the crashers are built, and which every user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="securecore-agent-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def small(programs: Path) -> list[str]:
    """A command that crashes by SIGABRT, with 2 MiB of heap."""
    return [str(build_crasher(CRASHERS / "large-heap.c", programs)), "2"]
